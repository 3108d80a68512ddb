"""Packets of the frames that a port wrote: parsed, completed, segmented, fragmented. Pure.

A frame is a virtio_net_hdr (10 bytes, little endian; virtio 1.2 section 5.1.6) and an Ethernet frame. The
sender's offloads are done here: partial checksums completed, GSO frames segmented. Every field is checked against the
frame's length before it is used, every loop is bounded by that or by a constant, and arguments are never changed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

MINIMUM_MTU = 68  # bytes; RFC 791 section 3.2: every module forwards that much without fragmenting it

_VNET = struct.Struct("<BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_ETHERNET = 14
_NEEDS_CSUM = 1
_GSO_NONE, _GSO_TCPV4, _GSO_TCPV6, _GSO_UDP_L4, _GSO_ECN = 0, 1, 4, 5, 0x80
_GSO_KINDS = {(_GSO_TCPV4, 4, TCP), (_GSO_TCPV6, 6, TCP), (_GSO_UDP_L4, 4, UDP), (_GSO_UDP_L4, 6, UDP)}

# No stack sends smaller segments (TCP_MIN_SND_MSS is 48 bytes): a frame with more than this is an attack.
_MOST_SEGMENTS = 0xFFFF // 48

_DF, _MF, _OFFSET = 0x4000, 0x2000, 0x1FFF
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_MOST_EXTENSIONS = 16

_OPTION_END, _OPTION_NOP, _OPTION_COPIED = 0, 1, 0x80


class Malformed(ValueError):
    """The frame is no IPv4 or IPv6 packet, or can't become what its header asks for."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One IPv4 or IPv6 packet, its lengths in bytes from the start of the IP header."""

    data: bytes  # the whole packet; length and IPv4 header checksum are right
    version: int  # 4 or 6, by the EtherType: the packet's own version field may lie
    source: bytes  # 4 or 16 bytes
    destination: bytes  # what the header says, with source routing not the last one
    protocol: int  # after IPv6 extension headers
    transport: int  # where the transport header starts; below 20 only where IPv4's IHL lies
    routed: bool  # source routed, perhaps: the last destination isn't known
    df: bool  # may not be fragmented on its way; always for IPv6
    intact: bool  # `data` is what the frame had, and the frame's virtio_net_hdr fits it
    checksum: tuple[int, int] | None  # where the sum starts, and where it goes; None: it's complete
    gso_size: int  # payload bytes of each segment, 0: no GSO frame
    head: int  # headers that each segment repeats, 0: no GSO frame

    @property
    def largest(self) -> int:
        """Length of the largest packet that this one becomes on the wire."""
        return min(len(self.data), self.head + self.gso_size) if self.gso_size else len(self.data)


# ---------------------------------------------------------------------------- checksums


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """The one's complement sum of big-endian 16-bit words (RFC 1071), an odd last byte padded with 0.

    2^16 is 1 modulo 2^16 - 1, so the number that the bytes are has the same remainder as the sum of its words.
    """
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    return value and (value % 0xFFFF or 0xFFFF)


def complement(total: int) -> int:
    """The checksum for a sum, or a sum of sums: folded to 16 bits and inverted."""
    return -total % 0xFFFF if total else 0xFFFF


# ---------------------------------------------------------------------------- reading


