"""The BPF programs repeat the rules of rules/decide.pxd: a frame from the wire is kept from the host if and only if the
data plane delivers it to a port, and reaches the data plane whenever a port is to have it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvsw._fast import FLAGS, MODES, OUTCOMES
from ipvsw.linux.bpf import Shim
from tests.native._decider import Decider
from tests.native.random_frames import MASTER, MULTICAST, V4, V6, random_frame, seed_from_environment
from tests.netns.kernel.bpf_run import returned

TC_ACT_OK, TC_ACT_SHOT = 0, 2
CORPUS = Path(__file__).parents[2] / "conformance/corpus.json"
ETH_HLEN = 14
RANDOM = 20_000  # frames for each mode
OWNED = [
    *V4[1:6],
    *V6[1:6],
    *(bytes([10, 1, 0, last]) for last in (11, 12, 13)),
    *(bytes.fromhex("fd000001" + "00" * 11) + bytes([last]) for last in (0x11, 0x12, 0x13)),
]


def untagged(frame: bytes) -> bytes:
    """What a program on the master sees: the kernel has taken the outermost VLAN tag off (`skb_vlan_untag`)."""
    if frame[12:14] in (b"\x81\0", b"\x88\xa8") and len(frame) >= ETH_HLEN + 4:
        return frame[:12] + frame[16:]
    return frame


def can_be_run(seen: bytes) -> bool:
    """Whether BPF_PROG_TEST_RUN takes it: a whole Ethernet header, and behind it an IP header if it says so."""
    return len(seen) >= ETH_HLEN + {b"\x08\0": 20, b"\x86\xdd": 40}.get(seen[12:14], 0)


@pytest.fixture(params=MODES)
def rules(request: pytest.FixtureRequest) -> Iterator[tuple[str, Shim, Decider]]:
    """Both, with the same addresses."""
    mode = str(request.param)
    ports = [(True, 1500, False, [])] * len(OWNED)
    table = {address: k for k, address in enumerate(OWNED)}
    decider = Decider(MODES[mode], FLAGS["bridge"], MASTER, ports, table, multicast=MULTICAST)
    shim = Shim()
    try:
        shim.set_mode(MODES[mode])
        shim.add(OWNED)
        shim.set_groups(frozenset(MULTICAST))
        yield mode, shim, decider
    finally:
        shim.close()


def compare(shim: Shim, decider: Decider, frames: list[bytes]) -> Counter[str]:
    """How many frames had each outcome."""
    found: Counter[str] = Counter()
    for frame in frames:
        seen = untagged(frame)
        if not can_be_run(seen):
            continue
        outcome = OUTCOMES[decider.from_master(frame)[0]]
        stolen = returned(shim.ingress_fd, seen)
        assert stolen == (TC_ACT_SHOT if outcome == "to_port" else TC_ACT_OK), (outcome, frame.hex())
        # For a socket filter the test run takes an Ethernet header off, which a packet socket has put back by then.
        passed = returned(shim.filter_fd, seen[:ETH_HLEN] + seen) != 0
        assert passed or outcome not in ("to_port", "to_ports"), (outcome, frame.hex())
        found[outcome] += 1
    return found


def test_the_corpus_is_stolen_if_and_only_if_it_is_delivered(rules: tuple[str, Shim, Decider]) -> None:
    mode, shim, decider = rules
    frames = [bytes.fromhex(case["frame"]) for case in json.loads(CORPUS.read_text())]
    found = compare(shim, decider, frames)
    assert found["left_to_host"]
    assert bool(found["to_port"]) is (mode != "l3s")


def test_random_frames_are_stolen_if_and_only_if_they_are_delivered(rules: tuple[str, Shim, Decider]) -> None:
    mode, shim, decider = rules
    rng = random.Random(seed_from_environment())
    found = compare(shim, decider, [random_frame(rng) for _ in range(RANDOM)])
    assert found["left_to_host"] > RANDOM / 20
    assert mode == "l3s" or found["to_port"] > RANDOM / 20
    assert found["to_ports"]


def test_groups_that_are_switched_no_more_do_not_wake_the_daemon(rules: tuple[str, Shim, Decider]) -> None:
    mode, shim, _ = rules
    packet = bytes.fromhex("4500001c00000000ff110000") + bytes([192, 0, 2, 99]) + MULTICAST[1] + bytes(8)
    frame = bytes.fromhex("01005e0000fb") + b"\2" + bytes(5) + b"\x08\0" + packet
    for groups, passes in ((MULTICAST, True), (MULTICAST[2:], False), (MULTICAST[:2], True), ([], False)):
        shim.set_groups(frozenset(groups))
        assert bool(returned(shim.filter_fd, frame[:ETH_HLEN] + frame)) is (passes or mode == "l2")


def test_a_reply_to_an_arp_probe_reaches_both(rules: tuple[str, Shim, Decider]) -> None:
    """The data plane, which may know who has asked, and the host, which may have."""
    mode, shim, _ = rules
    for operation, target, passes in ((2, bytes(4), True), (1, bytes(4), False), (2, bytes([192, 0, 2, 99]), False)):
        arp = b"\0\1\x08\0\6\4\0" + bytes([operation]) + bytes(6) + bytes([192, 0, 2, 98]) + bytes(6) + target
        frame = MASTER + b"\2" + bytes(5) + b"\x08\x06" + arp
        assert returned(shim.ingress_fd, frame) == TC_ACT_OK
        assert bool(returned(shim.filter_fd, frame[:ETH_HLEN] + frame)) is (passes and mode == "l2")
