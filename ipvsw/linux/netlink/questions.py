"""A socket for questions to rtnetlink that are written and read by hand."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_DUMP = 0x1, 0x4, 0x100, 0x300

_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_INT = struct.Struct("=i")
_BUFFER = 64 << 10  # bytes; the kernel fills no more than 32 KiB of it at a time


class Questions:
    """Questions in the namespace that the calling thread is in. Keeps that namespace alive.

    Any thread may ask and close; one question is answered after the other. Errors: OSError, EBADF once it is closed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Idempotent. Waits for the question that is under way."""
        with self._lock:
            self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """The bodies of the messages that answer: one, all of a dump, or none to a change. Errors: OSError."""
        with self._lock:
            self._sequence += 1
            header = _NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
            self._socket.send(header + body)
            found: list[bytes] = []
            while True:
                for kind, answer in self._receive():
                    if kind == NLMSG_ERROR and (code := -_INT.unpack_from(answer)[0]):
                        raise OSError(code, os.strerror(code))
                    if kind in (NLMSG_ERROR, NLMSG_DONE):
                        return found
                    found.append(answer)
                if found and not flags & (NLM_F_ACK | NLM_F_DUMP):
                    return found

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        """Type and body of the messages of one datagram that answer the last question."""
        data = self._socket.recv(_BUFFER)
        start = 0
        while start + _NLMSGHDR.size <= len(data):
            length, kind, _, sequence, _ = _NLMSGHDR.unpack_from(data, start)
            if sequence == self._sequence:
                yield kind, data[start + _NLMSGHDR.size : start + length]
            start += (length + 3) & ~3
