"""l3: asks the kernel for routes, keeps the datapath's cache of them, and forwards the packets that the cache can't.

The datapath hands over a frame for a destination that its cache doesn't have. The kernel is asked; an answer that holds
for every packet to that destination goes into the cache, and the frame is sent: with another L2 header out on the
master, or through the host's IP output if its next hop isn't known yet, if it leaves by another device, or if
everything is to pass the host's netfilter. Any event about routes, rules, links or addresses empties the cache; one
about a neighbour changes the entries that depend on it. A packet that doesn't fit the path is segmented or fragmented,
or its port gets an ICMP error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import msgspec
from msgspec import Struct

from ipvsw.changes import Changes
from ipvsw.linux.devices.raw import Stack
from ipvsw.linux.netlink import Handle, NeighbourChanged, RouteAnswer, RouteMonitor
from ipvsw.linux.runtime import Runtime
from ipvsw.model import Address
from ipvsw.packets import pathmtu

log = logging.getLogger("ipvsw")

NO_OFFLOAD = bytes(10)  # a virtio_net_hdr that asks for nothing
CAPACITY = 65536  # destinations in the cache; when it is full it is emptied
CONFIRM = 2.0  # seconds between telling the kernel which neighbours are in use
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
    place: Callable[[], int | None]  # opens the master's namespace


class NextHop(Struct, frozen=True):
    """What to do with packets for one destination."""

    mtu: int = 65535
    mac: bytes | None = None  # out on the master to this address
    stack: bool = False  # through the host's IP output; neither: there is no route
    via: Address | None = None  # the neighbour on the master that it depends on
    permanent: bool = False  # that neighbour needs no confirmation
    lasting: bool = True  # holds until there is an event

    def after(self, event: NeighbourChanged) -> NextHop:
        """The same with the neighbour as it is now. Until its MAC is known the host's own output asks for it."""
        return msgspec.structs.replace(self, mac=event.mac, stack=event.mac is None, permanent=event.permanent)


