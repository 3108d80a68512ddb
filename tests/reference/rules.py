"""The switch's rules once more, the slow and obvious way: what `rules/decide.pxd` is compared with.

Written from the description of the kernel driver's behaviour, not from the data plane's code, over slices
and dictionaries. A frame has no length check but `len`, the table is a dict, a group list a set.

The outcome "to_route" of l3 and l3s is not the last word: the host's routing decides about the packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

BROADCAST = b"\xff" * 6
VLAN_TAGS = (0x8100, 0x88A8)
PAUSE = 0x8808
UNSPECIFIED = bytes(16)
ICMPV6 = 58
NEIGHBOUR_SOLICITATION = 135


@dataclass
class Port:
    up: bool = True
    mtu: int = 1500
    all_multicast: bool = False
    joined: tuple[int, ...] = ()  # with `all_multicast`: IP versions of whose groups it gets those that it has joined
    groups: set[bytes] = field(default_factory=set)


Flow = tuple[int, frozenset[tuple[bytes, bytes]]]  # protocol, and both endpoints: address and port


@dataclass
class Switch:
    mac: bytes
    mode: str = "l2"
    flag: str = "bridge"
    access: str = "none"
    ports: list[Port] = field(default_factory=list)
    table: dict[bytes, int] = field(default_factory=dict)
    host: set[bytes] = field(default_factory=set)  # the master's own addresses, none of them in `table`
    gateways: set[bytes] = field(default_factory=set)  # of the host's routes, none of them in `table` or `host`
    former: dict[bytes, int] = field(default_factory=dict)  # nobody's, but that port's until just now
    multicast: set[bytes] = field(default_factory=set)  # groups that are switched in l3 and l3s
    vlans: set[int] = field(default_factory=set)  # with a device of their own on the master; 4096 more for 802.1ad
    flows: set[Flow] = field(default_factory=set)  # established between the host and ports


class Verdict(NamedTuple):
    outcome: str
    port: int | None = None


class Packet(NamedTuple):
    """What follows the Ethernet header, and the most that an IPv4 total length in it may say."""

    ethertype: int
    data: bytes
    room: int


def as_sent(frame: bytes) -> Packet:
    """A sender's driver counts the Ethernet header among the data, and looks behind no tag."""
    return Packet(int.from_bytes(frame[12:14], "big"), frame[14:], len(frame))


def as_received(frame: bytes) -> Packet:
    """A receiver's driver comes after one VLAN tag was taken off."""
    ethertype, data = int.from_bytes(frame[12:14], "big"), frame[14:]
    if ethertype in VLAN_TAGS and len(data) >= 4:
        ethertype, data = int.from_bytes(data[2:4], "big"), data[4:]
    return Packet(ethertype, data, len(data))


def address(packet: Packet, which: str) -> bytes | None:
    """The address a packet goes by: `which` is "source" or "destination"."""
    data, source = packet.data, which == "source"
    if packet.ethertype == 0x0806 and len(data) >= 28:
        return data[14:18] if source else data[24:28]
    if packet.ethertype == 0x0800 and len(data) >= 20:
        version, header, total = data[0] >> 4, 4 * (data[0] & 15), int.from_bytes(data[2:4], "big")
        if version == 4 and header >= 20 and total >= header and total <= packet.room:
            return data[12:16] if source else data[16:20]
    if packet.ethertype == 0x86DD and len(data) >= 40 and data[0] >> 4 == 6:
        if data[8:24] == UNSPECIFIED and data[6] == ICMPV6:
            return data[48:64] if len(data) >= 64 and data[40] == NEIGHBOUR_SOLICITATION else None
        return data[8:24] if source else data[24:40]
    return None


def owner(switch: Switch, packet: Packet, which: str) -> int | None:
    key = address(packet, which)
    return None if key is None else switch.table.get(key)


def is_group(frame: bytes) -> bool:
    return bool(frame[0] & 1)


def accepts(port: Port, length: int, gso: bool) -> bool:
    """Whether a frame of that length from a sibling passes: Ethernet header and a tag come on top of the MTU."""
    return gso or length <= port.mtu + 14 + 4


def would_be_joined(port: Port, group: bytes) -> bool:
    """Whether the port would have joined the group if it listened to it."""
    if group[:3] == b"\x01\x00\x5e":
        return 4 in port.joined and group[3:5] != b"\0\0"
    return group[:2] == b"\x33\x33" and 6 in port.joined


def listeners(switch: Switch, group: bytes) -> list[int]:
    return [
        number
        for number, port in enumerate(switch.ports)
        if port.up
        and (group == BROADCAST or group in port.groups or (port.all_multicast and not would_be_joined(port, group)))
    ]