def parse(frame: bytes | bytearray | memoryview) -> Packet:
    """The packet in a frame, with its length and IPv4 header checksum repaired.

    The length becomes that of the data, padding included, as for everything that a host sends itself
    (`__ip_local_out` in net/ipv4/ip_output.c, `__ip6_local_out` in net/ipv6/output_core.c).

    Errors: Malformed for a frame that is shorter than its headers, not IP (a VLAN tag is not), longer than IP can
    say, or with a virtio_net_hdr that asks for a checksum outside of it or for segments that can't be.
    """
    start = _VNET.size + _ETHERNET
    if len(frame) < start:
        raise Malformed("shorter than an Ethernet header")
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = _VNET.unpack_from(frame)
    ethertype = int.from_bytes(frame[start - 2 : start], "big")
    given = bytes(frame[start:])
    if ethertype == 0x0800:
        version = 4
        data = _repair4(given)
        transport, protocol = (data[0] & 15) * 4, data[9]
        source, destination = data[12:16], data[16:20]
        field = int.from_bytes(data[6:8], "big")
        df, routed, cut = bool(field & _DF), transport > 20, bool(field & (_MF | _OFFSET))
    elif ethertype == 0x86DD:
        version = 6
        data = _repair6(given)
        source, destination, df = data[8:24], data[24:40], True
        transport, protocol, routed, offset = transport6(data)
        cut = offset is not None
    else:
        raise Malformed(f"EtherType 0x{ethertype:04x} is not IP")

    checksum = None
    if flags & _NEEDS_CSUM:
        checksum = csum_start - _ETHERNET, csum_start - _ETHERNET + csum_offset
        if checksum[0] < max(transport, 20) or checksum[1] + 2 > len(data):
            raise Malformed(f"csum_start {csum_start}, csum_offset {csum_offset} in {len(data)} bytes")

    kind, head = gso_type & ~_GSO_ECN, 0
    if kind == _GSO_NONE:
        gso_size = 0
    else:
        if (kind, version, protocol) not in _GSO_KINDS or cut or not gso_size or transport < 20:
            raise Malformed(f"gso_type {gso_type}, gso_size {gso_size} for protocol {protocol}")
        head = _head(data, transport, protocol)
        if len(data) - head > gso_size * _MOST_SEGMENTS:
            raise Malformed(f"gso_size {gso_size} for {len(data)} bytes")
        partial = transport, transport + (6 if protocol == UDP else 16)
        if checksum != partial and (checksum or routed):
            raise Malformed("GSO frame whose checksum is partial elsewhere or not at all")
    return Packet(
        data=data,
        version=version,
        source=source,
        destination=destination,
        protocol=protocol,
        transport=transport,
        routed=routed,
        df=df,
        intact=data == given and hdr_len <= len(frame) - _VNET.size,
        checksum=checksum,
        gso_size=gso_size,
        head=head,
    )


def _repair4(given: bytes) -> bytes:
    if not 20 <= len(given) <= 0xFFFF:
        raise Malformed(f"IPv4 packet of {len(given)} bytes")
    size = (given[0] & 15) * 4
    if size > len(given):
        raise Malformed(f"IPv4 header of {size} bytes in {len(given)}")
    length = len(given).to_bytes(2, "big")
    if size < 20:  # ip_fast_csum gives back the first two bytes of what is too short to add up
        return given[:2] + length + given[4:10] + given[:2] + given[12:]
    if given[2:4] == length and ones_sum(given[:size]) == 0xFFFF:
        return given
    header = given[:2] + length + given[4:10] + b"\0\0" + given[12:size]
    return header[:10] + complement(ones_sum(header)).to_bytes(2, "big") + header[12:] + given[size:]


def _repair6(given: bytes) -> bytes:
    if not 40 <= len(given) <= 40 + 0xFFFF:
        raise Malformed(f"IPv6 packet of {len(given)} bytes")
    length = (len(given) - 40).to_bytes(2, "big")
    return given if given[4:6] == length else given[:4] + length + given[6:]


def transport6(data: bytes) -> tuple[int, int, bool, int | None]:
    """Walk an IPv6 packet's extension headers (RFC 8200 section 4), as far as the first fragment's would go.

    Returns where the transport header starts, its protocol, whether a routing header has the last destination, and
    the fragment offset in bytes or None for no fragment. A header that is cut off counts as transport.
    """
    at, protocol, routed = 40, data[6], False
    offset: int | None = None
    for _ in range(_MOST_EXTENSIONS):
        if offset or protocol not in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION) or at + 8 > len(data):
            break
        if protocol == _FRAGMENT:
            offset, size = int.from_bytes(data[at + 2 : at + 4], "big") & ~7, 8
        else:
            size = (data[at + 1] + 1) * 8
            routed = routed or (protocol == _ROUTING and data[at + 3] > 0)
        if at + size > len(data):
            break
        at, protocol = at + size, data[at]
    return at, protocol, routed, offset


def _head(data: bytes, transport: int, protocol: int) -> int:
    """Length of the headers of a TCP or UDP packet."""
    if transport + (8 if protocol == UDP else 20) > len(data):
        raise Malformed("GSO frame shorter than its headers")
    if protocol == UDP:
        return transport + 8
    size = (data[transport + 12] >> 4) * 4
    if size < 20 or transport + size > len(data):
        raise Malformed(f"TCP header of {size} bytes")
    return transport + size


# ---------------------------------------------------------------------------- finishing


def complete(packet: Packet) -> bytes:
    """The packet with its checksum complete: what a card does with NEEDS_CSUM. Not for a GSO frame."""
    if packet.checksum is None:
        return packet.data
    start, at = packet.checksum
    value = complement(ones_sum(memoryview(packet.data)[start:]))
    if not value and packet.protocol == UDP:
        value = 0xFFFF  # 0 would say that there is none (RFC 768)
    return packet.data[:at] + value.to_bytes(2, "big") + packet.data[at + 2 :]


