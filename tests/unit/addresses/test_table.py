"""The order in which the table is applied: a frame is stolen only while it can be delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw._fast import OUTCOMES
from ipvsw.addresses.table import Table
from ipvsw.batch import Batcher
from ipvsw.changes import Changes, Former
from ipvsw.linux.fastports import FastCounts
from ipvsw.model import Address
from ipvsw.status import AddressSource, AddressState

A, B = ip_address("10.0.0.1"), ip_address("fd00::1")
NETLINK = AddressSource.NETLINK


HOST, GATEWAY = -1, -2  # the numbers of nobody's port


class Machine:
    """A datapath and a shim in one, which write down what they are told and check what they promise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.batch: list[str] = []
        self.bound: dict[bytes, int] = {}
        self.hosts: set[bytes] = set()  # bound to the host
        self.gateways: set[bytes] = set()
        self.former: dict[bytes, int] = {}  # nobody's, but that port's until now
        self.pending: dict[bytes, int | Former | None] = {}
        self.stolen: set[bytes] = set()
        self.attached: set[int] = set()
        self.full = False
        self.frames = 0
        self.commits = 0
        self.fast = SimpleNamespace(counts=lambda key: FastCounts())  # no port's unicast is the kernel's

    def attach_port(self, fd: int, mtu: int, **_how: object) -> int:
        number = min(set(range(100)) - self.attached)
        self.attached.add(number)
        return number

    def detach_port(self, number: int) -> None:
        known = {*self.bound.values(), *self.former.values()} - {
            owner for address, owner in self.former.items() if self.pending.get(address, HOST) is None
        }
        assert number not in known, "an address of the port is still bound"
        self.attached.remove(number)

    def set_port(self, number: int, *, up: bool, mtu: int) -> None:
        assert number in self.attached

    def set_groups(self, number: int, groups: tuple[bytes, ...], **_how: object) -> None:
        assert number in self.attached

    def bind(self, address: bytes, number: int) -> None:
        assert number in self.attached
        self.pending[address] = number

    def bind_all(self, addresses: Sequence[bytes], number: int) -> None:
        for address in addresses:
            self.bind(address, number)

    def bind_host(self, address: bytes) -> None:
        self.pending[address] = HOST

    def bind_gateway(self, address: bytes) -> None:
        self.pending[address] = GATEWAY

    def bind_former(self, address: bytes, number: int) -> None:
        assert number in self.attached
        self.pending[address] = Former(number)

    def unbind(self, address: bytes) -> None:
        self.pending[address] = None

    def set_guards(self, number: int, guards: int, *, holds: bool) -> None:
        assert number in self.attached

    def set_learning(self, number: int, learning: bool, *, link_local: bool) -> None:
        assert number in self.attached

    def own_mac(self, number: int) -> bytes | None:
        return None

    def commit(self) -> None:
        self.commits += 1
        for address, number in self.pending.items():
            self.bound.pop(address, None)
            self.former.pop(address, None)
            self.hosts.discard(address)
            self.gateways.discard(address)
            if number == HOST:
                self.hosts.add(address)
            elif number == GATEWAY:
                self.gateways.add(address)
            elif isinstance(number, Former):
                self.former[address] = number.port
            elif number is not None:
                assert address in self.stolen or self.full, "bound before it is stolen"
                self.bound[address] = number
        self.pending = {}
        assert self.stolen <= set(self.bound), "stolen, but nobody's"

    def traffic(self, number: int | None) -> tuple[int, int, int, int, int, int, tuple[int, ...]]:
        self.frames += 1
        return (self.frames, 0, 0, 0, 0, 0, (self.frames, *[0] * (len(OUTCOMES) - 1)))

    def expect(self, more: int) -> None:
        pass

    def add(self, addresses: Sequence[bytes], owner: int = 0) -> None:
        for address in addresses:
            if self.full:
                raise OSError(7, "the map is full")
            assert address in self.bound or isinstance(self.pending.get(address), int), "stolen, but nobody's"
            assert address not in self.stolen, "stolen twice"
            self.stolen.add(address)

    def remove(self, addresses: Sequence[bytes]) -> None:
        for address in addresses:
            assert address in self.bound or address in self.pending, "unbound before it is given back"
            self.stolen.remove(address)


