"""Frames as the tests of the loop that moves them need them."""

from __future__ import annotations

import struct

from tests.native.interfaces import v6
from tests.reference.macnat import folded

GUEST = bytes.fromhex("0200000000aa")
OTHER = bytes.fromhex("0a0b0c0d0e0f")
LIAR = bytes.fromhex("5254001234ff")
ARP, IPV6 = 0x0806, 0x86DD


def arp(sender: bytes, spa: bytes, target: bytes, tpa: bytes, opcode: int = 1) -> bytes:
    return bytes.fromhex("000108000604") + opcode.to_bytes(2, "big") + sender + spa + target + tpa


def nd(kind: int, *options: bytes, source: bytes = v6(0), destination: bytes = v6(1), before: bytes = b"") -> bytes:
    """An IPv6 packet with a right checksum; `before` are extension headers with ICMPv6 behind the last."""
    size = {133: 4, 134: 12, 135: 20, 136: 20, 137: 36}[kind]
    message = bytes([kind, 0, 0, 0]) + bytes(range(size)) + b"".join(options)
    pseudo = source + destination + struct.pack("!II", len(message), 58)
    sum_ = (folded(pseudo + message) ^ 0xFFFF).to_bytes(2, "big")
    message = message[:2] + sum_ + message[4:]
    first = before[:1] or b"\x3a"
    payload = before[1:] + message
    return struct.pack("!IHcB", 6 << 28, len(payload), first, 255) + source + destination + payload


def option(kind: int, mac: bytes) -> bytes:
    return bytes([kind, 1]) + mac


def verified(packet: bytes, at: int = 40) -> bool:
    message = packet[at:]
    return folded(packet[8:40] + struct.pack("!II", len(message), 58) + message) == 0xFFFF
