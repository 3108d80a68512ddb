"""Limits over socket pairs: in each direction, for every kind of frame, at one port alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ipvsw._fast import GUARDS
from tests.native.interfaces import FOREIGN, MASTER, Counted, Lab, between, broadcast, frame, ipv4, lab, v4
from tests.support.patience import until
from tests.support.wire.packets import TCP, TCPV4, Made

MANY = 200
SLOW = 1  # a second: one passes, and then none for as long as a test lasts


@pytest.fixture
def it(io: str) -> Iterator[Lab]:
    with lab(3) as it:
        yield it


def flood(it: Lab, source: int, destination: int, count: int = MANY) -> Counted:
    """So many frames, each read by the switch before the next is sent."""
    before = it.counted(source).rx_frames
    for k in range(count):
        it.interfaces[source].send(between(source, destination))
        if k % 20 == 19:
            it.settled(source, before + k + 1)
            it.interfaces[destination].waiting()  # so that there is room
    return it.settled(source, before + count)


def outcomes(it: Lab, port: int) -> dict[str, int]:
    return it.counted(port).outcomes


@pytest.mark.parametrize(("key", "outcome"), [("rate", "limit_rate"), ("packets", "limit_packets")])
def test_what_a_port_sends_is_limited(it: Lab, key: str, outcome: str) -> None:
    it.datapath.set_limits(0, **{key: (SLOW, 0)})
    it.datapath.commit()
    found = flood(it, 0, 1)
    assert found.outcomes == {"to_port": 1, outcome: MANY - 1}
    assert found.tx_errors == 0
    assert flood(it, 1, 0).outcomes == {"to_port": MANY}
    assert flood(it, 1, 2).outcomes == {"to_port": 2 * MANY}


@pytest.mark.parametrize(("key", "outcome"), [("rate", "limit_rate"), ("packets", "limit_packets")])
def test_what_a_port_gets_is_limited(it: Lab, key: str, outcome: str) -> None:
    """The sender has the outcome, the receiver the error."""
    it.datapath.set_limits(0, **{key: (0, SLOW)})
    it.datapath.commit()
    assert flood(it, 1, 0).outcomes == {"to_port": 1, outcome: MANY - 1}
    assert flood(it, 0, 1).outcomes == {"to_port": MANY}
    assert flood(it, 2, 1).outcomes == {"to_port": MANY}
    now = it.counted(0)
    assert (now.tx_frames, now.tx_errors) == (1, MANY - 1)
    it.master[0].send(frame(MASTER, FOREIGN, ipv4(v4(9), v4(0))))
    assert it.settled(None, 1).outcomes == {outcome: 1}


def test_a_copy_is_limited_by_who_gets_it(it: Lab) -> None:
    it.datapath.set_limits(1, packets=(0, SLOW))
    it.datapath.commit()
    for k in range(10):
        it.interfaces[0].send(broadcast(0))
        until(lambda: it.counted(2).tx_frames == k + 1, "port 2 has its copy")  # noqa: B023
    now = it.counted(1)
    assert (now.tx_frames, now.tx_errors) == (1, 9)
    assert outcomes(it, 0) == {"to_ports": 10}


def test_what_is_fanned_out_is_limited(it: Lab) -> None:
    """To broadcast and groups, and nothing else; another port's is not touched."""
    it.datapath.set_limits(0, broadcast=10)
    it.datapath.commit()
    for _ in range(100):
        it.interfaces[0].send(broadcast(0))
    found = it.settled(0, 100).outcomes
    assert found["limit_broadcast"] >= 75 and found["to_ports"] >= 21  # 2 s, and the last; then what the time brings
    assert flood(it, 0, 1).outcomes["to_port"] == MANY
    for _ in range(100):
        it.interfaces[1].send(broadcast(1))
    assert it.settled(1, 100).outcomes == {"to_ports": 100}


