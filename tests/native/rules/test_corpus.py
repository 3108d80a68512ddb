"""The conformance corpus through the rules alone: who saw each frame when the kernel's driver decided?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipvsw._fast import FLAGS, MODES
from tests.native.rules.test_decide import named, probe_of
from tests.reference.rules import BROADCAST, Port, Switch, Verdict, decide_from_master, decide_from_port, listeners

CORPUS = Path(__file__).parents[2] / "conformance"
MASTER = bytes.fromhex("020000000001")
PAIRS = [(mode, flag) for mode in MODES for flag in FLAGS]

cases = json.loads((CORPUS / "corpus.json").read_text())
expected = {pair: json.loads((CORPUS / f"expected/{'-'.join(pair)}.json").read_text()) for pair in PAIRS}
# The host's routing itself refuses it: its IP address is a group's.
REFUSED_BY_ROUTING = {"s1.v4.mcast-ip-self-mac"}


def topology(mode: str, flag: str) -> Switch:
    """Ports 0, 1, 2 are s1, s2, s3 of the rig, with the groups that a stack joins for such addresses."""
    ports, table = [], {bytes([10, 2, 0, 11]): 0}
    for port in range(3):
        last = 0x11 + port
        table[bytes([10, 1, 0, 11 + port])] = port
        table[bytes.fromhex("fd000001" + "00" * 11) + bytes([last])] = port
        groups = ("01005e000001", "333300000001", f"3333ff0000{last:02x}")
        ports.append(Port(groups={bytes.fromhex(group) for group in groups}))
    return Switch(MASTER, mode=mode, flag=flag, ports=ports, table=table)


def who_sees(switch: Switch, verdict: Verdict, frame: bytes, sender: int | None) -> set[str]:
    """The places that a verdict reaches, in the rig's words."""
    outcome, port = verdict
    if outcome == "to_port":
        return {f"s{port + 1}"}
    if outcome == "to_ports":
        return {f"s{n + 1}" for n in listeners(switch, frame[:6]) if n != sender} | {
            "host" if sender is None else "wire"
        }
    return {"to_master": {"wire"}, "to_host": {"host"}, "left_to_host": {"host"}}.get(outcome, set())


def agrees(case: str, switch: Switch, verdict: Verdict, seen: set[str], by_kernel: list[dict[str, str]]) -> bool:
    """What is routed may come out on the wire or at the host or nowhere, but unlike a drop it is no error of the
    sender's."""
    wanted = {s["at"] for s in by_kernel if s["type"] != "error"}
    refused = any(s["type"] == "error" for s in by_kernel)
    if verdict.outcome == "to_route":
        return wanted <= {"wire", "host"} and refused is (case in REFUSED_BY_ROUTING)
    return seen == wanted and (switch.mode == "l2" or refused is verdict.outcome.startswith("drop"))


@pytest.mark.parametrize(("mode", "flag"), PAIRS)
@pytest.mark.parametrize("judge", ["model", "code"])
def test_frames_reach_whom_the_kernels_driver_gave_them(mode: str, flag: str, judge: str) -> None:
    switch = topology(mode, flag)
    probe = probe_of(switch)
    differing = []
    for case in cases:
        if case["at"] == "host":
            continue  # what the host sends never comes by
        frame = bytes.fromhex(case["frame"])
        sender = None if case["at"] == "wire" else int(case["at"][1:]) - 1
        if judge == "code":
            verdict = Verdict(*named(probe.from_master(frame) if sender is None else probe.from_port(frame)))
        else:
            verdict = decide_from_master(switch, frame) if sender is None else decide_from_port(switch, frame)
        seen = who_sees(switch, verdict, frame, sender)
        by_kernel = expected[mode, flag][case["id"]]
        if not agrees(case["id"], switch, verdict, seen, by_kernel):
            differing.append((case["id"], verdict.outcome, sorted(seen), [(s["at"], s["type"]) for s in by_kernel]))
    assert not differing


def test_the_corpus_has_what_it_is_for() -> None:
    assert len(cases) >= 190
    assert any(bytes.fromhex(case["frame"])[:6] == BROADCAST for case in cases)
