"""Which addresses a virtual machine has, by the frames that it sends. Pure: the time is an argument.

A guest shows its addresses by itself: it probes whether an address is free before it takes it (RFC 5227, RFC 4862
section 5.4), announces it, resolves its neighbours with it as the source, and sends from it. A DHCP lease takes
precedence over all that for as long as it lasts. An address that the guest no longer sends from is forgotten; when a
port has as many as it may, the least recently used one is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from ipvsw.model import Address
from ipvsw.status import AddressSource

AGE = 3600.0  # seconds of silence after which an address is forgotten
SILENT = 60.0  # seconds of silence after which another may replace it

_ARP, _IPV4, _IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
_ETHERNET_IPV4 = b"\0\1\x08\0\6\4"  # hardware and protocol of an ARP packet (RFC 826)
_ICMPV6 = 58
_ROUTER_SOLICITATION, _SOLICITATION, _ADVERTISEMENT = 133, 135, 136  # RFC 4861 section 4


def claimed_address(frame: bytes) -> tuple[Address, AddressSource] | None:
    """Which address a guest claims by a frame, its virtio_net_hdr before it, and in what way. None for one that no
    machine may have as its own."""
    found = _claim(frame[22:24], frame[24:])
    return found if found is not None and is_fit(found[0]) else None


def is_fit(address: Address) -> bool:
    """Whether a machine may have it: one host's, and seen by others."""
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return address.packed[0] != 0 and address != IPv4Address(0xFFFFFFFF)
    return address.ipv4_mapped is None


def _claim(kind: bytes, packet: bytes) -> tuple[Address, AddressSource] | None:
    if kind == _ARP and len(packet) >= 28 and packet[:6] == _ETHERNET_IPV4:
        sender, target = packet[14:18], packet[24:28]
        if any(sender):
            return IPv4Address(sender), AddressSource.ARP
        return IPv4Address(target), AddressSource.DAD
    if kind == _IPV4 and len(packet) >= 20 and packet[0] >> 4 == 4:
        return IPv4Address(packet[12:16]), AddressSource.TRAFFIC
    if kind == _IPV6 and len(packet) >= 40 and packet[0] >> 4 == 6:
        return _claim6(packet)
    return None


def _claim6(packet: bytes) -> tuple[Address, AddressSource]:
    source = IPv6Address(packet[8:24])
    if packet[6] != _ICMPV6 or packet[7] != 255 or len(packet) < 48:
        return source, AddressSource.TRAFFIC
    if packet[40] == _ADVERTISEMENT and len(packet) >= 64:
        return IPv6Address(packet[48:64]), AddressSource.ND
    if packet[40] == _SOLICITATION and len(packet) >= 64 and source.is_unspecified:
        return IPv6Address(packet[48:64]), AddressSource.DAD
    if packet[40] in (_ROUTER_SOLICITATION, _SOLICITATION):
        return source, AddressSource.ND
    return source, AddressSource.TRAFFIC


class Full(Exception):
    """The port has as many addresses as it may, and none that can be replaced."""


class _Known(Struct):
    source: AddressSource
    used: float


class Learning:
    """The addresses of one port, apart from those that the configuration pins to it."""

    def __init__(self, max_learned: int) -> None:
        self.max_learned = max_learned
        self._known: dict[Address, _Known] = {}
        self._tentative: dict[Address, float] = {}  # when the machine asked about it

    @property
    def addresses(self) -> Mapping[Address, AddressSource]:
        return {address: known.source for address, known in self._known.items()}

    def known(self) -> Iterator[tuple[Address, AddressSource, float]]:
        """With their sources, and when they were last used."""
        for address, known in self._known.items():
            yield address, known.source, known.used

    @property
    def tentative(self) -> frozenset[Address]:
        """Addresses that the machine has asked about. It owns none of them before it uses it."""
        return frozenset(self._tentative)

    def ask(self, address: Address, now: float) -> bool:
        """The machine asks whether the address is free. Whether that is new; the oldest questions are forgotten."""
        if address in self._known:
            return False
        new = self._tentative.pop(address, None) is None
        self._tentative[address] = now
        while len(self._tentative) > self.max_learned:
            del self._tentative[next(iter(self._tentative))]
        return new

    def learn(self, address: Address, source: AddressSource, now: float) -> bool:
        """Whether it is new, or has a better source than before. Errors: Full."""
        self._tentative.pop(address, None)
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= self.max_learned:
                self._make_room(source, now)
            self._known[address] = _Known(source, now)
            return True
        known.used = now
        if source is not AddressSource.DHCP or known.source is source:
            return False
        known.source = source
        return True

    def forget(self, address: Address) -> bool:
        """Whether it was known."""
        self._tentative.pop(address, None)
        return self._known.pop(address, None) is not None

    def use(self, addresses: Iterable[Address], now: float) -> None:
        """Frames have come from them."""
        for address in addresses:
            if address in self._known:
                self._known[address].used = now

    def age(self, now: float) -> bool:
        """Forget the addresses that were not used, or only asked about, for AGE; whether there were any."""
        over = [address for address, known in self._ageing() if known.used + AGE <= now]
        for address in over:
            del self._known[address]
        unused = [address for address, asked in self._tentative.items() if asked + AGE <= now]
        for address in unused:
            del self._tentative[address]
        return bool(over or unused)

    def _make_room(self, source: AddressSource, now: float) -> None:
        """A leased address replaces the least recently used one at once: the server has the last word."""
        wait = 0.0 if source is AddressSource.DHCP else SILENT
        silent = [(known.used, address) for address, known in self._ageing() if known.used + wait <= now]
        if not silent:
            raise Full
        del self._known[min(silent, key=lambda one: one[0])[1]]

    def _ageing(self) -> list[tuple[Address, _Known]]:
        """All but what is leased, which ends with its lease."""
        return [(address, known) for address, known in self._known.items() if known.source is not AddressSource.DHCP]
