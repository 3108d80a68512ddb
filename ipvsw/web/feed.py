"""What moves on the page: one reader of the daemon for all who watch, and none while nobody does.

Events come as they happen. Counters are read at an interval, the switches only when an event says that they are not
what they were. The daemon works for a reading about as long as the answer takes: readings are so far apart that this
stays below one part in SHARE of the time, up to LONGEST.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

import msgspec

from ipvsw.rates import Difference, difference
from ipvsw.web.upstream import Away, Upstream

WATCHERS = 16
QUEUE = 256  # messages that wait for one of them; one that is slower has to come again
INTERVAL = 2.0  # seconds between two readings of the counters
SETTLE = 0.5  # seconds from an event to a reading of the switches: events come in crowds
STALE = 30.0  # seconds after which the switches are read without an event
SHARE = 40
LONGEST = 5.0  # seconds that a long answer puts the next one off: a busy machine's are long too
RETRY = 1.0  # seconds
REMEMBERED = 300.0  # seconds of drops
QUIET = {"guard"}  # events after which the switches are as before

Message = tuple[str, bytes]
"""Kind and JSON: `status` (/v1/switches), `rates`, `history` (of drops), `event` (EventStatus), `away` (why)."""


class TooMany(Exception):
    """There are WATCHERS already."""


class Feed:
    """Runs in one event loop."""

    def __init__(self, daemon: Upstream) -> None:
        self._daemon = daemon
        self._watchers: set[asyncio.Queue[Message | None]] = set()
        self._readers: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._status = b""
        self._away = ""
        self._drops: deque[tuple[float, dict[str, float]]] = deque()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[asyncio.Queue[Message | None]]:
        """Errors: TooMany."""
        if len(self._watchers) >= WATCHERS:
            raise TooMany
        queue: asyncio.Queue[Message | None] = asyncio.Queue(QUEUE)
        if self._readers is None:
            self._status = b""
            self._readers = asyncio.create_task(self._read())
        if self._status:
            queue.put_nowait(("status", self._status))
        queue.put_nowait(("history", msgspec.json.encode(list(self._drops))))
        if self._away:
            queue.put_nowait(("away", msgspec.json.encode(self._away)))
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)
            if not self._watchers and self._readers is not None:
                self._readers.cancel()
                self._readers = None

    async def watch(self, keepalive: float) -> AsyncGenerator[Message | None, None]:
        """Messages; None after `keepalive` seconds without any. Ends for a watcher that is too slow.
        Errors: TooMany."""
        with self._watching() as queue:
            while True:
                try:
                    async with asyncio.timeout(keepalive):
                        message = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if message is None:
                    return
                yield message

    def end(self) -> None:
        for queue in tuple(self._watchers):
            self._end(queue)

    def _end(self, queue: asyncio.Queue[Message | None]) -> None:
        self._watchers.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    def _tell(self, kind: str, content: bytes) -> None:
        for queue in tuple(self._watchers):
            if queue.full():
                self._end(queue)
            else:
                queue.put_nowait((kind, content))

    # ------------------------------------------------------------------------ the readers

    async def _read(self) -> None:
        async with asyncio.TaskGroup() as readers:
            for read in (self._read_events, self._read_switches, self._read_counters):
                readers.create_task(self._again(read))

    async def _again(self, read: Callable[[], Awaitable[None]]) -> None:
        """After each failure: the daemon may be away for a while."""
        while True:
            try:
                await read()
            except Away as error:
                if str(error) != self._away:
                    self._away = str(error)
                    self._tell("away", msgspec.json.encode(self._away))
            await asyncio.sleep(RETRY)

    async def _read_events(self) -> None:
        self._changed.set()  # what has happened before is not known
        async for event in self._daemon.events():
            self._tell("event", event)
            if msgspec.json.decode(event)["event"] not in QUIET:
                self._changed.set()

    async def _read_switches(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STALE):
                    await self._changed.wait()
            self._changed.clear()
            content, took = await self._daemon.get("/v1/switches")
            if content != self._status:
                self._status = content
                self._tell("status", content)
            await asyncio.sleep(max(SETTLE, min(SHARE * took, LONGEST)))

    async def _read_counters(self) -> None:
        before, began = None, 0.0
        while True:
            content, took = await self._daemon.get("/v1/stats")
            now = time.monotonic()
            stats = msgspec.json.decode(content)
            self._back()
            if before is not None:
                self._tell_rates(difference(before, stats, now - began))
            before, began = stats, now
            await asyncio.sleep(max(INTERVAL - took, min(SHARE * took, LONGEST)))

    def _back(self) -> None:
        if self._away:
            self._away = ""
            self._changed.set()
            self._tell("away", b'""')

    def _tell_rates(self, found: Difference) -> None:
        """Of interfaces where nothing moves there is no row."""
        at = time.time()
        rows = [row for row in found.rows if row.rx_frames or row.tx_frames or row.drops]
        drops = {reason: round(count, 3) for reason, count in found.drops}
        self._drops.append((at, drops))
        while self._drops[0][0] < at - REMEMBERED:
            self._drops.popleft()
        self._tell("rates", msgspec.json.encode({"time": at, "rows": rows, "drops": drops}))
