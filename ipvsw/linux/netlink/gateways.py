"""Which addresses the host's routes by a device have as their gateways."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ipvsw.linux.netlink.lookup import RTA_OIF, RTM_GETROUTE, RTMSG, gateway_of
from ipvsw.linux.netlink.messages import AF_INET, AF_INET6, attributes, pack_attribute
from ipvsw.linux.netlink.questions import NLM_F_DUMP, Questions
from ipvsw.model import Address

SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12  # linux/netlink.h
_RTA_MULTIPATH = 9  # linux/rtnetlink.h
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, index


class Gateways(Questions):
    """Asks for one device's routes alone, which the kernel picks out (strict checking, Linux 4.20): a host may have
    a whole internet's on another."""

    def __init__(self) -> None:
        super().__init__()
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def of(self, index: int) -> frozenset[Address]:
        """Of every table. Errors: OSError."""
        return frozenset(gateway for family in (AF_INET, AF_INET6) for gateway in self._of(family, index))

    def _of(self, family: int, index: int) -> Iterator[Address]:
        body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + pack_attribute(RTA_OIF, struct.pack("=i", index))
        for route in self.ask(RTM_GETROUTE, NLM_F_DUMP, body):
            found = attributes(route, RTMSG.size)
            if (gateway := gateway_of(found)) is not None:
                yield gateway
            yield from _of_multipath(found.get(_RTA_MULTIPATH, b""), index)


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
