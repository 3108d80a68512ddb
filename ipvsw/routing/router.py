"""l3: asks the host where packets go, keeps the datapath's cache of the answers, and sends what the cache can't.

A frame for a destination that the cache doesn't know comes here. The kernel is asked; an answer that holds for every
packet to that destination goes into the cache, and the frame on its way: with another L2 header out on the master, or
through the host's IP output if its next hop isn't known yet, if it leaves by another device, or if everything is to
pass the host's netfilter. An event about routes, rules, links or addresses empties the cache; a neighbour that gets or
loses its hardware address changes what rests on it. What doesn't fit the path is cut, or answered to the port.

A port that scans costs others nothing: frames wait in a `FairQueue`, and a few destinations at a time are looked up
on a thread, so that the loop is free for everybody else in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from ipvsw.changes import Changes
from ipvsw.linux.devices.raw import Stack
from ipvsw.linux.netlink import NeighbourChanged, RouteAnswer, RouteLookup, RouteMonitor, RoutesChanged
from ipvsw.model import Address
from ipvsw.packets import pathmtu
from ipvsw.routing.cache import NextHop, RouteCache, Unresolved
from ipvsw.routing.fairqueue import FairQueue, Turn

log = logging.getLogger("ipvsw")

NO_OFFLOAD = bytes(10)  # a virtio_net_hdr that asks for nothing
QUEUE_FRAMES, QUEUE_OCTETS = 1024, 4 << 20  # that wait here; one port may have half
PATIENCE = 1.0  # seconds that a frame waits at most
TURNS, TURN_OCTETS = 32, 256 << 10  # that are served at once: some 3 ms
CONFIRM = 2.0  # seconds between telling the kernel which neighbours are in use
CONFIRMATIONS = 256  # neighbours each time
UNRESOLVED = 256  # neighbours that the host asks for on behalf of ports, of 1024 that its table holds by default
RESOLVING = 5.0  # seconds in which it does so, and somewhat more
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES)


class RouterUplink(Struct, frozen=True):
    """The master as the router needs it."""

    index: int
    mac: bytes
    mtu: int
    ipv4: Address | None  # the master's own, the source of ICMP errors
    ipv6: Address | None
    frames: socket.socket
    stack: Stack
    monitor: RouteMonitor
    lookup: RouteLookup


class Router:
    """One switch's. Made, started and stopped on the loop."""

    def __init__(
        self,
        changes: Changes,
        answer: Callable[[int, bytes], None],
        routes_changed: Callable[[Sequence[RoutesChanged]], None] = lambda changes: None,
    ) -> None:
        """`answer` gives a frame, its virtio_net_hdr before it, back to the port of that number. `routes_changed` is
        called when the host's routes may be others than before."""
        self._datapath = changes.datapath
        self._answer = answer
        self._on_routes_changed = routes_changed
        self._uplink: RouterUplink | None = None
        self._routes = False
        self._exact = False
        self._monitor: RouteMonitor | None = None  # what the loop listens to
        self._queue = FairQueue(frames=QUEUE_FRAMES, octets=QUEUE_OCTETS, patience=PATIENCE)
        self._cache = RouteCache(changes)
        self._unresolved = Unresolved(limit=UNRESOLVED, patience=RESOLVING)
        self._doubtful: dict[Address, None] = {}  # neighbours in use that the kernel shall confirm
        self._plain: dict[int, bool] = {}  # IP version -> whether a packet's destination alone decides
        self._changed_meanwhile: dict[Address, NeighbourChanged] = {}  # since the kernel was last asked
        self._generation = 0  # counts what made earlier answers worthless
        self._counts: Counter[str] = Counter()
        self._asking = asyncio.Lock()  # one at a time uses the uplink's lookup
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def counters(self) -> Counter[str]:
        """Frames by how they ended."""
        return self._counts + self._queue.counters

    # ------------------------------------------------------------------------ life

    def start(self) -> None:
        self._task = asyncio.create_task(self._live(), name="router")

    async def stop(self) -> None:
        self.set_uplink(None)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def set_uplink(self, uplink: RouterUplink | None) -> None:
        """Another master, or the same with other attributes. Its sockets stay the caller's, who closes them later."""
        self._uplink = uplink
        self._listen()
        self._forget()

    def set_mode(self, *, routes: bool, exact: bool) -> None:
        """Whether ports' packets are routed at all, and whether all of them pass the host's IP output."""
        self._routes, self._exact = routes, exact
        self._listen()
        self._forget()

    def wake(self) -> None:
        """The datapath may have frames for the router."""
        self._wake.set()

    def _listen(self) -> None:
        """Follow the host's routing."""
        wanted = self._uplink.monitor if self._uplink is not None else None
        if wanted is self._monitor:
            return
        loop = asyncio.get_running_loop()
        if self._monitor is not None:
            loop.remove_reader(self._monitor.fileno())
        if wanted is not None:
            loop.add_reader(wanted.fileno(), self._take_events)
        self._monitor = wanted

    # ------------------------------------------------------------------------ events

    def _take_events(self) -> None:
        assert self._monitor is not None and self._uplink is not None
        events = list(self._monitor.events())
        if changes := [one for one in events if isinstance(one, RoutesChanged)]:
            if any(change.exported is None for change in changes):
                self._forget()
            self._on_routes_changed(changes)
        neighbours = {
            one.address: one for one in events if isinstance(one, NeighbourChanged) and one.index == self._uplink.index
        }
        self._changed_meanwhile |= neighbours
        for address, event in neighbours.items():
            if event.mac is not None or event.failed:
                self._unresolved.settle(address)
        self._cache.neighbours_changed(neighbours.values(), asyncio.get_running_loop().time())

    def _forget(self) -> None:
        self._generation += 1
        self._plain.clear()
        self._unresolved.clear()
        self._cache.clear()

    # ------------------------------------------------------------------------ frames

    async def _live(self) -> None:
        """Fetch what waits in the datapath, serve a small piece of the queue, and let others have the loop."""
        loop = asyncio.get_running_loop()
        confirm_at = loop.time() + CONFIRM
        while True:
            if not self._queue:
                await self._sleep(confirm_at)
            self._wake.clear()
            try:
                self._fetch(loop.time())
                if turns := self._queue.take(TURNS, TURN_OCTETS, loop.time()):
                    await self._serve(turns)
                self._cache.expire(loop.time())
                if loop.time() >= confirm_at:
                    confirm_at = loop.time() + CONFIRM
                    await self._confirm()
            except Exception:  # what one frame does must not keep the others
                log.exception("routing")
            await asyncio.sleep(0)

    async def _sleep(self, confirm_at: float) -> None:
        """Until there are frames, or something is due."""
        until = self._cache.next_expiry()
        if self._cache:
            until = min(until or confirm_at, confirm_at)
        timeout = None if until is None else max(until - asyncio.get_running_loop().time(), 0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout)

    def _fetch(self, now: float) -> None:
        for port, frame in self._datapath.slow():
            self._queue.put(port, *ends(frame), frame, now)

    async def _serve(self, turns: list[Turn]) -> None:
        uplink = self._uplink
        if uplink is None:
            self._counts["drop_no_master"] += sum(len(turn.frames) for turn in turns)
            return
        hops = {turn.destination: self._cache.get(turn.destination) for turn in turns}
        unknown = {turn.destination: turn for turn in turns if hops[turn.destination] is None}
        answers = await self._ask(uplink, unknown) if unknown else {}
        for turn in turns:
            hop = hops[turn.destination] or answers.get(turn.destination)
            if hop is None:
                self._counts["drop_unresolved"] += len(turn.frames)
                continue
            for frame in turn.frames:
                self._send(uplink, turn.port, frame, hop)

    async def _ask(self, uplink: RouterUplink, unknown: dict[Address, Turn]) -> dict[Address, NextHop]:
        """What the kernel says of destinations. Remembered if no route has changed meanwhile. Those whose neighbour
        is not known are left out where the port has too many of that kind."""
        generation = self._generation
        self._changed_meanwhile = {}
        exact, plain = self._exact, dict(self._plain)
        lookup = uplink.lookup

        def ask() -> dict[Address, NextHop]:
            for version in {to.version for to in unknown} - plain.keys():
                plain[version] = lookup.destination_decides(version)
            return {to: ask_one(to, turn.source) for to, turn in unknown.items()}

        def ask_one(to: Address, source: Address) -> NextHop:
            try:
                answer = lookup.route_to(to, source, uplink.index)
            except OSError:  # one that can't be asked about must not take the others with it
                return NextHop(lasting=False)
            return to_next_hop(answer, uplink, exact=exact or not plain[to.version])

        try:
            async with self._asking:
                hops = await asyncio.to_thread(ask)
        except OSError:
            return dict.fromkeys(unknown, NextHop())
        now = asyncio.get_running_loop().time()
        for to, hop in list(hops.items()):
            if hop.via is not None and hop.via in self._changed_meanwhile:
                hops[to] = hop = hop.after(self._changed_meanwhile[hop.via])
            neighbour = hop.unresolved
            if neighbour is not None and not self._unresolved.admit(unknown[to].port, neighbour, now):
                del hops[to]
        if generation == self._generation:
            self._plain = plain
            self._cache.put({to: (unknown[to].port, hop) for to, hop in hops.items() if hop.lasting})
        return hops

    def _send(self, uplink: RouterUplink, port: int, frame: bytes, hop: NextHop) -> None:
        if hop.mac is None and not hop.stack:
            self._counts["drop_no_route"] += 1
            return
        if hop.local and "host" in self._datapath.guards(port):
            self._counts["guard_host"] += 1
            return
        by4, by6 = (None if address is None else address.packed for address in (uplink.ipv4, uplink.ipv6))
        result = pathmtu.for_path(frame, hop.mtu, by4, by6, headers_kept=hop.mac is not None)
        version = result.packet.version if result.packet else 0
        if result.answer is not None:
            self._counts["answered"] += 1
            self._answer(port, NO_OFFLOAD + ethernet(uplink.mac, uplink.mac, version, result.answer))
        elif result.drop:
            self._counts[f"drop_{result.drop}"] += 1
        else:
            self._counts[self._transmit(uplink, frame, hop, version, result.send)] += 1

    def _transmit(
        self, uplink: RouterUplink, frame: bytes, hop: NextHop, version: int, packets: tuple[bytes, ...]
    ) -> str:
        """The frame as it is where there are no packets of it. The counter of how it ended."""
        try:
            if hop.mac is None:
                for packet in packets:
                    uplink.stack.send(packet, version)
            elif not packets:
                uplink.frames.send(frame[:10] + hop.mac + uplink.mac + frame[22:])
            else:
                for packet in packets:
                    uplink.frames.send(NO_OFFLOAD + ethernet(hop.mac, uplink.mac, version, packet))
        except OSError as error:
            return "drop_no_route" if error.errno in UNREACHABLE else "drop_error"
        return "to_stack" if hop.mac is None else "to_master"

    # ------------------------------------------------------------------------ neighbours in use

    async def _confirm(self) -> None:
        """The kernel doesn't see what the datapath sends: have it confirm the neighbours that are in use, a bounded
        number each time; those that are left over come first the next time."""
        uplink = self._uplink
        for to in self._datapath.used_routes():
            hop = self._cache.get(to)
            if hop is not None and hop.via is not None and hop.mac is not None and not hop.permanent:
                self._doubtful.setdefault(hop.via)
        if uplink is None or not self._doubtful:
            return
        lookup, index = uplink.lookup, uplink.index
        chosen = list(itertools.islice(self._doubtful, CONFIRMATIONS))
        for address in chosen:
            del self._doubtful[address]

        def confirm() -> None:
            for address in chosen:
                lookup.use_neighbour(index, address)

        with contextlib.suppress(OSError):
            async with self._asking:
                await asyncio.to_thread(confirm)

    # ------------------------------------------------------------------------ for who wants to know

    async def ask(self, source: Address, destination: Address) -> RouteAnswer | None:
        """Where the kernel would send such a packet now, None: nowhere. Nothing is remembered. Errors: OSError."""
        uplink = self._uplink
        if uplink is None:
            raise OSError(errno.ENODEV, "there is no master")
        async with self._asking:
            return await asyncio.to_thread(uplink.lookup.route_to, destination, source, uplink.index)


