"""Random frames that are nearly right, for a switch whose addresses and MACs are few, so that they meet often."""

from __future__ import annotations

import os
import random

from tests.reference.rules import BROADCAST, Port, Switch

MASTER = bytes.fromhex("020000000001")
FOREIGN = bytes.fromhex("0200000000fe")
GROUPS = [
    BROADCAST,
    *map(
        bytes.fromhex,
        ("01005e000001", "01005e0000fb", "01005e7ffffa", "333300000001", "3333ff000011", "0180c200000e"),
    ),
]
V4 = [bytes([10, 1, 0, last]) for last in range(8)] + [bytes(4), b"\xff" * 4, bytes([224, 0, 0, 1])]
V6 = [bytes.fromhex("fd000001" + "00" * 11) + bytes([last]) for last in range(8)]
V6 += [bytes(16), bytes.fromhex("ff02" + "00" * 13 + "01"), bytes.fromhex("fe80" + "00" * 13 + "01")]
MULTICAST = [bytes([224, 0, 0, 1]), bytes([224, 0, 0, 251]), bytes.fromhex("ff02" + "00" * 13 + "01")]
V4.append(MULTICAST[1])
ETHERTYPES = [0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8, 0x8808, 0x88B5, 0x0026, 0x9100]
IPV6_NEXT = [0, 6, 17, 43, 44, 58, 58, 58, 59, 60]
ICMPV6_TYPES = [128, 133, 134, 135, 135, 135, 136, 143]
EDGES = [0, 1, 13, 14, 15, 17, 18, 33, 34, 41, 42, 45, 46, 53, 54, 57, 58, 61, 62, 77, 78, 81, 82]


def seed_from_environment() -> int:
    """IPVSW_SEED, or a new one; printed, so that a failure can be repeated."""
    seed = int(os.environ.get("IPVSW_SEED") or random.SystemRandom().getrandbits(32))
    print(f"IPVSW_SEED={seed}")
    return seed


def random_switch(rng: random.Random, mode: str = "l2", flag: str = "bridge", access: str = "none") -> Switch:
    ports = [
        Port(
            up=rng.random() < 0.85,
            mtu=rng.choice([68, 100, 1500]),
            all_multicast=rng.random() < 0.3,
            joined=tuple(version for version in (4, 6) if rng.random() < 0.5),
            groups=set(rng.sample(GROUPS, rng.randrange(len(GROUPS)))),
        )
        for _ in range(rng.randrange(1, 6))
    ]
    owned = rng.sample(V4, rng.randrange(len(V4) + 1)) + rng.sample(V6, rng.randrange(len(V6) + 1))
    table = {a: rng.randrange(len(ports)) for a in owned}
    host = {a for a in V4[:8] + V6[:8] if a not in table and rng.random() < 0.4}
    vlans = set(rng.sample(range(8192), 4096))
    multicast = {group for group in MULTICAST if rng.random() < 0.5}
    return Switch(
        MASTER,
        mode=mode,
        flag=flag,
        access=access,
        ports=ports,
        table=table,
        host=host,
        vlans=vlans,
        multicast=multicast,
    )


def random_mac(rng: random.Random) -> bytes:
    return rng.choice([MASTER, MASTER, MASTER, FOREIGN, rng.choice(GROUPS)])


def random_frame(rng: random.Random) -> bytes:
    source = rng.choice([MASTER, MASTER, FOREIGN])
    destination = source if rng.random() < 0.4 else random_mac(rng)
    ethertype = rng.choice(ETHERTYPES[:3]) if rng.random() < 0.85 else rng.choice(ETHERTYPES)
    frame = destination + source + tags(rng) + ethertype.to_bytes(2, "big") + random_packet(rng, ethertype)
    return spoiled(rng, frame)


def tags(rng: random.Random) -> bytes:
    number = rng.choice([0] * 12 + [1, 1, 1, 2])
    return b"".join(rng.choice([b"\x81\x00", b"\x88\xa8"]) + rng.randbytes(2) for _ in range(number))


def random_packet(rng: random.Random, ethertype: int) -> bytes:
    if ethertype == 0x0806:
        opcode = rng.choice([1, 2]).to_bytes(2, "big")
        hosts = (MASTER + rng.choice(V4), bytes(6) + rng.choice(V4))
        return bytes.fromhex("000108000604") + opcode + b"".join(hosts)
    if ethertype == 0x0800:
        return ipv4(rng)
    if ethertype == 0x86DD:
        return ipv6(rng)
    return rng.randbytes(rng.randrange(70))


def ipv4(rng: random.Random) -> bytes:
    words = 5 if rng.random() < 0.8 else rng.randrange(16)
    payload = rng.randbytes(rng.randrange(40))
    header = max(words * 4, 20)
    total = header + len(payload) if rng.random() < 0.7 else header + len(payload) + rng.randrange(-24, 24)
    version = 4 if rng.random() < 0.9 else rng.randrange(16)
    return (
        bytes([version << 4 | words, 0])
        + (total & 0xFFFF).to_bytes(2, "big")
        + rng.randbytes(4)
        + bytes([64, rng.choice([1, 2, 6, 17]), 0, 0])
        + rng.choice(V4)
        + rng.choice(V4)
        + bytes(header - 20)
        + payload
    )


def ipv6(rng: random.Random) -> bytes:
    source = bytes(16) if rng.random() < 0.3 else rng.choice(V6)
    version = 0x60 if rng.random() < 0.9 else rng.randrange(256)
    following = rng.choice(IPV6_NEXT)
    payload = (
        bytes([rng.choice(ICMPV6_TYPES), 0]) + rng.randbytes(6) + rng.choice(V6) + rng.randbytes(rng.randrange(20))
    )
    return (
        bytes([version, 0, 0, 0])
        + len(payload).to_bytes(2, "big")
        + bytes([following, 255])
        + source
        + rng.choice(V6)
        + payload
    )


def spoiled(rng: random.Random, frame: bytes) -> bytes:
    """Most as they are; some cut at a boundary, padded, or with a byte changed."""
    what = rng.random()
    if what < 0.6:
        return frame
    if what < 0.75:
        return frame[: rng.choice(EDGES)]
    if what < 0.8:
        return frame[: rng.randrange(len(frame) + 1)]
    if what < 0.9:
        return frame + bytes(rng.choice([1, 2, 6, 46, 100, 1500]))
    at = rng.randrange(len(frame))
    return frame[:at] + rng.randbytes(1) + frame[at + 1 :]
