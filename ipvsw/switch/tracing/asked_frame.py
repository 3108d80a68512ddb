"""The frame that a request for a trace means. What it leaves out is as its sender would have it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from msgspec import Struct

from ipvsw.model import Address, Refused
from ipvsw.packets.craft import Words, craft
from ipvsw.status import TraceAsked

STRANGER = bytes.fromhex("00005e005301")  # for documentation: RFC 9542 section 2.1.4
PORTS = {"tcp": 80, "udp": 53}
FRAME_MAX = 65536  # bytes
HEADER_LENGTH = 10  # of a virtio_net_hdr


class Sender(Struct, frozen=True, kw_only=True):
    """Who sends the frame."""

    is_wire: bool
    mac: bytes  # that it sends from
    master: bytes  # the master's
    addresses: tuple[Address, ...]  # its own
    near: Callable[[Address], bool]  # whether a port or the host has an address, and with it the master's MAC address


def asked_frame(asked: TraceAsked, sender: Sender) -> bytes:
    """From the Ethernet header on. Errors: Refused, which names the place."""
    if asked.frame:
        if any(getattr(asked, name) for name in TraceAsked.__struct_fields__ if name not in ("at", "frame", "header")):
            raise Refused("frame: it is whole, and nothing else can be said of it")
        return _hex("frame", asked.frame, range(FRAME_MAX + 1))
    if asked.header:
        raise Refused("header: it is for a whole frame")
    kind = asked.kind or "icmp"
    source, destination = _address("source", asked.source), _address("destination", asked.destination)
    version = _version(kind, source, destination)
    if kind == "dhcp":
        if destination is not None:
            raise Refused("destination: dhcp asks all servers")
        destination = IPv4Address("255.255.255.255") if version == 4 else IPv6Address("ff02::1:2")
    elif destination is None:
        raise Refused("destination: an address is missing")
    source = source or _own_address(kind, version, sender)
    if source.version != destination.version:
        raise Refused(f"source: {source} and {destination} are not of one family")
    by = _hex("source_mac", asked.source_mac, (6,)) if asked.source_mac else sender.mac
    to = sender.master if sender.is_wire or sender.near(destination) else STRANGER
    return craft(
        Words(
            kind=kind,
            source=source,
            destination=destination,
            source_port=_port("source_port", asked.source_port) or 40000,
            destination_port=_port("destination_port", asked.destination_port) or PORTS.get(kind, 0),
            source_mac=by,
            destination_mac=_hex("destination_mac", asked.destination_mac, (6,)) if asked.destination_mac else to,
        )
    )


def asked_header(asked: TraceAsked) -> bytes:
    """Its virtio_net_hdr. Errors: as of `asked_frame`."""
    return _hex("header", asked.header, (HEADER_LENGTH,)) if asked.header else bytes(HEADER_LENGTH)


def _version(kind: str, source: Address | None, destination: Address | None) -> int:
    named = destination or source
    only = {"arp": 4, "ns": 6}.get(kind)
    if only is not None and named is not None and named.version != only:
        raise Refused(f"destination: {kind} is of IPv{only}, and {named} is not")
    return only or (named.version if named is not None else 4)


def _own_address(kind: str, version: int, sender: Sender) -> Address:
    if kind == "dhcp" and version == 4:
        return IPv4Address(0)
    for address in sender.addresses:
        if address.version == version:
            return address
    raise Refused(f"source: an IPv{version} address is missing, and the sender has none of its own")


def _address(place: str, text: str) -> Address | None:
    try:
        return ip_address(text) if text else None
    except ValueError:
        raise Refused(f"{place}: {text!r} is no IP address") from None


def _hex(place: str, text: str, lengths: Sequence[int]) -> bytes:
    try:
        raw = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        raise Refused(f"{place}: not bytes in hexadecimal") from None
    if len(raw) not in lengths:
        raise Refused(f"{place}: {len(raw)} bytes are {'too few' if len(raw) < min(lengths) else 'too many'}")
    return raw


def _port(place: str, number: int) -> int:
    if not 0 <= number <= 65535:
        raise Refused(f"{place}: {number} is not between 0 and 65535")
    return number
