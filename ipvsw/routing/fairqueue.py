"""Frames that wait for the router: a queue for each port, and one destination of each in turn. Pure: time is told.

Ports share the room: each may hold as much as is left free, so that one alone gets half of it and many get equal
parts, and there is always room for one that holds nothing (Choudhury and Hahne, "Dynamic queue length thresholds for
shared-memory packet switches", 1998). What has waited too long is of no use to its sender any more, who has sent it
again or given up.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

from msgspec import Struct

from ipvsw.model import Address


class Turn(Struct, frozen=True):
    """Frames of one port to one destination, in their order."""

    port: int
    source: Address  # of the first of them
    destination: Address
    frames: tuple[bytes, ...]


class _Frame(Struct, frozen=True):
    frame: bytes
    source: Address
    since: float  # seconds


class _PortQueue:
    """One port's frames, by destination: the destination that comes first has its turn first."""

    def __init__(self) -> None:
        self.destinations: OrderedDict[Address, deque[_Frame]] = OrderedDict()
        self.frames = 0
        self.octets = 0


class FairQueue:
    """At most `frames` frames of `octets` bytes in all; a frame stays for `patience` seconds."""

    def __init__(self, *, frames: int, octets: int, patience: float) -> None:
        self.counters: Counter[str] = Counter()  # frames that were dropped, by reason
        self.frames = 0
        self.octets = 0
        self._max_frames, self._max_octets, self._patience = frames, octets, patience
        self._ports: OrderedDict[int, _PortQueue] = OrderedDict()  # the one whose turn it is first

    def __bool__(self) -> bool:
        return self.frames > 0

    def put(self, port: int, source: Address, destination: Address, frame: bytes, now: float) -> bool:
        """Whether there was room."""
        queue = self._ports.get(port)
        held_frames, held_octets = (queue.frames, queue.octets) if queue is not None else (0, 0)
        if held_frames >= self._max_frames - self.frames or (held_octets + len(frame) > self._max_octets - self.octets):
            self.counters["drop_backlog"] += 1
            return False
        if queue is None:
            queue = self._ports[port] = _PortQueue()
        queue.destinations.setdefault(destination, deque()).append(_Frame(frame, source, now))
        self._count(queue, 1, len(frame))
        return True

    def take(self, turns: int, octets: int, now: float) -> list[Turn]:
        """The next so many destinations, or as few as have that many bytes: at least one turn if anything is fresh.

        A turn has no more bytes than `octets` either, or one frame; what is left of it waits for the port's next one
        behind the port's other destinations.
        """
        taken: list[Turn] = []
        while self._ports and len(taken) < turns and octets > 0:
            port, queue = self._ports.popitem(last=False)
            destination, waiting = queue.destinations.popitem(last=False)
            fresh = list(self._fresh(queue, waiting, octets, now))
            if waiting:
                queue.destinations[destination] = waiting
            if queue.destinations:
                self._ports[port] = queue
            if fresh:
                octets -= sum(len(one.frame) for one in fresh)
                taken.append(Turn(port, fresh[0].source, destination, tuple(one.frame for one in fresh)))
        return taken

    def _fresh(self, queue: _PortQueue, waiting: deque[_Frame], octets: int, now: float) -> Iterator[_Frame]:
        while waiting and octets > 0:
            one = waiting.popleft()
            self._count(queue, -1, -len(one.frame))
            if now - one.since > self._patience:
                self.counters["drop_stale"] += 1
            else:
                octets -= len(one.frame)
                yield one

    def _count(self, queue: _PortQueue, frames: int, octets: int) -> None:
        queue.frames += frames
        queue.octets += octets
        self.frames += frames
        self.octets += octets
