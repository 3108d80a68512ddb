"""What all switches share: netlink, the watch over namespaces, and which follower has which device.

Everything here happens on the daemon's loop, except `enter`, which the netlink thread may call.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from ipvsw.batch import until_tick
from ipvsw.linux.eventqueue import EventQueue
from ipvsw.linux.lasting.fdstore import FdStore, NoStore
from ipvsw.linux.namespaces import Watch, make_namespace
from ipvsw.linux.netlink import (
    AddressEvent,
    GroupsEvent,
    Handle,
    LinkEvent,
    NamespaceGone,
    Netlink,
    Overrun,
    RemovalEvent,
)
from ipvsw.linux.teardown import Teardown

T = TypeVar("T")
log = logging.getLogger("ipvsw")

POLL = 1.0  # seconds between polls of names that have no events
FAST_POLL = 0.05  # seconds, while a namespace's name exists and the namespace doesn't yet
CLOSERS = 256  # threads at most: closing a TAP waits 16 ms for the kernel's grace periods, which many wait for at once
CLOSERS_IDLE = 2.0  # seconds after which they end: starting one takes longer than most of what they do
NETNS_REQUESTS = 8  # requests that may wait for the netlink thread, each with an fd that pins a namespace
BURST = 256  # events that are read before others have their turn, and before some are handled
TURNS = 2  # namespaces whose turn it is then
OPENINGS = 4  # ports that are opened at one time, so that events of the others needn't wait for a thousand

HIDDEN = "hidden"  # the name under which `open_hidden`'s namespace is held

DeviceEvent = LinkEvent | AddressEvent | GroupsEvent | RemovalEvent


class Follower(Protocol):
    """What receives the events of a device or of a namespace's name."""

    def handle_events(self, events: Sequence[DeviceEvent]) -> None:
        """Something happened to the device, in this order."""

    def mark_stale(self) -> None:
        """Something may have happened to the device: read it again."""

    def netns_changed(self) -> None:
        """The namespace may have come or gone."""