def to_next_hop(way: RouteAnswer | None, uplink: RouterUplink, *, exact: bool) -> NextHop:
    """What follows from the kernel's answer. `exact`: nothing may go past the host's IP output."""
    if way is None:
        return NextHop()
    if way.local or way.index != uplink.index:
        return NextHop(mtu=way.mtu or 65535, stack=True, local=way.local)
    mtu = min(way.mtu or uplink.mtu, uplink.mtu)
    if exact:
        return NextHop(mtu=mtu, stack=True)
    # Until the next hop's MAC is known the host's own output asks for it.
    return NextHop(mtu=mtu, mac=way.mac, stack=way.mac is None, via=way.via, permanent=way.permanent)


def ends(frame: bytes) -> tuple[Address, Address]:
    """Source and destination as they stand there, however broken the rest is. The datapath hands over nothing
    shorter than a header."""
    packet = frame[len(NO_OFFLOAD) + 14 :]
    if frame[len(NO_OFFLOAD) + 12 : len(NO_OFFLOAD) + 14] == b"\x08\x00":
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    return IPv6Address(packet[8:24]), IPv6Address(packet[24:40])


def ethernet(to: bytes, by: bytes, version: int, packet: bytes) -> bytes:
    """`version` is the IP version that the EtherType tells; the packet's own field may lie."""
    return to + by + (b"\x08\x00" if version == 4 else b"\x86\xdd") + packet
