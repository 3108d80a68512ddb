"""Tunnels the slow and obvious way: every segment's frame is built on its own, from the inside to the outside.

A GSO frame is the same packet with the whole payload, whose innermost checksum is partial. Nothing here takes a frame
apart, so it shares no thought with the segmenter that it is the measure of.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tests.support.wire.packets import A4, A6, ACK, B4, B6, FIN, PSH, TCP, TCPV4, TCPV6, UDP, USO, pseudo, total

IPIP, IPV6, GRE, SCTP = 4, 41, 47, 132
IP_TYPES = {4: 0x0800, 6: 0x86DD}
IP_PROTOCOLS = {4: IPIP, 6: IPV6}
MACS = bytes.fromhex("0200000000010200000000fe")
INNER_MACS = bytes.fromhex("0a00000000010a0000000002")
ENDS = {4: (A4, B4), 6: (A6, B6)}
INNER = {4: (bytes([192, 168, 1, 2]), bytes([192, 168, 1, 1])), 6: (bytes(15) + b"\2", bytes(15) + b"\1")}

# What is around a packet: (the packet, its IP version, the segment's number) -> what a lower layer carries.
Wrap = Callable[[bytes, int, int], bytes]


def ip(
    version: int, protocol: int, data: bytes, number: int, ends: tuple[bytes, bytes], *, identity: int = 0xFFFE
) -> bytes:
    source, destination = ends
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, len(data), protocol, 64) + source + destination + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), (identity + number) & 0xFFFF, 0, 64, protocol, 0)
    head += source + destination
    return head[:10] + struct.pack("!H", total(head) ^ 0xFFFF) + head[12:] + data


def summed(ends: tuple[bytes, bytes], protocol: int, data: bytes, at: int) -> bytes:
    """A transport packet with its checksum."""
    value = total(pseudo(*ends, protocol, len(data)) + data[:at] + b"\0\0" + data[at + 2 :]) ^ 0xFFFF
    return data[:at] + struct.pack("!H", value or 0xFFFF * (protocol == UDP)) + data[at + 2 :]


def ethernet(packet: bytes, version: int, tags: Sequence[int], macs: bytes) -> bytes:
    return (
        macs + b"".join(struct.pack("!HH", 0x8100, tag) for tag in tags) + struct.pack("!H", IP_TYPES[version]) + packet
    )


@dataclass(frozen=True)
class Tunnel:
    name: str
    protocol: int  # of the outer IP packet; 0: that of IPIP or of IPv6 in IP
    wrap: Wrap
    outer: int = 4  # IP version
    checksum: bool = False  # the outer UDP header has one
    tags: tuple[int, ...] = ()  # of the outer frame

    def frame(self, packet: bytes, version: int, number: int, *, checksum: bool | None = None) -> bytes:
        """An Ethernet frame around an IP packet. `checksum`: of the outer UDP header, if not the tunnel's own."""
        data = self.wrap(packet, version, number)
        protocol = self.protocol or IP_PROTOCOLS[version]
        if protocol == UDP:
            data = struct.pack("!HHHH", 50000, 4789, 8 + len(data), 0) + data
            if self.checksum if checksum is None else checksum:
                data = summed(ENDS[self.outer], UDP, data, 6)
        return ethernet(ip(self.outer, protocol, data, number, ENDS[self.outer]), self.outer, self.tags, MACS)


@dataclass(frozen=True)
class Inner:
    """The packet in the tunnel, of which the payload is cut into pieces of `size` bytes."""

    version: int = 4
    protocol: int = TCP
    payload: bytes = b""
    size: int = 1000

    @property
    def gso(self) -> int:
        return USO if self.protocol == UDP else TCPV4 if self.version == 4 else TCPV6

    @property
    def pieces(self) -> list[bytes]:
        return [self.payload[at : at + self.size] for at in range(0, len(self.payload), self.size)]

    def packet(self, payload: bytes, number: int, *, last: bool, complete: bool = True) -> bytes:
        if self.protocol == UDP:
            data, at = struct.pack("!HHHH", 1111, 2222, 8 + len(payload), 0) + payload, 6
        else:
            flags = ACK | (PSH | FIN if last else 0)
            sequence = (2**32 - 1500 + number * self.size) % 2**32
            data, at = struct.pack("!HHIIBBHHH", 1111, 80, sequence, 5, 0x50, flags, 9, 0, 0) + payload, 16
        ends = INNER[self.version]
        if complete:
            data = summed(ends, self.protocol, data, at)
        else:
            data = data[:at] + struct.pack("!H", total(pseudo(*ends, self.protocol, len(data)))) + data[at + 2 :]
        return ip(self.version, self.protocol, data, number, ends, identity=100)


