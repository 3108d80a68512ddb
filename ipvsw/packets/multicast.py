"""Multicast addresses of IP and of Ethernet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address


def group_mac(group: IPv4Address | IPv6Address) -> bytes:
    """RFC 1112 section 6.4, RFC 2464 section 7."""
    packed = group.packed
    if len(packed) == 4:
        return b"\1\0\x5e" + bytes((packed[1] & 0x7F,)) + packed[2:]
    return b"\x33\x33" + packed[12:]
