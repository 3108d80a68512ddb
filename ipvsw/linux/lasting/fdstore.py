"""Descriptors that outlive the daemon: who holds copies of them, and how copies get there and back.

A TAP lives for as long as somebody has its descriptor open. So a holder of a copy holds the port: the next
daemon takes the copies and goes on with the same devices. systemd holds them for a service that has a store
(FileDescriptorStoreMax, sd_notify(3)); everywhere else a keeper does, see `keeperstore`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ipvsw.batch import Batcher

log = logging.getLogger("ipvsw")

PREFIX = "ipvsw-"  # of our names in systemd's store, where others may be
LISTEN_FDS_START = 3  # sd_listen_fds(3)
# systemd may be sending SIGTERM to every process of the service just now.
LIST_JOBS = ("sh", "-c", "trap '' TERM; exec systemctl list-jobs --no-legend --no-pager")
BARRIER = 5.0  # seconds after which a holder that does not answer is not waited for


class FdStore(ABC):
    """One holder. Names have at most 200 printable ASCII characters and no colon.

    A holder is told what to do and does not answer; `drop` waits, because a device is gone only when the last copy of
    its descriptor is closed.
    """

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._dropping = Batcher(self._drop_all)

    @property
    def held(self) -> Mapping[str, int]:
        """The descriptors of this process whose copies are held, by name."""
        return self._held

    @abstractmethod
    def take(self) -> dict[str, int]:
        """Everything that is held, by name; it stays held, and the descriptors are the caller's. Called once and first.
        Errors: OSError, EBUSY if another daemon has it."""

    def start(self) -> None:  # noqa: B027
        """The loop runs from now on."""

    def put(self, name: str, fd: int) -> None:
        """Hold a copy of `fd`, in the place of what had that name; `fd` must stay open until `drop`."""
        if name in self._held:
            self._send(f"drop {name}")
        self._held[name] = fd
        self._send(f"put {name}", fd)

    def forget(self, name: str) -> bool:
        """Have the copy closed that has this name; whether there was one. It is not waited for."""
        if name not in self._held:
            return False
        del self._held[name]
        self._send(f"drop {name}")
        return True

    async def drop(self, name: str) -> None:
        """As `forget`; returns when no copy is held any more."""
        if self.forget(name):
            await self._dropping.ask(name)

    async def _drop_all(self, names: Sequence[str]) -> None:
        """Wait until everything has been done that was sent."""
        loop = asyncio.get_running_loop()
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        passed = asyncio.Event()
        loop.add_reader(ours, passed.set)
        try:
            self._send("barrier", theirs)
            os.close(theirs)
            theirs = -1
            await asyncio.wait_for(passed.wait(), BARRIER)
        except TimeoutError:
            log.warning("the holder of the ports' descriptors does not answer")
        finally:
            loop.remove_reader(ours)
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)

    @abstractmethod
    def _send(self, message: str, fd: int = -1) -> None:
        """A keeper's message. What goes wrong is logged."""

    @abstractmethod
    def end(self) -> None:
        """Nothing is to be held any more: the daemon ends in good order."""

    def is_followed(self) -> bool:
        """Whether the daemon is asked to end because another one is to follow at once."""
        return False

    def close(self) -> None:  # noqa: B027
        """The daemon ends; what is held stays held."""


class SystemdStore(FdStore):
    """Of a service that systemd runs."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Reads NOTIFY_SOCKET, LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES."""
        super().__init__()
        self._environment = environment
        self._refused = False

    def take(self) -> dict[str, int]:
        """Of what systemd has passed that is ours; a socket that it listens on for us is not."""
        if self._environment.get("LISTEN_PID") != str(os.getpid()):
            return {}
        count = int(self._environment.get("LISTEN_FDS", "0"))
        names = self._environment.get("LISTEN_FDNAMES", "").split(":")
        fds = range(LISTEN_FDS_START, LISTEN_FDS_START + count)
        passed = zip(names, fds, strict=False)
        found = {name.removeprefix(PREFIX): fd for name, fd in passed if name.startswith(PREFIX)}
        for fd in found.values():
            os.set_inheritable(fd, False)
        self._held = dict(found)
        return found

    def _send(self, message: str, fd: int = -1) -> None:
        word, _, name = message.partition(" ")
        lines = {
            # Without FDPOLL=0 systemd drops what polls with an error, as a packet socket does whose device is down.
            "put": f"FDSTORE=1\nFDPOLL=0\nFDNAME={PREFIX}{name}",
            "drop": f"FDSTOREREMOVE=1\nFDNAME={PREFIX}{name}",
            "barrier": "BARRIER=1",
        }
        try:
            notify(self._environment, lines[word], fd)
        except OSError as error:
            if not self._refused:
                log.warning("systemd does not hold the ports' descriptors: %s", error.strerror)
            self._refused = True

    def is_followed(self) -> bool:
        """systemd sends SIGTERM for a restart too, and keeps the store then: its job tells. Blocks for a moment."""
        try:
            groups = Path("/proc/self/cgroup").read_text().splitlines()
            unit = next((name for line in groups if (name := line.rpartition("/")[2]).endswith(".service")), None)
            jobs = subprocess.run(LIST_JOBS, capture_output=True, text=True, timeout=BARRIER, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("systemd does not say whether this is a restart: %s", error)
            return False
        return any(line.split()[1:3] == [unit, "restart"] for line in jobs.splitlines())

    def end(self) -> None:
        for name in self._held:
            self._send(f"drop {name}")
        self._held.clear()


class NoStore(FdStore):
    """Nobody holds anything: ports end with the daemon."""

    def take(self) -> dict[str, int]:
        return {}

    def put(self, name: str, fd: int) -> None:
        pass

    def _send(self, message: str, fd: int = -1) -> None:
        pass

    def end(self) -> None:
        pass


def notify(environment: Mapping[str, str], state: str, fd: int = -1) -> None:
    """Tell systemd, if it has started us (sd_notify(3)). Errors: OSError."""
    path = environment.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        if fd < 0:
            sock.send(state.encode())
        else:
            socket.send_fds(sock, [state.encode()], [fd])


def close_all(fds: Mapping[str, int]) -> None:
    """Close what `take` has given."""
    close_fds(fds.values())


def close_fds(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
