"""The keeper: a process that holds descriptors for as long as no daemon does, so that their devices outlive a daemon.

It is run as a file by `python -I -S`, with nothing but the standard library, and has the listening socket of its
SOCK_SEQPACKET unix socket as standard input. A daemon sends one message for each request:

    put NAME        with a descriptor: hold it, in the place of another one of that name
    drop NAME       close it
    barrier         with a descriptor: close it, when everything before has been done
    take            send everything: messages "fd NAME" with a descriptor, then "end"; "busy" to a second daemon
    end             close everything and exit

It does nothing else, and never ends by itself. `ipvsw/linux/lasting/fdstore.py` is the other side.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import struct
import sys

MESSAGE_MAX = 512  # bytes
NAME_MAX = 255  # bytes
CONNECTIONS = 4
SPARE = 32  # descriptors that are left for connections and messages
PATIENCE = 5.0  # seconds that a daemon may take to receive what it asks for


class Keeper:
    """What is held, and who is connected."""

    def __init__(self, listener: socket.socket, limit: int) -> None:
        """It holds at most `limit` descriptors."""
        self._listener = listener
        self._limit = limit
        self._held: dict[str, int] = {}
        self._connections: dict[int, socket.socket] = {}
        self._daemon: socket.socket | None = None  # that has taken what there is
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def run(self) -> None:
        """Until a daemon says "end"."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._connections and not self._receive(self._connections[fd]):
                    return

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has left already
            return
        _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()) or len(self._connections) >= CONNECTIONS:
            connection.close()
            return
        connection.settimeout(PATIENCE)
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.POLLIN)

    def _receive(self, connection: socket.socket) -> bool:
        """One message. False: the keeper is to end."""
        fds: list[int] = []
        try:
            data, fds, flags, _ = socket.recv_fds(connection, MESSAGE_MAX, 1)
            if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ConnectionError
            if data == b"end":
                return False
            self._do(connection, data.decode(), fds)
        except (OSError, ValueError):  # it is gone, or says what no daemon says
            self._forget(connection)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _do(self, connection: socket.socket, message: str, fds: list[int]) -> None:
        """Descriptors that are left in `fds` are closed. Errors: OSError, ValueError."""
        word, _, name = message.partition(" ")
        if word == "put" and name and len(name) <= NAME_MAX and len(fds) == 1:
            self._drop(name)
            if len(self._held) >= self._limit:
                raise ValueError
            self._held[name] = fds.pop()
        elif word == "drop":
            self._drop(name)
        elif word == "take":
            self._give(connection)
        elif word != "barrier":
            raise ValueError

    def _drop(self, name: str) -> None:
        fd = self._held.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def _give(self, connection: socket.socket) -> None:
        if self._daemon not in (None, connection):  # what it has sent may not all be done
            connection.send(b"busy")
            return
        self._daemon = connection
        for name, fd in self._held.items():
            socket.send_fds(connection, [f"fd {name}".encode()], [fd])
        connection.send(b"end")

    def _forget(self, connection: socket.socket) -> None:
        self._poll.unregister(connection)
        del self._connections[connection.fileno()]
        if self._daemon is connection:
            self._daemon = None
        connection.close()


def main() -> int:
    listener = socket.socket(fileno=os.dup(0))
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    Keeper(listener, soft - SPARE).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
