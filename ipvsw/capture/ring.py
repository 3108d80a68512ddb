"""The rings in which the data plane's workers copy frames; datapath/mirror/ring.pxd is the other side.

A reader only reads. The writer overwrites the oldest records: what is copied here counts only if the writer has not
come that way meanwhile.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

RECORD = struct.Struct("=IIQIIIhBB10s6x")
PADDING = 0xFFFFFFFF
WIRE, HOST = 1, 2  # tags of interfaces that are no ports
VOID, RX, TX = range(3)  # directions, as the switch sees them
AGAIN = 1
HELD = -1  # in the place of an outcome


class Captured(NamedTuple):
    """One frame."""

    time: int  # ns since the epoch
    interface: int  # a tag
    peer: int  # the tag of the interface that it goes to or came from; 0: several, or none
    outcome: int  # of a frame that was read, or HELD
    direction: int
    again: bool  # it was held before
    header: bytes  # its virtio_net_hdr
    frame: bytes


class Ring:
    """One worker's."""

    def __init__(self, memory: memoryview, size: int) -> None:
        """`memory` begins with the ring's head; `size` is that of the ring alone, which is at its end."""
        self.lost = 0  # records that were overwritten before they were read
        self._ends = memory[:24].cast("Q")  # tail, reserved, the number of the record that will be at the tail
        self._ring = memory[len(memory) - size :]
        self._size = size
        self._at, self._number = self._ends[0], self._ends[2]  # of the next record

    def read(self) -> Iterator[Captured]:
        """What has come since the last call."""
        tail = self._ends[0]
        while self._at < tail:
            start = self._at % self._size
            end = min(start + tail - self._at, self._size)
            data = bytes(self._ring[start:end])
            if self._ends[1] - self._at > self._size:
                self._at = self._ends[0]  # nothing of it can be trusted: go on with what comes next
                self._expect(self._ends[2])
                return
            self._at += len(data)
            yield from self._records(data)

    def _records(self, data: bytes) -> Iterator[Captured]:
        at, end = 0, len(data)
        unpack, head = RECORD.unpack_from, RECORD.size
        while at < end:
            if data[at + 4 : at + 8] == b"\xff\xff\xff\xff":  # PADDING, which may be shorter than a record
                return
            length, size, time, number, interface, peer, outcome, direction, flags, header = unpack(data, at)
            self._expect(number)
            self._number += 1
            if direction != VOID:
                frame = data[at + head : at + head + size]
                yield Captured(time, interface, peer, outcome, direction, flags & AGAIN != 0, header, frame)
            at += length

    def _expect(self, number: int) -> None:
        """That of the next record. Those between are lost; if the ring's head was ahead of its tail, fewer than it
        said."""
        self.lost += (number - self._number + 0x80000000) % 0x100000000 - 0x80000000
        self._number = number


class Rings:
    """Of all workers."""

    def __init__(self, fd: int, *, head: int, size: int) -> None:
        """`fd`, which stays the caller's, has rings of `size` bytes, each after `head` bytes. Errors: OSError."""
        self._memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        self._view = memoryview(self._memory)
        whole = head + size
        self._rings = [Ring(self._view[at : at + whole], size) for at in range(0, len(self._memory), whole)]

    @property
    def lost(self) -> int:
        return sum(ring.lost for ring in self._rings)

    def read(self) -> Iterator[Captured]:
        """What has come since the last call, in the order in which it came."""
        if len(self._rings) == 1:
            return self._rings[0].read()
        return iter(sorted((one for ring in self._rings for one in ring.read()), key=lambda one: one.time))
