"""What a hostile port sends: packets that guards stop, and ways to hide them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MASTER = bytes.fromhex("020000000001")
FOREIGN = bytes.fromhex("0200000000fe")
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ALL_NODES, ALL_ROUTERS = (bytes.fromhex("ff02" + "00" * 13) + bytes([k]) for k in (1, 2))
NONE6 = bytes(16)


# ---------------------------------------------------------------------------- packets


def ipv4(source: bytes, destination: bytes, payload: bytes = b"payload.", protocol: int = 17) -> bytes:
    total = (20 + len(payload)).to_bytes(2, "big")
    return b"\x45\0" + total + bytes(4) + bytes([64, protocol, 0, 0]) + source + destination + payload


def udp(source: int, destination: int) -> bytes:
    return struct.pack("!HHHH", source, destination, 12, 0) + b"data"


def arp(sender: bytes, target: bytes, *, mac: bytes = MASTER, opcode: int = 1) -> bytes:
    return bytes.fromhex("000108000604") + struct.pack("!H", opcode) + mac + sender + bytes(6) + target


def ipv6(source: bytes, destination: bytes, payload: bytes, protocol: int = 17) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255) + source + destination + payload


def nd(kind: int, source: bytes, destination: bytes, target: bytes, *options: bytes) -> bytes:
    return ipv6(source, destination, bytes([kind]) + bytes(7) + target + b"".join(options), 58)


def link_layer(kind: int, mac: bytes) -> bytes:
    return bytes([kind, 1]) + mac


# ---------------------------------------------------------------------------- ways to hide one


def tagged(vid: int, tpid: int = 0x8100) -> bytes:
    return struct.pack("!HH", tpid, vid)


def behind(packet: bytes, *headers: bytes) -> bytes:
    """An IPv6 packet with extension headers, each without its first byte, in which the next one stands."""
    chain, payload = packet[6:7], packet[40:]
    for header in reversed(headers):
        payload, chain = chain + header[1:] + payload, header[:1]
    return packet[:4] + struct.pack("!H", len(payload)) + chain + packet[7:40] + payload


HOP_BY_HOP, DESTINATION, ROUTING = (bytes([kind]) + bytes(7) for kind in (0, 60, 43))
ATOMIC = b"\x2c" + b"\0\0\0\0\0\0\7"
FIRST = b"\x2c" + b"\0\0\1\0\0\0\7"
LATER = b"\x2c" + b"\0\0\x28\0\0\0\7"
CHAINS = {
    "plain": [],
    "hop-by-hop": [HOP_BY_HOP],
    "destination options": [DESTINATION],
    "three headers": [HOP_BY_HOP, ROUTING, DESTINATION],
    "atomic fragment": [ATOMIC],
    "first fragment": [FIRST],
    "fragment behind options": [DESTINATION, FIRST],
    "nine headers": [DESTINATION] * 9,
}
TAGS = {
    "untagged": [],
    "priority": [tagged(0)],
    "priority twice": [tagged(0), tagged(0)],
    "priority 802.1ad": [tagged(0, 0x88A8)],
}
VLANS = {
    "802.1Q": [tagged(7)],
    "802.1ad": [tagged(7, 0x88A8)],
    "802.1Q in 802.1ad": [tagged(7, 0x88A8), tagged(9)],
    "802.1Q behind a priority": [tagged(0), tagged(7)],
}


class Attack(NamedTuple):
    outcomes: set[str]
    ethertype: int
    packet: bytes


def spoofed(outcome: str, ethertype: int, packet: bytes) -> Attack:
    return Attack({outcome}, ethertype, packet)


class Who(NamedTuple):
    """The addresses of the hostile port and of those around it."""

    own4: bytes
    sibling4: bytes
    host4: bytes
    gateway4: bytes
    other4: bytes  # on the wire
    own6: bytes
    sibling6: bytes
    host6: bytes
    gateway6: bytes
    other6: bytes


def attacks(w: Who, to: tuple[bytes, bytes] | None = None) -> dict[str, Attack]:
    """`to`: whom they are sent to, an IPv4 and an IPv6 address. Without, neighbour discovery is for all nodes, and the
    rest for `other`."""
    to4, to6 = to or (w.other4, w.other6)
    nodes = to6 if to else ALL_NODES
    return {
        "sibling's ipv4": spoofed("guard_ip_source", IPV4, ipv4(w.sibling4, to4)),
        "host's ipv4": spoofed("guard_ip_source", IPV4, ipv4(w.host4, to4)),
        "nobody's ipv4": spoofed("guard_ip_source", IPV4, ipv4(w.other4, to4)),
        "gateway's ipv4": spoofed("guard_gateway", IPV4, ipv4(w.gateway4, to4)),
        "no ipv4": spoofed("guard_ip_source", IPV4, ipv4(bytes(4), to4, udp(5, 6))),
        "no ipv4, towards a dhcp server": spoofed("guard_ip_source", IPV4, ipv4(bytes(4), to4, udp(68, 67))),
        "later ipv4 fragment": spoofed(
            "guard_ip_source", IPV4, ipv4(w.sibling4, to4)[:6] + b"\0\5" + ipv4(w.sibling4, to4)[8:]
        ),
        "broken ipv4": spoofed("guard_ip_source", IPV4, ipv4(w.own4, to4)[:19]),
        "sibling's arp": spoofed("guard_arp", ARP, arp(w.sibling4, to4)),
        "sibling's arp reply": spoofed("guard_arp", ARP, arp(w.sibling4, to4, opcode=2)),
        "host's arp": spoofed("guard_arp", ARP, arp(w.host4, w.host4)),
        "gateway's arp": spoofed("guard_gateway", ARP, arp(w.gateway4, w.gateway4, opcode=2)),
        "arp from another mac": spoofed("guard_arp", ARP, arp(w.own4, w.sibling4, mac=FOREIGN)),
        "arp reply from nobody": spoofed("guard_arp", ARP, arp(bytes(4), w.sibling4, opcode=2)),
        "rarp reply": spoofed("guard_arp", 0x8035, arp(w.own4, w.sibling4, opcode=4)),
        "arp of another kind": spoofed("guard_arp", ARP, b"\0\6" + arp(w.own4, w.sibling4)[2:]),
        "cut arp": spoofed("guard_arp", ARP, arp(w.own4, w.sibling4)[:27]),
        "dhcp server": spoofed("guard_dhcp_server", IPV4, ipv4(w.own4, to4, udp(67, 68))),
        "dhcp server on another port": spoofed("guard_dhcp_server", IPV4, ipv4(w.own4, b"\xff" * 4, udp(6767, 68))),
        "dhcp relay": spoofed("guard_dhcp_server", IPV4, ipv4(w.own4, to4, udp(67, 67))),
        "cut udp": spoofed("guard_dhcp_server", IPV4, ipv4(w.own4, to4, udp(5, 6)[:7])),
        "dhcp server in a first fragment": spoofed(
            "guard_dhcp_server",
            IPV4,
            ipv4(w.own4, to4, udp(67, 68))[:6] + b"\x20\0" + ipv4(w.own4, to4, udp(67, 68))[8:],
        ),
        "icmp router advertisement": spoofed("guard_ra", IPV4, ipv4(w.own4, to4, b"\x09" + bytes(15), 1)),
        "sibling's ipv6": spoofed("guard_ip_source", IPV6, ipv6(w.sibling6, to6, udp(5, 6))),
        "host's ipv6": spoofed("guard_ip_source", IPV6, ipv6(w.host6, to6, udp(5, 6))),
        "gateway's ipv6": spoofed("guard_gateway", IPV6, ipv6(w.gateway6, to6, udp(5, 6))),
        "a mapped address": spoofed("guard_ip_source", IPV6, ipv6(bytes(10) + b"\xff\xff" + w.own4, to6, udp(5, 6))),
        "no ipv6": spoofed("guard_ip_source", IPV6, ipv6(NONE6, to6, udp(5, 6))),
        "echo from no ipv6": spoofed("guard_ip_source", IPV6, ipv6(NONE6, to6, b"\x80" + bytes(7), 58)),
        "router advertisement": spoofed("guard_ra", IPV6, nd(134, w.own6, nodes, bytes(8))),
        "redirect": Attack({"guard_nd"}, IPV6, nd(137, w.own6, w.sibling6, w.other6 + w.other6)),
        "sibling's advertisement": Attack(
            {"guard_nd"}, IPV6, nd(136, w.own6, nodes, w.sibling6, link_layer(2, MASTER))
        ),
        "host's advertisement": Attack({"guard_nd"}, IPV6, nd(136, w.own6, nodes, w.host6, link_layer(2, MASTER))),
        "gateway's advertisement": Attack({"guard_gateway", "guard_nd"}, IPV6, nd(136, w.own6, nodes, w.gateway6)),
        "another's link-layer address": Attack(
            {"guard_nd"}, IPV6, nd(135, w.own6, nodes, w.sibling6, link_layer(1, FOREIGN))
        ),
        "an option of no size": Attack({"guard_nd"}, IPV6, nd(135, w.own6, nodes, w.sibling6, b"\x0e\0" + bytes(6))),
        "cut advertisement": Attack({"guard_nd"}, IPV6, nd(136, w.own6, nodes, w.own6)[:58]),
        "inverse solicitation": Attack({"guard_nd"}, IPV6, nd(141, w.own6, nodes, w.sibling6)),
        "dhcpv6 server": spoofed("guard_dhcp_server", IPV6, ipv6(w.own6, to6, udp(547, 546))),
        "dhcpv6 server on another port": spoofed("guard_dhcp_server", IPV6, ipv6(w.own6, to6, udp(5, 546))),
    }


def hidden(
    attack: Attack, tags: Mapping[str, Sequence[bytes]] = TAGS
) -> dict[tuple[str, str], tuple[Sequence[bytes], bytes]]:
    """Tags and packet, by the names of the tags and of the extension headers before it."""
    chains = CHAINS if attack.ethertype == IPV6 else {"plain": []}
    return {
        (name, chain): (some, behind(attack.packet, *headers) if headers else attack.packet)
        for name, some in tags.items()
        for chain, headers in chains.items()
    }
