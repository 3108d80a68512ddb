"""A device that is followed through its life: what ports and masters have in common.

One task per interface does everything that takes time, one step after the other, so that an interface is never
opened and closed at the same time. Events only set a flag and wake the task. Address and link changes are
taken from the netlink message itself; after a message that doesn't tell enough the device is read again a few
milliseconds later, once for many messages, and a slow timer has it read too: a lost message is made up for then.
Messages that arrive while the device is being read are buffered, and handled after what was read: `_synchronize`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from msgspec import Struct

from ipvsw.linux.errors import is_gone
from ipvsw.linux.namespaceref import NamespaceRef
from ipvsw.linux.netlink import AddressEvent, Handle, Link, LinkEvent
from ipvsw.linux.repair import Part, Repairs
from ipvsw.linux.runtime import BURST, DeviceEvent, Runtime
from ipvsw.model import Address
from ipvsw.status import Event, PortState

log = logging.getLogger("ipvsw")

COALESCE = 0.005  # seconds from the first event to the reading
SPACING = 0.03  # seconds between two readings, whatever the namespace does
RETRY = 5.0  # seconds after a failure
RESYNC = 60.0  # seconds between readings without an event, give or take a quarter, while there are few interfaces
SHARE = 0.0004  # of a CPU: what such readings may cost where there are many
AVERAGE = 8  # readings over which the cost is averaged
SETNS_COST = 0.002  # seconds of CPU for a reading, besides what the device has: the loop has its share


class Pace:
    """How often to do what is done without an event: at most once in `least` seconds, and so that it takes no more
    than `SHARE` of a CPU."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._next = 0.0

    def is_due(self, now: float) -> bool:
        return now >= self._next

    def spent(self, seconds: float, now: float) -> None:
        """It was done, and took that much CPU time."""
        self._next = now + max(self._least, seconds / SHARE)


class Snapshot(Struct, frozen=True):
    """A device as it was read."""

    link: Link
    addresses: tuple[tuple[Address, int], ...]  # with prefix lengths
    groups: tuple[bytes, ...]
    parts: Mapping[Part, object] = {}  # what else was read, of what the daemon has set


def read_device(handle: Handle, index: int, *, groups: bool) -> Snapshot | None:
    """Read a device, None if it isn't there. Errors: OSError."""
    try:
        link = handle.link_at(index)
        if link is None:
            return None
        return Snapshot(link, tuple(handle.addresses(index)), handle.groups(link.name) if groups else ())
    except OSError as error:
        if is_gone(error):
            return None
        raise


async def read_in_netns(
    runtime: Runtime, open_place: Callable[[], int | None], read: Callable[[Handle], Snapshot | None]
) -> Snapshot | None:
    """`read` in the namespace whose fd `open_place` gives, which another thread calls; None if it gives None. What it
    costs is added to the average that `_resync` goes by. Errors: OSError."""

    def read_and_time(handle: Handle) -> Snapshot | None:
        start = time.thread_time()
        snapshot = read(handle)
        cost = SETNS_COST + time.thread_time() - start
        runtime.reading += (cost - runtime.reading) / AVERAGE
        return snapshot

    return await runtime.run_in_netns(open_place, read_and_time)


