"""DHCP messages and frames for tests, put together by hand."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

CHADDR = bytes.fromhex("525400000001")
DUID = b"\0\3\0\1abcdef"


def bootp(
    op: int,
    *,
    kind: int = 0,
    xid: int = 1,
    flags: int = 0,
    ciaddr: str = "0.0.0.0",
    yiaddr: str = "0.0.0.0",
    giaddr: str = "0.0.0.0",
    chaddr: bytes = CHADDR,
    client: bytes = b"",
    requested: str = "",
    seconds: int | None = None,
    server: str = "",
    hostname: bytes = b"",
) -> bytes:
    """A DHCP message (RFC 2131 section 2); kind 0 is plain BOOTP."""
    fixed = struct.pack("!BBBBIHH", op, 1, len(chaddr), 0, xid, 0, flags)
    fixed += b"".join(IPv4Address(one).packed for one in (ciaddr, yiaddr, "0.0.0.0", giaddr))
    options = [
        (53, bytes([kind]) if kind else b""),
        (61, client),
        (50, IPv4Address(requested).packed if requested else b""),
        (51, struct.pack("!I", seconds) if seconds is not None else b""),
        (54, IPv4Address(server).packed if server else b""),
        (12, hostname),
    ]
    body = b"".join(bytes([code, len(content)]) + content for code, content in options if content)
    return fixed + chaddr.ljust(16, b"\0") + bytes(192) + bytes((99, 130, 83, 99)) + body + b"\xff"


def option6(code: int, content: bytes) -> bytes:
    return struct.pack("!HH", code, len(content)) + content


def said6(
    kind: int,
    *,
    xid: int = 0x123456,
    client: bytes = DUID,
    addresses: dict[str, int] | None = None,
    server: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """A DHCPv6 message (RFC 8415 section 8) with one IA_NA for all addresses and their valid lifetimes."""
    message = bytes([kind]) + xid.to_bytes(3, "big") + option6(1, client)
    if server:
        message += option6(2, server)
    inner = b"".join(
        option6(5, IPv6Address(one).packed + bytes(4) + struct.pack("!I", valid))
        for one, valid in (addresses or {}).items()
    )
    return message + (option6(3, bytes(12) + inner) if inner else b"") + more


def in_frame(payload: bytes, *, to_port: int = 67, source: str = "0.0.0.0", to: str = "255.255.255.255") -> bytes:
    """In UDP without a checksum, IPv4, Ethernet and a virtio_net_hdr."""
    udp = struct.pack("!HHHH", 135 - to_port, to_port, 8 + len(payload), 0) + payload
    packed = IPv4Address(source).packed + IPv4Address(to).packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + packed
    ip = ip[:10] + (~ones(ip) & 0xFFFF).to_bytes(2, "big") + ip[12:]
    return bytes(10) + b"\xff" * 6 + CHADDR + b"\x08\x00" + ip + udp


def ones(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2 + len(data) % 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _udp_sum(frame: bytes) -> int:
    packet = frame[24:]
    return ones(packet[12:20] + struct.pack("!HH", 17, len(packet) - 20) + packet[20:])


def checksummed(frame: bytes) -> bytes:
    """The same with its UDP checksum."""
    found = (~_udp_sum(frame) & 0xFFFF) or 0xFFFF
    return frame[:50] + found.to_bytes(2, "big") + frame[52:]


def udp_is_right(frame: bytes) -> bool:
    return frame[50:52] != b"\0\0" and _udp_sum(frame) == 0xFFFF
