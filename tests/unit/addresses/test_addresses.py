"""Ownership against a model that keeps nothing but the history, and the rules one by one."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipvsw.addresses.ownership import Bind, BindAll, Change, Duplicate, Ownership, Unbind
from ipvsw.model import Address
from ipvsw.status import AddressSource, AddressState

A = ip_address("10.0.0.1")
B = ip_address("fe80::1")
PA, PB = A.packed, B.packed
NETLINK, CONFIG = AddressSource.NETLINK, AddressSource.CONFIG

ports = st.sampled_from(("p", "q", "r"))
addresses = st.sampled_from((A, B))
prefixes = st.sampled_from((24, 32))


class Model(RuleBasedStateMachine):
    """Claims are one list in the order of arrival; everything else is worked out from it each time."""

    def __init__(self) -> None:
        super().__init__()
        self.real = Ownership("lan")
        self.claims: list[tuple[str, Address, int]] = []
        self.master: set[tuple[Address, int]] = set()
        self.up: set[str] = set()
        self.table: dict[bytes, str] = {}

    def line(self, address: Address) -> list[str]:
        """Ports that claim the address, the first first."""
        return list(dict.fromkeys(port for port, claimed, _ in self.claims if claimed == address))

    def settle(self) -> list[Duplicate]:
        """A first claimant that is down lets the first one that is up go before."""
        reports = []
        for address in (A, B):
            line = self.line(address)
            up = [port for port in line if port in self.up]
            if up and line[0] not in self.up:
                place = line[line.index(up[0]) :] + line[: line.index(up[0])]
                self.claims.sort(key=lambda claim: place.index(claim[0]) if claim[1] == address else 0)
                owner = None if address in self.masters() else up[0]
                reports.append(Duplicate(address.packed, line[0], owner))
        return reports

    def masters(self) -> set[Address]:
        return {address for address, _ in self.master}

    def take(self, changes: list[Change]) -> list[Duplicate]:
        for change in changes:
            if isinstance(change, Bind):
                self.table[change.address] = change.port
            elif isinstance(change, BindAll):
                self.table |= dict.fromkeys(change.addresses, change.port)
            elif isinstance(change, Unbind):
                del self.table[change.address]
        return [change for change in changes if isinstance(change, Duplicate)]

    @rule(port=ports, address=addresses, prefix=prefixes)
    def claim(self, port: str, address: Address, prefix: int) -> None:
        line = self.line(address)
        reports = self.take(self.real.claim(port, address, prefix, NETLINK))
        if (port, address, prefix) not in self.claims:
            self.claims.append((port, address, prefix))
        yielded = self.settle()
        owner = None if address in self.masters() else self.line(address)[0]
        refused = [Duplicate(address.packed, port, owner)] if port not in line and owner != port else []
        assert reports == yielded + refused

    @rule(port=ports, address=addresses, prefix=prefixes)
    def release(self, port: str, address: Address, prefix: int) -> None:
        reports = self.take(self.real.release(port, address, prefix))
        if (port, address, prefix) in self.claims:
            place = self.line(address)
            self.claims.remove((port, address, prefix))
            if port in self.line(address):  # another prefix length of the same address keeps the place in the line
                self.claims.sort(key=lambda claim: place.index(claim[0]) if claim[1] == address else 0)
        assert reports == self.settle()

    @rule(port=ports)
    def up_(self, port: str) -> None:
        self.up.add(port)
        assert by_address(self.take(self.real.port_up(port))) == by_address(self.settle())

    @rule(port=ports)
    def down(self, port: str) -> None:
        self.up.discard(port)
        assert by_address(self.take(self.real.port_down(port))) == by_address(self.settle())

    @rule(port=ports)
    def forget(self, port: str) -> None:
        self.up.discard(port)
        yielded = self.settle()
        self.claims = [claim for claim in self.claims if claim[0] != port]
        assert by_address(self.take(self.real.forget(port))) == by_address(yielded + self.settle())

    @rule(port=ports, wanted=st.lists(st.tuples(addresses, prefixes), unique=True))
    def replace(self, port: str, wanted: list[tuple[Address, int]]) -> None:
        reports = self.take(self.real.replace(port, dict.fromkeys(wanted, NETLINK)))
        lines = {address: self.line(address) for address in (A, B)}
        others = {address: [each for each in line if each != port] for address, line in lines.items()}
        keep = {address for claimer, address, prefix in self.claims if claimer == port and (address, prefix) in wanted}
        self.claims = [claim for claim in self.claims if claim[0] != port]
        for address in {address for address, _ in wanted}:
            place = lines[address] if address in keep else [*others[address], port]
            self.claims += [(port, address, prefix) for claimed, prefix in wanted if claimed == address]
            self.claims.sort(key=lambda claim: place.index(claim[0]) if claim[1] == address else 0)
        yielded = self.settle()
        new = {address for address, _ in wanted} - keep
        refused = [address.packed for address in new if address in self.masters() or self.line(address)[0] != port]
        assert sorted(one.address for one in reports) == sorted([*refused, *(one.address for one in yielded)])

    @rule(address=addresses, prefix=prefixes)
    def master_claim(self, address: Address, prefix: int) -> None:
        new = address not in self.masters()
        reports = self.take(self.real.master_claim(address, prefix))
        self.master.add((address, prefix))
        line = self.line(address)
        assert reports == ([Duplicate(address.packed, line[0], None)] if new and line else [])

    @rule(address=addresses, prefix=prefixes)
    def master_release(self, address: Address, prefix: int) -> None:
        assert self.take(self.real.master_release(address, prefix)) == []
        self.master.discard((address, prefix))

    @rule(wanted=st.sets(st.tuples(addresses, prefixes)))
    def master_replace(self, wanted: set[tuple[Address, int]]) -> None:
        self.take(self.real.master_replace(wanted))
        self.master = set(wanted)

    @invariant()
    def table_is_right(self) -> None:
        wanted = {}
        for address in (A, B):
            line = self.line(address)
            if line and line[0] in self.up and address not in self.masters():
                wanted[address.packed] = line[0]
        assert self.table == wanted

    @invariant()
    def statuses_are_right(self) -> None:
        for port in ("p", "q", "r"):
            shown = {status.address: status.state for status in self.real.statuses(port)}
            wanted = {}
            for address in (A, B):
                line = self.line(address)
                if port not in line:
                    continue
                if address in self.masters():
                    wanted[str(address)] = AddressState.MASTER
                elif line[0] != port:
                    wanted[str(address)] = AddressState.DUPLICATE
                else:
                    wanted[str(address)] = AddressState.OWNED if port in self.up else AddressState.DOWN
            assert shown == wanted


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def by_address(reports: list[Duplicate]) -> list[Duplicate]:
    return sorted(reports, key=lambda report: (report.address, report.port))


def owner(*up: str) -> Ownership:
    ownership = Ownership("lan")
    for port in up:
        assert ownership.port_up(port) == []
    return ownership


def test_the_second_gets_it_when_the_first_gives_it_up() -> None:
    table = owner("p", "q")
    assert table.claim("p", A, 24, NETLINK) == [Bind(PA, "p")]
    assert table.claim("q", A, 24, NETLINK) == [Duplicate(PA, "q", "p")]
    assert table.release("p", A, 24) == [Bind(PA, "q")]


def test_a_port_that_is_down_yields_and_becomes_the_last() -> None:
    table = owner("p", "q", "r")
    table.claim("p", A, 24, NETLINK)
    assert table.port_down("p") == [Unbind(PA)]
    assert [status.state for status in table.statuses("p")] == [AddressState.DOWN]
    assert table.objection("q", A) is None
    assert table.claim("q", A, 24, NETLINK) == [Bind(PA, "q"), Duplicate(PA, "p", "q")]
    assert table.claim("r", A, 24, NETLINK) == [Duplicate(PA, "r", "q")]
    assert table.port_up("p") == []
    assert [status.state for status in table.statuses("p")] == [AddressState.DUPLICATE]
    assert table.port_down("q") == [Bind(PA, "p"), Duplicate(PA, "q", "p")]
    assert table.release("p", A, 24) == [Bind(PA, "r")]
    assert table.release("r", A, 24) == [Unbind(PA)]
    assert [status.state for status in table.statuses("q")] == [AddressState.DOWN]


def test_nobody_yields_to_a_port_that_is_down() -> None:
    table = owner("p", "q")
    table.claim("p", A, 24, NETLINK)
    table.claim("q", A, 24, NETLINK)
    assert table.port_down("q") == []
    assert table.port_down("p") == [Unbind(PA)]
    assert table.objection("q", A) == Duplicate(PA, "q", "p")
    assert table.port_up("q") == [Bind(PA, "q"), Duplicate(PA, "p", "q")]


def test_two_prefix_lengths_count_twice() -> None:
    table = owner("p")
    table.claim("p", A, 24, NETLINK)
    assert table.claim("p", A, 32, NETLINK) == []
    assert table.release("p", A, 24) == []
    assert table.release("p", A, 32) == [Unbind(PA)]


def test_the_master_wins_and_gives_way() -> None:
    table = owner("p")
    table.claim("p", A, 24, CONFIG)
    assert table.master_claim(A, 24) == [Unbind(PA), Duplicate(PA, "p", None)]
    assert table.claim("p", A, 32, NETLINK) == []
    assert [(status.state, status.source) for status in table.statuses("p")] == [(AddressState.MASTER, CONFIG)]
    assert table.master_release(A, 24) == [Bind(PA, "p")]


def test_a_report_is_one_line() -> None:
    assert str(Duplicate(PA, "q", "p")) == "10.0.0.1 is refused to port q: port p has it"
    assert str(Duplicate(PB, "q", None)) == "fe80::1 is refused to port q: the master has it"
