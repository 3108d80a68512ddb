"""Which multicast groups a virtual machine listens to, by its membership reports. Pure: time is an argument.

A machine that has reported groups of an IP version is taken to report all of them: it gets the others no more. One that
has reported none, more than are remembered, or asks others for theirs, as a multicast router does, gets every group.

A guest reports the groups that it joins and leaves, and all of them when it is queried (IGMP: RFC 1112, 2236, 3376;
MLD: RFC 2710, 3810). Where nobody on the network queries, a report is made once and never again; so the switch queries
its guests itself, each by a frame that nobody else receives. A group that isn't reported any more is forgotten.

Sources of what a switch may do with all this: RFC 4541.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from ipvsw.model import Address
from ipvsw.packets.multicast import group_mac
from ipvsw.packets.segment import ICMPV6, complement, ones_sum

MAX_GROUPS = 64  # of a port that are remembered; a card filters fewer than that
QUERY_INTERVAL = 125.0  # seconds (RFC 3376 section 8.2)
LIFETIME = 2 * QUERY_INTERVAL + 10.0  # seconds after a report (section 8.4)
LAST_MEMBER = 2.0  # seconds that others behind a port have to contradict one that leaves (section 8.8)
RESPONSE = 1.0  # seconds that a guest may take to answer a query

_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_IGMP, _HOP_BY_HOP = 2, 0
_QUERY4, _REPORT1, _REPORT2, _LEAVE, _REPORT3 = 0x11, 0x12, 0x16, 0x17, 0x22
_QUERY6, _MLD_REPORT, _MLD_DONE, _MLD_REPORT2 = 130, 131, 132, 143
_BLOCK_OLD_SOURCES = 6  # takes sources from a group, and never the group
_INCLUDE = (1, 3, 5)  # kinds of records that name all sources there are, or new ones: none of them is no member

_QUERIER_MAC = bytes.fromhex("026970767377")  # locally administered, and nobody's
_QUERIER6 = IPv6Address("fe80::69:70ff:fe76:7377")  # its link-local address (RFC 4291 appendix A)
_ROUTER_ALERT4, _ROUTER_ALERT6 = b"\x94\x04\0\0", bytes((ICMPV6, 0, 5, 2, 0, 0, 1, 0))
_ALL_SYSTEMS, _ALL_NODES = IPv4Address("224.0.0.1"), IPv6Address("ff02::1")


# ---------------------------------------------------------------------------- reports


def read_reports(frame: bytes) -> list[tuple[Address, bool]]:
    """The groups that a frame, its virtio_net_hdr before it, says to be listened to (True) or left (False)."""
    kind, packet = frame[22:24], frame[24:]
    if kind == _IPV4 and len(packet) >= 20 and packet[0] >> 4 == 4 and packet[9] == _IGMP:
        found = _igmp(packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")])
    elif kind == _IPV6 and len(packet) >= 48 and packet[0] >> 4 == 6 and packet[6] == _HOP_BY_HOP:
        at = 40 + (packet[41] + 1) * 8
        found = _mld(packet[at : 40 + int.from_bytes(packet[4:6], "big")]) if packet[40] == ICMPV6 else iter(())
    else:
        return []
    return [(group, joined) for group, joined in found if group.is_multicast]


def is_query(frame: bytes) -> bool:
    """Whether a frame, its virtio_net_hdr before it, asks who listens to what, as a multicast router does."""
    kind, packet = frame[22:24], frame[24:]
    if kind == _IPV4 and len(packet) >= 20 and packet[9] == _IGMP:
        at = (packet[0] & 15) * 4
        return packet[at : at + 1] == bytes([_QUERY4])
    if kind == _IPV6 and len(packet) >= 48 and packet[6] == _HOP_BY_HOP and packet[40] == ICMPV6:
        at = 40 + (packet[41] + 1) * 8
        return packet[at : at + 1] == bytes([_QUERY6])
    return False


def _igmp(message: bytes) -> Iterator[tuple[Address, bool]]:
    if len(message) < 8:
        return
    if message[0] in (_REPORT1, _REPORT2, _LEAVE):
        yield IPv4Address(message[4:8]), message[0] != _LEAVE
    elif message[0] == _REPORT3:
        for group, joined in _records(message, 4):
            yield IPv4Address(group), joined


def _mld(message: bytes) -> Iterator[tuple[Address, bool]]:
    if len(message) < 8:
        return
    if message[0] in (_MLD_REPORT, _MLD_DONE) and len(message) >= 24:
        yield IPv6Address(message[8:24]), message[0] == _MLD_REPORT
    elif message[0] == _MLD_REPORT2:
        for group, joined in _records(message, 16):
            yield IPv6Address(group), joined


def _records(message: bytes, size: int) -> Iterator[tuple[bytes, bool]]:
    """The group records of IGMPv3 (RFC 3376 section 4.2.4) or MLDv2 (RFC 3810 section 5.2.5), with addresses of so
    many bytes."""
    at = 8
    for _ in range(int.from_bytes(message[6:8], "big")):
        if at + 4 + size > len(message):
            return
        kind, words, sources = struct.unpack_from("!BBH", message, at)
        if kind != _BLOCK_OLD_SOURCES:
            yield message[at + 4 : at + 4 + size], kind not in _INCLUDE or sources > 0
        at += 4 + size + sources * size + words * 4


# ---------------------------------------------------------------------------- queries


def queries() -> tuple[bytes, bytes]:
    """General queries, each with its virtio_net_hdr: IGMPv3 (RFC 3376 section 4.1) from nobody's address, as RFC 4541
    section 2.1.1 has a switch query, and MLDv2 (RFC 3810 section 5.1). Older hosts understand both."""
    return _query4(), _query6()


def _query4() -> bytes:
    body = struct.pack("!BBH4sBBH", _QUERY4, round(RESPONSE * 10), 0, bytes(4), 2, round(QUERY_INTERVAL), 0)
    body = body[:2] + complement(ones_sum(body)).to_bytes(2, "big") + body[4:]
    head = struct.pack("!BBHHHBBH", 0x46, 0xC0, 24 + len(body), 0, 0, 1, _IGMP, 0)
    head += bytes(4) + _ALL_SYSTEMS.packed + _ROUTER_ALERT4
    head = head[:10] + complement(ones_sum(head)).to_bytes(2, "big") + head[12:]
    return _framed(_ALL_SYSTEMS, _IPV4, head + body)


def _query6() -> bytes:
    code, interval = round(RESPONSE * 1000), round(QUERY_INTERVAL)
    body = struct.pack("!BBHHH16sBBH", _QUERY6, 0, 0, code, 0, bytes(16), 2, interval, 0)
    ends = _QUERIER6.packed + _ALL_NODES.packed
    total = complement(ones_sum(ends + struct.pack("!II", len(body), ICMPV6) + body))
    body = body[:2] + total.to_bytes(2, "big") + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(_ROUTER_ALERT6) + len(body), _HOP_BY_HOP, 1) + ends
    return _framed(_ALL_NODES, _IPV6, head + _ROUTER_ALERT6 + body)


def _framed(group: Address, kind: bytes, packet: bytes) -> bytes:
    return bytes(10) + group_mac(group) + _QUERIER_MAC + kind + packet


# ---------------------------------------------------------------------------- memberships


class Memberships:
    """The groups of one switch's virtual machines."""

    def __init__(self) -> None:
        self._until: dict[str, dict[Address, float]] = {}  # of each port: a group, and until when it is remembered
        self._routers: dict[str, float] = {}  # those that have sent queries, and until when that is remembered

    def report(self, port: str, reports: list[tuple[Address, bool]], now: float) -> None:
        """What one frame of the port says. A group that is left stays for a moment: there may be other listeners behind
        the port. Beyond MAX_GROUPS nothing is remembered."""
        groups = self._until.setdefault(port, {})
        for group, joined in reports:
            if not joined and group in groups:
                groups[group] = min(groups[group], now + LAST_MEMBER)
            elif joined and (group in groups or len(groups) < MAX_GROUPS):
                groups[group] = now + LIFETIME

    def query(self, port: str, now: float) -> None:
        """The port asks others: there is a multicast router behind it."""
        self._routers[port] = now + LIFETIME

    def expire(self, now: float) -> None:
        """Forget what isn't reported any more."""
        for groups in self._until.values():
            for group in [group for group, until in groups.items() if until <= now]:
                del groups[group]
        self._routers = {port: until for port, until in self._routers.items() if until > now}

    def next_end(self) -> float | None:
        """When `expire` will have something to do; None: never."""
        of_groups = (until for groups in self._until.values() for until in groups.values())
        return min((*of_groups, *self._routers.values()), default=None)

    def forget(self, port: str) -> bool:
        """Its machine is gone, and its groups with it. Whether anything was known of it."""
        groups, router = self._until.pop(port, None), self._routers.pop(port, None)
        return bool(groups) or router is not None

    def ports(self) -> list[str]:
        """Those that have reported or asked for any."""
        return [*self._until, *(port for port in self._routers if port not in self._until)]

    def macs(self, port: str) -> frozenset[bytes]:
        """The MAC addresses of the groups that a port listens to."""
        return frozenset(group_mac(group) for group in self._until.get(port, ()))

    def versions(self, port: str) -> frozenset[int]:
        """The IP versions of which the port needs no other groups than these."""
        groups = self._until.get(port, {})
        if port in self._routers or len(groups) >= MAX_GROUPS:
            return frozenset()
        return frozenset(group.version for group in groups)
