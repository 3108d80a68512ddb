"""A record that is replaced as a whole and survives its writer: in two memfds, written in turn.

Each has a header, then the content. A writer that is killed in the middle leaves a copy whose checksum is wrong, and
the other one as it was.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from hashlib import blake2b

from ipvsw.linux.lasting.fdstore import FdStore

MAGIC = b"ipvsw-1\n"
COPIES = 2
_HEADER = struct.Struct("=8sQQ16s")  # magic, how often it was written before, length of the content, checksum
CONTENT_MAX = 1 << 28  # bytes


class Record:
    """Held under the names NAME-0 and NAME-1. `found` is what the last daemon has written, None if there was none."""

    def __init__(self, name: str, store: FdStore, held: Mapping[str, int]) -> None:
        """`held` are the descriptors that the store had, of which this record takes its own. Errors: OSError."""
        self.found: bytes | None = None
        self._fds: list[int] = []
        self._count = 0  # of the next writing
        for copy in range(COPIES):
            held_name = f"{name}-{copy}"
            if held_name in held:
                self._fds.append(held[held_name])
            else:
                self._fds.append(os.memfd_create(f"ipvsw-{held_name}", os.MFD_CLOEXEC))
                store.put(held_name, self._fds[-1])
            count, content = _read(self._fds[-1])
            if count >= self._count:
                self._count, self.found = count + 1, content
        self._content = self.found

    def write(self, content: bytes) -> None:
        """Nothing happens if it says that already. Errors: OSError."""
        if content == self._content:
            return
        fd = self._fds[self._count % COPIES]
        whole = _HEADER.pack(MAGIC, self._count, len(content), _checksum(self._count, content)) + content
        if os.pwrite(fd, whole, 0) < len(whole):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        os.truncate(fd, len(whole))
        self._count, self._content = self._count + 1, content

    def close(self) -> None:
        """What is held stays held."""
        for fd in self._fds:
            os.close(fd)


def _checksum(count: int, content: bytes) -> bytes:
    return blake2b(count.to_bytes(8, "big") + content, digest_size=16).digest()


def _read(fd: int) -> tuple[int, bytes | None]:
    """Which writing it was, from 0, and what it said; -1, None if it isn't whole."""
    size = os.fstat(fd).st_size
    if _HEADER.size <= size <= CONTENT_MAX:
        copy = os.pread(fd, size, 0)
        magic, count, length, checksum = _HEADER.unpack_from(copy)
        content = copy[_HEADER.size : _HEADER.size + length]
        if magic == MAGIC and len(content) == length and checksum == _checksum(count, content):
            return count, content
    return -1, None
