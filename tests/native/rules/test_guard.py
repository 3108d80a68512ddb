"""Guards against the model: random frames and the mutated corpus, whichever guards are on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw._fast import GUARDS, OUTCOMES
from tests.native._decider import Decider
from tests.native._probe import claimed_address
from tests.native.random_frames import FOREIGN, MASTER, random_frame, seed_from_environment, spoiled
from tests.native.random_guarded import FREE4, OWN4, OWN6, arp, guarded_frame, guarded_switch, ipv6
from tests.native.rules.test_decide import probe_of
from tests.reference import guard as model
from tests.reference.rules import Switch

FRAMES = 60_000
CORPUS = json.loads(Path(__file__).parents[2].joinpath("conformance/corpus.json").read_text())
SETS = st.frozensets(st.sampled_from(sorted(GUARDS)))


def guarded_probe(switch: Switch) -> Decider:
    probe = probe_of(switch)
    for gateway in switch.gateways:
        probe.add_gateway(gateway)
    for address, port in switch.former.items():
        probe.add_former(address, port)
    return probe


def bits(guards: frozenset[str]) -> int:
    return sum(GUARDS[name] for name in guards)


def agree(switch: Switch, probe: Decider, guards: frozenset[str], frame: bytes) -> model.Fault | None:
    expected = model.check(switch, 0, guards, frame)
    outcome, is_unknown = probe.guarded(0, bits(guards), frame)
    found = None if outcome < 0 else OUTCOMES[outcome]
    wanted = (None, False) if expected is None else (expected.outcome, expected.is_unknown)
    assert (found, is_unknown) == wanted, (sorted(guards), frame.hex())
    return expected


def test_a_guard_and_its_outcome_have_the_same_name() -> None:
    assert tuple(GUARDS) == model.NAMES
    assert {"guard_" + name.replace("-", "_") for name in GUARDS} == {
        name for name in OUTCOMES if name.startswith("guard_")
    }


def test_random_frames_end_at_the_guards_that_the_model_says() -> None:
    rng = random.Random(seed_from_environment())
    switch = guarded_switch()
    probe = guarded_probe(switch)
    met: dict[tuple[str, bool] | None, int] = {}
    for n in range(FRAMES):
        frame = guarded_frame(rng)
        some = frozenset(name for name in GUARDS if rng.random() < 0.5)
        for guards in (frozenset(GUARDS), some, frozenset([rng.choice(list(GUARDS))])):
            found = agree(switch, probe, guards, frame)
        if n % 3 == 0:
            found = agree(switch, probe, frozenset(GUARDS), frame)
        key = None if found is None else (found.outcome, found.is_unknown)
        met[key] = met.get(key, 0) + 1
    assert met.pop(None) > FRAMES // 50, "hardly any frame is honest"
    assert {name for name, _ in met} == {"guard_" + name.replace("-", "_") for name in GUARDS if name != "host"}
    assert {name for name, is_unknown in met if is_unknown} == {"guard_ip_source", "guard_arp", "guard_nd"}


def test_the_corpus_ends_as_the_model_says() -> None:
    rng = random.Random(seed_from_environment())
    switch = guarded_switch()
    switch.table = {bytes([10, 1, 0, 11]): 0, bytes.fromhex("fd000001" + "00" * 11) + b"\x11": 0}
    probe = guarded_probe(switch)
    for case in CORPUS:
        frame = bytes.fromhex(case["frame"])
        for changed in [frame, *(spoiled(rng, frame) for _ in range(50))]:
            if len(changed) >= 14:
                agree(switch, probe, frozenset(GUARDS), changed)


def test_what_the_rules_hand_to_the_host_is_kept_from_it() -> None:
    rng = random.Random(seed_from_environment())
    kept = passed = 0
    for mode in ("l2", "l3"):
        for access in ("none", "both"):
            switch = guarded_switch(mode, access)
            probe = guarded_probe(switch)
            for _ in range(5000):
                frame = random_frame(rng) if rng.random() < 0.5 else guarded_frame(rng)
                if len(frame) < 14 or frame[0] & 1:
                    continue
                expected = model.keeps_from_host(switch, frame)
                assert probe.kept_from_host(0, GUARDS["host"], frame) is expected, frame.hex()
                assert not probe.kept_from_host(0, bits(frozenset(GUARDS) - {"host"}), frame)
                kept, passed = kept + expected, passed + (not expected)
    assert kept and passed


@given(st.binary(max_size=120), SETS)
def test_whatever_follows_the_addresses(tail: bytes, guards: frozenset[str]) -> None:
    switch = guarded_switch()
    agree(switch, guarded_probe(switch), guards, MASTER + MASTER + tail.ljust(2, b"\0"))


@given(st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]), st.binary(max_size=100), SETS)
def test_nothing_is_read_past_the_end(kind: bytes, packet: bytes, guards: frozenset[str]) -> None:
    """Under the sanitizers that is an error."""
    switch = guarded_switch()
    frame = FOREIGN + MASTER + kind + packet
    agree(switch, guarded_probe(switch), guards, frame)
    claimed = claimed_address(frame)
    assert claimed is None or claimed in packet


@pytest.mark.parametrize("tag", [b"", b"\x81\0\0\0", b"\x88\xa8\0\7\x81\0\0\1"])
def test_the_log_names_the_address_that_is_claimed(tag: bytes) -> None:
    request = bytes.fromhex("0001080006040001") + FOREIGN + FREE4 + bytes(6) + OWN4
    assert claimed_address(MASTER + FOREIGN + tag + b"\x08\x06" + request) == FREE4
    advertisement = b"\x60\0\0\0\0\x18\x3a\xff" + OWN6 + OWN6 + b"\x88" + bytes(7) + bytes(15) + b"\x09"
    assert claimed_address(MASTER + FOREIGN + tag + b"\x86\xdd" + advertisement) == bytes(15) + b"\x09"
    assert claimed_address(MASTER + FOREIGN + tag + b"\x88\xb5" + bytes(60)) is None


def test_a_port_without_a_guard_is_asked_nothing_by_it() -> None:
    rng = random.Random(seed_from_environment())
    probe = guarded_probe(guarded_switch())
    for _ in range(1000):
        kind, packet = rng.choice([arp, ipv6])(rng)
        assert probe.guarded(0, 0, MASTER + FOREIGN + kind + packet) == (-1, False)
