"""The rules of mode l2 in the plainest words, for frames that no kernel was asked about.

`expect` says who receives a frame of the rig (see rig.py), in the words of `expected/*.json`. It is
checked against those files itself, so that it can judge the frames that generate.py makes.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

Sighting = dict[str, str]

M, W = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
BROADCAST = b"\xff" * 6
ADDRESSES = {
    ip_address(text).packed: port
    for port, texts in {
        "s1": ("10.1.0.11", "10.2.0.11", "fd00:1::11"),
        "s2": ("10.1.0.12", "fd00:1::12"),
        "s3": ("10.1.0.13", "fd00:1::13"),
    }.items()
    for text in texts
}
# Broadcast, all-hosts, all-nodes, and the solicited-node groups of a port's own addresses.
GROUPS = {
    f"s{k}": {BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("333300000001"), bytes.fromhex(f"3333ff00001{k}")}
    for k in (1, 2, 3)
}
MTU = 1500
ARP, IPV4, IPV6, VLAN, PAUSE = 0x0806, 0x0800, 0x86DD, (0x8100, 0x88A8), 0x8808
ICMP6, NEIGHBOUR_SOLICITATION = 58, 135


class Ends(NamedTuple):
    """Addresses that a frame can be told by, None for those that it can't."""

    source: bytes | None
    destination: bytes | None


def ethertype(frame: bytes) -> int:
    return int.from_bytes(frame[12:14], "big")


def ends(frame: bytes, *, leaving: bool = False) -> Ends:
    """A frame that leaves a port still has its Ethernet header when the kernel's driver compares the IPv4
    total length with what there is (`skb->len` in ipvlan_get_L3_hdr), so that 14 bytes too many pass."""
    kind, packet = ethertype(frame), frame[14:]
    present = len(frame) if leaving else len(packet)
    if kind == ARP and len(packet) >= 28:
        return Ends(packet[14:18], packet[24:28])
    if kind == IPV4 and len(packet) >= 20:
        header, length = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        if packet[0] >> 4 == 4 and header >= 20 and header <= length <= present:
            return Ends(packet[12:16], packet[16:20])
    if kind == IPV6 and len(packet) >= 40 and packet[0] >> 4 == 6:
        source, destination = packet[8:24], packet[24:40]
        if source == bytes(16) and packet[6] == ICMP6:
            if len(packet) >= 64 and packet[40] == NEIGHBOUR_SOLICITATION:
                return Ends(packet[48:64], packet[48:64])
            return Ends(None, None)
        return Ends(source, destination)
    return Ends(None, None)


def owner(address: bytes | None) -> str | None:
    return ADDRESSES.get(address) if address is not None else None


def packet_type(frame: bytes, own: bytes) -> str:
    if frame[:6] == BROADCAST:
        return "broadcast"
    if frame[0] & 1:
        return "multicast"
    return "host" if frame[:6] == own else "otherhost"


def at_port(port: str, frame: bytes) -> Sighting:
    return {"at": port, "type": packet_type(frame, M), "frame": frame.hex()}


def at_wire(frame: bytes) -> list[Sighting]:
    return [{"at": "wire", "type": packet_type(frame, W), "frame": frame.hex()}]


def at_host(frame: bytes, handled: set[int]) -> list[Sighting]:
    """The host's stack takes off one VLAN tag; with an id that it has no device for, the frame is another's."""
    kind = packet_type(frame, M)
    if ethertype(frame) in VLAN and len(frame) >= 18:
        if int.from_bytes(frame[14:16], "big") & 0xFFF:
            kind = "otherhost"
        frame = frame[:12] + frame[16:]
    if ethertype(frame) not in handled:
        return []
    return [{"at": "host", "type": kind, "frame": frame.hex()}]


def flood(frame: bytes, sender: str | None = None) -> list[Sighting]:
    if ethertype(frame) == PAUSE:
        return []
    return [at_port(port, frame) for port, groups in GROUPS.items() if port != sender and frame[:6] in groups]


def received(frame: bytes, handled: set[int]) -> list[Sighting]:
    """A frame that arrives at the master."""
    inner = frame
    if ethertype(frame) in VLAN and len(frame) >= 18:
        inner = frame[:12] + frame[16:]
    told = ends(inner)
    if frame[0] & 1:
        reflected = frame[6:12] == M and owner(told.source) is not None
        copies = [] if reflected or ethertype(inner) == PAUSE else flood(frame)
        return at_host(frame, handled) + copies
    if port := owner(told.destination):
        return [at_port(port, frame)]
    copies = []
    if frame[:6] == M != frame[6:12] and (group := packet_group(inner)):
        copies = [at_port(port, frame) for port, groups in GROUPS.items() if group in groups]
    return at_host(frame, handled) + copies


def packet_group(frame: bytes) -> bytes | None:
    """The group's MAC address of an IP packet that is for a group, in whatever frame (RFC 6085)."""
    kind, packet = ethertype(frame), frame[14:]
    to = ends(frame).destination
    if kind == IPV4 and to is not None and (to == b"\xff" * 4 or to[0] >> 4 == 14):
        return BROADCAST if to[0] == 255 else b"\1\0\x5e" + bytes([to[1] & 127]) + to[2:]
    if kind == IPV6 and len(packet) >= 40 and packet[0] >> 4 == 6 and packet[24] == 255:
        return b"\x33\x33" + packet[36:40]
    return None


def sent(frame: bytes, port: str, flag: str, handled: set[int]) -> list[Sighting]:
    """A frame that a port sends."""
    if flag != "vepa" and frame[:6] == frame[6:12]:
        sibling = owner(ends(frame, leaving=True).destination)
        if sibling is None:
            return received(frame, handled)
        if flag == "private" or len(frame) > MTU + 18:
            return []
        return [at_port(sibling, frame)]
    if frame[0] & 1:
        if ethertype(frame) == PAUSE:
            return []
        return flood(frame, port) + at_wire(frame)
    return at_wire(frame)


def expect(case: dict[str, str], flag: str, handled: set[int]) -> list[Sighting]:
    """Who sees a case of a corpus. `handled`: the ethertypes that the rig's host listens to."""
    frame = bytes.fromhex(case["frame"])
    if case["at"] == "host":
        return at_wire(frame)
    seen = received(frame, handled) if case["at"] == "wire" else sent(frame, case["at"], flag, handled)
    return sorted(seen, key=lambda s: (s["at"], s["type"], s["frame"]))


def handled_by(corpus: list[dict[str, str]]) -> set[int]:
    """The ethertypes that rig.py has the host listen to while it replays a corpus."""
    kinds = {ethertype(bytes.fromhex(case["frame"])) for case in corpus if len(case["frame"]) >= 28}
    return {kind for kind in kinds if kind >= 0x600} | {ARP, IPV4, IPV6}
