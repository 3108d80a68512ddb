"""Netlink's events until they are handled: each namespace has a queue of its own, and the queues take turns.

The kernel has one socket for all of them. What one namespace makes without end must not delay what another makes once,
nor fill the memory: a queue that is too long is given up, and the devices of its namespace are to be read
instead. Pure.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

LONGEST = 4096  # events that wait of one namespace
MOST = 65536  # of all
TURN = 32  # of one namespace at a time


class EventQueue(Generic[T]):
    def __init__(self) -> None:
        self._queues: dict[int | None, deque[T]] = {}  # namespace -> its events; whose turn it is stands first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, namespace: int | None, event: T) -> list[int | None]:
        """The namespaces whose events were given up for it."""
        queue = self._queues.setdefault(namespace, deque())
        queue.append(event)
        self._count += 1
        given_up: list[int | None] = []
        if len(queue) > LONGEST:
            given_up.append(namespace)
        elif self._count > MOST:
            given_up.append(max(self._queues, key=lambda one: len(self._queues[one])))
        for one in given_up:
            self._count -= len(self._queues.pop(one))
        return given_up

    def take(self) -> list[T]:
        """The next events of the namespace whose turn it is, none if nothing waits."""
        if not self._queues:
            return []
        namespace, queue = next(iter(self._queues.items()))
        del self._queues[namespace]
        events = [queue.popleft() for _ in range(min(TURN, len(queue)))]
        self._count -= len(events)
        if queue:
            self._queues[namespace] = queue
        return events
