"""What follows from frames that the datapath shows, with a table and a clock that are made up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Set
from ipaddress import ip_address
from typing import Any, cast

import pytest
from msgspec import Struct

from ipvsw.addresses.ownership import Duplicate
from ipvsw.changes import Changes
from ipvsw.model import Address, Guard
from ipvsw.packets.multicast import group_mac
from ipvsw.snooping import dhcp4
from ipvsw.snooping.groups import LAST_MEMBER, LIFETIME, QUERY_INTERVAL, queries
from ipvsw.snooping.learned import AGE
from ipvsw.snooping.probes import TIMEOUT, as_from_another
from ipvsw.snooping.snooper import CREDIT, HOLD, QUERY_DELAY, SWEEP, Snooper
from ipvsw.status import AddressSource, AddressState, AddressStatus
from tests.support.wire.dhcp import CHADDR, bootp, in_frame

MAC = bytes.fromhex("020000000001")
WIRE = -1
A, B = ip_address("192.0.2.1"), ip_address("192.0.2.2")


class Timer(Struct):
    at: float
    ring: Callable[[], None]
    over: bool = False

    def cancel(self) -> None:
        self.over = True


class Runtime:
    """Clock, table, datapath and ports: port number k is called p<k>. `taken`: addresses of somebody else."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.names = {0: "p0", 1: "p1"}
        self.own = {"p0"}
        self.taken: dict[Address, str | None] = {}
        self.tentative: dict[str, Set[Address]] = {}
        self.learned: dict[str, Mapping[Address, AddressSource]] = {}
        self.in_use: set[bytes] = set()
        self.log: list[Any] = []  # in order: what ports have, what goes on, who got credit
        self.max_learned = 4
        self.link_local_alone = False
        self.guarded: tuple[Guard, ...] = ()
        self.namespaces: set[str] = set()
        self.joined: dict[str, Set[bytes]] = {}
        self.bound: dict[bytes, int] = {}
        self.changes = Changes("lan", cast(Any, self), cast(Any, self))
        self.snooper = Snooper("lan", cast(Any, self), self.changes, self.find_port, self)

    # the clock

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [one for one in self.timers if not one.over and one.at <= until]:
            first = min(due, key=lambda one: one.at)
            first.over = True
            self.now = max(self.now, first.at)
            first.ring()
        self.now = until

    # the table and the datapath

    def change(self) -> Any:
        return contextlib.nullcontext()

    def name(self, number: int) -> str | None:
        return self.names.get(number)

    def number(self, port: str) -> int | None:
        return next((number for number, name in self.names.items() if name == port), None)

    def own_mac(self, port: str) -> bytes | None:
        return CHADDR if port in self.own else None

    def objection(self, port: str, address: Address) -> Duplicate | None:
        if address not in self.taken or self.taken[address] == port:
            return None
        return Duplicate(address, port, self.taken[address])

    def statuses(self, port: str) -> Iterator[AddressStatus]:
        for address, source in self.learned.get(port, {}).items():
            yield AddressStatus(switch="lan", port=port, address=str(address), state=AddressState.OWNED, source=source)

    def used(self, number: int, addresses: list[bytes]) -> list[bytes]:
        return [one for one in addresses if one in self.in_use]

    def guards(self, port: str) -> tuple[Guard, ...]:
        return self.guarded

    def owner(self, address: bytes) -> int | None:
        return self.bound.get(address)

    def reinject(self, source: int, frame: bytes, to: int = -1, *, copy: bool = False) -> None:
        self.log.append(("copy", frame, to) if copy else (source, frame, to))

    def give_credit(self, source: int) -> None:
        self.log.append(("credit", source))

    def commit(self) -> None:
        self.log.append("commit")

    # ports

    def find_port(self, port: str) -> Any:
        runtime = self

        class SnoopedPort:
            max_learned = runtime.max_learned
            serves_vm = port not in runtime.namespaces

            def may_learn(self, address: Address) -> bool:
                return bool(runtime.max_learned) and (not runtime.link_local_alone or address.is_link_local)

            def set_joined(self, groups: Set[bytes]) -> None:
                runtime.joined[port] = groups

            def mark_stale(self) -> None:
                runtime.log.append(("read", port))

            def set_learned(self, addresses: Mapping[Address, AddressSource], tentative: Set[Address]) -> None:
                runtime.learned[port] = addresses
                runtime.tentative[port] = tentative
                runtime.log.append((port, {str(one): str(source) for one, source in addresses.items()}))

        return SnoopedPort()

    def lease(self, address: Address, seconds: int = 3600, xid: int = 5) -> None:
        self.snooper.take([(0, in_frame(bootp(1, kind=3, xid=xid)))])
        self.snooper.take(
            [(WIRE, in_frame(bootp(2, kind=5, xid=xid, yiaddr=str(address), seconds=seconds), to_port=68))]
        )


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


def says(address: Address) -> bytes:
    return bytes(10) + b"\xff" * 6 + MAC + b"\x08\x00\x45" + bytes(11) + address.packed + bytes(4)


def test_the_table_knows_before_the_frame_goes_on(runtime: Runtime) -> None:
    runtime.snooper.take([(0, says(A)), (1, says(B))])
    assert runtime.log == [
        ("p0", {str(A): "traffic"}),
        ("p1", {str(B): "traffic"}),
        (0, says(A), -1),
        (1, says(B), -1),
        "commit",
    ]


def asks(address: Address) -> bytes:
    """An ARP probe: RFC 5227 section 2.1.1."""
    arp = b"\0\1\x08\0\6\4\0\1" + MAC + bytes(4) + bytes(6) + address.packed
    return bytes(10) + b"\xff" * 6 + MAC + b"\x08\x06" + arp


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
