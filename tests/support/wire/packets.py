"""Frames as a port's kernel writes them, and what is right about packets told the slow and obvious way.

The checksums and the reassembly share no code with what they are the measure of.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from ipvsw.packets.pathmtu import Result, for_path

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
TCPV4, UFO, TCPV6, USO, ECN = 1, 3, 4, 5, 0x80
FIN, PSH, ACK, CWR = 1, 8, 16, 128
DF, MF = 0x4000, 0x2000
A4, B4, M4 = (ip_address(text).packed for text in ("10.1.0.11", "10.1.0.50", "10.1.0.1"))
A6, B6, M6 = (ip_address(text).packed for text in ("fd00:1::11", "fd00:1::50", "fd00:1::1"))
CHECKSUM_AT = {TCP: 16, UDP: 6}


def total(data: bytes) -> int:
    value = 0
    for at in range(0, len(data), 2):
        value += data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0)
    while value > 0xFFFF:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!IHBB", length, 0, 0, protocol)


def verify(packet: bytes, transport: int | None = None) -> None:
    """Lengths and every checksum of a whole, unfragmented packet."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        assert total(packet[:size]) == 0xFFFF, "IPv4 header checksum"
        ends, protocol = (packet[12:16], packet[16:20]), packet[9]
    else:
        size, ends, protocol = 40, (packet[8:24], packet[24:40]), packet[6]
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
    data = packet[transport or size :]
    if transport:
        protocol = packet[40]
    if protocol == UDP:
        assert int.from_bytes(data[4:6], "big") == len(data)
        assert data[6:8] != b"\0\0", "UDP checksum missing"
    covered = data if protocol == ICMP else pseudo(*ends, protocol, len(data)) + data
    assert total(covered) == 0xFFFF, f"checksum of protocol {protocol}"


@dataclass(frozen=True)
class Made:
    """A frame as a port's kernel writes it: checksum partial (the pseudo header's sum), GSO frames uncut."""

    version: int = 4
    protocol: int = UDP
    payload: bytes = b"payload!"
    field: int = 0  # IPv4: flags and offset
    identity: int = 7
    options: bytes = b""  # IPv4
    extensions: bytes = b""  # IPv6; the first byte is the next header's number
    first: int = 0  # IPv6: number of the first extension header
    sequence: int = 1000
    tcp_flags: int = ACK
    tcp_options: bytes = b""
    source: bytes = b""
    destination: bytes = b""

    @property
    def ends(self) -> tuple[bytes, bytes]:
        return self.source or (A4 if self.version == 4 else A6), self.destination or (B4 if self.version == 4 else B6)

    @property
    def transport(self) -> int:
        return 20 + len(self.options) if self.version == 4 else 40 + len(self.extensions)

    def packet(self) -> bytes:
        if self.protocol == TCP:
            offset = (20 + len(self.tcp_options)) // 4 << 4
            ports = struct.pack("!HHIIBBHHH", 1111, 80, self.sequence, 5, offset, self.tcp_flags, 512, 0, 0)
            data = ports + self.tcp_options + self.payload
        elif self.protocol == UDP:
            data = struct.pack("!HHHH", 1111, 2222, (8 + len(self.payload)) & 0xFFFF, 0) + self.payload
        else:
            data = self.payload
        if self.protocol in CHECKSUM_AT:
            at = CHECKSUM_AT[self.protocol]
            data = data[:at] + struct.pack("!H", total(pseudo(*self.ends, self.protocol, len(data)))) + data[at + 2 :]
        if self.version == 6:
            rest = self.extensions + data
            head = struct.pack("!IHBB", 6 << 28, len(rest), self.first if self.extensions else self.protocol, 64)
            return head + self.ends[0] + self.ends[1] + rest
        size = 20 + len(self.options)
        head = struct.pack(
            "!BBHHHBBH", 0x40 | size // 4, 0, size + len(data), self.identity, self.field, 64, self.protocol, 0
        )
        head += self.ends[0] + self.ends[1] + self.options
        return head[:10] + struct.pack("!H", total(head) ^ 0xFFFF) + head[12:] + data

    def frame(self, gso: int = 0, size: int = 0) -> bytes:
        partial = self.protocol in CHECKSUM_AT
        return wrap(
            self.packet(),
            flags=int(partial),
            gso=gso,
            size=size,
            start=14 + self.transport if partial else 0,
            offset=CHECKSUM_AT.get(self.protocol, 0),
        )


def wrap(
    packet: bytes,
    *,
    kind: int | None = None,
    flags: int = 0,
    gso: int = 0,
    hdr_len: int = 0,
    size: int = 0,
    start: int = 0,
    offset: int = 0,
) -> bytes:
    kind = kind or (0x0800 if packet[0] >> 4 == 4 else 0x86DD)
    vnet = struct.pack("<BBHHHH", flags, gso, hdr_len, size, start, offset)
    return vnet + b"\x02\0\0\0\0\xfe\x02\0\0\0\0\x01" + kind.to_bytes(2, "big") + packet


def reassemble(pieces: list[bytes]) -> bytes:
    """The payload of a packet's fragments, each of whose headers is checked."""
    data, ended = b"", False
    for piece in pieces:
        size = (piece[0] & 15) * 4
        assert int.from_bytes(piece[2:4], "big") == len(piece)
        assert total(piece[:size]) == 0xFFFF
        field = int.from_bytes(piece[6:8], "big")
        assert (field & 0x1FFF) * 8 == len(data) and not ended
        data += piece[size:]
        ended = not field & MF
    assert ended
    return data


def decide(frame: bytes, mtu: int = 1500, *, headers_kept: bool = False) -> Result:
    """What becomes of a frame, with what is true of every answer asserted."""
    before = bytes(frame)
    result = for_path(frame, mtu, M4, M6, headers_kept=headers_kept)
    assert frame == before
    assert bool(result.send) + bool(result.answer) + bool(result.drop) == (0 if headers_kept and result.whole else 1)
    return result