def to_sibling(switch: Switch, port: int, frame: bytes, gso: bool) -> Verdict:
    if switch.flag == "private":
        return Verdict("drop_private", port)
    if not switch.ports[port].up:
        return Verdict("drop_port_down", port)
    if not accepts(switch.ports[port], len(frame), gso):
        return Verdict("drop_too_big", port)
    return Verdict("to_port", port)


def from_port_l2(switch: Switch, frame: bytes, gso: bool) -> Verdict:
    if frame[0:6] == frame[6:12] and switch.flag != "vepa":
        port = owner(switch, as_sent(frame), "destination")
        if port is None:
            return received_by_host(switch, frame)
        return to_sibling(switch, port, frame, gso)
    if is_group(frame):
        return Verdict("drop_pause" if as_sent(frame).ethertype == PAUSE else "to_ports")
    return Verdict("to_master")


def is_for_vlan_device(switch: Switch, frame: bytes) -> bool:
    kind, tag = int.from_bytes(frame[12:14], "big"), int.from_bytes(frame[14:16], "big")
    return kind in VLAN_TAGS and len(frame) >= 18 and (tag % 4096 + 4096 * VLAN_TAGS.index(kind)) in switch.vlans


def received_by_host(switch: Switch, frame: bytes) -> Verdict:
    """The frame arrives on the master as if from the wire; only the host and an owner are told apart here."""
    if is_for_vlan_device(switch, frame):
        return Verdict("to_host")
    verdict = from_master_l2(switch, frame)
    return verdict if verdict.outcome == "to_port" else Verdict("to_host")


def from_master_l2(switch: Switch, frame: bytes) -> Verdict:
    packet = as_received(frame)
    if is_group(frame):
        reflected = frame[6:12] == switch.mac and owner(switch, packet, "source") is not None
        return Verdict("left_to_host" if reflected or packet.ethertype == PAUSE else "to_ports")
    verdict = to_owner(switch, packet)
    if verdict.port is None and frame[:6] == switch.mac != frame[6:12] and is_for_group(packet):
        return Verdict("to_ports")
    return verdict


def is_for_group(packet: Packet) -> bool:
    """RFC 6085: by its IP destination alone, which `address` doesn't give of a neighbour solicitation from ::."""
    if packet.ethertype == 0x0800 and address(packet, "destination") is not None:
        to = packet.data[16:20]
        return to[0] >> 4 == 14 or to == b"\xff" * 4
    return packet.ethertype == 0x86DD and len(packet.data) >= 40 and packet.data[0] >> 4 == 6 and packet.data[24] == 255


def to_owner(switch: Switch, packet: Packet) -> Verdict:
    port = owner(switch, packet, "destination")
    if port is None:
        return Verdict("left_to_host")
    return Verdict("to_port" if switch.ports[port].up else "left_to_host", port)


LEAST = {0x0800: 20, 0x86DD: 40}  # bytes of a header that can be routed, however wrong they are


def from_port_l3(switch: Switch, frame: bytes, gso: bool) -> Verdict:
    """The sibling first, whatever the MAC; of what is left, the host routes what is IP and to a single machine."""
    packet = as_sent(frame)
    port = None if switch.flag == "vepa" else owner(switch, packet, "destination")
    if port is not None:
        return to_sibling(switch, port, frame, gso)
    if is_group(frame):
        if frame[:6] == switched_group(switch, packet):
            return Verdict("to_ports")
        return Verdict("to_host" if host_hears(switch, packet) else "drop_multicast")
    least = LEAST.get(packet.ethertype)
    return Verdict("drop_not_ip" if least is None or len(packet.data) < least else "to_route")


def switched_group(switch: Switch, packet: Packet) -> bytes | None:
    """The MAC address of the group that a packet is for, if that is switched in l3 and l3s."""
    group = (packet.data[24:40] if packet.ethertype == 0x86DD else packet.data[16:20]) if is_for_group(packet) else b""
    if group not in switch.multicast:
        return None
    if packet.ethertype == 0x86DD:
        return b"\x33\x33" + group[12:]
    return b"\x01\x00\x5e" + bytes([group[1] % 128]) + group[2:]


def from_master_l3(switch: Switch, frame: bytes) -> Verdict:
    verdict = to_owner(switch, as_received(frame))
    return verdict if verdict.port is not None else from_master_l3s(switch, frame)


def from_master_l3s(switch: Switch, frame: bytes) -> Verdict:
    """The host's own stack is on the way to every port, but for what is for a group."""
    group = switched_group(switch, as_received(frame))
    if group is None or frame[6:12] == switch.mac or frame[:6] not in (group, switch.mac):
        return Verdict("left_to_host")
    return Verdict("to_ports")


