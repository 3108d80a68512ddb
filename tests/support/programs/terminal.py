"""A terminal, for what is drawn on one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from tests.support.patience import LIMIT, until

ROOT = Path(__file__).resolve().parents[3]


class Terminal:
    """Shows `ipvsw top`, 80 by 24."""

    def __init__(self, socket: Path) -> None:
        """`socket` is the daemon's."""
        self.master, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        program = "import sys; from ipvsw.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "--socket", str(socket), "top", "--interval", "0.1"]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True
        )
        os.close(inside)
        self.shown = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.master, 65536):
                self.shown += data
        except OSError:  # the other end is closed
            pass

    def wait(self, text: str) -> None:
        until(lambda: text.encode() in self.shown, f"{text} is shown: {self.shown[-2000:]!r}")

    def last(self) -> bytes:
        """The last drawing that is whole, from the first line's words on."""
        return self.shown.split(b"interfaces by")[-2:][0]

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(LIMIT)
        os.close(self.master)
