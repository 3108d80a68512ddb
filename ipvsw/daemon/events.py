"""What happens, for those who watch: lines of the log that have the field `event`, as values.

Events that only watchers want (BOUND and UNBOUND, of which there may be a million) are logged at level DEBUG, and made
only while somebody watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator

from ipvsw.config.plan import Action, Postpone
from ipvsw.daemon.logs import fields
from ipvsw.model import Refused
from ipvsw.status import Event, EventStatus

WATCHERS = 32
QUEUE = 4096  # events that wait for one watcher
KEEPALIVE = 15.0  # seconds

log = logging.getLogger("ipvsw")


class Events(logging.Handler):
    """The handler that hands events on. Attached to the log only while there are watchers."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._watchers: set[Watcher] = set()
        self._level = logging.NOTSET  # of the log while nobody watches

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watcher]:
        """Errors: Refused if there are too many."""
        if len(self._watchers) >= WATCHERS:
            raise Refused(f"there are {WATCHERS} watchers already")
        watcher = Watcher()
        self._watchers.add(watcher)
        if len(self._watchers) == 1:
            self._level = log.level
            log.setLevel(logging.DEBUG)
            log.addHandler(self)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                log.removeHandler(self)
                log.setLevel(self._level)

    def end(self) -> None:
        """Nobody gets more than what is there already."""
        for watcher in self._watchers:
            watcher.end()

    def emit(self, record: logging.LogRecord) -> None:
        about = fields(record)
        if "event" in about:
            event = Event(about.pop("event"))
            made = EventStatus(time=record.created, event=event, text=record.getMessage(), **about)
            for watcher in tuple(self._watchers):  # every thread may log
                watcher.put(made)


class Watcher:
    """One reader's queue. If it is too slow the oldest events are dropped, and it is told how many."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []  # none
        self._queue: deque[EventStatus] = deque()
        self._lost = 0
        self._ended = False
        self._ready = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, event: EventStatus) -> None:
        if len(self._queue) >= QUEUE:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        if not self._ready.is_set():
            self._loop.call_soon_threadsafe(self._ready.set)  # every thread may log

    def end(self) -> None:
        self._ended = True
        self._ready.set()

    async def __aiter__(self) -> AsyncIterator[list[EventStatus]]:
        """All that there is each time; an empty list after KEEPALIVE seconds without any."""
        while self._queue or not self._ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEPALIVE):
                    await self._ready.wait()
            self._ready.clear()
            found = [self._queue.popleft() for _ in range(len(self._queue))]  # another thread may add one meanwhile
            if lost := self._lost:
                self._lost = 0
                text = f"{lost} events were lost: this reader was too slow"
                found.insert(0, EventStatus(time=time.time(), event=Event.LOST, text=text))
            yield found


def about_action(action: Action) -> dict[str, str]:
    """The fields of its line."""
    about = {"event": Event.CHANGE, "reason": str(action)}
    if isinstance(action, Postpone):
        return about
    return about | {"switch": action.switch if isinstance(action.switch, str) else action.switch.name}