def segment(packet: Packet, most: int | None = None) -> list[bytes]:
    """The packets that a GSO frame stands for, at most `most` of them; any other packet, complete.

    TCP: CWR stays on the first segment, FIN and PSH on the last (`tcp_gso_segment`); the IPv4 identification
    grows by one with each (`inet_gso_segment`); UDP: each gets a length of its own (`__udp_gso_segment`).
    """
    if not packet.gso_size:
        return [complete(packet)]
    data, start, head, size = packet.data, packet.transport, packet.head, packet.gso_size
    tcp = packet.protocol == TCP
    at = start + (16 if tcp else 6)
    pseudo = _pseudo(packet)
    template = bytearray(data[:head])
    template[at : at + 2] = b"\0\0"
    identity = int.from_bytes(data[4:6], "big")
    sequence = int.from_bytes(data[start + 4 : start + 8], "big")
    segments = []
    for number, cut in enumerate((range(head, len(data), size) or range(head, head + 1))[:most]):
        payload = data[cut : cut + size]
        header = template[:]
        if packet.version == 4:
            struct.pack_into("!HH", header, 2, head + len(payload), (identity + number) & 0xFFFF)
            header[10:12] = b"\0\0"
            struct.pack_into("!H", header, 10, complement(ones_sum(header[:start])))
        else:
            struct.pack_into("!H", header, 4, head - 40 + len(payload))
        length = head - start + len(payload)
        if tcp:
            struct.pack_into("!I", header, start + 4, (sequence + cut - head) & 0xFFFFFFFF)
            if number:
                header[start + 13] &= ~_CWR
            if cut + size < len(data):
                header[start + 13] &= ~(_FIN | _PSH)
        else:
            struct.pack_into("!H", header, start + 4, length)
        value = complement(pseudo + length + ones_sum(header[start:]) + ones_sum(payload))
        struct.pack_into("!H", header, at, value if value or tcp else 0xFFFF)
        segments.append(bytes(header) + payload)
    return segments


def _pseudo(packet: Packet) -> int:
    """The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) without the length."""
    if packet.routed and packet.checksum:
        # Only the sender knows the last destination; its sum over the pseudo header stands in the field.
        start, at = packet.checksum
        return int.from_bytes(packet.data[at : at + 2], "big") - (len(packet.data) - start)
    return ones_sum(packet.source) + ones_sum(packet.destination) + packet.protocol


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """Cut a whole IPv4 packet into fragments of at most `mtu` bytes, or of 68 if that is more (RFC 791 section 3.2).

    DF is not looked at. Fragments can be cut again. All have a header of the same size: options that belong to the
    first alone are no-operations in the others (`ip_options_fragment`). A packet without an identification gets one,
    because a raw socket would give each fragment another.

    Errors: Malformed if the header lies about its size, or the end is beyond what an offset can say.
    """
    if len(packet) <= max(mtu, MINIMUM_MTU):
        return [packet]
    size = (packet[0] & 15) * 4
    if not 20 <= size <= len(packet):
        raise Malformed(f"IPv4 header of {size} bytes")
    field = int.from_bytes(packet[6:8], "big")
    first = (field & _OFFSET) * 8
    if first + len(packet) - size > 0xFFFF:
        raise Malformed("fragment ends beyond 65535 bytes")
    header = bytearray(packet[:size])
    if not field & (_OFFSET | _MF) and header[4:6] == b"\0\0":
        struct.pack_into("!H", header, 4, complement(ones_sum(packet)) or 1)
    room = max(mtu, MINIMUM_MTU) - size
    pieces = []
    at = size
    while at < len(packet):
        end = len(packet) if len(packet) - at <= room else at + (room & ~7)
        more = field & _MF if end == len(packet) else _MF
        struct.pack_into("!H", header, 2, size + end - at)
        struct.pack_into("!H", header, 6, (field & ~(_OFFSET | _MF)) | more | (first + at - size) // 8)
        header[10:12] = b"\0\0"
        struct.pack_into("!H", header, 10, complement(ones_sum(header)))
        pieces.append(bytes(header) + packet[at:end])
        if at == size:
            _blank_first_options(header)
        at = end
    return pieces


def _blank_first_options(header: bytearray) -> None:
    """Make no-operations of the options that only the first fragment carries."""
    at = 20
    while at < len(header) and header[at] != _OPTION_END:
        if header[at] == _OPTION_NOP:
            at += 1
            continue
        size = header[at + 1] if at + 1 < len(header) else 0
        if size < 2 or at + size > len(header):
            return
        if not header[at] & _OPTION_COPIED:
            header[at : at + size] = bytes([_OPTION_NOP]) * size
        at += size
