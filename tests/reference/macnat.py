"""An endpoint's own MAC address once more, the slow and obvious way: what `rules/macnat.pxd` is compared with.

A frame is taken apart into slices and put together anew. Checksums are added up whole, with the old and with the new
addresses: what was wrong by so much stays wrong by so much.
"""

from __future__ import annotations

from typing import NamedTuple

TAGS = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")
SNAP = bytes.fromhex("aaaa03000000")
ARP, RARP, IPV6 = b"\x08\x06", b"\x80\x35", b"\x86\xdd"
EXTENSIONS = {0, 43, 44, 51, 60, 135, 139, 140}
FRAGMENT, AH, ICMPV6 = 44, 51, 58
FIXED = {133: 8, 134: 16, 135: 24, 136: 24, 137: 40}
INVERSE = {141, 142}
NEEDS_CSUM = 1


class Offload(NamedTuple):
    """What of a virtio_net_hdr matters here."""

    flags: int = 0
    gso: int = 0
    start: int = 0
    offset: int = 0

    def packed(self) -> bytes:
        numbers = (self.start, self.offset)
        return bytes([self.flags, self.gso, 0, 0, 0, 0]) + b"".join(n.to_bytes(2, "little") for n in numbers)

    @property
    def place(self) -> int | None:
        """Of the checksum that a device fills in."""
        return self.start + self.offset if self.flags & NEEDS_CSUM else None


class Dropped(Exception):
    """With the outcome's name."""


def usable(mac: bytes) -> bool:
    return any(mac) and not mac[0] & 1


def to_master(frame: bytes, offload: Offload, master: bytes) -> bytes:
    """What goes on of a frame that an endpoint sends. Raises Dropped."""
    if len(frame) < 14:
        return frame
    destination, source, rest = frame[:6], frame[6:12], frame[12:]
    if destination == source and not destination[0] & 1:
        destination = master
    head, kind, packet = split(rest)
    at = 12 + len(head)
    if kind in (ARP, RARP):
        if offload.place is not None or offload.gso:
            raise Dropped("drop_bad_header")
        packet = arp(packet, source, master)
    elif kind == IPV6 and len(packet) >= 40 and packet[0] >> 4 == 6:
        packet = ipv6(packet, offload, at, source, master)
    elif offload.place is not None and (kind == IPV6 or offload.place < at):
        raise Dropped("drop_bad_header")
    return destination + master + head + packet


def split(rest: bytes) -> tuple[bytes, bytes, bytes]:
    """From the ethertype on: what stands before the packet, its kind, the packet."""
    head = b""
    for _ in range(3):
        if len(rest) >= 2 and not layered(rest):
            return head + rest[:2], rest[:2], rest[2:]
        size = 4 if rest[:2] in TAGS else 8
        head, rest = head + rest[:size], rest[size:]
    raise Dropped("drop_macnat")


def layered(rest: bytes) -> bool:
    kind = rest[:2]
    return kind in TAGS or (kind < b"\x06\x00" and rest[2:8] == SNAP and len(rest) >= 10)


def arp(packet: bytes, source: bytes, master: bytes) -> bytes:
    if len(packet) < 28 or packet[2:6] != bytes.fromhex("08000604"):
        raise Dropped("drop_macnat")
    sender, target = packet[8:14], packet[18:24]
    if usable(target) and target in (source, sender):
        target = master
    return packet[:8] + master + packet[14:18] + target + packet[24:]


def ipv6(packet: bytes, offload: Offload, at: int, source: bytes, master: bytes) -> bytes:
    said = int.from_bytes(packet[4:6], "big")
    whole = 0 < said <= len(packet) - 40
    packet, padding = (packet[: 40 + said], packet[40 + said :]) if whole else (packet, b"")
    kind, headers, fragment, passed = packet[6], 40, False, 0
    while kind in EXTENSIONS:
        header, passed = packet[headers:], passed + 1
        if len(header) < 8 or passed > 8:
            raise Dropped("drop_macnat")
        if kind == FRAGMENT and int.from_bytes(header[2:4], "big") >> 3:
            if offload.place is not None:
                raise Dropped("drop_bad_header")
            return packet + padding
        fragment = fragment or kind == FRAGMENT
        headers += 8 if kind == FRAGMENT else 4 * (header[1] + 2) if kind == AH else 8 * (header[1] + 1)
        kind = header[0]
    if headers > len(packet):
        raise Dropped("drop_macnat")
    message = packet[headers:]
    start = at + headers
    if kind != ICMPV6:
        if offload.place is not None and offload.place < start:
            raise Dropped("drop_bad_header")
        return packet + padding
    if len(message) < 8:
        raise Dropped("drop_macnat")
    if offload.place is not None and (offload.start, offload.offset) != (start, 2):
        raise Dropped("drop_bad_header")
    if message[0] in INVERSE:
        raise Dropped("drop_macnat")
    if message[0] not in FIXED:
        return packet + padding
    if fragment or not whole:
        raise Dropped("drop_macnat")
    if offload.gso:
        raise Dropped("drop_bad_header")
    new = discovery(message, source, master)
    if offload.place is None:
        new = new[:2] + resummed(message, new) + new[4:]
    return packet[:headers] + new + padding


def discovery(message: bytes, source: bytes, master: bytes) -> bytes:
    fixed = FIXED[message[0]]
    if len(message) < fixed:
        raise Dropped("drop_macnat")
    new, options = message[:fixed], message[fixed:]
    while options:
        size = 8 * options[1] if len(options) >= 2 else 0
        option, options = options[:size], options[size:]
        if not size or len(option) < size:
            raise Dropped("drop_macnat")
        if option[0] in (1, 2):
            if size != 8:
                raise Dropped("drop_macnat")
            if message[0] == 137 and option[0] == 2 and option[2:] not in (source, master):
                raise Dropped("drop_macnat")
            option = option[:2] + master
        new += option
    return new


def folded(data: bytes) -> int:
    """The one's complement sum of a message of even length."""
    value = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data) // 2 * 2, 2))
    while value > 0xFFFF:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def resummed(old: bytes, new: bytes) -> bytes:
    """The checksum field that leaves the message as right or as wrong as it was. 0 and 0xffff are the same."""
    difference = (folded(old[:2] + old[4:]) - folded(new[:2] + new[4:])) % 0xFFFF
    return ((int.from_bytes(old[2:4], "big") + difference) % 0xFFFF).to_bytes(2, "big")


def to_own(frame: bytes, own: bytes, master: bytes, *, routed: bool) -> bytes:
    """What an endpoint gets of a frame that is for it."""
    if frame[0] & 1:
        return frame
    destination, rest = frame[:6], frame[6:]
    if routed or destination == master:
        destination = own
    try:
        head, kind, packet = split(rest[6:])
    except Dropped:
        return destination + rest
    if kind == ARP and len(packet) >= 28 and packet[18:24] == master:
        packet = packet[:18] + own + packet[24:]
    return destination + rest[:6] + head + packet
