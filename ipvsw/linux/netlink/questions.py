"""A socket for questions to rtnetlink that are written and read by hand."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

from ipvsw.linux.netlink.messages import attributes

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x200, 0x300, 0x400
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11

_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_INT = struct.Struct("=i")
_CHANGES = 64  # that are sent together: their answers find room in the socket's buffer
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
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
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

    def change(self, kind: int, flags: int, bodies: Sequence[bytes]) -> list[tuple[int, str]]:
        """Many changes, one after the other, many at a time: the errno of each, 0 if it was made, and the kernel's
        words, if it has any. Errors: OSError."""
        found: list[tuple[int, str]] = []
        with self._lock:
            for start in range(0, len(bodies), _CHANGES):
                found += self._change(kind, flags | NLM_F_REQUEST | NLM_F_ACK, bodies[start : start + _CHANGES])
        return found

    def change_one(self, kind: int, flags: int, body: bytes) -> None:
        """One change. Errors: OSError, with the kernel's words."""
        ((code, words),) = self.change(kind, flags, [body])
        if code:
            raise OSError(code, words or os.strerror(code))

    def _change(self, kind: int, flags: int, bodies: Sequence[bytes]) -> list[tuple[int, str]]:
        first = self._sequence + 1
        self._sequence += len(bodies)
        self._socket.send(
            b"".join(
                _NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags, first + at, 0) + body
                for at, body in enumerate(bodies)
            )
        )
        found: dict[int, tuple[int, str]] = {}
        while len(found) < len(bodies):
            for kind, given, sequence, answer in self._messages():
                if kind == NLMSG_ERROR and sequence >= first:
                    found[sequence] = -_INT.unpack_from(answer)[0], _words(answer) if given & NLM_F_ACK_TLVS else ""
        return [found[first + at] for at in range(len(bodies))]

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        """Type and body of the messages of one datagram that answer the last question."""
        for kind, _, sequence, body in self._messages():
            if sequence == self._sequence:
                yield kind, body

    def _messages(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, sequence number and body of each message of one datagram."""
        data = self._socket.recv(_BUFFER)
        start = 0
        while start + _NLMSGHDR.size <= len(data):
            length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, start)
            yield kind, flags, sequence, data[start + _NLMSGHDR.size : start + length]
            start += (length + 3) & ~3


def _words(answer: bytes) -> str:
    """What the kernel says of an error (NLMSGERR_ATTR_MSG), behind a struct nlmsgerr without the request's body."""
    return attributes(answer, _INT.size + _NLMSGHDR.size).get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode()