def super_frame(tunnel: Tunnel, inner: Inner) -> bytes:
    """What a packet socket hands over for a tunnel's GSO frame: virtio_net_hdr and frame."""
    packet = inner.packet(inner.payload, 0, last=True, complete=False)
    frame = tunnel.frame(packet, inner.version, 0)
    start = len(frame) - len(packet) + (20 if inner.version == 4 else 40)
    offset = 6 if inner.protocol == UDP else 16
    return struct.pack("<BBHHHH", 1, inner.gso, 0, inner.size, start, offset) + frame


def segments(tunnel: Tunnel, inner: Inner, *, checksum: bool | None = None) -> list[bytes]:
    """The frames that the sender would have sent without any offload."""
    pieces = inner.pieces
    return [
        tunnel.frame(
            inner.packet(piece, number, last=number == len(pieces) - 1), inner.version, number, checksum=checksum
        )
        for number, piece in enumerate(pieces)
    ]


def crc32c(data: bytes) -> int:
    """Bit by bit (RFC 9260 appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


# ---------------------------------------------------------------------------- encapsulations


def _vxlan(packet: bytes, version: int, _number: int, tags: Sequence[int] = ()) -> bytes:
    return struct.pack("!II", 0x08 << 24, 41 << 8) + ethernet(packet, version, tags, INNER_MACS)


def _vxlan_gpe(packet: bytes, version: int, _number: int) -> bytes:
    return struct.pack("!BBBBI", 0x0C, 0, 0, 1 if version == 4 else 2, 41 << 8) + packet


def _geneve(packet: bytes, version: int, _number: int, options: bytes = b"", inner: bool = True) -> bytes:
    kind = 0x6558 if inner else IP_TYPES[version]
    data = ethernet(packet, version, (), INNER_MACS) if inner else packet
    return struct.pack("!BBHI", len(options) // 4, 0, kind, 41 << 8) + options + data


def _gre(packet: bytes, version: int, _number: int, flags: int = 0, inner: bool = False) -> bytes:
    """With a checksum (0x8000) and a key (0x2000)."""
    head = struct.pack("!HH", flags, 0x6558 if inner else IP_TYPES[version])
    data = ethernet(packet, version, (), INNER_MACS) if inner else packet
    key = struct.pack("!I", 77) if flags & 0x2000 else b""
    if flags & 0x8000:
        value = total(head + bytes(4) + key + data) ^ 0xFFFF
        head += struct.pack("!HH", value, 0)
    return head + key + data


def _plain(packet: bytes, _version: int, _number: int) -> bytes:
    return packet


def _gue(packet: bytes, version: int, _number: int) -> bytes:
    return bytes([1, IP_PROTOCOLS[version], 0, 0]) + bytes(4) + packet


def _gue_gre(packet: bytes, version: int, number: int) -> bytes:
    return bytes([0, GRE, 0, 0]) + _gre(packet, version, number, 0x8000)


def _in_ip(packet: bytes, version: int, number: int) -> bytes:
    """An IP packet in one more, of version 4."""
    return ip(4, IP_PROTOCOLS[version], packet, number, ENDS[4])


_KINDS: tuple[tuple[str, int, Wrap], ...] = (
    ("vxlan", UDP, _vxlan),
    ("vxlan-tag", UDP, partial(_vxlan, tags=(10,))),
    ("vxlan-two-tags", UDP, partial(_vxlan, tags=(10, 20))),
    ("vxlan-gpe", UDP, _vxlan_gpe),
    ("geneve", UDP, _geneve),
    ("geneve-options", UDP, partial(_geneve, options=bytes(range(44)))),
    ("geneve-ip", UDP, partial(_geneve, inner=False)),
    ("fou", UDP, _plain),
    ("fou-gre", UDP, _gre),
    ("gue", UDP, _gue),
    ("gue-gre", UDP, _gue_gre),
    ("ip-in-fou", UDP, _in_ip),
    ("gre", GRE, _gre),
    ("gre-key", GRE, partial(_gre, flags=0x2000)),
    ("gre-checksum", GRE, partial(_gre, flags=0xA000)),
    ("gretap", GRE, partial(_gre, inner=True)),
    ("ipip", 0, _plain),
    ("ip-in-ipip", IPIP, _in_ip),
)
PLAIN = tuple(Tunnel(name, protocol, wrap) for name, protocol, wrap in _KINDS)
ALL = tuple(
    replace(
        one,
        name=f"{one.name}-{outer}{'-sum' if checksum else ''}{'-tagged' if tags else ''}",
        outer=outer,
        checksum=checksum,
        tags=tags,
    )
    for one in PLAIN
    for outer in (4, 6)
    for checksum in ((False, True) if one.protocol == UDP else (False,))
    for tags in ((), (5,), (5, 6))
)
