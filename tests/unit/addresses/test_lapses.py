"""For the guards an address is its port's for a moment after the port has lost it, unless somebody else gets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from ipvsw.addresses import lapses
from ipvsw.addresses.claims import Rule
from ipvsw.addresses.table import Table
from ipvsw.model import Guard
from tests.support.patience import LIMIT
from tests.unit.addresses.test_table import NETLINK, A, B, Machine, made, up

LOST: dict[str, Callable[[Table], None]] = {
    "released": lambda table: table.release("p", A, 24),
    "read anew": lambda table: table.replace("p", {}),
    "down": lambda table: table.set_port("p", up=False, mtu=1500),
}


def guarded(*, learning: bool = False, guards: tuple[Guard, ...] = tuple(Guard)) -> tuple[Table, Machine]:
    """Port p has A; q waits for B."""
    table, machine, _ = made()
    up(table, "p")
    up(table, "q")
    table.set_guards("p", guards, holds=True)
    table.set_learning("p", learning)
    table.claim("p", A, 24, NETLINK)
    return table, machine


async def ended(table: Table) -> None:
    """All lapses are over."""
    async with asyncio.timeout(LIMIT):
        while table._lapses._ends:
            await asyncio.sleep(0)


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_what_a_guarded_port_has_lost_is_its_own_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, lose: Callable[[Table], None]
) -> None:
    monkeypatch.setattr(lapses, "LAPSE", 0.0)
    table, machine = guarded()

    async def run() -> None:
        lose(table)
        assert machine.former == {A.packed: 0} and not machine.bound and not machine.stolen
        await ended(table)
        assert not machine.former

    asyncio.run(run())


@pytest.mark.parametrize("more", [{"learning": True}, {"guards": ()}], ids=["learns", "without guards"])
def test_no_other_port_has_it_any_more(more: dict[str, bool]) -> None:
    """Nor one whose configuration forbids the address from now on."""
    table, machine = guarded(**more)  # type: ignore[arg-type]
    table.release("p", A, 24)
    assert not machine.former and not machine.bound
    table, machine = guarded()
    table.set_rule("p", Rule(prefixes=()))
    assert not machine.former and not machine.bound


def test_whoever_gets_it_meanwhile_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lapses, "LAPSE", 0.0)
    takers: dict[str, tuple[Callable[[Table], None], Callable[[Machine], object]]] = {
        "a sibling": (lambda table: table.claim("q", A, 24, NETLINK), lambda machine: machine.bound),
        "itself": (lambda table: table.claim("p", A, 24, NETLINK), lambda machine: machine.bound),
        "the host": (lambda table: table.master_claim(A, 24), lambda machine: machine.hosts),
        "a router": (lambda table: table.set_host((), (A,)), lambda machine: machine.gateways),
    }

    async def run(together: bool, take: Callable[[Table], None], has: Callable[[Machine], object]) -> None:
        table, machine = guarded()
        if together:
            with table.change():
                table.release("p", A, 24)
                take(table)
        else:
            table.release("p", A, 24)
            take(table)
        assert not machine.former and has(machine)
        await ended(table)
        assert has(machine)

    for take, has in takers.values():
        for together in (False, True):
            asyncio.run(run(together, take, has))


def test_it_goes_with_the_port() -> None:
    """Whose number the next port gets."""

    async def run() -> None:
        for together in (False, True):
            table, machine = guarded()
            table.claim("p", B, 64, NETLINK)
            table.release("p", A, 24)
            assert machine.former == {A.packed: 0}
            with table.change():
                if together:
                    table.set_port("p", up=False, mtu=1500)
                table.detach("p")
            assert not machine.former and not machine.bound
            table.close()

    asyncio.run(run())


def test_a_port_can_not_have_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lapses, "KEPT", 8)

    async def run() -> None:
        table, machine = guarded()
        table.set_guards("q", tuple(Guard), holds=True)
        for port, base in (("p", 0x0A000100), ("q", 0x0A000200)):
            some = {(ip_address(base + k), 24): NETLINK for k in range(10)}
            table.replace(port, some)
            table.replace(port, {})
        assert sorted(machine.former.values()) == [0] * 4 + [1] * 2
        table.close()

    asyncio.run(run())
