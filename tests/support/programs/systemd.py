"""As much of systemd as keeps a service's descriptors: sd_notify(3) and sd_listen_fds(3)."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from tests.support.patience import LIMIT


def control_groups() -> Path | None:
    """Where the unified hierarchy is mounted, alone or beside others: the mount that covers earlier ones."""
    fields = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return next((Path(one[4]) for one in reversed(fields) if one[one.index("-") + 1] == "cgroup2"), None)


class Systemd:
    """Its notification socket at `path`, and what it has stored by name."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(LIMIT)
        self.environment = {"NOTIFY_SOCKET": str(path)}
        self.stored: dict[str, int] = {}

    def receive(self) -> dict[str, str]:
        """One message. Errors: OSError when the socket is closed."""
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
        message = dict(line.split("=", 1) for line in data.decode().splitlines())
        if message.get("FDSTORE") == "1":
            assert message["FDPOLL"] == "0"
            (self.stored[message["FDNAME"]],) = fds
        elif message.get("FDSTOREREMOVE") == "1":
            os.close(self.stored.pop(message["FDNAME"]))
        else:
            for fd in fds:
                os.close(fd)
        return message

    def serve(self) -> None:
        """Receive until the socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                self.receive()

    def start(self, command: list[str]) -> tuple[list[str], dict[str, str], list[int]]:
        """A command that passes on what is stored, its environment, and descriptors that it must inherit and that are
        the caller's to close."""
        high = [os.dup(fd) for fd in self.stored.values()]
        moves = "".join(f" {3 + place}<&{fd}" for place, fd in enumerate(high))
        environment = {"LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": ":".join(self.stored), "FDSTORE": "4096"}
        script = f'export LISTEN_PID=$$; exec "$@"{moves}'
        return ["bash", "-c", script, "service", *command], environment | self.environment, high

    def close(self) -> None:
        """The service is stopped: nothing is stored any more."""
        self.socket.shutdown(socket.SHUT_RD)
        self.socket.close()
        for fd in self.stored.values():
            os.close(fd)
        self.stored.clear()
