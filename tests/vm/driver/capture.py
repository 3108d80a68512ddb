"""What arrived where: packet sockets at every place, and frames reduced to words that two runs have in common.

A port and the wire are observed on receive by ETH_P_ALL sockets; the host by sockets for single protocols, which
see what is left after the switch has had the chance to take it. IP ids, ephemeral ports, sequence numbers,
checksums and segment sizes are left out. A frame belongs to the action whose number is in its UDP or TCP port or
in its echo identifier (that of the packet it quotes, for an ICMP error); a later fragment to that of the first one.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import Counter

from tests.vm.driver.topology import DEVICE, MASTER_MAC, NAME, PLACES, PORTS, WIRE_MAC, Rig

FIRST_NUMBER = 20000  # of action 0: its UDP and TCP port, its echo identifier
ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 3, 0x0800, 0x0806, 0x86DD
SO_RCVBUFFORCE, SOL_PACKET, PACKET_IGNORE_OUTGOING = 33, 263, 23
KIND = {0: "host", 1: "broadcast", 2: "multicast", 3: "otherhost"}
SNAPSHOT = 256  # bytes that are kept: two IPv6 headers with what is before and after them fit
MACS = {MASTER_MAC: "M", WIRE_MAC: "W", "ff:ff:ff:ff:ff:ff": "all"}
ICMP, IGMP, TCP, UDP, FRAGMENT, ICMP6, HOP_BY_HOP = 1, 2, 6, 17, 44, 58, 0
SYN, RST, ACK = 2, 4, 16


class Capture:
    """Collects until it is closed. `now` is the action under way; `last` the time of the last frame
    that was not a stack's report of its groups."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.now = -1
        self.last = 0.0
        self.frames: list[tuple[int, str, str, bytes]] = []
        self.groups: dict[tuple[int, str], set[str]] = {}
        self._sockets = {}
        for place in PLACES:
            protocols = (ETH_P_IP, ETH_P_ARP, ETH_P_IPV6) if place == "host" else (ETH_P_ALL,)
            with rig.inside(place):
                for protocol in protocols:
                    self._sockets[_sniffer(DEVICE[place], protocol)] = place
        self._end, self._ending = socket.socketpair()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.close()
        self._thread.join()
        self._end.close()
        for one in self._sockets:
            one.close()

    def _collect(self) -> None:
        poll = select.poll()
        places = {one.fileno(): (one, place) for one, place in self._sockets.items()}
        for number in (*places, self._end.fileno()):
            poll.register(number, select.POLLIN)
        while True:
            for number, _ in poll.poll():
                if number not in places:
                    return
                one, place = places[number]
                try:
                    while True:
                        frame, address = one.recvfrom(SNAPSHOT)
                        if address[2] in KIND:
                            self.last = self.last if is_report(frame) else time.monotonic()
                            self.frames.append((self.now, place, KIND[address[2]], frame))
                except BlockingIOError:
                    pass

    def note_groups(self) -> None:
        """The groups that the ports are in now, for the action under way."""
        for place in PORTS:
            with self.rig.inside(place), open("/proc/thread-self/net/dev_mcast") as file:
                fields = [line.split() for line in file]
            here = {f[4] for f in fields if f[1] == DEVICE[place]}
            self.groups.setdefault((self.now, place), set()).update(here)

    def records(self, kinds: list[str]) -> tuple[list[dict[str, int]], list[str]]:
        """For each action (by its kind) what was seen, with how often (TCP: once), and the set of all that belongs
        to none. Whether a connection that failed is reset as well depends on who gives up first: not told."""
        count = len(kinds)
        found = [Counter[str]() for _ in kinds]
        background = set()
        firsts: dict[bytes, int] = {}
        for _, _, _, frame in self.frames:
            number, words, _ = describe(frame)
            if number is not None and number >= 0 and (key := fragment_of(frame)):
                firsts[key] = number
        for now, place, kind, frame in self.frames:
            number, words, counted = describe(frame)
            if number == -1:
                number = firsts.get(fragment_of(frame), -1)
            line = f"{place} {kind} {words}"
            target = frame[:6].hex()
            unjoined = kind == "multicast" and place in PORTS and target not in self.groups.get((now, place), ())
            line += " unjoined" if unjoined else ""
            if number is None:
                background.add(line)
                continue
            action = number - FIRST_NUMBER if 0 <= number - FIRST_NUMBER < count else now
            if 0 <= action < count and not (kinds[action] == "tcp" and words.endswith(" rst")):
                found[action][line] = found[action][line] + 1 if counted else 1
        return [dict(sorted(one.items())) for one in found], sorted(background)


def _sniffer(device: str, protocol: int) -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
    if protocol == ETH_P_ALL:
        one.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    one.bind((device, protocol))
    one.setblocking(False)
    return one


