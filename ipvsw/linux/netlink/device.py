"""One device's link, addresses and routes, read by hand: pyroute2 takes 2 ms to begin with, and 0.1 ms for each."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import TypeVar

from ipvsw.linux.netlink.lookup import RTA_OIF, RTM_GETLINK, RTM_GETROUTE, gateway_of
from ipvsw.linux.netlink.messages import (
    AF_INET,
    AF_INET6,
    IFADDRMSG,
    IFINFOMSG,
    IFLA_IFNAME,
    Link,
    attributes,
    pack_attribute,
    read_address,
    read_link,
)
from ipvsw.linux.netlink.questions import NLM_F_DUMP, Questions
from ipvsw.linux.netlink.rules import EXPORT_TABLE, RTMSG, Destination, read_exported, read_host_route
from ipvsw.linux.netlink.vlans import ONLY_VLANS, read_vlan
from ipvsw.model import Address, Network

T = TypeVar("T")

SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12  # linux/netlink.h
RTM_GETADDR, RT_TABLE_UNSPEC, RT_TABLE_MAIN = 22, 0, 254  # linux/rtnetlink.h
RTPROT_STATIC = 4
PART = 4096  # bytes of a list of the kernel's that are read at a time
_RTA_DST, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 6, 9
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, index


class DeviceReader(Questions):
    """Asks about one device alone, which the kernel picks out (strict checking, Linux 4.20): a host may have a whole
    internet's routes on another. Errors: OSError."""

    def __init__(self) -> None:
        super().__init__()
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def link(self, index: int = 0, name: str = "") -> Link | None:
        """The device of that index or name, None if there is none."""
        named = pack_attribute(IFLA_IFNAME, os.fsencode(name) + b"\0") if name else b""
        try:
            return read_link(self.ask(RTM_GETLINK, 0, IFINFOMSG.pack(0, 0, index, 0, 0) + named)[0])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def addresses(self, index: int) -> list[tuple[Address, int]]:
        """With their prefix lengths, as `AddressEvent` has them."""
        found = []
        for family in (AF_INET, AF_INET6):
            for body in self.ask(RTM_GETADDR, NLM_F_DUMP, IFADDRMSG.pack(family, 0, 0, 0, index)):
                if (owned := read_address(body)) is not None:
                    found.append(owned)
        return found

    def vlans(self, index: int) -> frozenset[int]:
        """Those that have a device of their own on the device, in its namespace; see `read_vlan`."""
        answers = self.ask(RTM_GETLINK, NLM_F_DUMP, IFINFOMSG.pack(0, 0, 0, 0, 0) + ONLY_VLANS)
        found = (read_vlan(body, index) for body in answers)
        return frozenset(vlan for vlan in found if vlan is not None)

    def gateways(self, index: int) -> frozenset[Address]:
        """The gateways of the routes in every table."""
        return frozenset(self._gateways(index))

    def default_gateways(self, index: int) -> dict[Address, int]:
        """The gateways of the default routes in the main table, with the protocol (RTPROT_*) of each."""
        found = {}
        for family in (AF_INET, AF_INET6):
            for route, parts in self._dump(family, index, RT_TABLE_MAIN):
                gateway = gateway_of(parts)
                if route[1] == 0 and gateway is not None:
                    found[gateway] = route[5]
        return found

    def routes(self, index: int) -> set[tuple[Network, Address | None, int]]:
        """Those of the main table that someone has added: destination, gateway and metric."""
        found = set()
        for family in (AF_INET, AF_INET6):
            for route, parts in self._dump(family, index, RT_TABLE_MAIN):
                if route[5] == RTPROT_STATIC:
                    destination = parts.get(_RTA_DST, bytes(4 if family == AF_INET else 16))
                    metric = int.from_bytes(parts.get(_RTA_PRIORITY, b""), sys.byteorder)
                    found.add((ip_network((destination, route[1])), gateway_of(parts), metric))
        return found

    def host_routes(self, index: int) -> frozenset[tuple[Address, int]]:
        """The daemon's own routes to single addresses, with the table of each."""
        return self._read_routes(index, RT_TABLE_UNSPEC, read_host_route)

    def exported(self, index: int) -> frozenset[Destination]:
        """The destinations of the daemon's exported routes."""
        return self._read_routes(index, EXPORT_TABLE, read_exported)

    def _read_routes(self, index: int, table: int, read: Callable[[bytes, dict[int, bytes]], T | None]) -> frozenset[T]:
        """What `read` makes of those of both families, given a struct rtmsg and its attributes."""
        routes = (route for family in (AF_INET, AF_INET6) for route in self._dump(family, index, table))
        return frozenset(found for route, parts in routes if (found := read(route, parts)) is not None)

    def _gateways(self, index: int) -> Iterator[Address]:
        for family in (AF_INET, AF_INET6):
            for _, parts in self._dump(family, index, RT_TABLE_UNSPEC):
                if (gateway := gateway_of(parts)) is not None:
                    yield gateway
                yield from _of_multipath(parts.get(_RTA_MULTIPATH, b""), index)

    def _dump(self, family: int, index: int, table: int) -> Iterator[tuple[bytes, dict[int, bytes]]]:
        """Each route's struct rtmsg, and its attributes."""
        body = RTMSG.pack(family, 0, 0, 0, table, 0, 0, 0, 0) + pack_attribute(RTA_OIF, struct.pack("=i", index))
        try:
            routes = self.ask(RTM_GETROUTE, NLM_F_DUMP, body)
        except FileNotFoundError:  # there is no such table yet
            return
        for route in routes:
            yield route[: RTMSG.size], attributes(route, RTMSG.size)


def _of_multipath(hops: bytes, index: int) -> Iterator[Address]:
    """Of the next hops by the device (struct rtnexthop, each with attributes)."""
    start = 0
    while start + _RTNEXTHOP.size <= len(hops):
        length, _, _, device = _RTNEXTHOP.unpack_from(hops, start)
        if length < _RTNEXTHOP.size:
            return
        gateway = gateway_of(attributes(hops[start : start + length], _RTNEXTHOP.size))
        if device == index and gateway is not None:
            yield gateway
        start += (length + 3) & ~3


def read_groups(name: str) -> tuple[bytes, ...]:
    """The device's list of group MACs, exactly (/proc/net/dev_mcast). Read as far as its end: the kernel lists the
    devices in the order in which they were made, and on a host there may be thousands later ones."""
    wanted, found, rest = os.fsencode(name), list[bytes](), b""
    # /proc/net is the process's first thread's; only thread-self is where this thread is.
    with open("/proc/thread-self/net/dev_mcast", "rb", buffering=0) as file:
        while part := file.read(PART):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                _, device, _, _, address = line.split()  # index, name, users, of these global ones, address
                if device == wanted:
                    found.append(bytes.fromhex(address.decode()))
                elif found:
                    return tuple(found)
    return tuple(found)
