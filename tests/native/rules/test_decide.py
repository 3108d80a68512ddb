"""The rules against the model: random frames, from every side, in every mode with every flag."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw._fast import ACCESS, FLAGS, MODES, OUTCOMES
from tests.native._decider import Decider
from tests.native._probe import address_of, is_membership_report
from tests.native.random_frames import FOREIGN, GROUPS, MASTER, random_frame, random_switch, seed_from_environment
from tests.reference.rules import (
    BROADCAST,
    Port,
    Switch,
    accepts,
    address,
    as_received,
    as_sent,
    decide_from_host,
    decide_from_master,
    decide_from_port,
    flow,
    listeners,
)

FRAMES = 30_000  # for each mode and flag, each decided about four times
FRAMES_PER_SWITCH = 500


def everything(port: Port) -> int:
    """As the rules have it: bits of EVERY_GROUP, JOINED_IPV4 and JOINED_IPV6."""
    return port.all_multicast * (1 | 2 * (4 in port.joined) | 4 * (6 in port.joined))


def probe_of(switch: Switch) -> Decider:
    ports = [(p.up, p.mtu, everything(p), sorted(p.groups)) for p in switch.ports]
    mode, flag, access = MODES[switch.mode], FLAGS[switch.flag], ACCESS[switch.access]
    return Decider(
        mode,
        flag,
        switch.mac,
        ports,
        switch.table,
        switch.host,
        access,
        vlans=switch.vlans,
        multicast=sorted(switch.multicast),
    )


def forget(switch: Switch, probe: Decider, frame: bytes) -> int:
    """The memory of flows has a fixed size: what it forgot the model forgets too. Returns how many."""
    about = flow(as_sent(frame)) if len(frame) >= 14 else None
    if about not in switch.flows or probe.fingerprint(frame)[1]:
        return 0
    switch.flows.remove(about)
    return 1


def named(verdict: tuple[int, int]) -> tuple[str, int | None]:
    return (*OUTCOMES, "to_route")[verdict[0]], None if verdict[1] < 0 else verdict[1]


MET = {  # what the generator has to come by, beside what the flag forbids
    "l2": {"to_port", "to_ports", "to_master", "left_to_host", "drop_pause"},
    "l3": {"to_port", "to_ports", "to_route", "left_to_host", "drop_multicast", "drop_not_ip"},
}
MET["l3s"] = MET["l3"]
ALWAYS = {"drop_runt", "drop_no_route", "drop_port_down", "to_host", "drop_host_access"}
TO_SIBLINGS = {"bridge": {"drop_too_big"}, "private": {"drop_private"}, "vepa": set[str]()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flag", FLAGS)
def test_random_frames_end_as_the_model_says(mode: str, flag: str) -> None:
    rng = random.Random(seed_from_environment())
    met: set[str] = set()
    forgotten = remembered = 0
    for n in range(FRAMES // FRAMES_PER_SWITCH):
        switch = random_switch(rng, mode, flag, list(ACCESS)[n % 4])
        probe = probe_of(switch)
        for _ in range(FRAMES_PER_SWITCH):
            frame = random_frame(rng)
            forgotten += forget(switch, probe, frame)
            for gso in (False, True):
                expected = decide_from_port(switch, frame, gso)
                assert named(probe.from_port(frame, gso)) == expected, (frame.hex(), gso, switch)
                met.add(expected.outcome)
            expected = decide_from_master(switch, frame)
            assert named(probe.from_master(frame)) == expected, (frame.hex(), switch)
            met.add(expected.outcome)
            expected = decide_from_host(switch, frame)
            assert named(probe.from_host(frame)) == expected, (frame.hex(), switch)
            met.add(expected.outcome)
        remembered += len(switch.flows)
    wanted = MET[mode] | ALWAYS | TO_SIBLINGS[flag]
    assert forgotten * 50 <= remembered
    assert met == wanted, "the generator missed a rule"


def test_random_frames_go_by_the_address_that_the_model_sees() -> None:
    rng = random.Random(seed_from_environment())
    for _ in range(FRAMES):
        frame = random_frame(rng)
        for received, packet in ((False, as_sent), (True, as_received)):
            for source in (False, True):
                expected = address(packet(frame), "source" if source else "destination") if len(frame) >= 14 else None
                assert address_of(frame, received=received, source=source) == expected, frame.hex()


@pytest.mark.parametrize("mode", MODES)
def test_the_table_is_looked_at_ahead_where_deciding_will(mode: str) -> None:
    rng = random.Random(seed_from_environment())
    ahead = 0
    for _ in range(FRAMES // FRAMES_PER_SWITCH):
        switch = random_switch(rng, mode)
        probe = probe_of(switch)
        for _ in range(FRAMES_PER_SWITCH):
            frame = random_frame(rng)
            wanted = address(as_sent(frame), "destination") if len(frame) >= 14 else None
            if wanted is None or (mode == "l2" and frame[:6] != switch.mac):
                assert probe.collected_ahead(frame) is False, frame.hex()
            else:
                assert probe.collected_ahead(frame) == probe.place(wanted), frame.hex()
                ahead += 1
    assert ahead * 20 > FRAMES, "the generator makes no such frames"


def test_a_flow_is_the_same_both_ways_and_no_other() -> None:
    rng = random.Random(seed_from_environment())
    probe = probe_of(random_switch(rng))
    marks: dict[object, int] = {}
    for _ in range(FRAMES):
        frame = random_frame(rng)
        if len(frame) < 14:
            continue
        about, (mark, known) = flow(as_sent(frame)), probe.fingerprint(frame)
        assert (about is None) == (mark == 0), frame.hex()
        assert not known
        if about is not None:
            assert marks.setdefault(about, mark) == mark, frame.hex()
    assert len(set(marks.values())) == len(marks) > 1000


@given(st.binary(max_size=33), st.booleans(), st.booleans())
def test_a_frame_that_ends_before_an_ip_header_does_has_no_address(frame: bytes, received: bool, source: bool) -> None:
    assert address_of(frame, received=received, source=source) is None


@given(st.binary(max_size=120), st.booleans(), st.booleans())
def test_an_address_is_always_a_piece_of_its_frame(frame: bytes, received: bool, source: bool) -> None:
    found = address_of(frame, received=received, source=source)
    assert found is None or (len(found) in (4, 16) and found in frame[14:])


@given(st.binary(max_size=120))
def test_only_the_destination_mac_and_what_is_behind_the_macs_decide_about_arrivals(tail: bytes) -> None:
    switch = Switch(MASTER, ports=[Port()], table={bytes(4): 0, bytes(16): 0})
    probe = probe_of(switch)
    for source in (FOREIGN, GROUPS[1]):
        frame = MASTER + source + tail
        assert named(probe.from_master(frame)) == decide_from_master(switch, frame)


@given(st.integers(0, 2000), st.integers(68, 1700), st.booleans())
def test_a_tags_worth_above_the_mtu_passes(length: int, mtu: int, gso: bool) -> None:
    port = Port(mtu=mtu)
    assert probe_of(Switch(MASTER, ports=[port])).accepts(0, length, gso) == accepts(port, length, gso)


def test_multicast_frames_go_to_who_joined_the_group() -> None:
    rng = random.Random(seed_from_environment())
    for _ in range(2000):
        switch = random_switch(rng)
        probe = probe_of(switch)
        for group in [*GROUPS, BROADCAST[:5] + b"\xfe", b"\x01" + rng.randbytes(5)]:
            assert probe.listeners(group) == listeners(switch, group)


IGMP = bytes.fromhex("4600002000004000010200000a010002e000001694040000") + bytes(8)
MLD = (
    bytes.fromhex("60000000 0010 00 01")
    + bytes(32)
    + bytes.fromhex("3a00050200000000 8f00000000000000".replace(" ", ""))
)


@pytest.mark.parametrize(
    ("ethertype", "packet", "is_report"),
    [
        (0x0800, IGMP, True),
        (0x86DD, MLD, True),
        (0x0800, MLD, False),
        (0x86DD, IGMP, False),
        (0x0800, IGMP[:9] + b"\x11" + IGMP[10:], False),
        (0x86DD, MLD[:40] + b"\x11" + MLD[41:], False),
        (0x86DD, MLD[:6] + b"\x3a" + MLD[7:], False),
        (0x86DD, MLD[:47], False),
        (0x0800, IGMP[:19], False),
    ],
)
def test_membership_reports_are_known(ethertype: int, packet: bytes, is_report: bool) -> None:
    assert is_membership_report(GROUPS[1] + MASTER + ethertype.to_bytes(2, "big") + packet) is is_report
