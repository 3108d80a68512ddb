"""Which flows are the busiest, of frames as a capture has them. Pure.

A frame counts where it was read, so that it counts once. Frames of one flow have in common where they come from, both
addresses, the protocol, and the ports where it has any; what is no IP, both MAC addresses and the ethertype.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from typing import NamedTuple

from ipvsw.capture.words import ETHERTYPES

MOST = 8192  # flows that are told apart between two readings; the frames of others are counted together
OTHERS, RUNT = b"", b"\1"
NAMES = {OTHERS: "all other flows", RUNT: "no whole Ethernet header"}
TAGS = b"\x81\x00", b"\x88\xa8"
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 50: "ESP", 58: "ICMPv6", 132: "SCTP"}
WITH_PORTS = 6, 17, 132


class Flow(NamedTuple):
    at: str  # the interface that its frames come from, as the capture names it; "" for all that are counted together
    text: str
    frames: float  # a second's
    bits: float


class Flows:
    """Of the frames since the last reading."""

    def __init__(self) -> None:
        self._frames: Counter[tuple[str, bytes]] = Counter()
        self._bytes: Counter[tuple[str, bytes]] = Counter()

    def add(self, at: str, frame: bytes) -> None:
        key = at, _key(frame)
        if key not in self._frames and len(self._frames) >= MOST:
            key = "", OTHERS
        self._frames[key] += 1
        self._bytes[key] += len(frame)

    def take(self, seconds: float, most: int) -> list[Flow]:
        """So many, the one with most bytes first; those of that many seconds."""
        frames, counted = self._frames, self._bytes
        self._frames, self._bytes = Counter(), Counter()
        return [
            Flow(key[0], _text(key[1]), frames[key] / seconds, 8 * size / seconds)
            for key, size in counted.most_common(most)
        ]


def _key(frame: bytes) -> bytes:
    """The IP version, protocol, addresses and ports; or 0, the ethertype and the MAC addresses."""
    at = 16 if frame[12:14] in TAGS else 12
    kind, packet = frame[at : at + 2], frame[at + 2 : at + 62]
    if kind == b"\x08\x00" and len(packet) >= 20:
        begins = 4 * (packet[0] & 15)
        has_ports = packet[9] in WITH_PORTS and not (packet[6] & 0x1F or packet[7])  # of fragments the first has them
        return b"\4" + packet[9:10] + packet[12:20] + (packet[begins : begins + 4] if has_ports else b"")
    if kind == b"\x86\xdd" and len(packet) >= 40:
        return b"\6" + packet[6:7] + packet[8:40] + (packet[40:44] if packet[6] in WITH_PORTS else b"")
    return b"\0" + kind + frame[6:12] + frame[:6] if len(frame) >= at + 2 else RUNT


def _text(key: bytes) -> str:
    if key in NAMES:
        return NAMES[key]
    if not key[0]:
        kind, source, destination = int.from_bytes(key[1:3], "big"), key[3:9], key[9:15]
        return f"{ETHERTYPES.get(kind, f'{kind:#06x}')} {source.hex(':')} > {destination.hex(':')}"
    size = 4 if key[0] == 4 else 16
    ends = [str(ip_address(key[at : at + size])) for at in (2, 2 + size)]
    if len(ports := key[2 + 2 * size :]) == 4:
        address = "{}:{}" if size == 4 else "[{}]:{}"
        numbers = int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")
        ends = [address.format(*end) for end in zip(ends, numbers, strict=True)]
    return f"{PROTOCOLS.get(key[1], f'protocol {key[1]}')} {' > '.join(ends)}"
