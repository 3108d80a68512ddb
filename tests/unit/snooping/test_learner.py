"""What follows from frames that the datapath shows, with a table and a clock that are made up."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from ipvsw.model import Guard
from ipvsw.snooping import dhcp4
from ipvsw.snooping.learned import AGE
from ipvsw.snooping.snooper import CREDIT, HOLD, SWEEP
from ipvsw.status import AddressSource
from tests.support.wire.dhcp import CHADDR, bootp, in_frame
from tests.unit.snooping.runtime import MAC, WIRE, A, B, Runtime, asks, says


def test_the_table_knows_before_the_frame_goes_on(runtime: Runtime) -> None:
    runtime.snooper.take([(0, says(A)), (1, says(B))])
    assert runtime.log == [
        ("p0", {str(A): "traffic"}),
        ("p1", {str(B): "traffic"}),
        (0, says(A), -1),
        (1, says(B), -1),
        "commit",
    ]


def test_a_question_is_no_claim(runtime: Runtime) -> None:
    runtime.taken = {B: "p1"}
    runtime.snooper.take([(0, asks(A)), (0, asks(B))])
    assert runtime.learned["p0"] == {} and runtime.tentative["p0"] == {A, B}
    assert runtime.snooper.counters == {}, "nothing was claimed, so nothing is refused"
    runtime.snooper.take([(0, says(A))])
    assert runtime.learned["p0"] == {A: AddressSource.TRAFFIC} and runtime.tentative["p0"] == {B}
    runtime.sleep(2 * AGE)
    assert runtime.tentative["p0"] == set()


def test_a_question_alone_is_forgotten_too(runtime: Runtime) -> None:
    runtime.snooper.take([(0, asks(A))])
    runtime.sleep(2 * AGE)
    assert runtime.tentative["p0"] == set() and runtime.snooper.counters == {}
    assert all(one.over for one in runtime.timers), "nothing is left to wake for"


def test_few_questions_are_remembered(runtime: Runtime) -> None:
    runtime.snooper.take([(0, asks(ip_address(0x0A010100 + k))) for k in range(100)])
    assert len(runtime.tentative["p0"]) == runtime.max_learned


def test_a_frame_of_a_port_that_left_goes_nowhere(runtime: Runtime) -> None:
    runtime.snooper.take([(7, says(A))])
    assert runtime.log == ["commit"] and not runtime.learned


def test_credit_is_given_while_there_is_something_to_give_it_for(runtime: Runtime) -> None:
    runtime.snooper.take([(0, says(A)), (WIRE, says(B))])
    runtime.sleep(CREDIT)
    assert runtime.log[-2:] in ([("credit", 0), ("credit", WIRE)], [("credit", WIRE), ("credit", 0)])
    runtime.sleep(CREDIT * 9)
    assert sum(one[0] == "credit" for one in runtime.log if isinstance(one, tuple)) == 2
    assert all(one.over or one.at > runtime.now + CREDIT for one in runtime.timers), "nobody wakes for nothing"


def test_a_refusal_is_counted_each_time_and_told_once(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    runtime.taken = {A: "p1", B: None}
    for _ in range(3):
        runtime.snooper.take([(0, says(A)), (0, says(B))])
    assert runtime.snooper.counters == {"refused": 6} and not runtime.learned
    assert [record.getMessage() for record in caplog.records] == [
        f"switch lan: {A} is refused to port p0: port p1 has it",
        f"switch lan: {B} is refused to port p0: the master has it",
    ]
    assert runtime.log.count("commit") == 3 and len(runtime.log) == 9, "and the frames go on"
    shown = [(one.address, one.state, one.source, one.reason) for one in runtime.snooper.refusals("p0")]
    assert shown == [
        (str(A), "refused", "traffic", "port p1 has it"),
        (str(B), "refused", "traffic", "the master has it"),
    ]
    runtime.taken = {}
    runtime.snooper.take([(0, says(A))])
    assert [one.address for one in runtime.snooper.refusals("p0")] == [str(B)], "the first is learned now"
    runtime.snooper.forget("p0")
    assert not list(runtime.snooper.refusals("p0"))


def test_silence_is_forgotten_after_a_while(runtime: Runtime) -> None:
    runtime.snooper.take([(0, says(A)), (0, says(B))])
    runtime.in_use = {B.packed}
    runtime.sleep(AGE + SWEEP)
    assert dict(runtime.learned["p0"]) == {B: AddressSource.TRAFFIC}
    assert runtime.snooper.counters == {"learned": 2, "aged": 1}
    runtime.in_use = set()
    runtime.sleep(AGE + 2 * SWEEP)
    assert not runtime.learned["p0"]
    assert all(one.over for one in runtime.timers), "nobody wakes for nothing"


def test_the_cap(runtime: Runtime) -> None:
    for k in range(1, 9):
        runtime.snooper.take([(0, says(ip_address(f"192.0.2.{k}")))])
    assert len(runtime.learned["p0"]) == 4 and runtime.snooper.counters == {"learned": 4, "refused": 4}
    runtime.in_use = {ip_address(f"192.0.2.{k}").packed for k in (1, 2, 4)}
    runtime.sleep(SWEEP)
    runtime.snooper.take([(0, says(ip_address("192.0.2.9")))])
    assert {str(one) for one in runtime.learned["p0"]} == {f"192.0.2.{k}" for k in (1, 2, 4, 9)}


def test_a_port_that_does_not_learn(runtime: Runtime) -> None:
    runtime.max_learned = 0
    runtime.snooper.take([(0, says(A))])
    runtime.lease(B)
    assert not runtime.learned
    (lease,) = runtime.snooper.leases()
    assert (lease.address, lease.state, lease.remaining) == (str(B), None, 3600)


def test_a_port_that_learns_link_local_addresses_alone(runtime: Runtime) -> None:
    runtime.max_learned, runtime.link_local_alone = 2, True
    own = ip_address("fe80::60")
    advertised = bytes(10) + b"\xff" * 6 + MAC + b"\x86\xdd\x60" + bytes(5) + b"\x3a\xff" + own.packed + bytes(40)
    runtime.snooper.take([(0, says(A)), (0, advertised)])
    assert (0, says(A), -1) in runtime.log and (0, advertised, -1) in runtime.log
    runtime.lease(B)
    assert list(runtime.learned["p0"]) == [own]
    saved = runtime.snooper.save()
    runtime.snooper.forget("p0")
    runtime.snooper.restore("p0", saved)
    assert list(runtime.learned["p0"]) == [own]
    assert runtime.snooper.counters == {"learned": 1}


def test_a_frame_waits_until_the_address_that_it_has_was_read(runtime: Runtime) -> None:
    def happened() -> list[Any]:
        found = [one for one in runtime.log if one not in ("commit", ("credit", 0))]
        runtime.log.clear()
        return found

    runtime.max_learned, runtime.guarded = 0, (Guard.IP_SOURCE,)
    runtime.snooper.take([(0, says(A)), (0, says(B))])
    runtime.snooper.release(1)
    assert happened() == [("read", "p0")] * 2
    runtime.snooper.release(0)
    assert happened() == [(0, says(A), -1), (0, says(B), -1)], "an address was bound to the port"
    runtime.bound[A.packed] = 0
    runtime.snooper.take([(0, says(A)), (0, says(B))])
    assert happened() == [("read", "p0"), (0, says(A), -1)], "one is known meanwhile"
    runtime.sleep(HOLD)
    assert happened() == [(0, says(B), -1)], "the other waits in vain"
    runtime.sleep(HOLD)
    assert happened() == []


def test_a_lease_from_beginning_to_end(runtime: Runtime) -> None:
    runtime.lease(A, 100)
    assert runtime.log[-2][2] == 0, "the answer is for the port alone"
    assert dict(runtime.learned["p0"]) == {A: AddressSource.DHCP}
    runtime.sleep(40)
    (lease,) = runtime.snooper.leases()
    assert (lease.port, lease.state, lease.remaining, lease.mac) == ("p0", "owned", 60, CHADDR.hex(":"))
    runtime.lease(A, 100, xid=6)
    runtime.sleep(99)
    assert dict(runtime.learned["p0"]) == {A: AddressSource.DHCP}
    runtime.sleep(2)
    assert not runtime.learned["p0"] and not list(runtime.snooper.leases())
    assert runtime.snooper.counters == {"learned": 1, "ended": 1}


def test_a_release_goes_on_before_its_address_is_forgotten(runtime: Runtime) -> None:
    """It comes from that address: a guard would drop it."""
    runtime.lease(A)
    runtime.log.clear()
    release = in_frame(bootp(1, kind=7, ciaddr=str(A)), source=str(A))
    runtime.snooper.take([(0, release)])
    assert runtime.log == [(0, runtime.log[0][1], -1), "commit", ("p0", {})]
    assert not list(runtime.snooper.leases())


def test_only_an_endpoint_with_its_own_mac_is_made_to_ask_for_a_broadcast(runtime: Runtime) -> None:
    asks = in_frame(bootp(1, kind=1))
    runtime.snooper.take([(0, asks), (1, asks)])
    changed, same = [one for one in runtime.log if isinstance(one, tuple)]
    assert same == (1, asks, -1)
    where = dhcp4.datagram(changed[1])
    assert where is not None and not dhcp4.wants_broadcast(changed[1][where.payload]) and changed[1] != asks
