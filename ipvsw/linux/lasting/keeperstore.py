"""The keeper as a holder of descriptors: found at its socket, or started. `daemon/keeper.py` is the process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence

from ipvsw.linux.devices.unix import bind, reach_or_close, remove
from ipvsw.linux.lasting.fdstore import FdStore, close_all
from ipvsw.linux.peercred import peer_of

log = logging.getLogger("ipvsw")

ANSWER = 30.0  # seconds that a keeper may take to start, or to close everything, on a machine that is busy
PATIENCE = 2.0  # seconds that a keeper may take for what it is told
BUSY = 2.0, 0.02  # seconds that a daemon may take to be gone after it was killed, and between two attempts
MESSAGE_MAX = 512  # bytes
BACKLOG = 16
REPLACE = 0.05, 100  # seconds between two attempts to reach a keeper or start one, and how many


class KeeperStore(FdStore):
    """`command` runs a keeper, with its listening socket as standard input; `path` is the file of that socket."""

    def __init__(self, path: str, command: Sequence[str]) -> None:
        super().__init__()
        self.path = path
        self._command = command
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None  # if this daemon has started it
        self._identity: tuple[int, int] | None = None  # of the socket's file, as soon as it is known
        self._reaching: threading.Thread | None = None  # a keeper again, after one was lost
        self._arrived: socket.socket | None = None  # what that has brought
        self._ended = False

    # ------------------------------------------------------------------------ life

    def take(self) -> dict[str, int]:
        """A keeper is started if none runs."""
        deadline = time.monotonic() + BUSY[0]
        while True:
            reached = self._reach()
            if reached is not None:
                self._connection, found = reached
                self._held = dict(found)
                return found
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"{self.path}: another ipvswd has the ports")
            time.sleep(BUSY[1])

    def start(self) -> None:
        self._watch()

    def end(self) -> None:
        """Returns when the keeper has closed everything."""
        self._stop_reaching()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._held.clear()
        self._unwatch(connection)
        try:
            connection.settimeout(ANSWER)
            connection.send(b"end")
            connection.recv(1)
        except OSError as error:
            log.warning("the keeper does not end: %s", error)
        connection.close()
        self._end_process(PATIENCE)

    def close(self) -> None:
        self._stop_reaching()
        self._lose()

    # ------------------------------------------------------------------------ the process

    def _reach(self) -> tuple[socket.socket, dict[str, int]] | None:
        """A keeper, started if none runs, and what it holds; None if another daemon is connected, perhaps one that was
        killed this moment. Errors: OSError; a keeper that was started for nothing is gone then."""
        connection = self._connect() or self._start_keeper()
        try:
            found = self._take(connection)
        except OSError:
            connection.close()
            if self._process is not None:
                self._end_process()
            raise
        if found is None:
            connection.close()
            return None
        connection.settimeout(PATIENCE)
        return connection, found

    def _connect(self) -> socket.socket | None:
        """To a keeper that runs already, None if none does. Errors: OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(ANSWER)
        found = reach_or_close(connection, self.path)
        if found is None:
            return None
        if not peer_of(connection).is_master:
            connection.close()
            return None
        self._identity = found
        return connection

    def _start_keeper(self) -> socket.socket:
        """Errors: OSError."""
        if self._process is not None:
            self._process.poll()  # it was killed
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            self._identity = bind(listener, self.path, mode=0o600)
            listener.listen(BACKLOG)
            self._process = subprocess.Popen(
                self._command, stdin=listener.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
            )
        connection = self._connect()
        if connection is None:
            self._end_process()
            raise OSError(errno.ECONNREFUSED, f"{self.path}: the keeper does not run")
        return connection

    def _take(self, connection: socket.socket) -> dict[str, int] | None:
        """None: another daemon has taken it. Errors: OSError."""
        found: dict[str, int] = {}
        try:
            connection.send(b"take")
            while True:
                data, fds, _, _ = socket.recv_fds(connection, MESSAGE_MAX, 1)
                word, _, name = data.decode().partition(" ")
                if word == "end":
                    return found
                if word != "fd":
                    break
                os.set_inheritable(fds[0], False)
                found[name] = fds[0]
        except ConnectionError:  # so many are connected already
            pass
        except OSError:
            close_all(found)
            raise
        close_all(found)
        return None

    def _end_process(self, patience: float = 0) -> None:
        """Of the keeper, if this daemon has started it: it has so many seconds to end by itself. And the file of its
        socket."""
        if self._process is not None:
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._identity is not None:
            remove(self.path, self._identity)
            self._identity = None

    # ------------------------------------------------------------------------ a keeper that is lost

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
        self._reach_again()

    def _send(self, message: str, fd: int = -1) -> None:
        if self._connection is None:
            return
        try:
            if fd < 0:
                self._connection.send(message.encode())
            else:
                socket.send_fds(self._connection, [message.encode()], [fd])
        except OSError as error:
            log.warning("the keeper of the ports' descriptors does not listen: %s", error)
            self._lose()
            self._reach_again()

    def _lose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._unwatch(connection)
            connection.close()

    def _reach_again(self) -> None:
        """Beside the loop, because a keeper that has to be started may take long."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # there is none yet
            return
        self._stop_reaching()
        self._ended = False
        self._reaching = threading.Thread(target=self._reach_until_reached, args=(loop,), daemon=True)
        self._reaching.start()

    def _reach_until_reached(self, loop: asyncio.AbstractEventLoop) -> None:
        """A keeper that was killed may not be quite gone yet, nor know yet that a connection has ended."""
        reason: object = "another ipvswd has the ports"
        for _ in range(REPLACE[1]):
            if self._ended:
                return
            try:
                reached = self._reach()
            except OSError as error:
                reason = error.strerror or error
            else:
                if reached is not None:
                    self._arrived, copies = reached
                    close_all(copies)
                    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                        loop.call_soon_threadsafe(self._reached)
                    return
            time.sleep(REPLACE[0])
        log.error("there is no keeper, ports end with this daemon: %s", reason)

    def _reached(self) -> None:
        """The keeper gets copies of everything."""
        self._connection, self._arrived = self._arrived, None
        for name, fd in self._held.items():
            self._send(f"put {name}", fd)
        self._watch()

    def _stop_reaching(self) -> None:
        self._ended = True
        if self._reaching is not None:
            self._reaching.join()
            self._reaching = None
        if self._arrived is not None:
            self._connection, self._arrived = self._arrived, None
