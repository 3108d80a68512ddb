"""Gratuitous ARP and unsolicited neighbour advertisements: for which address, when, how often, and their frames.

Pure: `Announcements` gets the time and returns what is due, `announcement` makes the frame.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from heapq import heappop, heappush

from ipvsw.packets.segment import ICMPV6, complement, ones_sum

TIMES = 3  # MAX_NEIGHBOR_ADVERTISEMENT, RFC 4861 section 10; ANNOUNCE_NUM in RFC 5227 section 1.1 is 2
SPACING = 1.0  # seconds; RetransTimer, RFC 4861 section 7.2.6
BURST = 32  # at once; there may be many
PAUSE = 0.01  # seconds after a burst
MAX_ANNOUNCED = 65536  # addresses at a time; for others neighbours' caches have to expire

_NO_OFFLOAD = bytes(10)  # struct virtio_net_hdr
_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_REQUEST = bytes.fromhex("0001080006040001")  # Ethernet, IPv4
_ADVERTISEMENT = 136 << 24
_OVERRIDE = 1 << 29
_TARGET_LINK_LAYER = bytes([2, 1])


class Announcements:
    """Which addresses, of 4 or 16 bytes, are to be announced when. Times are a monotonic clock's, in seconds."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._wanted: dict[bytes, int] = {}  # the number of its entry in the queue that counts
        self._queue: list[tuple[float, int, int, bytes]] = []  # when, number, how often yet
        self._rest = 0.0  # nothing before

    def want(self, addresses: Iterable[bytes], now: float) -> None:
        """Announce these from now on, from the start those that are being announced; no more than MAX_ANNOUNCED at a
        time. IPv6 link-local ones are left out: an advertisement has a flag whether its sender is a router, which the
        daemon doesn't know, and hosts stop using a router that clears it (RFC 4861 section 7.2.5)."""
        for address in addresses:
            if len(self._wanted) == MAX_ANNOUNCED:
                return
            if len(address) == 4 or not is_link_local(address):
                self._wanted[address] = number = next(self._numbers)
                heappush(self._queue, (now, number, TIMES, address))

    def take(self, now: float) -> list[bytes]:
        """Those that are due, at most a burst of them."""
        found: list[bytes] = []
        while len(found) < BURST and (when := self.next()) is not None and when <= now:
            _, number, times, address = heappop(self._queue)
            found.append(address)
            if times > 1:
                heappush(self._queue, (now + SPACING, number, times - 1, address))
            else:
                del self._wanted[address]
        if found:
            self._rest = now + PAUSE
        return found

    def next(self) -> float | None:
        """When `take` has something to return; None: not before more is wanted."""
        while self._queue and self._wanted.get(self._queue[0][3]) != self._queue[0][1]:
            heappop(self._queue)  # replaced by a later entry, with another number
        return max(self._queue[0][0], self._rest) if self._queue else None


def is_link_local(address: bytes) -> bool:
    """fe80::/10: RFC 4291 section 2.5.6."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def announcement(address: bytes, mac: bytes) -> bytes:
    """virtio_net_hdr and frame that announce `address` at `mac`: a gratuitous ARP request (RFC 5227 section 3), an
    unsolicited neighbour advertisement to all nodes (RFC 4861 section 7.2.6, RFC 9131 section 6.1.2)."""
    if len(address) == 4:
        packet = _REQUEST + mac + address + bytes(6) + address
        return _NO_OFFLOAD + _BROADCAST + mac + b"\x08\x06" + packet
    message = struct.pack("!II", _ADVERTISEMENT, _OVERRIDE) + address + _TARGET_LINK_LAYER + mac
    pseudo = address + _ALL_NODES + struct.pack("!II", len(message), ICMPV6)
    message = message[:2] + struct.pack("!H", complement(ones_sum(pseudo + message))) + message[4:]
    packet = struct.pack("!IHBB", 6 << 28, len(message), ICMPV6, 255) + address + _ALL_NODES + message
    return _NO_OFFLOAD + _ALL_NODES_MAC + mac + b"\x86\xdd" + packet
