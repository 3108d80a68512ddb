"""What the learner passes on: servers among siblings, conflicts, membership of groups."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from ipvsw.model import Address, Guard
from ipvsw.packets.multicast import group_mac
from ipvsw.snooping.groups import LAST_MEMBER, LIFETIME, QUERY_INTERVAL, queries
from ipvsw.snooping.probes import TIMEOUT, as_from_another
from ipvsw.snooping.snooper import CREDIT, QUERY_DELAY
from ipvsw.status import AddressSource
from tests.support.wire.dhcp import CHADDR, bootp, in_frame
from tests.unit.snooping.runtime import MAC, WIRE, A, B, Runtime, asks, says


def test_a_sibling_serves(runtime: Runtime) -> None:
    """The shared MAC address says nothing: whose transaction it is does. A broadcast goes where the rules say."""
    runtime.snooper.take([(0, in_frame(bootp(1, kind=3, xid=5)))])
    broadcast = in_frame(bootp(2, kind=5, xid=5, yiaddr=str(A), seconds=60), to_port=68)
    unicast = broadcast[:10] + MAC + MAC + broadcast[22:]
    elsewhere = broadcast[:10] + CHADDR + MAC + broadcast[22:]
    for answer, to in ((unicast, 0), (broadcast, -1), (elsewhere, -1)):
        runtime.log.clear()
        runtime.snooper.take([(1, answer)])
        assert (1, answer, to) in runtime.log
    assert [one.port for one in runtime.snooper.leases()] == ["p0"]


def taken(address: Address, by: bytes) -> bytes:
    """The reply to an ARP probe that came from MAC."""
    arp = b"\0\1\x08\0\6\4\0\2" + by + address.packed + MAC + bytes(4)
    return bytes(10) + MAC + by + b"\x08\x06" + arp


OTHER = bytes.fromhex("0200000000fe")


def test_every_asker_hears_that_the_address_is_taken(runtime: Runtime) -> None:
    def returned(source: int, frame: bytes) -> list[Any]:
        runtime.log.clear()
        runtime.snooper.take([(source, frame)])
        return [one for one in runtime.log if isinstance(one, tuple) and len(one) == 3]

    runtime.max_learned = 0
    reply = taken(A, OTHER)
    assert returned(WIRE, reply) == [(WIRE, reply, -1)], "nobody has asked"
    returned(0, asks(A))
    assert returned(WIRE, reply) == [(WIRE, reply, 0)]
    assert returned(WIRE, taken(B, OTHER)) == [(WIRE, taken(B, OTHER), -1)], "another address"
    returned(1, asks(A))
    assert returned(WIRE, reply) == [(WIRE, reply, 0), ("copy", reply, 1)]
    runtime.sleep(TIMEOUT)
    assert returned(WIRE, reply) == [(WIRE, reply, -1)]
    returned(0, asks(A))
    runtime.snooper.forget("p0")
    assert returned(WIRE, reply) == [(WIRE, reply, -1)], "who has asked is gone"


def test_a_sibling_has_the_address(runtime: Runtime) -> None:
    """p0 has a MAC address of its own; p1 would hold the sibling's reply for its own."""
    runtime.max_learned = 0
    reply = taken(A, MAC)
    for asker in (0, 1):
        runtime.log.clear()
        runtime.snooper.take([(asker, asks(A)), (1 - asker, reply)])
        given = [one for one in runtime.log if isinstance(one, tuple) and reply[24:30] in one[1]][1:]
        assert given[0] == (1 - asker, reply, asker)
        if asker == 0:
            assert len(given) == 1
        else:
            assert given[1:] == [("copy", one, 1) for one in as_from_another(reply)]


def test_a_question_is_not_held(runtime: Runtime) -> None:
    runtime.max_learned, runtime.guarded = 0, (Guard.ARP,)
    runtime.snooper.take([(0, asks(A))])
    assert runtime.log[0] == (0, asks(A), -1)


MDNS, SSDP = ip_address("224.0.0.251"), ip_address("239.255.255.250")


def reports(group: Address, kind: int = 0x16) -> bytes:
    """IGMPv2."""
    message = bytes((kind, 0, 0, 0)) + group.packed
    return bytes(10) + group_mac(group) + MAC + b"\x08\0\x46\0\0\x20" + bytes(5) + b"\2" + bytes(14) + message


def queried(runtime: Runtime) -> set[int]:
    """The ports that were queried since the last call, each for both families."""
    found = {one[2] for one in runtime.log if one[0] == "copy" and one[1] in queries()}
    assert sum(one[0] == "copy" for one in runtime.log) == 2 * len(found)
    runtime.log.clear()
    return found


def test_groups_that_a_machine_joins_and_leaves(runtime: Runtime) -> None:
    runtime.max_learned = 0
    runtime.namespaces = {"p1"}
    runtime.snooper.take([(0, reports(MDNS)), (0, reports(SSDP)), (1, reports(MDNS)), (WIRE, reports(MDNS))])
    assert runtime.joined == {"p0": {group_mac(MDNS), group_mac(SSDP)}}
    assert [one for one in runtime.log if one[0] == 0] == [(0, reports(MDNS), -1), (0, reports(SSDP), -1)]
    runtime.sleep(2 * CREDIT)
    assert queried(runtime) == set()
    runtime.snooper.take([(0, reports(SSDP, 0x17))])
    runtime.sleep(QUERY_DELAY)
    assert queried(runtime) == {0}, "whether there is another listener"
    runtime.sleep(LAST_MEMBER)
    assert runtime.joined["p0"] == {group_mac(MDNS)}


def test_a_machine_is_queried_for_as_long_as_it_lives(runtime: Runtime) -> None:
    runtime.max_learned = 0
    runtime.snooper.take([(0, reports(MDNS))])
    for _ in range(4):
        runtime.log.clear()
        runtime.sleep(QUERY_INTERVAL)
        assert queried(runtime) == {0}
        runtime.snooper.take([(0, reports(MDNS))])
    assert runtime.joined["p0"] == {group_mac(MDNS)}
    runtime.sleep(LIFETIME)
    assert runtime.joined["p0"] == set(), "it is silent"
    runtime.snooper.take([(0, reports(MDNS))])
    runtime.snooper.forget("p0")
    assert runtime.joined["p0"] == set(), "it is gone"
    runtime.sleep(2 * LIFETIME)
    assert all(one.over for one in runtime.timers), "nobody wakes for nothing"


def test_another_machine_inherits_nothing(runtime: Runtime) -> None:
    runtime.snooper.take([(0, says(B))])
    runtime.lease(A)
    runtime.snooper.forget("p0")
    assert not runtime.learned["p0"] and not list(runtime.snooper.leases())
    runtime.snooper.forget("p0")
    runtime.snooper.stop()
    assert all(one.over for one in runtime.timers)


def test_one_bad_frame_keeps_no_other(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    def fail(port: str, address: Address) -> None:
        if address == A:
            raise RuntimeError("a fault")

    runtime.objection = fail  # type: ignore[method-assign,assignment]
    runtime.snooper.take([(0, says(A)), (0, says(B))])
    assert dict(runtime.learned["p0"]) == {B: AddressSource.TRAFFIC}
    assert [one[1] for one in runtime.log if isinstance(one, tuple) and len(one) == 3] == [says(A), says(B)]
    assert "a fault" in caplog.text