class TrackedDevice(ABC):
    """Made, started and stopped on the loop."""

    __slots__ = (  # there are thousands of interfaces: a dict for each would be a kilobyte
        "_buffered_events",
        "_netns_changed",
        "_read_at",
        "_runtime",
        "_settled",
        "_sleep",
        "_soon",
        "_spec",
        "_stale",
        "_stopping",
        "_task",
        "_woken",
        "label",
        "link",
        "namespace",
        "reason",
        "repairs",
        "state",
    )  # fmt: skip

    def __init__(self, runtime: Runtime, spec: str, label: str, repaired: Counter[str]) -> None:
        """`repaired` counts what is put back, by subject."""
        self.label = label
        self.repairs = Repairs(label, repaired)
        self.link: Link | None = None
        self.state = PortState.WAITING
        self.reason = ""
        self._settled = asyncio.get_running_loop().create_future()
        self._runtime = runtime
        self._spec = spec
        self.namespace = NamespaceRef(spec)
        self._task: asyncio.Task[None] | None = None
        self._woken = False  # there may be something to do
        self._sleep: asyncio.Future[None] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._stopping = False
        self._stale = False  # the device must be read
        self._netns_changed = False  # the namespace's name may stand for another one
        self._read_at = 0.0  # the loop's time
        self._buffered_events: list[DeviceEvent] | None = None  # those that arrive while the device is being read

    @property
    @abstractmethod
    def about(self) -> dict[str, str]:
        """What it is, as fields of the log."""

    def start(self) -> None:
        self._runtime.interfaces += 1
        self._runtime.watch(self._spec, self)
        self._task = asyncio.create_task(self._live(), name=self.label)

    async def stop(self) -> None:
        """Undo everything. When this returns nothing of the interface is left."""
        self._stopping = True
        self.wake()
        if self._task is not None:
            await self._task
            self._task = None
            self._runtime.interfaces -= 1
            self._runtime.unwatch(self._spec, self)
            self.namespace.close()

    @property
    def stopping(self) -> bool:
        return self._stopping

    async def settled(self) -> None:
        """Returns when the first attempt has been made, or none will be."""
        await asyncio.shield(self._settled)

    def renew_namespace(self) -> None:
        """The configuration was read again: if it names a process that has ended, it means the one of that number."""
        self.namespace.renew()
        self.wake()

    # ------------------------------------------------------------------------ events

    def wake(self) -> None:
        self._woken = True
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    def handle_events(self, events: Sequence[DeviceEvent]) -> None:
        for event in events:
            if self._needs_reading(event):
                self.mark_stale()
            if self._buffered_events is None:
                self._follow(event)
            else:
                self._buffered_events.append(event)

    def mark_stale(self) -> None:
        self._stale = True
        if self._soon is None:
            loop = asyncio.get_running_loop()
            delay = max(COALESCE, self._read_at + SPACING - loop.time())
            self._soon = loop.call_later(delay, self._wake_now)

    def _needs_reading(self, event: DeviceEvent) -> bool:
        if isinstance(event, AddressEvent):
            # An address joins groups, which newer kernels announce by themselves.
            return not self._runtime.announces_groups
        return not isinstance(event, LinkEvent) or event.gone or event.link != self.link

    def netns_changed(self) -> None:
        self._netns_changed = True
        self.wake()

    def _wake_now(self) -> None:
        self._soon = None
        self.wake()

    # ------------------------------------------------------------------------ life

    async def _live(self) -> None:
        while not self._stopping:
            self._woken = False
            try:
                delay = await self._step()
            except OSError as error:
                delay = self._postpone(error)
            except Exception as error:  # an interface that fails must not take the others with it
                log.exception("%s", self.label)
                self._fail(str(error))
                delay = RETRY
            if not self._settled.done():
                self._settled.set_result(None)
            if (at := self.repairs.next_at()) is not None:
                delay = min(delay, max(at - asyncio.get_running_loop().time(), SPACING))
            if not self._stopping:
                await self._pause(delay)
        if not self._settled.done():
            self._settled.set_result(None)
        if self._soon is not None:
            self._soon.cancel()
        await self._shut()

    async def _pause(self, seconds: float) -> None:
        if self._woken:
            return
        loop = asyncio.get_running_loop()
        self._sleep = loop.create_future()
        timer = loop.call_later(seconds, self._timed_out)
        try:
            await self._sleep
        finally:
            timer.cancel()
            self._sleep = None

    def _timed_out(self) -> None:
        """There was no event for a while."""
        self.mark_stale()

    def _resync(self) -> float:
        """Spread out, so that a thousand interfaces aren't read at once, nor keep an idle daemon busy."""
        return max(RESYNC, self._runtime.interfaces * self._runtime.reading / SHARE) * random.uniform(0.75, 1.25)

    async def _put_back(
        self,
        wrong: Sequence[Part],
        place_of: Callable[[Part], Callable[[], int | None]],
        mend: Callable[[Handle, Part], None],
    ) -> None:
        """`wrong` is all that is not as it should be: put back what is due, by `mend` in the namespace of which the
        part's `place_of` gives an fd. Errors: OSError of entering it; those of `mend` are problems."""
        loop = asyncio.get_running_loop()
        due = self.repairs.due(wrong, loop.time())
        places: dict[Callable[[], int | None], list[Part]] = {}
        for part in due:
            places.setdefault(place_of(part), []).append(part)

        def mend_all(handle: Handle, parts: Sequence[Part]) -> dict[Part, str]:
            return {part: _error_of(mend, handle, part) for part in parts}

        for open_place, parts in places.items():
            results = await self._runtime.run_in_netns(open_place, partial(mend_all, parts=parts))
            self.repairs.done(results or {}, loop.time())

    def _wait(self, reason: str) -> None:
        self._tell(PortState.WAITING, reason)

    def _fail(self, reason: str) -> None:
        self._tell(PortState.FAILED, reason)

    def _postpone(self, error: OSError) -> float:
        """A device that is there, as far as is known, could not be read: it is read again after so many seconds, and
        until then it is taken to be as it was."""
        log.warning("%s: cannot be read for now: %s", self.label, error.strerror or error)
        return RETRY

    def _tell(self, state: PortState, reason: str = "") -> None:
        """Remember the state, and log it if it is another."""
        if (state, reason) != (self.state, self.reason):
            wrong = state is PortState.FAILED or (reason and state is not PortState.WAITING)
            level = logging.WARNING if wrong else logging.INFO
            log.log(
                level,
                "%s: %s%s",
                self.label,
                state,
                f" {reason}" if state is PortState.WAITING else f": {reason}" if reason else "",
                extra={"event": Event.STATE, **self.about, "reason": f"{state}: {reason}" if reason else state},
            )
        self.state, self.reason = state, reason

    async def _read(self, read: Callable[[], Awaitable[Snapshot | None]]) -> bool:
        """Read the device again; whether it is there. Errors: those of `read`."""

        async def read_and_note() -> Snapshot | None:
            try:
                return await read()
            finally:
                self._read_at = asyncio.get_running_loop().time()

        return await self._synchronize(read_and_note, self._see)

    async def _synchronize(
        self, read: Callable[[], Awaitable[Snapshot | None]], see: Callable[[Snapshot], None]
    ) -> bool:
        """Buffer events, read the device once, `see` what was read, then follow what was announced meanwhile: no event
        is lost between the two, and none is overwritten by an older state. Whether the device is there."""
        buffered: list[DeviceEvent] = []
        self._stale, self._buffered_events = False, buffered
        try:
            snapshot = await read()
            if snapshot is None:
                return False
            see(snapshot)
            while len(buffered) > BURST:
                self._replay(buffered, BURST)
                await asyncio.sleep(0)  # others have their turn, and what is announced meanwhile comes last
            self._replay(buffered, len(buffered))
        finally:
            self._buffered_events = None
        return True

    def _replay(self, buffered: list[DeviceEvent], count: int) -> None:
        for event in buffered[:count]:
            self._follow(event)
        del buffered[:count]

    @abstractmethod
    async def _step(self) -> float:
        """Do what there is to do; the seconds until the next step without an event."""

    @abstractmethod
    async def _shut(self) -> None:
        """Undo everything that was done."""

    @abstractmethod
    def _see(self, snapshot: Snapshot) -> None:
        """The device was read."""

    @abstractmethod
    def _follow(self, event: DeviceEvent) -> None:
        """The device was announced to have changed."""


def _error_of(mend: Callable[[Handle, Part], None], handle: Handle, part: Part) -> str:
    """The text of the OSError that it raises, "" if none."""
    try:
        mend(handle, part)
    except OSError as error:
        return error.strerror or str(error)
    return ""
