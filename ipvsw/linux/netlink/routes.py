"""Which way the host would send a packet, and the events after which the answer may be another."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from typing import Any

from msgspec import Struct
from pyroute2.netlink.exceptions import NetlinkError

from ipvsw.linux.netlink import rules
from ipvsw.linux.netlink.messages import AF_INET, AF_INET6, attributes, messages
from ipvsw.model import Address

# linux/rtnetlink.h
RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR = 1, 3, 5, 9
RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE = 7, 8, 11, 19
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RTN_UNICAST, RTN_LOCAL, RTN_MULTICAST = 1, 2, 5

# linux/neighbour.h: the states in which a neighbour's address may be used
NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
NUD_STALE, NUD_PERMANENT = 0x04, 0x80
NTF_USE, NTF_PROXY = 0x01, 0x08
_NDA_DST, _NDA_LLADDR = 1, 2

# linux/fib_rules.h: what a rule may match besides the destination, so that the destination alone does not decide. What
# is the same for everything that the host sends by one device does not matter: mark 0, and lo as input device. UNKNOWN
# is what pyroute2 has no name for, as DSCP and flow labels, which rules of newer kernels may match.
_SELECTIVE = {"UNKNOWN", "FRA_SRC", "FRA_UID_RANGE", "FRA_IP_PROTO", "FRA_SPORT_RANGE", "FRA_DPORT_RANGE"}
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAGAIN)

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
SO_RCVBUFFORCE = 33
DATAGRAM = 64 << 10
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


class NeighbourChanged(Struct, frozen=True):
    """A next hop's hardware address was learned, confirmed, changed or lost."""

    index: int
    address: Address
    mac: bytes | None  # None if it may not be used any more
    permanent: bool


def route_to(route: Any, destination: Address, source: Address, index: int) -> RouteAnswer | None:
    """What the kernel's own ipvlan asks when it routes for a port: output device `index`, and for IPv6 the packet's
    source. None if there is no way (IPv4 assumes the link then). Errors: OSError.

    Source: ipvlan_process_v4_outbound, ipvlan_process_v6_outbound. IPv4 is asked without a source, since RTM_GETROUTE
    refuses one that is not the host's own; `destination_decides` tells whether that makes a difference.
    """
    query: dict[str, Any] = {"dst": str(destination), "oif": index}
    if destination.version == 6:
        query["src"] = str(source)
    try:
        answer = route.route("get", family=AF_INET6 if destination.version == 6 else AF_INET, **query)[0]
    except NetlinkError as error:
        if error.code in _UNREACHABLE:
            return None
        raise OSError(error.code, f"route to {destination}: {error.args[1]}") from error
    kind = answer["type"]
    if kind == RTN_MULTICAST and isinstance(destination, IPv6Address):
        return RouteAnswer(False, answer.get("oif"), destination, b"\x33\x33" + destination.packed[12:], True, 0)
    if kind == RTN_LOCAL:
        return RouteAnswer(True, answer.get("oif"), destination, None, True, 0)
    if kind != RTN_UNICAST:
        return None
    via, leaves_by = _gateway(answer) or destination, answer.get("oif")
    mac, permanent = neighbour(route, leaves_by, via)
    mtu = answer.get(("metrics", "mtu")) or (0 if leaves_by == index else _mtu(route, leaves_by))
    return RouteAnswer(False, leaves_by, via, mac, permanent, mtu)


def _mtu(route: Any, index: int) -> int:
    """A device's, 0 if there is no such device any more."""
    try:
        return route.link("get", index=index)[0].get("mtu") or 0
    except NetlinkError:
        return 0


def _gateway(answer: Any) -> Address | None:
    if answer.get("gateway"):
        return ip_address(answer.get("gateway"))
    via = answer.get("via")
    return ip_address(via["addr"]) if via else None


def neighbour(route: Any, index: int, address: Address) -> tuple[bytes | None, bool]:
    """The hardware address, None if it isn't known, and whether it was set by hand."""
    try:
        message = route.neigh("get", dst=str(address), ifindex=index)[0]
    except NetlinkError:
        return None, False
    lladdr = bytes.fromhex((message.get("lladdr") or "").replace(":", ""))
    return _usable(message["state"], lladdr)


def _usable(state: int, lladdr: bytes) -> tuple[bytes | None, bool]:
    """A neighbour's hardware address if it may be used in this state (NUD_*), and whether it was set by hand."""
    if not state & NUD_VALID or len(lladdr) != 6:
        return None, False
    return lladdr, bool(state & NUD_PERMANENT)


def use_neighbour(route: Any, index: int, address: Address) -> None:
    """Tell the kernel that the entry is in use, so that it confirms it in time (NTF_USE). An entry that was set by hand
    needs no confirmation, and NTF_USE would make the kernel forget its hardware address (__neigh_update)."""
    _, permanent = neighbour(route, index, address)
    if permanent:
        return
    with contextlib.suppress(NetlinkError):
        route.neigh("change", dst=str(address), ifindex=index, flags=NTF_USE)


def neighbours(route: Any, index: int) -> list[Address]:
    """Every address that a device has an entry for, usable or not."""
    return [ip_address(message.get("dst")) for message in route.neigh("dump", ifindex=index) if message.get("dst")]


def set_neighbour(route: Any, index: int, address: Address, mac: bytes) -> None:
    """Tell the kernel a hardware address that it shall confirm when it's used."""
    with contextlib.suppress(NetlinkError):
        route.neigh("replace", dst=str(address), ifindex=index, lladdr=mac.hex(":"), state=NUD_STALE)


def destination_decides(route: Any, version: int) -> bool:
    """Whether no policy rule of this IP version depends on anything of a packet but its destination."""
    for rule in route.get_rules(family=AF_INET6 if version == 6 else AF_INET):
        if rule.get_attr("FRA_PROTOCOL") == rules.OURS:
            continue
        if rule["src_len"] or rule["tos"] or any(name in _SELECTIVE for name, _ in rule["attrs"]):
            return False
    return True


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
        """What has happened since the last call."""
        while True:
            try:
                data = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield RoutesChanged()  # events were lost
                continue
            for kind, body in messages(data):
                if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH):
                    yield RoutesChanged()
                    continue
                changed = _read_neighbour(body, gone=kind == RTM_DELNEIGH)
                if changed is not None:
                    yield changed

    def close(self) -> None:
        self._socket.close()


def _read_neighbour(body: bytes, *, gone: bool) -> NeighbourChanged | None:
    """None for what is no neighbour: a bridge's forwarding entry, or an address that the host answers for."""
    family, index, state, flags, _ = _NDMSG.unpack_from(body)
    found = attributes(body, _NDMSG.size)
    if family not in (AF_INET, AF_INET6) or flags & NTF_PROXY or _NDA_DST not in found:
        return None
    mac, permanent = (None, False) if gone else _usable(state, found.get(_NDA_LLADDR, b""))
    return NeighbourChanged(index, ip_address(found[_NDA_DST]), mac, permanent)