class Router:
    """One switch's. Made, started and stopped on the loop."""

    def __init__(self, runtime: Runtime, changes: Changes, answer: Callable[[int, bytes], None]) -> None:
        """`answer` gives a frame, its virtio_net_hdr before it, back to the port of that number."""
        self.counters: Counter[str] = Counter()
        self._runtime = runtime
        self._changes = changes
        self._answer = answer
        self._uplink: RouterUplink | None = None
        self._routes = False
        self._exact = False
        self._monitor: RouteMonitor | None = None  # whose events the loop handles
        self._hops: dict[Address, NextHop] = {}  # what the datapath's cache has
        self._dependent: dict[Address, set[Address]] = {}  # neighbour -> the destinations that depend on it
        self._meanwhile: dict[Address, NeighbourChanged] = {}  # events since the kernel was last asked
        self._generation = 0  # of answers: earlier ones no longer hold
        self._frames: list[tuple[int, bytes]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

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

    def _listen(self) -> None:
        """Handle the events of the master's namespace while the switch routes."""
        wanted = self._uplink.monitor if self._uplink is not None and self._routes else None
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
        if not all(isinstance(one, NeighbourChanged) for one in events):
            self._forget()
        neighbours = {
            one.address: one for one in events if isinstance(one, NeighbourChanged) and one.index == self._uplink.index
        }
        self._meanwhile |= neighbours
        changed = {
            to: self._hops[to].after(one)
            for address, one in neighbours.items()
            for to in self._dependent.get(address, ())
        }
        self._remember({to: hop for to, hop in changed.items() if hop != self._hops[to]})

    def _forget(self) -> None:
        self._generation += 1
        if self._hops:
            self._hops.clear()
            self._dependent.clear()
            with self._changes.batch() as datapath:
                datapath.clear_routes()

    # ------------------------------------------------------------------------ frames

    def take(self, frames: list[tuple[int, bytes]]) -> None:
        """(port number, virtio_net_hdr and frame) that the datapath can't route."""
        self._frames += frames
        self._wake.set()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        confirm_at = loop.time() + CONFIRM
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(confirm_at - loop.time(), 0) if self._hops else None)
            self._wake.clear()
            frames, self._frames = self._frames, []
            try:
                if frames:
                    await self._route(frames)
                if loop.time() >= confirm_at:
                    confirm_at = loop.time() + CONFIRM
                    await self._confirm()
            except Exception:  # one frame must not stop the others
                log.exception("routing %d frames", len(frames))

    async def _route(self, frames: list[tuple[int, bytes]]) -> None:
        uplink = self._uplink
        if uplink is None:
            self.counters["drop_no_master"] += len(frames)
            return
        pairs = [ends(frame) for _, frame in frames]
        hops = {to: self._hops[to] for _, to in pairs if to in self._hops}
        unknown = {to: by for by, to in pairs if to not in hops}
        if unknown:
            hops.update(await self._ask(uplink, unknown))
        for (port, frame), (_, to) in zip(frames, pairs, strict=True):
            self._send(uplink, port, frame, hops.get(to, NextHop()))

    async def _ask(self, uplink: RouterUplink, unknown: dict[Address, Address]) -> dict[Address, NextHop]:
        """The kernel's answers for destinations, each with a source. Remembered if no route has changed meanwhile."""
        generation = self._generation
        self._meanwhile = {}
        exact = self._exact

        def ask(handle: Handle) -> dict[Address, NextHop]:
            plain = {version: handle.destination_decides(version) for version in {to.version for to in unknown}}
            return {to: ask_one(handle, to, by, exact=exact or not plain[to.version]) for to, by in unknown.items()}

        def ask_one(handle: Handle, to: Address, by: Address, *, exact: bool) -> NextHop:
            try:
                return to_next_hop(handle.route_to(to, by, uplink.index), uplink, exact=exact)
            except OSError:  # one that can't be asked about must not take the others with it
                return NextHop(lasting=False)

        try:
            hops = await self._runtime.run_in_netns(uplink.place, ask) or {}
        except OSError:
            return {}
        for to, hop in hops.items():
            if hop.via is not None and hop.via in self._meanwhile:
                hops[to] = hop.after(self._meanwhile[hop.via])
        if generation == self._generation:
            self._remember({to: hop for to, hop in hops.items() if hop.lasting})
        return hops

    def _remember(self, hops: dict[Address, NextHop]) -> None:
        if len(self._hops) + len(hops) > CAPACITY:
            self._forget()
        with self._changes.batch() as datapath:
            for to, hop in hops.items():
                datapath.set_route(to.packed, mac=hop.mac or bytes(6), stack=hop.stack, mtu=hop.mtu)
                if hop.via is not None:
                    self._dependent.setdefault(hop.via, set()).add(to)
            self._hops.update(hops)

    def _send(self, uplink: RouterUplink, port: int, frame: bytes, hop: NextHop) -> None:
        if hop.mac is None and not hop.stack:
            self.counters["drop_no_route"] += 1
            return
        by4, by6 = (None if address is None else address.packed for address in (uplink.ipv4, uplink.ipv6))
        result = pathmtu.for_path(frame, hop.mtu, by4, by6, headers_kept=hop.mac is not None)
        version = result.packet.version if result.packet else 0
        if result.answer is not None:
            self.counters["answered"] += 1
            self._answer(port, NO_OFFLOAD + ethernet(uplink.mac, uplink.mac, version, result.answer))
        elif result.drop:
            self.counters[f"drop_{result.drop}"] += 1
        else:
            self.counters[self._transmit(uplink, frame, hop, version, result.send)] += 1

    def _transmit(
        self, uplink: RouterUplink, frame: bytes, hop: NextHop, version: int, packets: tuple[bytes, ...]
    ) -> str:
        """`packets`, or the frame as it is if there are none. Which counter it is for."""
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

    async def _confirm(self) -> None:
        """The kernel doesn't see what the datapath sends: have it confirm the neighbours that are in use."""
        uplink = self._uplink
        used = [self._hops[to] for to in self._changes.datapath.used_routes() if to in self._hops]
        to_confirm = {hop.via for hop in used if hop.via is not None and hop.mac is not None and not hop.permanent}
        if uplink is None or not to_confirm:
            return

        def confirm(handle: Handle) -> None:
            for address in to_confirm:
                handle.use_neighbour(uplink.index, address)

        with contextlib.suppress(OSError):
            await self._runtime.run_in_netns(uplink.place, confirm)


def to_next_hop(route: RouteAnswer | None, uplink: RouterUplink, *, exact: bool) -> NextHop:
    """What follows from the kernel's answer. `exact`: nothing may bypass the host's IP output."""
    if route is None:
        return NextHop()
    if route.local or route.index != uplink.index:
        return NextHop(mtu=route.mtu or 65535, stack=True)
    mtu = min(route.mtu or uplink.mtu, uplink.mtu)
    if exact:
        return NextHop(mtu=mtu, stack=True)
    # Until the next hop's MAC is known the host's own output asks for it.
    return NextHop(mtu=mtu, mac=route.mac, stack=route.mac is None, via=route.via, permanent=route.permanent)


def ends(frame: bytes) -> tuple[Address, Address]:
    """Source and destination as they stand there, however broken the rest is. The datapath hands over nothing
    shorter than a header."""
    packet = frame[len(NO_OFFLOAD) + 14 :]
    if frame[len(NO_OFFLOAD) + 12 : len(NO_OFFLOAD) + 14] == b"\x08\x00":
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    return IPv6Address(packet[8:24]), IPv6Address(packet[24:40])


def ethernet(to: bytes, by: bytes, version: int, packet: bytes) -> bytes:
    """`version` is the IP version of the EtherType; the packet's own field may be wrong."""
    return to + by + (b"\x08\x00" if version == 4 else b"\x86\xdd") + packet
