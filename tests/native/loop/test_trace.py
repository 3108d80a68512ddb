"""`Datapath.trace` beside the hot loop: the same outcome, the same receivers, the same bytes, and nothing changed."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvsw._fast import ACCESS, FLAGS, GUARDS, MODES, OUTCOMES, Datapath
from tests.native.interfaces import Interface
from tests.native.random_frames import MASTER, random_frame, random_switch, seed_from_environment
from tests.native.random_guarded import guarded_frame, guarded_switch
from tests.native.rules.test_corpus import PAIRS, REFUSED_BY_ROUTING, agrees, topology, who_sees
from tests.reference.rules import Switch, Verdict
from tests.support.patience import until

CORPUS = Path(__file__).parents[2] / "conformance"
CASES = json.loads((CORPUS / "corpus.json").read_text())
FRAMES = 10_000
FRAMES_OF_A_SWITCH = 100
OWN = bytes.fromhex("0a0000000007")
ROUTER = bytes.fromhex("0200000000aa")
Source = int | str | None
Receivers = dict[int | str, list[bytes]]


class Bench:
    """A datapath that runs, made like `switch`, with an interface for each of its ports, the wire and the host."""

    def __init__(self, switch: Switch, guards: int = 0, own: bytes | None = None) -> None:
        self.datapath = Datapath(1, "epoll")
        self.wire, self.injected, self.host = Interface(), Interface(), Interface()
        self.ports = [Interface() for _ in switch.ports]
        numbers = MODES[switch.mode], FLAGS[switch.flag], ACCESS[switch.access]
        self.datapath.set_mode(*numbers, sorted(switch.multicast))
        self.datapath.attach_master([self.wire.inside.fileno()], self.injected.inside.fileno(), MASTER)
        self.datapath.attach_host(self.host.inside.fileno())
        self.datapath.set_vlans(switch.vlans)
        for interface, port in zip(self.ports, switch.ports, strict=True):
            number = self.datapath.attach_port(interface.inside.fileno(), port.mtu, macnat=own)
            self.datapath.set_port(number, up=port.up, mtu=port.mtu)
            self.datapath.set_groups(number, sorted(port.groups), all_multicast=port.all_multicast)
            self.datapath.set_guards(number, guards)
        for address, owner in switch.table.items():
            self.datapath.bind(address, owner)
        for address in switch.host:
            self.datapath.bind_host(address)
        for address in switch.gateways:
            self.datapath.bind_gateway(address)
        for address, owner in switch.former.items():
            self.datapath.bind_former(address, owner)
        self.datapath.commit()
        self.datapath.start()

    def send(self, source: Source, frame: bytes) -> None:
        interface = self.wire if source is None else self.host if isinstance(source, str) else self.ports[source]
        interface.send(frame)

    def outcomes(self, source: Source) -> tuple[int, dict[str, int]]:
        rx, *_, outcomes = self.datapath.traffic(source)
        return rx, dict(zip(OUTCOMES, outcomes, strict=True))

    def received(self) -> Receivers:
        """What has come out since the last time."""
        places = {**dict(enumerate(self.ports)), "wire": self.wire, "host": self.injected}
        found = {place: interface.waiting() for place, interface in places.items()}
        found["host"] += self.host.waiting()
        return {place: frames for place, frames in found.items() if frames}

    def pass_punted(self) -> None:
        """As if Python had seen them, and had done nothing."""
        for source, frame in self.datapath.punted():
            self.datapath.reinject(source, frame)
            self.datapath.give_credit(source)
        self.datapath.slow()
        self.datapath.commit(beat=True)

    def close(self) -> None:
        self.datapath.close()
        for interface in (*self.ports, self.wire, self.injected, self.host):
            interface.close()


@contextlib.contextmanager
def bench(switch: Switch, guards: int = 0, own: bytes | None = None) -> Iterator[Bench]:
    it = Bench(switch, guards, own)
    try:
        yield it
    finally:
        it.close()


def agree(it: Bench, source: Source, frame: bytes) -> str:
    """Trace the frame, send it, compare. Returns the outcome."""
    before = it.outcomes(source)
    outcome, steps, receivers = it.datapath.trace(source, frame)
    assert it.outcomes(source) == before, "a trace counts nothing"
    assert it.received() == {}, "a trace sends nothing"
    wanted: Receivers = {}
    for place, received in receivers:
        if place != "stack" and not (place == "host" and source is None):  # what the host has from the wire itself
            wanted.setdefault(place, []).append(received)
    it.send(source, frame)
    found: Receivers = {}

    def done() -> bool:
        it.pass_punted()
        for place, frames in it.received().items():
            found[place] = found.get(place, []) + frames
        rx, outcomes = it.outcomes(source)
        ended = rx == before[0] + 1 and sum(outcomes.values()) == rx
        return ended and sum(map(len, found.values())) >= sum(map(len, wanted.values()))

    until(done, f"{frame.hex()} from {source} ends as {outcome}, {steps}", every=0)
    counted = [name for name, n in it.outcomes(source)[1].items() if n > before[1][name]]
    assert counted == [outcome], (frame.hex(), source, steps)
    assert found == wanted, (frame.hex(), source, steps)
    return outcome


@pytest.mark.parametrize(("mode", "flag"), PAIRS)
def test_the_corpus_ends_where_its_trace_says_and_where_the_kernels_driver_puts_it(mode: str, flag: str) -> None:
    switch = topology(mode, flag)
    expected = json.loads((CORPUS / f"expected/{mode}-{flag}.json").read_text())
    differing = []
    with bench(switch) as it:
        for case in CASES:
            if case["at"] == "host":
                continue  # what the host sends never comes by
            frame = bytes.fromhex(case["frame"])
            source = None if case["at"] == "wire" else int(case["at"][1:]) - 1
            outcome = agree(it, source, frame)
            routed = outcome in ("to_slowpath", "drop_no_route", "to_stack")
            verdict = Verdict("to_route" if routed else outcome, port_of(it, source, frame))
            seen = who_sees(switch, verdict, frame, source)
            if not agrees(case["id"], switch, verdict, seen, expected[case["id"]]):
                differing.append((case["id"], verdict))
    assert not differing
    assert expected.keys() >= REFUSED_BY_ROUTING


def port_of(it: Bench, source: Source, frame: bytes) -> int | None:
    ports = [place for place, _ in it.datapath.trace(source, frame)[2] if isinstance(place, int)]
    return ports[0] if len(ports) == 1 else None


def test_random_frames_end_where_their_trace_says() -> None:
    rng = random.Random(seed_from_environment())
    met: set[str] = set()
    for n in range(FRAMES // FRAMES_OF_A_SWITCH):
        mode, flag = rng.choice(PAIRS)
        switch = random_switch(rng, mode, flag, rng.choice(list(ACCESS)))
        with bench(switch, own=OWN if n % 3 == 0 else None) as it:
            for address in rng.sample(sorted({*switch.table, *switch.host, bytes([10, 1, 0, 7])}), 1):
                it.datapath.set_route(address, mac=rng.choice([ROUTER, bytes(6)]), mtu=rng.choice([60, 1500]))
            it.datapath.commit()
            for _ in range(FRAMES_OF_A_SWITCH):
                source = rng.choice([None, "host", *range(len(switch.ports))])
                met.add(agree(it, source, random_frame(rng)))
    usual = {"to_port", "to_ports", "to_master", "to_host", "left_to_host", "to_slowpath", "answered"}
    assert met > usual | {"drop_runt", "drop_private", "drop_port_down", "drop_multicast", "drop_not_ip", "drop_macnat"}


def test_the_guard_matrix_ends_where_its_trace_says() -> None:
    rng = random.Random(seed_from_environment())
    met: set[str] = set()
    for mode, access in (("l2", "none"), ("l2", "both"), ("l3", "none"), ("l3s", "both")):
        for guards in (*GUARDS.values(), sum(GUARDS.values())):
            with bench(guarded_switch(mode, access), guards) as it:
                for _ in range(60):
                    met.add(agree(it, 0, guarded_frame(rng)))
    assert {outcome for outcome in met if outcome.startswith("guard_")} == {
        "guard_" + name.replace("-", "_") for name in GUARDS
    }


def test_a_limit_that_is_used_up_is_told_and_not_used() -> None:
    with bench(guarded_switch()) as it:
        frame = MASTER + MASTER + b"\x08\x00" + bytes(46)
        it.datapath.set_limits(0, packets=(1, 0))
        it.datapath.commit()
        for _ in range(3):
            assert it.datapath.trace(0, frame)[0] == "to_host"
        assert agree(it, 0, frame) == "to_host"
        assert agree(it, 0, frame) == "limit_packets"
        assert steps_of(it, 0, frame)[-1] == ("limit", {"outcome": "limit_packets", "port": 0, "direction": "rx"})


def test_a_trace_establishes_no_flow() -> None:
    switch = guarded_switch("l2", "to-host")
    address, host = next(a for a in switch.table if len(a) == 4), next(a for a in switch.host if len(a) == 4)
    header = b"\x45\0\0\x1c" + bytes(4) + b"\x40\x11\0\0"
    request = MASTER + MASTER + b"\x08\x00" + header + address + host + b"\0\7\0\7" + bytes(4)
    reply = MASTER + MASTER + b"\x08\x00" + header + host + address + b"\0\7\0\7" + bytes(4)
    with bench(switch) as it:
        assert it.datapath.trace(0, request)[0] == "to_host"
        assert agree(it, "host", reply) == "drop_host_access"
        assert agree(it, 0, request) == "to_host"
        assert agree(it, "host", reply) == "to_port"


def test_a_frame_that_waits_for_python_says_so() -> None:
    switch = guarded_switch()
    with bench(switch) as it:
        it.datapath.set_learning(0, True)
        it.datapath.commit()
        new = MASTER + MASTER + b"\x08\x00\x45\0\0\x1c" + bytes(4) + b"\x40\x11\0\0" + b"\x0a\1\0\x63" * 2 + bytes(8)
        assert ("punt", {"outcome": None, "why": "new-address", "waits": True}) in steps_of(it, 0, new)
        assert it.datapath.punted() == []


def test_what_can_not_be_traced_is_refused() -> None:
    with bench(guarded_switch()) as it:
        with pytest.raises(ValueError, match="no port 7"):
            it.datapath.trace(7, bytes(60))
        with pytest.raises(ValueError, match="bytes at most"):
            it.datapath.trace(None, bytes(70_000))
        assert it.datapath.trace(None, b"")[0] == "drop_runt"
        it.datapath.close()
        with pytest.raises(ValueError, match="closed"):
            it.datapath.trace(None, bytes(60))


def steps_of(it: Bench, source: Source, frame: bytes) -> list[tuple[str, dict[str, Any]]]:
    return it.datapath.trace(source, frame)[1]
