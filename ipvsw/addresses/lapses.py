"""Addresses that ports have just lost. What was sent from one before may still be in the queue of the port's device, so
for a moment the guards take it for the port's, as long as nobody else has it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import takewhile

from ipvsw.changes import Changes

LAPSE = 1.0  # seconds, in which a busy machine has read what was sent before
KEPT = 4096  # addresses; a port may have as many as are left free


class Lapses:
    """Of one switch, used on the loop. They end by themselves, or with the port."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._ends: dict[bytes, tuple[float, int]] = {}  # on the loop's clock, in this order; and the port
        self._held: Counter[int] = Counter()  # by the port's number
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, address: bytes, port: int) -> None:
        """Within a batch: the port of that number has lost the address, and no other has got it."""
        self._forget(address)
        if self._held[port] >= KEPT - len(self._ends):
            self._changes.unbind(address)
            return
        loop = asyncio.get_running_loop()
        self._changes.unbind(address, port)
        self._ends[address] = loop.time() + LAPSE, port
        self._held[port] += 1
        if self._timer is None:
            self._timer = loop.call_later(LAPSE, self._end)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self, address: bytes) -> None:
        if (known := self._ends.pop(address, None)) is not None:
            self._held[known[1]] -= 1
            if not self._held[known[1]]:
                del self._held[known[1]]

    def _end(self) -> None:
        """Of those whose time has come."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        over = list(takewhile(lambda address: self._ends[address][0] <= now, self._ends))
        for address in over:
            self._forget(address)
        with self._changes.batch():
            self._changes.forget_former(over)
        self._timer = None
        if self._ends:
            self._timer = loop.call_at(next(iter(self._ends.values()))[0], self._end)
