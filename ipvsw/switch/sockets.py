"""What the daemon has open on a master while it serves it."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Iterable, Set

from msgspec import Struct

from ipvsw._fast import PACKET_RING, SEND_RING, Datapath
from ipvsw.linux.bpf import MARK, WIRE_MARK, Shim
from ipvsw.linux.devices import packet
from ipvsw.linux.devices.membership import Membership
from ipvsw.linux.devices.raw import Stack, open_stack
from ipvsw.linux.devices.tap import Tap
from ipvsw.linux.netlink import DeviceReader, Handle, Link, RouteLookup, RouteMonitor
from ipvsw.model import Address
from ipvsw.routing.router import RouterUplink
from ipvsw.switch.fitness import Taken
from ipvsw.switch.held import HeldFrames, MasterLeft
from ipvsw.switch.tunneltap import open_tunnel_tap

log = logging.getLogger("ipvsw")


class Sockets(Struct, frozen=True):
    """What is open on the master while it is served."""

    claim: socket.socket
    frames: list[socket.socket]
    starts: list[int]  # of their rings the slots that are read first; []: they are new
    listening: frozenset[bytes]  # groups that the device listens to for them already
    senders: list[socket.socket]  # of short frames
    inject: socket.socket
    tunnels: Tap | None  # by which tunnels' GSO frames leave, where the kernel has them
    stack: Stack
    routes: RouteMonitor
    lookup: RouteLookup
    device: DeviceReader
    membership: Membership

    def attach(self, datapath: Datapath, mac: bytes) -> None:
        """Have the data plane read and write them; `mac` is the master's."""
        datapath.attach_master(
            [each.fileno() for each in self.frames],
            self.inject.fileno(),
            mac,
            send_fds=[each.fileno() for each in self.senders],
            starts=self.starts,
            index=self.stack.index,
            stack_fds=(self.stack.ipv4.fileno(), self.stack.ipv6.fileno()),
            tunnel_fd=self.tunnels.fd if self.tunnels else -1,
        )

    def uplink(self, link: Link, addresses: Iterable[Address]) -> RouterUplink:
        """What routing needs; `addresses` are the master's."""
        own = sorted(addresses, key=lambda address: address.is_link_local)
        return RouterUplink(
            index=link.index,
            mac=link.mac,
            mtu=link.mtu,
            ipv4=next((address for address in own if address.version == 4), None),
            ipv6=next((address for address in own if address.version == 6), None),
            frames=self.frames[0],
            stack=self.stack,
            monitor=self.routes,
            lookup=self.lookup,
        )

    def listen(self, index: int, add: Set[bytes], drop: Set[bytes], join: Set[bytes]) -> None:
        """Have the master, with that index, listen to these groups more, by MAC address, and to those no longer; the
        host is a member of `join`, by IP address, and of no others. Errors: OSError."""
        packet.set_groups(self.frames[0], index, add, drop)
        self.membership.set(join)

    def close(self) -> None:
        for each in (*self.frames, *self.senders, self.inject, self.claim):
            each.close()
        if self.tunnels is not None:
            self.tunnels.close()
        self.stack.close()
        self.routes.close()
        self.lookup.close()
        self.device.close()
        self.membership.close()


def open_sockets(
    undo: contextlib.ExitStack,
    handle: Handle,
    link: Link,
    workers: int,
    shim: Shim,
    held: HeldFrames,
    place: tuple[int, int] | None,
) -> Sockets:
    """In the master's namespace, whose identity is `place`: claim it and open everything, which `undo` closes. What the
    last daemon had on this device is taken once it is claimed. Errors: Taken, OSError."""
    claim = undo.enter_context(_claim(link))
    left = held.take(link, place)
    frames, starts = _adopt(link, workers, shim, left) if left is not None else ([], [])
    if not frames:
        frames = packet.open_master(link.index, workers, shim.filter_fd, shim.spread_fd, WIRE_MARK, ring=PACKET_RING)
    for each in frames:
        undo.enter_context(each)
    senders = packet.open_senders(link.index, workers, WIRE_MARK, SEND_RING)
    for each in senders:
        undo.enter_context(each)
    inject = undo.enter_context(packet.open_inject(link.index, MARK))
    tunnels = open_tunnel_tap(handle, link, shim.wire_fd, left.tunnels if left is not None else None)
    if tunnels is not None:
        undo.callback(tunnels.close)
    stack = undo.enter_context(contextlib.closing(open_stack(link.index)))
    routes = undo.enter_context(contextlib.closing(RouteMonitor()))
    lookup = undo.enter_context(contextlib.closing(RouteLookup()))
    device = undo.enter_context(contextlib.closing(DeviceReader()))
    membership = undo.enter_context(contextlib.closing(Membership(link.index)))
    listening = left.groups if left is not None and starts else frozenset()
    return Sockets(
        claim, frames, starts, listening, senders, inject, tunnels, stack, routes, lookup, device, membership
    )


def _adopt(link: Link, workers: int, shim: Shim, left: MasterLeft) -> tuple[list[socket.socket], list[int]]:
    """The receiving sockets, and where to go on reading; ([], []) if that can't be, and they are closed then."""
    try:
        frames = packet.adopt_master(left.frames, link.name, shim.spread_fd)
    except OSError as error:
        log.warning("master %s: its sockets can't be kept: %s", link.name, error.strerror or error)
        return [], []
    found: list[int | None] = [*left.starts]
    with contextlib.suppress(OSError, ValueError):
        found = found or [packet.find_start(each, *left.ring) for each in frames]
    starts = [each for each in found if each is not None]
    if len(frames) == workers == len(starts) and left.ring == PACKET_RING:
        return frames, starts
    for each in frames:
        each.close()
    return [], []


def _claim(link: Link) -> socket.socket:
    try:
        return packet.claim_master(link.index)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Taken(f"{link.name} is already served by another ipvswd") from None
        raise
