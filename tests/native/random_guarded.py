"""Random frames from a port that guards have something to say about: honest ones, and such as nearly are."""

from __future__ import annotations

import random
import struct

from tests.native.random_frames import FOREIGN, MASTER, spoiled
from tests.reference.rules import BROADCAST, Port, Switch

OWN4, SIBLING4, HOST4, GATEWAY4, FREE4, LOST4, OTHERS4 = (bytes([10, 1, 0, last]) for last in range(1, 8))
OWN6, SIBLING6, HOST6, GATEWAY6, FREE6, LOST6, OTHERS6 = (
    bytes.fromhex("fd000001" + "00" * 11) + bytes([k]) for k in range(1, 8)
)
NONE4, NONE6 = bytes(4), bytes(16)
MAPPED = bytes(10) + b"\xff\xff" + OWN4
V4 = [OWN4, OWN4, OWN4, SIBLING4, HOST4, GATEWAY4, FREE4, NONE4, LOST4, OTHERS4]
V6 = [OWN6, OWN6, OWN6, SIBLING6, HOST6, GATEWAY6, FREE6, NONE6, NONE6, MAPPED, LOST6, OTHERS6]
PORTS = [67, 68, 546, 547, 53, 9]
ICMPV6 = [128, 130, 131, 132, 133, 134, 135, 136, 137, 141, 142, 143]
EXTENSIONS = [0, 43, 51, 60, 135, 139, 140]
TAGS = [0x8100, 0x88A8, 0x9100]


def guarded_switch(mode: str = "l2", access: str = "none") -> Switch:
    return Switch(
        MASTER,
        mode=mode,
        access=access,
        ports=[Port(), Port()],
        table={OWN4: 0, OWN6: 0, SIBLING4: 1, SIBLING6: 1},
        host={HOST4, HOST6},
        gateways={GATEWAY4, GATEWAY6},
        former={LOST4: 0, LOST6: 0, OTHERS4: 1, OTHERS6: 1},
    )


def guarded_frame(rng: random.Random) -> bytes:
    source = MASTER if rng.random() < 0.9 else FOREIGN
    destination = rng.choice([MASTER, FOREIGN, BROADCAST])
    kind, packet = rng.choice([ipv4, ipv6, ipv6, arp, snap])(rng)
    frame = destination + source + tags(rng) + kind + packet
    frame = spoiled(rng, frame) if rng.random() < 0.5 else frame
    return frame if len(frame) >= 14 else destination + source + kind


def tags(rng: random.Random) -> bytes:
    number = rng.choice([0] * 8 + [1, 1, 2, 3])
    return b"".join(struct.pack("!HH", rng.choice(TAGS), rng.choice([0, 0x2000, 7])) for _ in range(number))


def snap(rng: random.Random) -> tuple[bytes, bytes]:
    inner = rng.choice([ipv4, arp])(rng)
    llc = b"\xaa\xaa\3\0\0" + rng.choice([b"\0", b"\xf8", b"\x0c"])
    return struct.pack("!H", 8 + len(inner[1])), llc + b"".join(inner)


def arp(rng: random.Random) -> tuple[bytes, bytes]:
    kind = rng.choice([b"\x08\x06"] * 5 + [b"\x80\x35"])
    fixed = bytes.fromhex("000108000604") if rng.random() < 0.95 else bytes.fromhex("000608000604")
    sender = MASTER if rng.random() < 0.9 else FOREIGN
    opcode = bytes([0, rng.choice([1, 2, 3, 4])])
    return kind, fixed + opcode + sender + rng.choice(V4) + bytes(6) + rng.choice(V4)


def udp(rng: random.Random) -> bytes:
    datagram = struct.pack("!HHHH", rng.choice(PORTS), rng.choice(PORTS), 12, 0) + b"data"
    return datagram if rng.random() < 0.9 else datagram[: rng.randrange(9)]


def ipv4(rng: random.Random) -> tuple[bytes, bytes]:
    protocol = rng.choice([1, 2, 6, 17, 17, 17])
    payload = udp(rng) if protocol == 17 else bytes([rng.choice([8, 9, 0])]) + bytes(11)
    options = bytes(rng.choice([0, 0, 0, 4, 40]))
    fragment = rng.choice([0, 0, 0, 0x4000, 0x2000, 0x0001, 0x2003, 0x1FFF])
    first = 0x45 + len(options) // 4
    head = struct.pack("!BBHHHBBH", first, 0, 20 + len(options) + len(payload), 1, fragment, 64, protocol, 0)
    return b"\x08\x00", head + rng.choice(V4) + rng.choice([*V4, b"\xff" * 4, b"\xff" * 4]) + options + payload


def icmpv6(rng: random.Random) -> bytes:
    kind = rng.choice(ICMPV6)
    fixed = {134: 16, 135: 24, 136: 24, 137: 40, 141: 24, 142: 24}.get(kind, 8)
    target = rng.choice(V6)
    message = (bytes([kind]) + bytes(7) + target + target)[:fixed]
    for _ in range(rng.choice([0, 0, 1, 2])):
        mac = MASTER if rng.random() < 0.8 else FOREIGN
        message += rng.choice([bytes([rng.choice([1, 2, 14]), 1]) + mac, b"\1\2" + mac + bytes(8), b"\x0e\0" + mac])
    return message if rng.random() < 0.9 else message[: rng.randrange(len(message))]


def ipv6(rng: random.Random) -> tuple[bytes, bytes]:
    protocol = rng.choice([6, 17, 58, 58, 58, 59])
    payload = {17: udp, 58: icmpv6}.get(protocol, lambda _: bytes(20))(rng)
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 8, 9])):
        kind = rng.choice([*EXTENSIONS, 44])
        units = rng.choice([0, 0, 1])
        if kind == 44:
            payload = bytes([protocol, 0]) + struct.pack("!HI", rng.choice([0, 1, 8, 9]), 7) + payload
        elif kind == 51:
            payload = bytes([protocol, 2 * units]) + bytes(6 + 8 * units) + payload
        else:
            payload = bytes([protocol, units]) + bytes(6 + 8 * units) + payload
        protocol = kind
    said = len(payload) if rng.random() < 0.9 else rng.choice([0, len(payload) + 8, max(len(payload) - 8, 0)])
    return b"\x86\xdd", struct.pack("!IHBB", 6 << 28, said, protocol, 255) + rng.choice(V6) + rng.choice(V6) + payload
