"""Who captures frames on which interfaces of one switch.

All captures read the same rings, into which the workers copy what any of them wants: there is no more work nor memory
for many than for one, and none for none.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from ipvsw._fast import CAPTURE_RING
from ipvsw.changes import Changes
from ipvsw.model import Refused
from ipvsw.outcomes import OUTCOMES
from ipvsw.status import CaptureStatus

CAPTURES = 8  # of one switch
QUEUE = 65536  # what may wait for one reader
KEEPALIVE = 15.0  # seconds
WIRE, HOST, FIRST_PORT = 1, 2, 3  # tags, as datapath/mirror/ring.pxd has them


class Capture:
    """One reader's: what it must be told, first what is there already, then what has changed."""

    def __init__(self, at: str | None) -> None:
        """`at`: a port, "master" or "host"; None: all of them."""
        self.at = at
        self.descriptors: list[int] = []  # its own copy of the rings'
        self._queue: deque[CaptureStatus] = deque()
        self._ready = asyncio.Event()
        self._ended = False

    def put(self, status: CaptureStatus) -> None:
        """A reader that leaves too much is let go."""
        if len(self._queue) >= QUEUE:
            self.end()
        self._queue.append(status)
        self._ready.set()

    def end(self) -> None:
        self._ended = True
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[list[CaptureStatus]]:
        """All that there is each time; an empty list after KEEPALIVE seconds without anything."""
        while not self._ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEPALIVE):
                    await self._ready.wait()
            self._ready.clear()
            found = [*self._queue]
            self._queue.clear()
            yield found


class Captures:
    """Of one switch."""

    def __init__(
        self, switch: str, changes: Changes, numbers: Mapping[str, int], changed: Callable[[str], None]
    ) -> None:
        """`numbers` are of the attached ports. `changed` is called within a change, for each port of which `wants`
        may say something else."""
        self._switch = switch
        self._changes = changes
        self._numbers = numbers
        self._on_changed = changed
        self._tags = itertools.count(FIRST_PORT)
        self._ports: dict[str, int] = {}  # tags
        self._captures: set[Capture] = set()
        self._fd = -1

    def wants(self, port: str) -> bool:
        """Whether anybody captures what the port sends and gets; of the wire that is part of it."""
        return any(capture.at in (None, "master", port) for capture in self._captures)

    @contextlib.contextmanager
    def open(self, at: str | None, master: str) -> Iterator[Capture]:
        """As for `Capture`; `master` is the master's name. Errors: Refused, OSError."""
        if len(self._captures) >= CAPTURES:
            raise Refused(f"{self._switch}: there are {CAPTURES} captures already")
        if not self._captures:
            with self._changes.batch() as datapath:
                self._fd = datapath.open_capture()
            self._ports = {port: next(self._tags) for port in self._numbers}
        capture = Capture(at)
        head, size, _ = CAPTURE_RING
        reasons = {one.name: one.reason for one in OUTCOMES.values()}
        capture.put(CaptureStatus(event="rings", name=self._switch, head=head, size=size, outcomes=reasons))
        capture.put(self._interface(capture, "master", WIRE, master))
        capture.put(self._interface(capture, "host", HOST, f"{self._switch}/host"))
        for port, tag in self._ports.items():
            capture.put(self._interface(capture, port, tag, f"{self._switch}/{port}"))
        self._captures.add(capture)
        try:
            self._apply()
            capture.descriptors = [os.dup(self._fd)]
            yield capture
        finally:
            self._close(capture)

    def attach(self, port: str) -> None:
        """Within a change: the port is attached."""
        if self._captures:
            tag = self._ports[port] = next(self._tags)
            self._changes.datapath.capture(self._numbers[port], self._wants_frames(port), tag)
            for capture in self._captures:
                capture.put(self._interface(capture, port, tag, f"{self._switch}/{port}"))

    def end(self) -> None:
        """Of all: readers get no more."""
        for capture in [*self._captures]:
            capture.end()
            self._close(capture)

    def _close(self, capture: Capture) -> None:
        """Idempotent."""
        if capture not in self._captures:
            return
        self._captures.discard(capture)
        self._apply()
        if not self._captures:
            self._fd = -1
            with self._changes.batch() as datapath:
                datapath.close_capture()

    def _apply(self) -> None:
        with self._changes.batch() as datapath:
            datapath.capture(None, self._wants_frames("master"))
            datapath.capture("host", self._wants_frames("host"))
            for port, number in self._numbers.items():
                datapath.capture(number, self._wants_frames(port), self._ports.setdefault(port, next(self._tags)))
                self._on_changed(port)

    def _wants_frames(self, at: str) -> bool:
        return any(capture.at in (None, at) for capture in self._captures)

    def _interface(self, capture: Capture, at: str, tag: int, name: str) -> CaptureStatus:
        return CaptureStatus(event="interface", name=name, tag=tag, captured=capture.at in (None, at))
