"""The keeper as a holder of descriptors: found at its socket, or started. `daemon/keeper.py` is the process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import subprocess
import time
from collections.abc import Sequence

from ipvsw.linux.devices.unix import bind, reach_or_close, remove
from ipvsw.linux.lasting.fdstore import FdStore, close_all
from ipvsw.linux.peercred import peer_of

log = logging.getLogger("ipvsw")

PATIENCE = 2.0  # seconds that a keeper may take for what it is told
BUSY = 2.0, 0.02  # seconds that a daemon may take to be gone after it was killed, and between two attempts
MESSAGE_MAX = 512  # bytes
BACKLOG = 16
REPLACE = 0.05, 100  # seconds between two attempts to replace a keeper, and how many


class KeeperStore(FdStore):
    """`command` runs a keeper, with its listening socket as standard input; `path` is the file of that socket."""

    def __init__(self, path: str, command: Sequence[str]) -> None:
        super().__init__()
        self.path = path
        self._command = command
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None  # if this daemon has started it
        self._identity: tuple[int, int] | None = None  # of the socket's file, as soon as it is known
        self._replacing: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------ life

    def take(self) -> dict[str, int]:
        """A keeper is started if none runs."""
        deadline = time.monotonic() + BUSY[0]
        while True:
            self._connection = self._connect()
            if self._connection is None:
                self._start_keeper()
            found = self._take()
            if found is not None:
                self._held = dict(found)
                return found
            self._lose()
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"{self.path}: another ipvswd has the ports")
            time.sleep(BUSY[1])

    def _take(self) -> dict[str, int] | None:
        """None: another daemon is connected, perhaps one that was killed this moment. Errors: OSError."""
        assert self._connection is not None
        found: dict[str, int] = {}
        with contextlib.suppress(ConnectionError):  # so many are connected already
            self._connection.send(b"take")
            while True:
                data, fds, _, _ = socket.recv_fds(self._connection, MESSAGE_MAX, 1)
                word, _, name = data.decode().partition(" ")
                if word == "end":
                    return found
                if word != "fd":
                    break
                os.set_inheritable(fds[0], False)
                found[name] = fds[0]
        close_all(found)
        return None

    def start(self) -> None:
        self._watch()

    def end(self) -> None:
        """Returns when the keeper has closed everything."""
        self._stop_replacing()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._held.clear()
        self._unwatch(connection)
        try:
            connection.send(b"end")
            connection.recv(1)
        except OSError as error:
            log.warning("the keeper does not end: %s", error)
        connection.close()
        if self._process is not None:
            self._process.wait(PATIENCE)
        if self._identity is not None:
            remove(self.path, self._identity)

    def close(self) -> None:
        self._stop_replacing()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._unwatch(connection)
            connection.close()

    def _stop_replacing(self) -> None:
        if self._replacing is not None:
            self._replacing.cancel()
            self._replacing = None

    # ------------------------------------------------------------------------ the process

    def _connect(self) -> socket.socket | None:
        """To a keeper that runs already, None if none does. Errors: OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(PATIENCE)
        found = reach_or_close(connection, self.path)
        if found is None:
            return None
        if not peer_of(connection).is_master:
            connection.close()
            return None
        self._identity = found
        return connection

    def _start_keeper(self) -> None:
        """Errors: OSError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            self._identity = bind(listener, self.path, mode=0o600)
            listener.listen(BACKLOG)
            self._process = subprocess.Popen(
                self._command, stdin=listener.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
            )
        self._connection = self._connect()
        if self._connection is None:
            raise OSError(errno.ECONNREFUSED, f"{self.path}: the keeper does not run")

    def _watch(self) -> None:
        if self._connection is not None:
            asyncio.get_running_loop().add_reader(self._connection.fileno(), self._keeper_ended)

    def _unwatch(self, connection: socket.socket) -> None:
        with contextlib.suppress(RuntimeError):  # there is no loop yet
            asyncio.get_running_loop().remove_reader(connection.fileno())

    def _keeper_ended(self) -> None:
        """A keeper never ends by itself: it was killed."""
        log.warning("the keeper of the ports' descriptors has ended: another one is started")
        self._lose()
        self._replace(REPLACE[1])

    def _replace(self, attempts: int) -> None:
        """Another one gets copies of everything. The first may not be quite gone yet."""
        self._replacing = None
        if self._process is not None:
            self._process.poll()
        try:
            self._start_keeper()
            self._take()
        except OSError as error:
            self._lose()
            if attempts:
                loop = asyncio.get_running_loop()
                self._replacing = loop.call_later(REPLACE[0], self._replace, attempts - 1)
            else:
                log.error("there is no keeper, ports end with this daemon: %s", error.strerror or error)
            return
        for name, fd in self._held.items():
            self._send(f"put {name}", fd)
        self._watch()

    def _lose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._unwatch(connection)
            connection.close()

    def _send(self, message: str, fd: int = -1) -> None:
        if self._connection is None:
            return
        try:
            if fd < 0:
                self._connection.send(message.encode())
            else:
                socket.send_fds(self._connection, [message.encode()], [fd])
        except OSError as error:
            log.warning("the keeper does not hold the ports' descriptors: %s", error)
            self._lose()
