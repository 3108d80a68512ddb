"""Frames made of a few words, as a port, the wire or the host would send them. Pure.

Sources: RFC 768, 791, 792, 826, 2131, 4443, 4861 section 4.3, 8200, 8415, 9293.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from ipvsw.packets.multicast import group_mac
from ipvsw.packets.segment import complement, ones_sum

Address = IPv4Address | IPv6Address

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
KINDS = (*PROTOCOLS, "arp", "ns", "dhcp")
BROADCAST = b"\xff" * 6
_ICMPV6 = 58
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_SYN = 2
_COOKIE = bytes((99, 130, 83, 99))
_DISCOVER = bytes((53, 1, 1, 255))
_DHCP6_SERVERS = IPv6Address("ff02::1:2")


class Words(Struct, frozen=True, kw_only=True):
    """What a frame shall be. Addresses are of one family; for `arp` of IPv4, for `ns` of IPv6."""

    kind: str  # of KINDS
    source: Address
    destination: Address
    source_port: int = 40000
    destination_port: int = 0
    source_mac: bytes
    destination_mac: bytes  # of the machine that the frame is for, where its kind doesn't say another


def craft(words: Words) -> bytes:
    """The frame, with every checksum in it."""
    if words.kind == "arp":
        asked = words.source_mac + words.source.packed + bytes(6) + words.destination.packed
        return _frame(BROADCAST, words, _ARP, struct.pack("!HHBBH", 1, _IPV4, 6, 4, 1) + asked)
    if words.kind == "ns":
        return _solicitation(words)
    if words.kind == "dhcp":
        return _dhcp(words)
    if words.kind == "udp":
        return udp_frame(words, b"ping")
    payload = _segment(words) if words.kind == "tcp" else _echo(words)
    return _packet(words, words.source, words.destination, _number(words), payload)


def udp_frame(words: Words, payload: bytes) -> bytes:
    """As `craft`, with a payload."""
    return _packet(words, words.source, words.destination, PROTOCOLS["udp"], _datagram(words, payload))


def mac_for_all(address: Address) -> bytes | None:
    """Of a group or the broadcast address; None for any other."""
    if address == IPv4Address("255.255.255.255"):
        return BROADCAST
    return group_mac(address) if address.is_multicast else None


def _number(words: Words) -> int:
    return _ICMPV6 if words.kind == "icmp" and words.source.version == 6 else PROTOCOLS[words.kind]


def _frame(to: bytes, words: Words, ethertype: int, packet: bytes) -> bytes:
    return to + words.source_mac + ethertype.to_bytes(2, "big") + packet


def _packet(
    words: Words, source: Address, destination: Address, protocol: int, payload: bytes, hops: int = 64
) -> bytes:
    """`payload` has its checksum, which is the protocol's, set to 0."""
    to = mac_for_all(destination) or words.destination_mac
    at = {6: 16, 17: 6}.get(protocol, 2)
    pseudo = b"" if protocol == 1 else source.packed + destination.packed + struct.pack("!II", len(payload), protocol)
    total = complement(ones_sum(pseudo + payload))
    payload = payload[:at] + (total or 0xFFFF).to_bytes(2, "big") + payload[at + 2 :]
    if source.version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + source.packed + destination.packed
        return _frame(to, words, _IPV6, header + payload)
    ends = source.packed + destination.packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, hops, protocol, 0) + ends
    header = header[:10] + complement(ones_sum(header)).to_bytes(2, "big") + header[12:]
    return _frame(to, words, _IPV4, header + payload)


def _segment(words: Words) -> bytes:
    """The first of a connection."""
    return struct.pack("!HHIIBBHHH", words.source_port, words.destination_port, 1, 0, 0x50, _SYN, 65535, 0, 0)


def _datagram(words: Words, payload: bytes) -> bytes:
    return struct.pack("!HHHH", words.source_port, words.destination_port, 8 + len(payload), 0) + payload


def _echo(words: Words) -> bytes:
    return struct.pack("!BBHHH", 128 if words.source.version == 6 else 8, 0, 0, 1, 1) + b"ping"


def _solicitation(words: Words) -> bytes:
    """With the sender's link-layer address, unless the sender has no address yet."""
    target = words.destination.packed
    group = IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + target[13:])
    probe = words.source == IPv6Address("::")
    message = bytes((135,)) + bytes(7) + target + (b"" if probe else b"\x01\x01" + words.source_mac)
    return _packet(words, words.source, group, _ICMPV6, message, hops=255)


def _dhcp(words: Words) -> bytes:
    """A client's first message: to all servers, from no address, or for IPv6 from its link-local one."""
    if words.source.version == 6:
        duid = b"\x00\x03\x00\x01" + words.source_mac
        message = b"\x01\x00\x00\x01" + struct.pack("!HH", 1, len(duid)) + duid
        datagram = struct.pack("!HHHH", 546, 547, 8 + len(message), 0) + message
        return _packet(words, words.source, _DHCP6_SERVERS, PROTOCOLS["udp"], datagram)
    message = struct.pack("!BBBBIHH", 1, 1, 6, 0, 1, 0, 0) + bytes(16) + words.source_mac.ljust(16, b"\0") + bytes(192)
    message += _COOKIE + _DISCOVER
    datagram = struct.pack("!HHHH", 68, 67, 8 + len(message), 0) + message
    return _packet(words, IPv4Address(0), IPv4Address("255.255.255.255"), PROTOCOLS["udp"], datagram)