def made() -> tuple[Table, Machine, list[frozenset[bytes]]]:
    machine = Machine()
    unions: list[frozenset[bytes]] = []
    left: list[str] = []
    changes = Changes("lan", cast(Any, machine), cast(Any, machine))
    table = Table("lan", changes, lambda: unions.append(table.groups()), left.append)
    return table, machine, unions


def up(table: Table, port: str) -> None:
    with table.change():
        table.attach(port, 3, 1500)
        table.set_port(port, up=True, mtu=1500)


STEPS = st.lists(
    st.tuples(st.sampled_from(("claim", "release", "up", "down", "again", "master", "free")), st.sampled_from("pq")),
    max_size=40,
)


@given(STEPS, STEPS)
def test_what_is_stolen_is_bound_at_every_moment(alone: list[tuple[str, str]], together: list[tuple[str, str]]) -> None:
    table, machine, _ = made()
    up(table, "p")
    up(table, "q")
    for step in alone:
        do(table, *step)
        assert machine.stolen == set(machine.bound)
    with table.change():
        for step in together:
            if step[0] != "again":
                do(table, *step)
    assert machine.stolen == set(machine.bound)
    assert table.owned() == {ip_address(address) for address in machine.bound}
    owned = {status.address for port in "pq" for status in table.statuses(port) if status.state is AddressState.OWNED}
    assert {ip_address(address) for address in machine.bound} == {ip_address(address) for address in owned}
    table.detach("p")
    table.detach("q")
    assert not machine.bound and not machine.stolen and not machine.attached


@given(STEPS, STEPS)
def test_routing_daemons_know_no_address_that_is_not_stolen(
    alone: list[tuple[str, str]], together: list[tuple[str, str]]
) -> None:
    """Told of an address after it is there, and that it leaves before it does."""
    machine, told = Machine(), set[bytes]()
    changes = Changes("lan", cast(Any, machine), cast(Any, machine))
    table = Table("lan", changes, lambda: None, lambda port: None)

    def leave(addresses: Collection[bytes]) -> None:
        assert told.intersection(addresses) <= machine.stolen
        told.difference_update(addresses)

    def arrive(addresses: Collection[bytes]) -> None:
        assert {*addresses} <= machine.stolen
        told.update(addresses)

    changes.leaving, changes.arriving = leave, arrive
    up(table, "p")
    up(table, "q")
    for step in alone:
        do(table, *step)
        assert told == machine.stolen
    with table.change():
        for step in together:
            if step[0] != "again":
                do(table, *step)
    assert told == machine.stolen


def do(table: Table, what: str, port: str) -> None:
    match what:
        case "claim":
            table.claim(port, A, 24, NETLINK)
            table.claim(port, B, 64, NETLINK)
        case "release":
            table.release(port, A, 24)
        case "up" | "down":
            table.set_port(port, up=what == "up", mtu=1500)
        case "again":
            table.detach(port)
            up(table, port)
        case "master":
            table.master_claim(A, 24)
        case "free":
            table.master_replace(set())


def test_the_hosts_addresses_are_known_as_its_own() -> None:
    """Bound as no port's, never stolen; one that the host gives up goes to the port that waits for it."""
    table, machine, _ = made()
    up(table, "p")
    table.master_claim(A, 24)
    table.master_claim(B, 64)
    assert machine.hosts == {A.packed, B.packed} and not table.owned()
    table.claim("p", A, 24, NETLINK)
    assert machine.hosts == {A.packed, B.packed} and not table.owned()
    table.master_release(A, 24)
    assert machine.hosts == {B.packed} and table.owned() == machine_addresses(machine) == {A}
    with table.change():
        table.release("p", A, 24)
        table.master_claim(A, 24)
    assert machine.hosts == {A.packed, B.packed} and not table.owned() and not machine.bound
    table.master_replace(set())
    assert not machine.hosts


def machine_addresses(machine: Machine) -> set[Address]:
    return {ip_address(address) for address in machine.bound}