class Runtime:
    """One for the daemon. Made and closed on its loop."""

    def __init__(self, store: FdStore | None = None, held: Mapping[str, int] | None = None) -> None:
        """`held` are the descriptors that `store` had."""
        self.store = store or NoStore()
        self.note_change: Callable[[], None] = lambda: None  # a successor has to know another thing
        self.netlink = Netlink()
        self.announces_groups = False  # whether this kernel announces groups that are joined and left (from 6.14)
        self.leaving = Teardown(self.run_in_netns, self.run_blocking)
        self.openings = asyncio.Semaphore(OPENINGS)
        self.interfaces = 0  # masters and ports
        self.reading = 0.003  # seconds of CPU: what reading an interface's device has cost of late
        self._netns_requests = asyncio.Semaphore(NETNS_REQUESTS)
        self._watch = Watch()
        self._closers: ThreadPoolExecutor | None = None  # while there is something to close, and a moment longer
        self._dismissing: asyncio.TimerHandle | None = None  # of them
        self._closing = 0  # works of theirs
        self._followers: dict[int | None, dict[int, Follower]] = {}  # nsid -> index -> the device's
        self._following = threading.Lock()
        self._waiting: dict[str, set[Follower]] = {}  # a namespace's spec -> those that wait for it
        self._absent: set[Follower] = set()  # those that wait for a device whose index they can't know
        self._queue: EventQueue[DeviceEvent | NamespaceGone] = EventQueue()
        self._serving: asyncio.Handle | None = None
        self._hidden = (held or {}).get(HIDDEN, -1)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.netlink.fileno(), self._take_events)
        loop.add_reader(self._watch.fileno(), self._names_changed)
        self._timer = loop.call_later(POLL, self._poll)

    def close(self) -> None:
        """Every follower must have left."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.netlink.fileno())
        loop.remove_reader(self._watch.fileno())
        self._timer.cancel()
        if self._serving:
            self._serving.cancel()
        self._watch.close()
        self.netlink.close()
        if self._hidden >= 0:
            os.close(self._hidden)
        if self._dismissing:
            self._dismissing.cancel()
        if self._closers:
            self._closers.shutdown()

    # ------------------------------------------------------------------------ work

    async def run_in_netns(self, open_fd: Callable[[], int | None], work: Callable[[Handle], T]) -> T | None:
        """Run `work` in the namespace whose fd `open_fd` gives, None if it gives None. No more than a few
        are open at a time. Errors: OSError."""
        async with self._netns_requests:
            fd = await asyncio.to_thread(open_fd)
            if fd is None:
                return None
            try:
                return await self.netlink.run(fd, work)
            finally:
                os.close(fd)

    def open_hidden(self) -> int:
        """An fd of a namespace that has no name and is empty but for what its callers put there: no stack sends
        anything to devices there. It is the last daemon's, if that has left it. Errors: OSError."""
        if self._hidden < 0:
            self._hidden = make_namespace()
            self.store.put(HIDDEN, self._hidden)
        return os.dup(self._hidden)

    async def run_blocking(self, work: Callable[[], T]) -> T:
        """Run what blocks and needs no namespace."""
        loop = asyncio.get_running_loop()
        if self._dismissing is not None:
            self._dismissing.cancel()
            self._dismissing = None
        if self._closers is None:
            self._closers = ThreadPoolExecutor(CLOSERS, "closer")
        self._closing += 1
        try:
            return await loop.run_in_executor(self._closers, work)
        finally:
            self._closing -= 1
            if not self._closing:
                self._dismissing = loop.call_later(CLOSERS_IDLE, self._dismiss_closers)

    def _dismiss_closers(self) -> None:
        self._dismissing = None
        if self._closers is not None:
            self._closers.shutdown(wait=False)
            self._closers = None

    # ------------------------------------------------------------------------ followers

    def enter(self, nsid: int | None, index: int, follower: Follower) -> None:
        """From now on `follower` receives this device's events. The netlink thread may call."""
        with self._following:
            self._followers.setdefault(nsid, {})[index] = follower

    def leave(self, nsid: int | None, index: int, follower: Follower) -> None:
        with self._following:
            inside = self._followers.get(nsid, {})
            if inside.get(index) is follower:
                del inside[index]
                if not inside:
                    del self._followers[nsid]

    def is_followed(self, nsid: int | None, index: int) -> bool:
        return index in self._followers.get(nsid, {})

    def await_device(self, follower: Follower) -> None:
        """From now on `follower` receives the events of every link that has no follower."""
        self._absent.add(follower)

    def found_device(self, follower: Follower) -> None:
        self._absent.discard(follower)

    def watch(self, spec: str, follower: Follower) -> None:
        self._waiting.setdefault(spec, set()).add(follower)
        self._watch.add(spec)

    def unwatch(self, spec: str, follower: Follower) -> None:
        self._watch.discard(spec)
        self._waiting[spec].discard(follower)
        if not self._waiting[spec]:
            del self._waiting[spec]

    # ------------------------------------------------------------------------ events

    def _take_events(self) -> None:
        """Read a burst, so that the kernel's buffer, which is one for all namespaces, doesn't fill."""
        for event in itertools.islice(self.netlink.events(), BURST):
            if isinstance(event, Overrun):
                log.warning("events were lost: every device is read again")
                for nsid in [*self._followers]:
                    self._read_again(nsid)
            else:
                for nsid in self._queue.put(event.nsid, event):
                    self._read_again(nsid)
        self._serve_soon()

    def _read_again(self, nsid: int | None) -> None:
        """Events of that namespace are lost."""
        for follower in [*self._followers.get(nsid, {}).values(), *self._absent]:
            follower.mark_stale()

    def _serve_soon(self) -> None:
        if self._queue and self._serving is None:
            self._serving = asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """A few turns at a time: what namespaces make without end must not stop the loop."""
        self._serving = None
        for _ in range(TURNS):
            events = self._queue.take()
            for key, group in itertools.groupby(events, _device_of):
                self._dispatch(*key, list(group))
        self._serve_soon()

    def _dispatch(self, nsid: int | None, index: int, events: list[Any]) -> None:
        if not index:
            for each in list(self._followers.get(nsid, {}).values()):
                each.mark_stale()
            return
        self.announces_groups = self.announces_groups or any(isinstance(event, GroupsEvent) for event in events)
        follower = self._followers.get(nsid, {}).get(index)
        if follower is not None:
            _hand_on(events, follower)
            return
        if found := [event for event in events if isinstance(event, LinkEvent) and not event.gone]:
            for waiting in list(self._absent):
                _hand_on(found, waiting)

    def _names_changed(self) -> None:
        self._notify(self._watch.changed())
        if self._watch.pending:
            self._poll_in(FAST_POLL)

    def _poll(self) -> None:
        self._notify(self._watch.poll())
        now = asyncio.get_running_loop().time()
        self._poll_in(FAST_POLL if self._watch.pending else until_tick(now, POLL))

    def _poll_in(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._poll)

    def _notify(self, specs: set[str]) -> None:
        for spec in specs:
            for follower in list(self._waiting.get(spec, ())):
                follower.netns_changed()


def _device_of(event: DeviceEvent | NamespaceGone) -> tuple[int | None, int]:
    """Namespace and index; 0 for what concerns all of a namespace's devices."""
    if isinstance(event, NamespaceGone):
        return event.nsid, 0
    return event.nsid, event.link.index if isinstance(event, LinkEvent) else event.index


def _hand_on(events: list[Any], follower: Follower) -> None:
    """One that can't be followed must not cost others theirs: the device is read instead."""
    try:
        follower.handle_events(events)
    except Exception:
        log.exception("%s", events)
        follower.mark_stale()