def test_a_limited_port_gets_its_rate(it: Lab) -> None:
    """Over half a second, offered as fast as it goes: many times as much, even by a machine that is busy."""
    rate, length = 400_000, len(between(0, 1, bytes(1000)))
    it.datapath.set_limits(0, rate=(rate, 0))
    it.datapath.commit()
    start, sent = time.monotonic(), 0
    while time.monotonic() < start + 0.5:
        it.interfaces[0].send(between(0, 1, bytes(1000)))
        sent += 1
        it.settled(0, sent)
        it.interfaces[1].waiting()
    lasted = time.monotonic() - start
    bits = 8 * length * outcomes(it, 0)["to_port"]
    assert bits <= rate * (lasted + 0.021) + 8 * length
    assert sent > 2 * outcomes(it, 0)["to_port"], "the test was too slow"
    assert bits >= 0.9 * rate * 0.5


def test_a_gso_frame_counts_as_its_packets(it: Lab) -> None:
    gso = Made(protocol=TCP, payload=bytes(14_000), source=v4(0), destination=v4(1)).frame(TCPV4, 1400)
    gso = gso[:10] + MASTER + MASTER + gso[22:]
    it.datapath.set_limits(0, packets=(20, 0))  # ten packets: half a second
    it.datapath.commit()
    it.interfaces[0].outside.send(gso)
    assert it.settled(0, 1).outcomes == {"to_port": 1}
    time.sleep(0.2)  # four packets'
    it.interfaces[0].send(between(0, 1))
    assert it.settled(0, 2).outcomes == {"to_port": 1, "limit_packets": 1}
    time.sleep(0.4)
    it.interfaces[0].send(between(0, 1))
    assert it.settled(0, 3).outcomes == {"to_port": 2, "limit_packets": 1}


def test_limits_change_and_go(it: Lab) -> None:
    for limits in ({"packets": (SLOW, 0)}, {"packets": (SLOW, SLOW)}, {"rate": (10**9, 0), "packets": (SLOW, 0)}):
        it.datapath.set_limits(0, **limits)  # type: ignore[arg-type]
        it.datapath.commit()
        before = outcomes(it, 0).get("to_port", 0)
        flood(it, 0, 1, 20)
        assert outcomes(it, 0)["to_port"] == before + 1
    it.datapath.set_limits(0)
    it.datapath.commit()
    before = outcomes(it, 0)["to_port"]
    assert flood(it, 0, 1).outcomes["to_port"] == before + MANY
    it.datapath.set_limits(0, packets=(SLOW, SLOW))
    it.datapath.detach_port(0)
    it.datapath.commit()
    assert it.add(it.interfaces[0], 0) == 0  # the number is used again, without the limits
    it.datapath.commit()
    assert flood(it, 0, 1).outcomes == {"to_port": MANY}


def test_limits_and_guards_are_apart(it: Lab) -> None:
    it.datapath.set_limits(0, packets=(SLOW, 0))
    it.datapath.set_guards(0, GUARDS["mac"])
    it.datapath.commit()
    for _ in range(10):
        it.interfaces[0].send(frame(MASTER, FOREIGN, ipv4(v4(0), v4(1))))
    assert it.settled(0, 10).outcomes == {"guard_mac": 10}  # what a guard stops is not charged
    assert flood(it, 0, 1).outcomes == {"guard_mac": 10, "to_port": 1, "limit_packets": MANY - 1}
    it.datapath.set_guards(0, 0)
    it.datapath.commit()
    assert it.datapath.guards(0) == ()
    assert flood(it, 0, 1).outcomes["limit_packets"] == 2 * MANY - 1
    it.datapath.set_limits(0)
    it.datapath.set_guards(0, GUARDS["mac"])
    it.datapath.commit()
    assert it.datapath.guards(0) == ("mac",)
    assert flood(it, 0, 1).outcomes["to_port"] == MANY + 1


def test_workers_share_a_port_s_buckets(io: str) -> None:
    """Frames from ports of different workers, and from the wire, to one port."""
    with lab(3, workers=2) as it:
        it.datapath.set_limits(2, packets=(0, SLOW))
        it.datapath.commit()
        found = [flood(it, source, 2).outcomes for source in (0, 1)]
        for master in it.master:
            master.send(frame(MASTER, FOREIGN, ipv4(v4(9), v4(2))))
        it.settled(None, 2)
        assert sum(one.get("to_port", 0) for one in found) == it.counted(2).tx_frames == 1
        assert it.counted(2).tx_errors == 2 * MANY + 1