def test_what_could_not_be_bound_is_not_stolen(monkeypatch: pytest.MonkeyPatch) -> None:
    table, machine, _ = made()
    up(table, "p")

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(machine, "commit", fail)
    with pytest.raises(MemoryError):
        table.claim("p", A, 24, NETLINK)
    assert not machine.stolen


def test_a_handed_over_address_is_stolen_throughout() -> None:
    table, machine, _ = made()
    up(table, "p")
    up(table, "q")
    table.claim("p", A, 24, NETLINK)
    table.claim("q", A, 24, NETLINK)
    machine.full = True  # another add would fail
    table.release("p", A, 24)
    assert machine.stolen == {A.packed} and machine.bound == {A.packed: 1}
    assert table.duplicates == 1


def test_an_address_that_can_not_be_stolen_works_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    table, machine, _ = made()
    up(table, "p")
    machine.full = True
    table.claim("p", A, 24, NETLINK)
    assert machine.bound == {A.packed: 0}
    assert "the host still receives frames for 10.0.0.1" in caplog.text
    table.release("p", A, 24)
    assert not machine.bound


def test_groups_are_counted() -> None:
    table, _, unions = made()
    up(table, "p")
    up(table, "q")
    one, two = bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")
    table.set_groups("p", [one, two])
    table.set_groups("q", [one])
    table.set_groups("q", [one])
    table.set_groups("p", [])
    table.detach("q")
    assert unions == [{one, two}, {one, two}, {one}, set()]


def test_counters_outlive_a_device_but_not_its_port() -> None:
    table, machine, _ = made()
    up(table, "p")
    machine.frames = 10
    table.detach("p")
    assert table.traffic(["p"])["p"].rx_frames == 11
    up(table, "p")
    traffic = table.traffic(["p"])["p"]
    assert traffic.rx_frames == 11 + 12 and traffic.outcomes[OUTCOMES[0]] == 11 + 12
    table.detach("p")
    table.forget("p")
    assert table.traffic(["p"])["p"].rx_frames == 0


def test_what_a_successor_is_told_is_made_again_only_for_ports_that_have_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, machine, _ = made()
    up(table, "p")
    frames = [10]
    nothing = (0,) * (len(OUTCOMES) - 1)
    monkeypatch.setattr(machine, "traffic", lambda number: (frames[0], 0, 0, 0, 0, 0, (frames[0], *nothing)))
    numbers = {"p": table.number("p"), "absent": None}
    before, again = (table.counters.split(numbers)[0] for _ in range(2))
    assert before["p"].rx_frames == 10 and before["p"].outcomes == {OUTCOMES[0]: 10}
    assert again["p"] is before["p"] and again["absent"] is before["absent"]
    frames[0] = 12
    assert table.counters.split(numbers)[0]["p"].rx_frames == 12


def test_ports_that_leave_at_one_moment_leave_together() -> None:
    """With the same number of commits as one alone; an address that they share stays nobody's."""
    table, machine, _ = made()
    commits = []
    for ports in (("p",), ("q", "r", "s")):
        for port in ports:
            up(table, port)
            table.claim(port, A, 24, NETLINK)
        before = machine.commits

        async def leave_all(ports: Sequence[str] = ports) -> None:
            await asyncio.gather(*(table.leave(port) for port in ports))

        asyncio.run(leave_all())
        commits.append(machine.commits - before)
        assert not machine.attached and not machine.bound and not machine.stolen
    assert commits[0] == commits[1]
    assert table.traffic(["r"])["r"].rx_frames


def test_who_asks_later_is_served_as_well() -> None:
    asked: list[list[int]] = []

    async def work(items: list[int]) -> None:
        asked.append(items)
        await asyncio.sleep(0)
        if 3 in items:
            raise OSError(5, "three")

    async def ask() -> list[BaseException | None]:
        together = Batcher(work)
        first = asyncio.create_task(together.ask(1))
        while not asked:
            await asyncio.sleep(0)
        rest = asyncio.gather(together.ask(2), together.ask(3), return_exceptions=True)
        await first
        return await rest

    assert [type(answer) for answer in asyncio.run(ask())] == [OSError, OSError]
    assert asked == [[1], [2, 3]]