FROM_PORT: dict[str, Callable[[Switch, bytes, bool], Verdict]] = {
    "l2": from_port_l2,
    "l3": from_port_l3,
    "l3s": from_port_l3,
}
FROM_MASTER: dict[str, Callable[[Switch, bytes], Verdict]] = {
    "l2": from_master_l2,
    "l3": from_master_l3,
    "l3s": from_master_l3s,
}


TO_HOST, FROM_HOST = {"to-host", "both"}, {"from-host", "both"}


def is_error(data: bytes, version: int) -> bool:
    return bool(data) and (data[0] < 128 if version == 6 else data[0] in (3, 4, 5, 11, 12))


def transport(packet: Packet) -> tuple[int, bytes] | None:
    """Protocol and what follows the header of an IP packet that is whole enough to have addresses."""
    if packet.ethertype not in LEAST or address(packet, "source") is None:
        return None
    if packet.ethertype == 0x86DD:
        return packet.data[6], packet.data[40:]
    return packet.data[9], packet.data[4 * (packet.data[0] & 15) :]


def is_link_control(packet: Packet) -> bool:
    """What opens nothing: ARP, neighbour discovery, ICMP errors."""
    data = packet.data
    if packet.ethertype == 0x0806:
        return True
    if packet.ethertype == 0x86DD and len(data) >= 44 and data[0] >> 4 == 6 and data[6] == ICMPV6:
        return is_error(data[40:], 6) or 133 <= data[40] <= 137
    if packet.ethertype == 0x0800 and (found := transport(packet)):
        return found[0] == 1 and len(found[1]) >= 8 and is_error(found[1], 4)
    return False


FRAGMENT = 44  # the protocol of flows in fragments, whose ports nobody sees


def is_fragment(packet: Packet) -> bool:
    if packet.ethertype == 0x0800:
        return int.from_bytes(packet.data[6:8], "big") & 0x3FFF != 0
    return packet.data[6] == FRAGMENT


def flow(packet: Packet) -> Flow | None:
    found = transport(packet)
    if found is None:
        return None
    protocol, data = found
    here = there = bytes(2)
    if is_fragment(packet):
        protocol = FRAGMENT
    elif len(data) >= 8 and protocol in (6, 17):
        here, there = data[:2], data[2:4]
    elif len(data) >= 8 and protocol in (1, 58):
        here = there = data[4:6]
    source, destination = address(packet, "source"), address(packet, "destination")
    assert source is not None and destination is not None
    return protocol, frozenset({(source, here), (destination, there)})


def may_pass(switch: Switch, packet: Packet, may_open: bool) -> bool:
    if is_link_control(packet):
        return True
    about = flow(packet)
    if may_open and about is not None:
        switch.flows |= {about, (FRAGMENT, frozenset((end, bytes(2)) for end, _ in about[1]))}
    return may_open or about in switch.flows


def host_hears(switch: Switch, packet: Packet) -> bool:
    return switch.access in TO_HOST or (switch.access != "none" and is_link_control(packet))


def is_hosts(switch: Switch, packet: Packet, which: str) -> bool:
    return address(packet, which) in switch.host


def decide_from_port(switch: Switch, frame: bytes, gso: bool = False) -> Verdict:
    if len(frame) < 14:
        return Verdict("drop_runt")
    for_host = not is_group(frame) and (switch.mode != "l2" or frame[:6] == switch.mac)
    if switch.access != "none" and for_host and is_hosts(switch, as_sent(frame), "destination"):
        passes = may_pass(switch, as_sent(frame), switch.access in TO_HOST)
        return Verdict("to_host" if passes else "drop_host_access")
    return FROM_PORT[switch.mode](switch, frame, gso)


def decide_from_master(switch: Switch, frame: bytes) -> Verdict:
    if len(frame) < 14:
        return Verdict("drop_runt")
    return Verdict("left_to_host") if is_for_vlan_device(switch, frame) else FROM_MASTER[switch.mode](switch, frame)


def decide_from_host(switch: Switch, frame: bytes) -> Verdict:
    """What the host's stack sends through its own interface is for the ports, in any mode and with any flag. What it
    forwards for others needs no leave."""
    if len(frame) < 14:
        return Verdict("drop_runt")
    packet = as_sent(frame)
    if is_group(frame):
        return Verdict("to_ports" if switch.access in FROM_HOST or is_link_control(packet) else "drop_host_access")
    port = owner(switch, packet, "destination")
    if port is None:
        found = transport(packet) if packet.ethertype == 0x0800 else None
        to_client = found is not None and found[0] == 17 and len(found[1]) >= 8 and found[1][2:4] == b"\0\x44"
        return Verdict("to_ports" if to_client and switch.access in TO_HOST else "drop_no_route")
    if is_hosts(switch, packet, "source") and not may_pass(switch, packet, switch.access in FROM_HOST):
        return Verdict("drop_host_access")
    return Verdict("to_port" if switch.ports[port].up else "drop_port_down", port)
