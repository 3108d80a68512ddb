"""The datapath's route cache, as it was filled: what stands there, on which neighbour it rests, who had it looked up.

A destination counts for the port that was first to need it. A port that has too many loses the one that it has had
longest, and so does the port that has most where all together have too many: who looks for thousands of destinations
pushes out its own.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec
from msgspec import Struct

from ipvsw.linux.netlink import NeighbourChanged
from ipvsw.model import Address

CAPACITY = 65536  # destinations in the cache
SHARE = 8192  # of one port
DEAD = 1.0  # seconds for which a destination on the link that does not answer is not asked for again


class NextHop(Struct, frozen=True):
    """What to do with packets for one destination."""

    mtu: int = 65535
    mac: bytes | None = None  # out on the master to this address
    stack: bool = False  # through the host's IP output; neither: there is no way
    local: bool = False  # to the host itself, from which guards may keep a port
    via: Address | None = None  # the neighbour on the master that it rests on
    permanent: bool = False  # that neighbour needs no confirmation
    lasting: bool = True  # holds until an event says otherwise

    @property
    def unresolved(self) -> Address | None:
        """The neighbour whose MAC address the host's own output has to ask for."""
        return self.via if self.stack and self.mac is None else None

    def after(self, event: NeighbourChanged) -> NextHop:
        """The same with the neighbour as it is now. Until its MAC is known the host's own output asks for it."""
        return msgspec.structs.replace(self, mac=event.mac, stack=event.mac is None, permanent=event.permanent)


class Datapath(Protocol):
    """What of the data plane is needed."""

    def set_route(self, address: bytes, *, mac: bytes, stack: bool, local: bool, mtu: int) -> None: ...
    def forget_route(self, address: bytes) -> None: ...
    def clear_routes(self) -> None: ...


class Changes(Protocol):
    """As `ipvsw.changes` has them."""

    def batch(self) -> AbstractContextManager[Datapath]: ...


class RouteCache:
    """What a method changes in the datapath is one batch."""

    def __init__(self, changes: Changes, *, capacity: int = CAPACITY, share: int = SHARE) -> None:
        self._changes = changes
        self._capacity, self._share = capacity, share
        self._hops: dict[Address, NextHop] = {}
        self._ports: dict[Address, int] = {}  # destination -> the port that it counts for
        self._by_port: dict[int, OrderedDict[Address, None]] = {}  # the oldest first
        self._by_neighbour: dict[Address, set[Address]] = {}
        self._dead: OrderedDict[Address, float] = OrderedDict()  # until when; the first to end first

    def __len__(self) -> int:
        return len(self._hops)

    def get(self, destination: Address) -> NextHop | None:
        return self._hops.get(destination)

    def put(self, hops: Mapping[Address, tuple[int, NextHop]]) -> None:
        """Next hops of destinations, each with the port that needs it."""
        with self._changes.batch() as datapath:
            for to, (port, hop) in hops.items():
                if to not in self._hops:
                    self._make_room(datapath, port)
                    self._ports[to] = port
                    self._by_port.setdefault(port, OrderedDict())[to] = None
                self._set(datapath, to, hop)

    def neighbours_changed(self, events: Iterable[NeighbourChanged], now: float) -> None:
        """One event for each neighbour. A destination on the link that has not answered has no route for a moment."""
        changed: dict[Address, NextHop] = {}
        for event in events:
            for to in self._by_neighbour.get(event.address, ()):
                old = self._hops[to]
                if event.failed and to == event.address:
                    new = NextHop(mtu=old.mtu, via=old.via)
                    self._dead[to] = now + DEAD
                    self._dead.move_to_end(to)
                else:
                    new = old.after(event)
                    self._dead.pop(to, None)
                if new != old:
                    changed[to] = new
        if changed:
            with self._changes.batch() as datapath:
                for to, hop in changed.items():
                    self._set(datapath, to, hop)

    def next_expiry(self) -> float | None:
        return next(iter(self._dead.values()), None)

    def expire(self, now: float) -> None:
        """Forget the destinations that were dead long enough: the next frame has them asked for again."""
        expired = list(itertools.takewhile(lambda to: self._dead[to] <= now, self._dead))
        if expired:
            with self._changes.batch() as datapath:
                for to in expired:
                    self._remove(datapath, to)

    def clear(self) -> None:
        if self._hops:
            for part in (self._hops, self._ports, self._by_port, self._by_neighbour, self._dead):
                part.clear()
            with self._changes.batch() as datapath:
                datapath.clear_routes()

    # ------------------------------------------------------------------------ one destination

    def _make_room(self, datapath: Datapath, port: int) -> None:
        if len(self._by_port.get(port, ())) >= self._share:
            victim = port
        elif len(self._hops) >= self._capacity:
            victim = max(self._by_port, key=lambda one: len(self._by_port[one]))
        else:
            return
        self._remove(datapath, next(iter(self._by_port[victim])))

    def _set(self, datapath: Datapath, to: Address, hop: NextHop) -> None:
        old = self._hops.get(to)
        if old is not None and old.via != hop.via:
            self._rest_no_more(to, old)
        self._hops[to] = hop
        if hop.via is not None:
            self._by_neighbour.setdefault(hop.via, set()).add(to)
        datapath.set_route(to.packed, mac=hop.mac or bytes(6), stack=hop.stack, local=hop.local, mtu=hop.mtu)

    def _remove(self, datapath: Datapath, to: Address) -> None:
        hop, port = self._hops.pop(to), self._ports.pop(to)
        self._dead.pop(to, None)
        del self._by_port[port][to]
        if not self._by_port[port]:
            del self._by_port[port]
        self._rest_no_more(to, hop)
        datapath.forget_route(to.packed)

    def _rest_no_more(self, to: Address, hop: NextHop) -> None:
        """The destination no longer depends on the neighbour of `hop`."""
        if hop.via is not None:
            self._by_neighbour[hop.via].discard(to)
            if not self._by_neighbour[hop.via]:
                del self._by_neighbour[hop.via]


class Unresolved:
    """Neighbours that the host's IP output asks for on behalf of ports: they stand in the host's neighbour table, of
    which no port may take more than is left free here."""

    def __init__(self, *, limit: int, patience: float) -> None:
        """`patience`: seconds after which one counts no more, whether an event has said so or not."""
        self._limit, self._patience = limit, patience
        self._neighbours: OrderedDict[Address, tuple[int, float]] = OrderedDict()  # port, until when
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._neighbours)

    def admit(self, port: int, neighbour: Address, now: float) -> bool:
        """Whether the port may have the host ask for it; one that is asked for already is free."""
        while self._neighbours and next(iter(self._neighbours.values()))[1] <= now:
            self.settle(next(iter(self._neighbours)))
        if neighbour in self._neighbours:
            return True
        if self._counts.get(port, 0) >= self._limit - len(self._neighbours):
            return False
        self._neighbours[neighbour] = port, now + self._patience
        self._counts[port] = self._counts.get(port, 0) + 1
        return True

    def settle(self, neighbour: Address) -> None:
        """It has answered, or the kernel has given up."""
        port, _ = self._neighbours.pop(neighbour, (None, 0.0))
        if port is not None:
            self._counts[port] -= 1
            if not self._counts[port]:
                del self._counts[port]

    def clear(self) -> None:
        self._neighbours.clear()
        self._counts.clear()
