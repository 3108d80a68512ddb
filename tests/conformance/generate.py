#!/usr/bin/env python3
"""Make other frames of the kinds of the corpus, with what l2.py expects of each: generate.py SEED COUNT DIRECTORY

Writes DIRECTORY/corpus.json and DIRECTORY/l2-FLAG.json, for `run.py --corpus DIRECTORY/corpus.json
--expected DIRECTORY`. The same seed gives the same frames.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from ipaddress import ip_address
from pathlib import Path

from tests.reference import l2
from tests.support.wire.frames import ICMP, ICMP6, TCP, UDP, checksum, pseudo

HERE = Path(__file__).resolve().parent

FLAGS = ("bridge", "private", "vepa")
PLACES = ("wire", "wire", "s1", "s1", "s2", "s3", "host")
OWNED4 = ("10.1.0.11", "10.2.0.11", "10.1.0.12", "10.1.0.13")
OWNED6 = ("fd00:1::11", "fd00:1::12", "fd00:1::13")
OTHERS4 = ("10.1.0.1", "10.1.0.50", "10.1.0.77", "192.0.2.9", "127.0.0.1", "0.0.0.0")
OTHERS6 = ("fd00:1::1", "fd00:1::50", "2001:db8::9", "fe80::77")
GROUPS4 = ("255.255.255.255", "10.1.255.255", "224.0.0.1", "224.0.0.251", "239.1.2.3")
GROUPS6 = ("ff02::1", "ff02::2", "ff02::16", "ff02::1:ff00:11", "ff02::1:ff00:12", "ff02::1:ff00:99", "ff05::2")
FOREIGN = bytes.fromhex("020000000999")
ECHO6, ADVERTISEMENT, ROUTER, REDIRECT, MLD = 128, 136, 134, 137, 143


class Maker:
    """Frames drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.marker = b""

    def case(self, number: int) -> dict[str, str]:
        self.marker = b"IPVC" + self.chance.randbytes(4)
        place = self.chance.choice(PLACES)
        kind = self.chance.choice((self.ipv4, self.ipv4, self.ipv6, self.ipv6, self.arp, self.other))
        ethertype, packet, natural = kind()
        if self.chance.random() < 0.15:
            tag = self.chance.choice((0, 0, 7, 100, 4094)) | self.chance.randrange(8) << 13
            packet = tag.to_bytes(2, "big") + ethertype.to_bytes(2, "big") + packet
            ethertype = self.chance.choice(l2.VLAN)
        frame = self.macs(place, natural) + ethertype.to_bytes(2, "big") + packet
        name = f"{number}.{place}.{kind.__name__}.{len(frame)}"
        return {"id": name, "at": place, "marker": self.marker.hex(), "frame": frame[: 14 + l2.MTU].hex()}

    def macs(self, place: str, natural: bytes) -> bytes:
        """Mostly the MACs that the stack would use, sometimes others."""
        own = l2.W if place == "wire" else l2.M
        source = own if self.chance.random() < 0.85 else self.chance.choice((FOREIGN, l2.M))
        destination = (
            natural
            if self.chance.random() < 0.8
            else self.chance.choice(
                (
                    l2.M,
                    l2.W,
                    FOREIGN,
                    l2.BROADCAST,
                    bytes.fromhex("0180c200000e"),
                    bytes.fromhex("333300000001"),
                )
            )
        )
        return destination + source

    def content(self) -> bytes:
        """The marker and bytes after it, up to a full frame."""
        return self.marker + self.chance.randbytes(self.chance.choice((0, 1, 2, 7, 46, 300, 1000, 1400)))

    # -------------------------------------------------------------------------------- kinds

    def ipv4(self) -> tuple[int, bytes, bytes]:
        destination = ip_address(self.pick(OWNED4, OTHERS4, GROUPS4))
        source = ip_address(self.pick(OWNED4, OTHERS4, OTHERS4))
        protocol = self.chance.choice((UDP, UDP, TCP, ICMP, 2, 47, 132))
        data = self.transport(protocol, source.packed, destination.packed)
        options = b"\1" * (4 * self.chance.choice((0, 0, 0, 1, 5, 10)))
        fragment = self.chance.choice((0, 0, 0, 0x4000, 0x2000, 0x2001, 100))
        length = 20 + len(options) + len(data)
        first = 0x40 | (5 + len(options) // 4)
        match self.chance.randrange(20):
            case 0:
                length += self.chance.choice((1, 200, 20000))  # longer than the frame
            case 1:
                length = self.chance.choice((0, 19, 20, length - 1))
            case 2:
                first = self.chance.choice((0x65, 0x44, 0x05, 0x4F))
            case 3:
                data += bytes(self.chance.randrange(1, 20))  # padding
        ttl = self.chance.choice((64, 64, 1, 0, 255))
        header = struct.pack("!BBHHHBBH", first, 0, length, 9, fragment, ttl, protocol, 0)
        header += source.packed + destination.packed + options
        if self.chance.random() < 0.95:
            header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
        packet = header + data
        if self.chance.random() < 0.05:
            packet = self.marker + packet[8:][: self.chance.randrange(12)]  # less than a header
        group = {"255": l2.BROADCAST}.get(str(destination).rsplit(".", 1)[1])
        if destination.is_multicast:
            group = b"\x01\x00\x5e" + bytes([destination.packed[1] & 0x7F]) + destination.packed[2:]
        return l2.IPV4, packet, group or self.unicast()

    def ipv6(self) -> tuple[int, bytes, bytes]:
        destination = ip_address(self.pick(OWNED6, OTHERS6, GROUPS6))
        source = ip_address(self.pick(OWNED6, OTHERS6, ("::", "::", "fd00:1::50")))
        protocol = self.chance.choice((UDP, TCP, ICMP6, ICMP6, ICMP6, 47))
        data = self.transport(protocol, source.packed, destination.packed)
        if self.chance.random() < 0.1:  # destination options: six bytes of padding
            data, protocol = struct.pack("!BBBBI", protocol, 0, 1, 4, 0) + data, 60
        length = len(data) if self.chance.random() < 0.9 else self.chance.randrange(3000)
        first = 6 if self.chance.random() < 0.95 else self.chance.choice((0, 4, 5, 15))
        header = struct.pack(
            "!IHBB", first << 28 | self.chance.randrange(1 << 20), length, protocol, self.chance.choice((64, 255, 1, 0))
        )
        packet = header + source.packed + destination.packed + data
        if self.chance.random() < 0.05:
            packet = packet[:8] + self.marker + packet[16 : self.chance.randrange(16, 40)]  # less than a header
        group = b"\x33\x33" + destination.packed[12:] if destination.is_multicast else None
        return l2.IPV6, packet, group or self.unicast()

    def arp(self) -> tuple[int, bytes, bytes]:
        operation = self.chance.choice((1, 1, 2, 3))
        sender, target = (ip_address(self.pick(OWNED4, OWNED4, OTHERS4)).packed for _ in range(2))
        if self.chance.random() < 0.2:
            target = sender  # gratuitous
        hardware = self.chance.choice((1, 1, 1, 6, 0))
        packet = struct.pack("!HHBBH", hardware, 0x0800, 6, 4, operation) + l2.M + sender + bytes(6) + target
        if self.chance.random() < 0.1:
            packet = packet[: self.chance.randrange(8, 28)]
        packet += self.marker
        if len(packet) >= 28 and packet[20:28] == self.marker:  # too short to be ARP, but for the marker
            packet += b"\0"
        return l2.ARP, packet, l2.BROADCAST if operation == 1 else self.unicast()

    def other(self) -> tuple[int, bytes, bytes]:
        """No IP at all: other ethertypes, 802.3 lengths, PAUSE."""
        ethertype = self.chance.choice((0x88B5, 0x88CC, 0x8863, 0x8847, 0x22F3, l2.PAUSE, 100, 1500))
        group = bytes.fromhex("0180c2000001") if ethertype == l2.PAUSE else l2.BROADCAST
        return ethertype, self.content(), self.chance.choice((group, bytes.fromhex("0180c200000e"), self.unicast()))

    # -------------------------------------------------------------------------------- parts

    def pick(self, *choices: tuple[str, ...]) -> str:
        return self.chance.choice(self.chance.choice(choices))

    def unicast(self) -> bytes:
        return self.chance.choice((l2.M, l2.M, l2.M, l2.W))

    def transport(self, protocol: int, source: bytes, destination: bytes) -> bytes:
        content = self.content()
        if protocol == ICMP6:
            kind = self.chance.choice(
                (
                    ECHO6,
                    l2.NEIGHBOUR_SOLICITATION,
                    l2.NEIGHBOUR_SOLICITATION,
                    ADVERTISEMENT,
                    ROUTER,
                    REDIRECT,
                    MLD,
                )
            )
            target = ip_address(self.pick(OWNED6, OTHERS6)).packed
            data = struct.pack("!BBHI", kind, 0, 0, 0) + target + content
            data = (
                data[:2] + checksum(pseudo(source, destination, ICMP6, len(data)) + data).to_bytes(2, "big") + data[4:]
            )
            return data if self.chance.random() < 0.9 else data[: self.chance.randrange(1, 24)] + self.marker
        if protocol == ICMP:
            data = struct.pack("!BBHI", self.chance.choice((0, 3, 8, 11)), 0, 0, 0) + content
            return data[:2] + checksum(data).to_bytes(2, "big") + data[4:]
        if protocol == UDP:
            data = struct.pack("!HHHH", 1111, self.chance.choice((67, 68, 53, 2222)), 8 + len(content), 0) + content
            value = checksum(pseudo(source, destination, UDP, len(data)) + data) or 0xFFFF
            return data[:6] + value.to_bytes(2, "big") + data[8:]
        return content


def generate(seed: int, count: int, directory: Path) -> Path:
    """Write the corpus and what to expect of it in each flag. Returns the corpus."""
    maker = Maker(seed)
    corpus = [maker.case(number) for number in range(count)]
    handled = l2.handled_by(corpus)
    target = directory / "corpus.json"
    target.write_text(json.dumps(corpus, indent=0))
    for flag in FLAGS:
        expected = {case["id"]: l2.expect(case, flag, handled) for case in corpus}
        (directory / f"l2-{flag}.json").write_text(json.dumps(expected, indent=0))
    return target


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} SEED COUNT DIRECTORY")
    generate(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
