"""Frames for tests: Internet checksums (RFC 1071) verified and made the slow and obvious way.

Nothing here shares code with the data plane, so that a mistake can't hide in both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

from tests.support import topology

ICMP, TCP, UDP, FRAGMENT, ICMP6 = 1, 6, 17, 44, 58
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
NEEDS_CSUM = 1


def total(data: bytes) -> int:
    """The one's complement sum of 16-bit words, folded, not inverted."""
    if len(data) % 2:
        data += b"\0"
    value: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def checksum(data: bytes) -> int:
    return ~total(data) & 0xFFFF


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """The pseudo header of RFC 793 (4-byte addresses) or RFC 8200 section 8.1."""
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!IHBB", length, 0, 0, protocol)


def complete(header: bytes, frame: bytes) -> bytes:
    """Do what a card does with a frame whose virtio_net_hdr says NEEDS_CSUM.

    Errors: AssertionError where the header doesn't fit the frame.
    """
    flags, _, _, _, start, offset = struct.unpack("=BBHHHH", header)
    if not flags & NEEDS_CSUM:
        return frame
    at = start + offset
    assert 14 <= start < at and at + 2 <= len(frame), f"csum_start {start}, csum_offset {offset} in {len(frame)} bytes"
    value = checksum(frame[start:]) or 0xFFFF
    return frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]


class Reassembly:
    """IPv4 and IPv6 fragments put together again, without any limit."""

    def __init__(self) -> None:
        self.parts: dict[tuple[bytes, ...], dict[int, bytes]] = {}
        self.ends: dict[tuple[bytes, ...], int] = {}

    def add(self, key: tuple[bytes, ...], offset: int, more: bool, data: bytes) -> bytes | None:
        self.parts.setdefault(key, {})[offset] = data
        if not more:
            self.ends[key] = offset + len(data)
        parts = self.parts[key]
        if sum(map(len, parts.values())) == self.ends.get(key):
            return b"".join(parts[at] for at in sorted(parts))
        return None


def wrong(frame: bytes, reassembly: Reassembly) -> str | None:
    """What is wrong with a complete frame's checksums, or None. Other protocols have none."""
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if kind == 0x0800:
        size = (packet[0] & 15) * 4
        if total(packet[:size]) != 0xFFFF:
            return "IPv4 header checksum"
        length, identity, fragment = struct.unpack_from("!HHH", packet, 2)
        if length > len(packet):
            return f"IPv4 length {length} of {len(packet)}"
        protocol, source, destination = packet[9], packet[12:16], packet[16:20]
        data: bytes | None = packet[size:length]
        if fragment & 0x3FFF:
            data = reassembly.add(
                (source, destination, bytes([protocol]), identity.to_bytes(2, "big")),
                (fragment & 0x1FFF) * 8,
                bool(fragment & 0x2000),
                packet[size:length],
            )
    elif kind == 0x86DD:
        length, protocol = struct.unpack_from("!HB", packet, 4)
        if length > len(packet) - 40:
            return f"IPv6 length {length} of {len(packet) - 40}"
        source, destination, data = packet[8:24], packet[24:40], packet[40 : 40 + length]
        if protocol == 0 and data:  # hop-by-hop options (MLD)
            protocol, data = data[0], data[(data[1] + 1) * 8 :]
        if protocol == FRAGMENT and data:
            protocol, fragment, key = data[0], int.from_bytes(data[2:4], "big"), data[4:8]
            data = reassembly.add((source, destination, key), fragment & 0xFFF8, bool(fragment & 1), data[8:])
    else:
        return None
    if data is None or protocol not in CHECKSUM_AT:
        return None
    stored = data[CHECKSUM_AT[protocol] : CHECKSUM_AT[protocol] + 2]
    if protocol == UDP and stored == b"\0\0":
        return None if kind == 0x0800 else "UDP checksum missing"
    covered = data if protocol == ICMP else pseudo(source, destination, protocol, len(data)) + data
    return None if total(covered) == 0xFFFF else f"checksum of protocol {protocol} in {len(frame)} bytes"


def payloads(frame: bytes) -> Iterator[str]:
    """Names of the protocols in a frame, as counters for what was seen."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == 0x0800 and len(frame) >= 34:
        yield {ICMP: "icmp", TCP: "tcp", UDP: "udp"}.get(frame[23], "other") + "4"
    elif kind == 0x86DD and len(frame) >= 54:
        yield {ICMP6: "icmp", TCP: "tcp", UDP: "udp"}.get(frame[20], "other") + "6"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def udp4(
    source: str,
    destination: str,
    payload: bytes,
    *,
    to: str = topology.MASTER_MAC,
    by: str = topology.MASTER_MAC,
    ports: tuple[int, int] = (1111, 2222),
) -> bytes:
    """A whole Ethernet frame with a UDP datagram over IPv4."""
    ends = ip_address(source).packed, ip_address(destination).packed
    datagram = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    value = checksum(pseudo(*ends, UDP, len(datagram)) + datagram) or 0xFFFF
    datagram = datagram[:6] + value.to_bytes(2, "big") + datagram[8:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, UDP, 0) + ends[0] + ends[1]
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return mac(to) + mac(by) + b"\x08\x00" + header + datagram


def udp6(
    source: str, destination: str, payload: bytes, *, to: str = topology.MASTER_MAC, by: str = topology.MASTER_MAC
) -> bytes:
    """A whole Ethernet frame with a UDP datagram over IPv6."""
    ends = ip_address(source).packed, ip_address(destination).packed
    datagram = struct.pack("!HHHH", 1111, 2222, 8 + len(payload), 0) + payload
    value = checksum(pseudo(*ends, UDP, len(datagram)) + datagram) or 0xFFFF
    head = struct.pack("!IHBB", 6 << 28, len(datagram), UDP, 64) + ends[0] + ends[1]
    return mac(to) + mac(by) + b"\x86\xdd" + head + datagram[:6] + value.to_bytes(2, "big") + datagram[8:]
