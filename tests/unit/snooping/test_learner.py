"""What follows from frames that the datapath shows, with a table and a clock that are made up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, cast

import pytest
from msgspec import Struct

from ipvsw.addresses.ownership import Duplicate
from ipvsw.model import Address, AddressSource, AddressState, AddressStatus
from ipvsw.snooping import dhcp4
from ipvsw.snooping.learned import AGE
from ipvsw.snooping.snooper import CREDIT, SWEEP, Learner
from tests.support.dhcp import CHADDR, bootp, in_frame

MAC = bytes.fromhex("020000000001")
WIRE = -1
A, B = ip_address("192.0.2.1"), ip_address("192.0.2.2")


class Timer(Struct):
    at: float
    ring: Callable[[], None]
    over: bool = False

    def cancel(self) -> None:
        self.over = True


class World:
    """Clock, table, datapath and ports: port number k is called p<k>. `taken`: addresses of somebody else."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.names = {0: "p0", 1: "p1"}
        self.own = {"p0"}
        self.taken: dict[Address, str | None] = {}
        self.learned: dict[str, Mapping[Address, AddressSource]] = {}
        self.in_use: set[bytes] = set()
        self.log: list[Any] = []  # in order: what ports have, what goes on, who got credit
        self.most = 4
        self.learner = Learner("lan", cast(Any, self), cast(Any, self), self.pupil, self)

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

    def give_back(self, source: int, frame: bytes, to: int) -> None:
        self.log.append((source, frame, to))

    def give_credit(self, source: int) -> None:
        self.log.append(("credit", source))

    def commit(self) -> None:
        self.log.append("commit")

    # ports

    def pupil(self, port: str) -> Any:
        world = self

        class Pupil:
            most = world.most

            def set_learned(self, addresses: Mapping[Address, AddressSource]) -> None:
                world.learned[port] = addresses
                world.log.append((port, {str(one): str(source) for one, source in addresses.items()}))

        return Pupil()

    def lease(self, address: Address, seconds: int = 3600, xid: int = 5) -> None:
        self.learner.take([(0, in_frame(bootp(1, kind=3, xid=xid)))])
        self.learner.take(
            [(WIRE, in_frame(bootp(2, kind=5, xid=xid, yiaddr=str(address), seconds=seconds), to_port=68))]
        )


@pytest.fixture
def world() -> World:
    return World()


def says(address: Address) -> bytes:
    return bytes(10) + b"\xff" * 6 + MAC + b"\x08\x00\x45" + bytes(11) + address.packed + bytes(4)


def test_the_table_knows_before_the_frame_goes_on(world: World) -> None:
    world.learner.take([(0, says(A)), (1, says(B))])
    assert world.log == [
        ("p0", {str(A): "traffic"}),
        ("p1", {str(B): "traffic"}),
        (0, says(A), -1),
        (1, says(B), -1),
        "commit",
    ]


def test_a_frame_of_a_port_that_left_goes_nowhere(world: World) -> None:
    world.learner.take([(7, says(A))])
    assert world.log == ["commit"] and not world.learned


def test_credit_is_given_while_there_is_something_to_give_it_for(world: World) -> None:
    world.learner.take([(0, says(A)), (WIRE, says(B))])
    world.sleep(CREDIT)
    assert world.log[-2:] in ([("credit", 0), ("credit", WIRE)], [("credit", WIRE), ("credit", 0)])
    world.sleep(CREDIT * 9)
    assert sum(one[0] == "credit" for one in world.log if isinstance(one, tuple)) == 2
    assert all(one.over or one.at > world.now + CREDIT for one in world.timers), "nobody wakes for nothing"


def test_a_refusal_is_counted_each_time_and_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.taken = {A: "p1", B: None}
    for _ in range(3):
        world.learner.take([(0, says(A)), (0, says(B))])
    assert world.learner.counters == {"refused": 6} and not world.learned
    assert [record.getMessage() for record in caplog.records] == [
        f"switch lan: {A} is refused to port p0: port p1 has it",
        f"switch lan: {B} is refused to port p0: the master has it",
    ]
    assert world.log.count("commit") == 3 and len(world.log) == 9, "and the frames go on"


def test_silence_is_forgotten_after_a_while(world: World) -> None:
    world.learner.take([(0, says(A)), (0, says(B))])
    world.in_use = {B.packed}
    world.sleep(AGE + SWEEP)
    assert dict(world.learned["p0"]) == {B: AddressSource.TRAFFIC}
    assert world.learner.counters == {"learned": 2, "aged": 1}
    world.in_use = set()
    world.sleep(AGE + 2 * SWEEP)
    assert not world.learned["p0"]
    assert all(one.over for one in world.timers), "nobody wakes for nothing"


def test_the_cap(world: World) -> None:
    for k in range(1, 9):
        world.learner.take([(0, says(ip_address(f"192.0.2.{k}")))])
    assert len(world.learned["p0"]) == 4 and world.learner.counters == {"learned": 4, "refused": 4}
    world.in_use = {ip_address(f"192.0.2.{k}").packed for k in (1, 2, 4)}
    world.sleep(SWEEP)
    world.learner.take([(0, says(ip_address("192.0.2.9")))])
    assert {str(one) for one in world.learned["p0"]} == {f"192.0.2.{k}" for k in (1, 2, 4, 9)}


def test_a_port_that_does_not_learn(world: World) -> None:
    world.most = 0
    world.learner.take([(0, says(A))])
    world.lease(B)
    assert not world.learned
    (lease,) = world.learner.leases()
    assert (lease.address, lease.state, lease.remaining) == (str(B), None, 3600)


def test_a_lease_from_beginning_to_end(world: World) -> None:
    world.lease(A, 100)
    assert world.log[-2][2] == 0, "the answer is for the port alone"
    assert dict(world.learned["p0"]) == {A: AddressSource.DHCP}
    world.sleep(40)
    (lease,) = world.learner.leases()
    assert (lease.port, lease.state, lease.remaining, lease.mac) == ("p0", "owned", 60, CHADDR.hex(":"))
    world.lease(A, 100, xid=6)
    world.sleep(99)
    assert dict(world.learned["p0"]) == {A: AddressSource.DHCP}
    world.sleep(2)
    assert not world.learned["p0"] and not list(world.learner.leases())
    assert world.learner.counters == {"learned": 1, "ended": 1}


def test_only_an_endpoint_with_its_own_mac_is_made_to_ask_for_a_broadcast(world: World) -> None:
    asks = in_frame(bootp(1, kind=1))
    world.learner.take([(0, asks), (1, asks)])
    changed, same = [one for one in world.log if isinstance(one, tuple)]
    assert same == (1, asks, -1)
    where = dhcp4.datagram(changed[1])
    assert where is not None and not dhcp4.wants_broadcast(changed[1][where.payload]) and changed[1] != asks


def test_another_machine_inherits_nothing(world: World) -> None:
    world.learner.take([(0, says(B))])
    world.lease(A)
    world.learner.forget("p0")
    assert not world.learned["p0"] and not list(world.learner.leases())
    world.learner.forget("p0")
    world.learner.stop()
    assert all(one.over for one in world.timers)


def test_one_bad_frame_keeps_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def fail(port: str, address: Address) -> None:
        if address == A:
            raise RuntimeError("a fault")

    world.objection = fail  # type: ignore[method-assign,assignment]
    world.learner.take([(0, says(A)), (0, says(B))])
    assert dict(world.learned["p0"]) == {B: AddressSource.TRAFFIC}
    assert [one[1] for one in world.log if isinstance(one, tuple) and len(one) == 3] == [says(A), says(B)]
    assert "a fault" in caplog.text
