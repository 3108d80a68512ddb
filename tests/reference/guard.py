"""Guards once more, the slow and obvious way: what `rules/guard.pxd` is compared with.

Every fault of a frame is listed, in the order in which they count, each with the guards that care. The first that one
of the port's guards cares about is the frame's end; an address that nobody owns counts only where there is no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.reference.macnat import EXTENSIONS
from tests.reference.rules import Switch, as_sent, is_hosts

NAMES = ("ip-source", "arp", "nd", "ra", "dhcp-server", "mac", "vlan", "gateway", "host")
READERS = frozenset(NAMES) - {"mac", "host"}  # guards that look behind the Ethernet header
TAGS = (0x8100, 0x88A8, 0x9100)
UNSPECIFIED4, UNSPECIFIED6 = bytes(4), bytes(16)


class Fault(NamedTuple):
    outcome: str
    guards: frozenset[str]  # any of which must be on
    is_unknown: bool = False  # may be none in a moment


def fault(guard: str, *others: str) -> Fault:
    return Fault("guard_" + guard.replace("-", "_"), frozenset((guard, *others)))


def check(switch: Switch, port: int, guards: frozenset[str], frame: bytes) -> Fault | None:
    """The fault that a frame of the port ends for. It has an Ethernet header."""
    found = [one for one in faults(switch, port, frame) if one.guards & guards]
    final = [one for one in found if not one.is_unknown]
    if final or not found:
        return final[0] if final else None
    is_tagged = int.from_bytes(frame[12:14], "big") in TAGS  # nothing is learned through a tag
    return found[-1]._replace(is_unknown=not is_tagged)


def faults(switch: Switch, port: int, frame: bytes) -> Iterator[Fault]:
    if frame[6:12] != switch.mac:
        yield fault("mac")
    kind, packet, tags = int.from_bytes(frame[12:14], "big"), frame[14:], 0
    while kind in TAGS:
        tags += 1
        if tags > 2 or len(packet) < 4:
            yield fault("vlan", *READERS)
            return
        if packet[0] & 0x0F or packet[1]:
            yield fault("vlan")
        kind, packet = int.from_bytes(packet[2:4], "big"), packet[4:]
    yield from of_packet(switch, port, kind, packet)


def of_packet(switch: Switch, port: int, kind: int, packet: bytes) -> Iterator[Fault]:
    if kind == 0x0800:
        yield from of_ipv4(switch, port, packet)
    elif kind == 0x86DD:
        yield from of_ipv6(switch, port, packet)
    elif kind in (0x0806, 0x8035):
        yield from of_arp(switch, port, kind, packet)
    elif kind < 0x0600 and len(packet) >= 8 and packet[:6] in (b"\xaa\xaa\x03\0\0\0", b"\xaa\xaa\x03\0\0\xf8"):
        yield fault("ip-source", *READERS)


def claim(switch: Switch, port: int, address: bytes, guard: str) -> Iterator[Fault]:
    owner = switch.table.get(address)
    if address in switch.gateways:
        yield fault("gateway")
        yield fault(guard)
    elif owner is None and switch.former.get(address) == port:
        return
    elif owner is None and address not in switch.host:
        yield fault(guard)._replace(is_unknown=True)
    elif owner != port:
        yield fault(guard)


def of_ipv4(switch: Switch, port: int, packet: bytes) -> Iterator[Fault]:
    header, total = 4 * (packet[0] & 15) if packet else 0, int.from_bytes(packet[2:4], "big")
    if len(packet) < 20 or packet[0] >> 4 != 4 or not 20 <= header <= total <= len(packet):
        yield fault("ip-source")
        return
    protocol, source, destination = packet[9], packet[12:16], packet[16:20]
    payload = packet[header:total]
    later = int.from_bytes(packet[6:8], "big") & 0x1FFF > 0
    ports = (int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big"))
    whole = len(payload) >= 8
    if not later and protocol == 17 and (not whole or ports[0] == 67 or ports[1] == 68):
        yield fault("dhcp-server")
    if not later and protocol == 1 and payload[:1] == b"\x09":
        yield fault("ra")
    client = protocol == 17 and not later and whole and ports == (68, 67) and destination == b"\xff" * 4
    if source == UNSPECIFIED4 and switch.table.get(source) != port:
        if protocol != 2 and not client:
            yield fault("ip-source")
    else:
        yield from claim(switch, port, source, "ip-source")


def of_arp(switch: Switch, port: int, kind: int, packet: bytes) -> Iterator[Fault]:
    opcode, sender = packet[6:8], packet[14:18]
    query = b"\0\1" if kind == 0x0806 else b"\0\3"
    if len(packet) < 28:
        yield fault("arp")
        return
    if packet[:6] != bytes.fromhex("000108000604") or packet[8:14] != switch.mac:
        yield fault("arp")
    if opcode != query and (kind == 0x8035 or sender == UNSPECIFIED4):
        yield fault("arp")
    if sender != UNSPECIFIED4:
        yield from claim(switch, port, sender, "arp")


class Upper(NamedTuple):
    protocol: int
    payload: bytes | None  # None: it can't be found
    in_fragment: bool


def upper(packet: bytes) -> Upper | None:
    """What an IPv6 packet carries; None for a later fragment."""
    said = int.from_bytes(packet[4:6], "big")
    rest = packet[40 : 40 + said] if 0 < said <= len(packet) - 40 else packet[40:]
    protocol, in_fragment = packet[6], False
    for _ in range(8):
        if protocol not in EXTENSIONS:
            break
        if len(rest) < 8:
            return Upper(protocol, None, in_fragment)
        if protocol == 44:
            in_fragment = True
            if int.from_bytes(rest[2:4], "big") >> 3:
                return None
        size = {44: 8, 51: 4 * (rest[1] + 2)}.get(protocol, 8 * (rest[1] + 1))
        protocol, over = rest[0], size > len(rest)
        rest = rest[size:]
        if over:
            return Upper(protocol, None, in_fragment)
    return Upper(protocol, None if protocol in EXTENSIONS else rest, in_fragment)


def of_ipv6(switch: Switch, port: int, packet: bytes) -> Iterator[Fault]:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        yield fault("ip-source")
        return
    carried, source = upper(packet), packet[8:24]
    if carried is not None:
        yield from of_upper(switch, port, carried)
    if source == UNSPECIFIED6 and switch.table.get(source) != port:
        message = carried.payload[:1] if carried is not None and carried.payload else b""
        asks = carried is not None and carried.protocol == 58 and not carried.in_fragment
        if not asks or message not in (b"\x87", b"\x85", b"\x83", b"\x84", b"\x8f"):
            yield fault("ip-source")
    else:
        for one in claim(switch, port, source, "ip-source"):
            yield one._replace(is_unknown=one.is_unknown and source[:8] != bytes(8))


def of_upper(switch: Switch, port: int, carried: Upper) -> Iterator[Fault]:
    payload = carried.payload
    if payload is None:
        yield fault("nd", "ra")
        yield fault("dhcp-server")
    elif carried.protocol == 17:
        ports = (int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big"))
        if len(payload) < 8 or ports[0] == 547 or ports[1] == 546:
            yield fault("dhcp-server")
    elif carried.protocol == 58:
        if len(payload) < 8:
            yield fault("nd", "ra")
        else:
            yield from of_icmpv6(switch, port, payload, carried.in_fragment)


def of_icmpv6(switch: Switch, port: int, message: bytes, in_fragment: bool) -> Iterator[Fault]:
    kind = message[0]
    if kind == 134:
        yield fault("ra")
    if kind in (137, 141, 142):
        yield fault("nd")
    if kind in (133, 134, 135, 136) and (in_fragment or not is_own(switch, message)):
        yield fault("nd")
    if kind == 136 and len(message) >= 24:
        yield from claim(switch, port, message[8:24], "nd")


def is_own(switch: Switch, message: bytes) -> bool:
    """Whether the message is whole, and all link-layer addresses in it are the master's."""
    fixed = {133: 8, 134: 16, 135: 24, 136: 24}[message[0]]
    options = message[fixed:]
    if len(message) < fixed:
        return False
    while options:
        size = 8 * options[1] if len(options) > 1 else 0
        option, options = options[:size], options[size:]
        if len(options) + len(option) < 8 or size == 0 or len(option) < size:
            return False
        if option[0] in (1, 2) and option[2:] != switch.mac:
            return False
    return True


def keeps_from_host(switch: Switch, frame: bytes) -> bool:
    """Whether a frame that the rules hand to the host is none that `host_access` lets pass."""
    for_host = frame[:6] == switch.mac and is_hosts(switch, as_sent(frame), "destination")
    return switch.mode == "l2" and (switch.access == "none" or not for_host)
