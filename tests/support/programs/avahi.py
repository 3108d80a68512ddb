"""avahi-daemon in a namespace, with a bus and files in /run of its own, and avahi-resolve beside it."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.support.patience import LIMIT, until
from tests.support.topology import exec_in

_CONFIG = """
[server]
host-name={name}
allow-interfaces={device}
use-ipv4=yes
use-ipv6=yes
[wide-area]
enable-wide-area=no
[publish]
publish-workstation=no
publish-hinfo=no
"""
_START = """
mount -t tmpfs avahi /run && mkdir /run/dbus /run/avahi-daemon
dbus-daemon --system --nofork --nopidfile & bus=$!
until [ -S /run/dbus/system_bus_socket ]; do kill -0 $bus || exit 1; sleep 0.05; done
exec avahi-daemon --no-drop-root --no-rlimits --no-chroot --no-proc-title -f "$0"
"""


class Avahi:
    """NAME.local in `netns`, on `device`. A context manager."""

    def __init__(self, netns: str, device: str, name: str) -> None:
        self.name = name
        self._directory = tempfile.TemporaryDirectory(prefix="ivt")
        self._config = Path(self._directory.name, "avahi.conf")
        self._config.write_text(_CONFIG.format(name=name, device=device))
        self._log = Path(self._directory.name, "log")
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        alone += ["sh", "-c", _START, str(self._config)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(exec_in(netns, *alone), stdout=log, stderr=log)

    def __enter__(self) -> Avahi:
        try:
            until(lambda: b"Server startup complete" in self._log.read_bytes(), f"avahi runs as {self.name}")
        except AssertionError as error:
            self.close()
            raise AssertionError(f"{error}: {self._log.read_text()}") from None
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()  # and with it all of its pid namespace
        self._process.wait()
        self._directory.cleanup()

    def resolve(self, name: str, version: int) -> str:
        """The address of NAME.local, "" if nobody says."""
        child = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0]
        done = subprocess.run(
            ["nsenter", f"--target={child}", "--mount", "--net", "avahi-resolve", f"-{version}", "-n", f"{name}.local"],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        return done.stdout.split()[-1] if done.stdout.split() else ""
