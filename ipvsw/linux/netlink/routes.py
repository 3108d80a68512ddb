"""Which way the host would send a packet, and the events after which the answer may be another."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from msgspec import Struct

from ipvsw.linux.netlink.messages import (
    AF_INET,
    AF_INET6,
    IFF_UP,
    IFINFOMSG,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWLINK,
    attributes,
    messages,
)
from ipvsw.linux.netlink.rules import RTM_NEWROUTE, RTMSG, Destination, read_exported, read_host_route
from ipvsw.linux.netlink.vlans import is_vlan
from ipvsw.model import Address

# linux/rtnetlink.h
RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR = 1, 3, 5, 9
RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE = 7, 8, 11, 19
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29

# linux/neighbour.h: the states in which a neighbour's address may be used
NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
NUD_FAILED, NUD_PERMANENT = 0x20, 0x80
NTF_USE, NTF_PROXY = 0x01, 0x08
_NDA_DST, _NDA_LLADDR = 1, 2

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
SO_RCVBUFFORCE = 33
DATAGRAM = 64 << 10
BURST = 64  # datagrams that are read before others have their turn
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type


class RouteAnswer(Struct, frozen=True):
    """The kernel's answer for one destination."""

    local: bool  # the host itself
    index: int  # the device that it leaves by
    via: Address  # the next hop: a gateway, or the destination itself
    mac: bytes | None  # the next hop's, None while it isn't known
    permanent: bool  # it needs no confirmation
    mtu: int  # of the path, bytes; 0 if the device's holds


class RoutesChanged(Struct, frozen=True):
    """Routes, rules, addresses or links have changed."""

    lost: bool = False  # events were lost: anything may have
    link_down: int = 0  # the index of a device that was set down: its routes are gone without a word
    host_route: tuple[Address, int] | None = None  # one of the daemon's own that was removed, with its table
    exported: Destination | None = None  # nothing but an exported route was removed, which no packet takes
    vlan: bool = False  # a VLAN device has come, gone or changed


class NeighbourChanged(Struct, frozen=True):
    """A next hop's hardware address was learned, confirmed, changed or lost."""

    index: int
    address: Address
    mac: bytes | None  # None if it may not be used any more
    permanent: bool
    failed: bool = False  # it was asked for and did not answer


def _usable(state: int, lladdr: bytes) -> tuple[bytes | None, bool]:
    """A neighbour's hardware address if it may be used in this state (NUD_*), and whether it was set by hand."""
    if not state & NUD_VALID or len(lladdr) != 6:
        return None, False
    return lladdr, bool(state & NUD_PERMANENT)


class RouteMonitor:
    """Events about routes and neighbours in the calling thread's namespace, which it keeps alive."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
            for group in (
                RTNLGRP_LINK,
                RTNLGRP_NEIGH,
                RTNLGRP_IPV4_IFADDR,
                RTNLGRP_IPV6_IFADDR,
                RTNLGRP_IPV4_ROUTE,
                RTNLGRP_IPV4_RULE,
                RTNLGRP_IPV6_ROUTE,
                RTNLGRP_IPV6_RULE,
            ):
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def events(self) -> Iterator[RoutesChanged | NeighbourChanged]:
        """What has happened since the last call, or the first part of it: `fileno()` stays readable then."""
        for _ in range(BURST):
            try:
                data = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield RoutesChanged(lost=True)
                continue
            for kind, body in messages(data):
                if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH):
                    if (change := _read_change(kind, body)) is not None:
                        yield change
                    continue
                changed = read_neighbour(body, gone=kind == RTM_DELNEIGH)
                if changed is not None:
                    yield changed

    def close(self) -> None:
        self._socket.close()


def _read_change(kind: int, body: bytes) -> RoutesChanged | None:
    """None for an exported route that was added."""
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        route, parts = body[: RTMSG.size], attributes(body, RTMSG.size)
        exported = read_exported(route, parts)
        if kind == RTM_NEWROUTE:
            return None if exported is not None else RoutesChanged()
        return RoutesChanged(host_route=None if exported else read_host_route(route, parts), exported=exported)
    if kind == RTM_NEWLINK:
        _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
        return RoutesChanged(link_down=0 if flags & IFF_UP else index, vlan=is_vlan(body))
    if kind == RTM_DELLINK:
        return RoutesChanged(vlan=is_vlan(body))
    return RoutesChanged()


def read_neighbour(body: bytes, *, gone: bool) -> NeighbourChanged | None:
    """None for what is no neighbour: a bridge's forwarding entry, or an address that the host answers for."""
    family, index, state, flags, _ = _NDMSG.unpack_from(body)
    found = attributes(body, _NDMSG.size)
    if family not in (AF_INET, AF_INET6) or flags & NTF_PROXY or _NDA_DST not in found:
        return None
    mac, permanent = (None, False) if gone else _usable(state, found.get(_NDA_LLADDR, b""))
    failed = not gone and bool(state & NUD_FAILED)
    return NeighbourChanged(index, ip_address(found[_NDA_DST]), mac, permanent, failed)