def describe(frame: bytes) -> tuple[int | None, str, bool]:
    """A frame as (number of its action, words, whether it counts each time). Number -1: whichever is under way;
    None: no action's, but the stacks' own."""
    ethertype = int.from_bytes(frame[12:14], "big")
    macs = f"{_mac(frame[6:12])}>{_mac(frame[:6])}"
    if ethertype == ETH_P_ARP:
        operation = {1: "request", 2: "reply"}.get(frame[21], str(frame[21]))
        sender, target = _name(frame[28:32]), _name(frame[38:42])
        return None, f"{macs} arp {operation} {target} tell {sender}", False
    if ethertype not in (ETH_P_IP, ETH_P_IPV6):
        return None, f"{macs} ethertype {ethertype:04x}", False
    packet = frame[14:]
    number, words, counted = _ip(packet, ethertype == ETH_P_IPV6)
    return number, f"{macs} {words}", counted


def fragment_of(frame: bytes) -> bytes:
    """What the fragments of one packet have in common: addresses and identification. Empty if it is no fragment."""
    ethertype, packet = int.from_bytes(frame[12:14], "big"), frame[14:]
    if ethertype == ETH_P_IP and int.from_bytes(packet[6:8], "big") & 0x3FFF:
        return packet[12:20] + packet[4:6]
    if ethertype == ETH_P_IPV6 and packet[6] == FRAGMENT:
        return packet[8:40] + packet[44:48]
    return b""


def _ip(packet: bytes, six: bool) -> tuple[int | None, str, bool]:
    """As `describe`, for a packet."""
    if six:
        length, protocol, ttl = 40 + int.from_bytes(packet[4:6], "big"), packet[6], packet[7]
        source, target, payload = packet[8:24], packet[24:40], packet[40:]
        fragment = protocol == FRAGMENT
        offset, more = 0, False
        if fragment:
            protocol, bits = payload[0], int.from_bytes(payload[2:4], "big")
            offset, more, payload = bits & ~7, bool(bits & 1), payload[8:]
        flags = ""
    else:
        size = (packet[0] & 15) * 4
        length, ttl, protocol = int.from_bytes(packet[2:4], "big"), packet[8], packet[9]
        source, target, payload = packet[12:16], packet[16:20], packet[size:]
        bits = int.from_bytes(packet[6:8], "big")
        offset, more = (bits & 0x1FFF) * 8, bool(bits & 0x2000)
        fragment = bool(offset or more)
        flags = " df" if bits & 0x4000 else ""
    addresses = f"{_name(source)}>{_name(target)}"
    if protocol in (IGMP, HOP_BY_HOP):
        return None, "igmp" if protocol == IGMP else "mld", False
    common = f"{addresses} ttl {ttl}{flags} length {length}"
    if fragment:
        common += f" fragment {offset}{'+' if more else ''}"
    if offset:
        return -1, common, True
    number, words, counted = _upper(protocol, payload, six)
    if protocol == TCP:
        return number, f"{addresses} ttl {ttl}{flags} {words}", False
    if protocol == ICMP6 and 133 <= payload[0] <= 137:
        return None, f"{addresses} {words}", False
    return number, f"{common} {words}", counted


def _upper(protocol: int, payload: bytes, six: bool) -> tuple[int, str, bool]:
    """As `describe`, for what is above IP. How often TCP sends, and so what is said about it, is a matter of time."""
    if protocol in (TCP, UDP):
        source, target = struct.unpack_from("!HH", payload)
        way = "to" if target >= FIRST_NUMBER and target < FIRST_NUMBER + 2000 else "from"
        number = target if way == "to" else source
        if protocol == UDP:
            return number, f"udp {way} it", True
        bits = payload[13]
        what = "syn" if bits & SYN else "rst" if bits & RST else "data"
        return number, f"tcp {way} it {what}{' ack' if bits & SYN and bits & ACK else ''}", False
    if protocol not in (ICMP, ICMP6):
        return -1, f"protocol {protocol}", True
    kind, code = payload[0], payload[1]
    if six and kind in (135, 136):
        solicited = f" flags {payload[4] >> 5}" if kind == 136 else ""
        return -1, f"{'ns' if kind == 135 else 'na'} {_name(payload[8:24])}{solicited}", False
    if kind in ((128, 129) if six else (8, 0)):
        return int.from_bytes(payload[4:6], "big"), "echo " + ("request" if kind in (8, 128) else "reply"), True
    error = kind < 128 if six else kind in (3, 4, 5, 11, 12)
    if not error:
        return -1, f"icmp {kind}/{code}", True
    number, words, counted = _ip(payload[8:], six)
    return -1 if number is None else number, f"icmp {kind}/{code} about {words}", counted


def is_report(frame: bytes) -> bool:
    """Whether it is IGMP or MLD (IPv6 with a hop-by-hop header)."""
    ethertype = int.from_bytes(frame[12:14], "big")
    return (ethertype == ETH_P_IP and frame[23] == IGMP) or (ethertype == ETH_P_IPV6 and frame[20] == HOP_BY_HOP)


def _mac(address: bytes) -> str:
    text = address.hex(":")
    return MACS.get(text, text)


def _name(address: bytes) -> str:
    text = socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
    return NAME.get(text, text)
