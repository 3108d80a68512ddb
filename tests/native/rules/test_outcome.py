"""Outcomes: the names that Python has are those of the rules and of the record, in their order."""

from __future__ import annotations

import re

from ipvsw import outcomes
from ipvsw._fast import FLAGS, MODES, OUTCOMES, Datapath
from tests.native._decider import Decider
from tests.native.interfaces import MASTER


def test_there_is_one_line_for_each() -> None:
    assert tuple(outcomes.OUTCOMES) == OUTCOMES
    assert all(re.fullmatch(r"[a-z_]+", name) for name in OUTCOMES)


def test_every_counter_has_a_name() -> None:
    datapath = Datapath()
    try:
        assert len(datapath.traffic(None)[-1]) == len(OUTCOMES)
    finally:
        datapath.close()


def test_the_rules_numbers_are_the_places_of_the_names() -> None:
    decider = Decider(MODES["l2"], FLAGS["private"], MASTER, [(True, 1500, False, [])] * 2, {bytes([10, 0, 0, 1]): 1})
    arp = bytes.fromhex("08060001080006040001") + MASTER + bytes(4) + bytes(6) + bytes([10, 0, 0, 1])
    frames = {
        b"": "drop_runt",
        MASTER + MASTER + arp: "drop_private",
        b"\xff" * 6 + MASTER + arp: "to_ports",
        b"\xff" * 6 + MASTER + b"\x88\x08" + bytes(46): "drop_pause",
        bytes(6) + MASTER + arp: "to_master",
        MASTER + MASTER + b"\x12\x34" + bytes(46): "to_host",
    }
    assert [OUTCOMES[decider.from_port(one)[0]] for one in frames] == list(frames.values())
