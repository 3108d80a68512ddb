"""What the daemon has open on a master while it serves it."""

from __future__ import annotations

import contextlib
import errno
import socket

from msgspec import Struct

from ipvsw._fast import PACKET_RING, SEND_RING
from ipvsw.linux.bpf import MARK, WIRE_MARK, Shim
from ipvsw.linux.devices import packet
from ipvsw.linux.devices.raw import Stack, open_stack
from ipvsw.linux.netlink import DeviceReader, Link, RouteLookup, RouteMonitor


class Unfit(Exception):
    """The device can't be a master; the text says why."""


class Taken(Unfit):
    """Another daemon serves it."""


class Sockets(Struct, frozen=True):
    """What is open on the master while it is served."""

    claim: socket.socket
    frames: list[socket.socket]
    senders: list[socket.socket]  # of short frames
    inject: socket.socket
    stack: Stack
    routes: RouteMonitor
    lookup: RouteLookup
    device: DeviceReader

    def close(self) -> None:
        for each in (*self.frames, *self.senders, self.inject, self.claim):
            each.close()
        self.stack.close()
        self.routes.close()
        self.lookup.close()
        self.device.close()


def open_sockets(undo: contextlib.ExitStack, link: Link, workers: int, shim: Shim) -> Sockets:
    """In the master's namespace: claim it and open everything, which `undo` closes. Errors: Taken, OSError."""
    claim = undo.enter_context(_claim(link))
    frames = packet.open_master(link.index, workers, shim.filter_fd, shim.spread_fd, WIRE_MARK, ring=PACKET_RING)
    for each in frames:
        undo.enter_context(each)
    senders = packet.open_senders(link.index, workers, WIRE_MARK, SEND_RING)
    for each in senders:
        undo.enter_context(each)
    inject = undo.enter_context(packet.open_inject(link.index, MARK))
    stack = undo.enter_context(contextlib.closing(open_stack(link.index)))
    routes = undo.enter_context(contextlib.closing(RouteMonitor()))
    lookup = undo.enter_context(contextlib.closing(RouteLookup()))
    device = undo.enter_context(contextlib.closing(DeviceReader()))
    return Sockets(claim, frames, senders, inject, stack, routes, lookup, device)


def _claim(link: Link) -> socket.socket:
    try:
        return packet.claim_master(link.index)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Taken(f"{link.name} is already served by another ipvswd") from None
        raise
