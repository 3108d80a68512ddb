"""What becomes of one frame on its way to a path with an MTU. Pure: nothing is sent, and no clock is read.

The hot loop leaves to this what it can't do by a rewritten Ethernet header: frames for a raw socket, which takes
whole packets with complete checksums and refuses what is above the MTU. Stages: `parse` (lengths), then cut and
complete (`segment`, `fragment`), or the ICMP error that a router would answer with, given back to the port that
sent the frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ipvsw.packets.segment import (
    ICMP,
    ICMPV6,
    Malformed,
    Packet,
    complement,
    complete,
    fragment,
    ones_sum,
    parse,
    segment,
    transport6,
)

__all__ = [
    "Malformed",
    "Packet",
    "Result",
    "complete",
    "for_path",
    "fragment",
    "fragmentation_needed",
    "packet_too_big",
    "parse",
    "segment",
]

_MOST4 = 576  # bytes of an ICMP error (RFC 1812 section 4.3.2.3)
_MOST6 = 1280  # bytes of an ICMPv6 error (RFC 4443 section 3.2): the least MTU of IPv6
_NO_ADDRESS4 = bytes((192, 0, 0, 8))  # who answers where the host has no IPv4 address (RFC 7600)
_INTERNETWORK_CONTROL = 0xC0  # type of service of an ICMP error (RFC 1812 section 4.3.2.5)
_HOP_LIMIT = 64
_DF = 0x4000

_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 4
_ERRORS4 = {3, 4, 5, 11, 12}  # unreachable, source quench, redirect, time exceeded, parameter problem
_PACKET_TOO_BIG = 2
_INFORMATIONAL6 = 128  # ICMPv6 types from here on are no errors,
_REDIRECT6 = 137  # but this one counts as one (RFC 4443 section 2.4 (e.2))


@dataclass(frozen=True, slots=True)
class Result:
    """What to do with a frame: exactly one of `send`, `answer` and `drop` is set, or none and `whole`."""

    send: tuple[bytes, ...] = ()  # IP packets that fit the path, checksums complete, in order
    answer: bytes | None = None  # an ICMP packet for the port that sent the frame
    drop: str = ""  # "malformed", or "too_big" where no answer is allowed
    whole: bool = False  # the frame itself may go as it is, its virtio_net_hdr with it
    packet: Packet | None = None  # None for a malformed frame


def for_path(
    frame: bytes | bytearray | memoryview,
    mtu: int,
    sender4: bytes | None,
    sender6: bytes | None,
    *,
    headers_kept: bool = False,
) -> Result:
    """Decide on one frame (virtio_net_hdr, Ethernet header, packet) for a path that takes packets of `mtu` bytes.

    `sender4` and `sender6` (4 and 16 bytes) are who an ICMP error comes from. Without `sender4` that is 192.0.0.8,
    as the kernel has it; without `sender6` there is none. With `headers_kept` the caller can pass a virtio_net_hdr
    on: a frame that may go whole then is not taken apart, and `send` stays empty.

    A GSO frame is measured by its segments, which are fragmented one by one where that is allowed, and an error
    quotes the first. Raises nothing, whatever the frame says.
    """
    try:
        packet = parse(frame)
        if packet.largest <= mtu:
            if packet.intact and headers_kept:
                return Result(whole=True, packet=packet)
            return Result(send=tuple(segment(packet)), whole=packet.intact, packet=packet)
        if not packet.df:
            pieces = (piece for whole in segment(packet) for piece in fragment(whole, mtu))
            return Result(send=tuple(pieces), packet=packet)
        first = segment(packet, 1)[0]
    except Malformed:
        return Result(drop="malformed")
    if packet.version == 4:
        answer = fragmentation_needed(first, mtu, sender4 or _NO_ADDRESS4)
    else:
        answer = packet_too_big(first, mtu, sender6) if sender6 else None
    return Result(answer=answer, drop="" if answer else "too_big", packet=packet)


def fragmentation_needed(packet: bytes, mtu: int, sender: bytes) -> bytes | None:
    """The ICMP error for an IPv4 packet with DF that is above `mtu` (RFC 1191 section 4), to its source.

    Returns a whole IPv4 packet, or None where RFC 1122 section 3.2.2 forbids an error: about an ICMP error, a
    fragment other than the first, from or to no single host. Class E is a host here, as it is for the kernel.
    """
    size = (packet[0] & 15) * 4
    source, destination = packet[12:16], packet[16:20]
    if size < 20 or int.from_bytes(packet[6:8], "big") & 0x1FFF:
        return None
    if packet[9] == ICMP and (len(packet) <= size or packet[size] in _ERRORS4):
        return None
    if source[0] in (0, 127) or _is_group4(source) or _is_group4(destination):
        return None
    quote = packet[: _MOST4 - 28]
    error = struct.pack("!BBHHH", _UNREACHABLE, _FRAGMENTATION_NEEDED, 0, 0, min(mtu, 0xFFFF)) + quote
    error = error[:2] + complement(ones_sum(error)).to_bytes(2, "big") + error[4:]
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, _INTERNETWORK_CONTROL, 20 + len(error), 0, _DF, _HOP_LIMIT, ICMP, 0, sender, source
    )
    return header[:10] + complement(ones_sum(header)).to_bytes(2, "big") + header[12:] + error


def _is_group4(address: bytes) -> bool:
    return address[0] >> 4 == 14 or address == b"\xff\xff\xff\xff"


def packet_too_big(packet: bytes, mtu: int, sender: bytes) -> bytes | None:
    """The ICMPv6 error for an IPv6 packet that is above `mtu` (RFC 4443 section 3.2), to its source.

    Returns a whole IPv6 packet, or None where RFC 4443 section 2.4 (e) forbids an error: about an ICMPv6 error or a
    redirect, from no single host (to a group it is allowed). A fragment other than the first isn't answered either:
    what it is part of can't be told, and the first is as large.
    """
    at, protocol, _, offset = transport6(packet)
    source = packet[8:24]
    if offset or source[0] == 0xFF or not any(source):
        return None
    if protocol == ICMPV6 and (len(packet) <= at or packet[at] < _INFORMATIONAL6 or packet[at] == _REDIRECT6):
        return None
    quote = packet[: _MOST6 - 48]
    error = struct.pack("!BBHI", _PACKET_TOO_BIG, 0, 0, mtu) + quote
    total = ones_sum(sender) + ones_sum(source) + ICMPV6 + len(error) + ones_sum(error)
    error = error[:2] + complement(total).to_bytes(2, "big") + error[4:]
    return struct.pack("!IHBB16s16s", 6 << 28, len(error), ICMPV6, _HOP_LIMIT, sender, source) + error
