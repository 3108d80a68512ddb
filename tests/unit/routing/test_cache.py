"""The router's record of the datapath's route cache: shares, and what neighbours change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ipvsw.linux.netlink import NeighbourChanged
from ipvsw.model import Address
from ipvsw.routing.cache import DEAD, NextHop, RouteCache, Unresolved

MAC, OTHER_MAC = bytes.fromhex("0200000000fe"), bytes.fromhex("0200000000fd")
GATEWAY = ip_address("10.1.0.254")
CAPACITY, SHARE = 8, 4


def target(n: int) -> Address:
    return ip_address("192.0.2.0") + n


def hop(mac: bytes | None = MAC, via: Address | None = GATEWAY) -> NextHop:
    return NextHop(mtu=1500, mac=mac, stack=mac is None, via=via)


class Datapath:
    def __init__(self) -> None:
        self.routes: dict[Address, tuple[bytes, bool, int]] = {}
        self.uncommitted = 0

    def set_route(self, address: bytes, *, mac: bytes, stack: bool, local: bool, mtu: int) -> None:
        self.routes[ip_address(address)] = (mac, stack, mtu)
        self.uncommitted += 1

    def forget_route(self, address: bytes) -> None:
        del self.routes[ip_address(address)]
        self.uncommitted += 1

    def clear_routes(self) -> None:
        self.routes.clear()
        self.uncommitted += 1

    @contextmanager
    def batch(self) -> Iterator[Datapath]:
        yield self
        self.uncommitted = 0


def made() -> tuple[RouteCache, Datapath]:
    datapath = Datapath()
    return RouteCache(datapath, capacity=CAPACITY, share=SHARE), datapath


def test_a_port_that_needs_too_many_loses_its_oldest() -> None:
    it, datapath = made()
    it.put({target(100): (2, hop())})
    for n in range(10):
        it.put({target(n): (1, hop())})
    assert list(datapath.routes) == [target(100), *(target(n) for n in range(6, 10))]
    assert len(it) == 5 and it.get(target(0)) is None


def test_where_all_need_too_many_the_port_with_most_loses_its_oldest() -> None:
    it, datapath = made()
    for port, count in ((1, 4), (2, 3), (3, 1)):
        it.put({target(10 * port + n): (port, hop()) for n in range(count)})
    it.put({target(40): (4, hop())})
    assert target(10) not in datapath.routes and len(datapath.routes) == CAPACITY
    assert target(40) in datapath.routes


def test_what_is_known_stays_the_ports_that_needed_it_first() -> None:
    it, datapath = made()
    it.put({target(0): (1, hop())})
    it.put({target(0): (2, hop(OTHER_MAC))})
    for n in range(1, 6):
        it.put({target(n): (2, hop())})
    assert datapath.routes[target(0)] == (OTHER_MAC, False, 1500)


def test_a_dead_neighbour_has_no_way_for_a_moment() -> None:
    it, datapath = made()
    it.put({target(1): (1, hop(None, target(1))), target(2): (1, hop(None))})
    failed = [NeighbourChanged(7, address, None, permanent=False, failed=True) for address in (target(1), GATEWAY)]
    it.neighbours_changed(failed, 100)
    assert datapath.routes == {target(1): (bytes(6), False, 1500), target(2): (bytes(6), True, 1500)}
    assert it.next_expiry() == 100 + DEAD
    it.expire(100 + DEAD / 2)
    assert target(1) in datapath.routes
    it.expire(100 + DEAD)
    assert list(datapath.routes) == [target(2)] and it.next_expiry() is None


PORTS, TARGETS, VIA = st.integers(0, 3), st.integers(0, 20), st.sampled_from([None, GATEWAY, target(3), target(4)])
PUT = st.tuples(st.just("put"), PORTS, TARGETS, VIA)
EVENT = st.tuples(st.sampled_from(["lost", "found", "failed"]), PORTS, TARGETS, VIA)
TIME = st.tuples(st.just("time"), PORTS, TARGETS, VIA)


@given(st.lists(PUT | EVENT | TIME, max_size=80))
def test_random_changes(steps: list[tuple[str, int, int, Address | None]]) -> None:
    """The datapath has what `get` says, within the bounds, and nothing waits for a commit."""
    it, datapath = made()
    now, ports = 0.0, {}
    for kind, port, n, via in steps:
        now += 0.3
        if kind == "put":
            ports.setdefault(target(n), port)
            it.put({target(n): (port, hop(None if n % 2 else MAC, via))})
        elif kind == "time":
            it.expire(now)
        elif via is not None:
            mac = MAC if kind == "found" else None
            it.neighbours_changed([NeighbourChanged(7, via, mac, permanent=False, failed=kind == "failed")], now)
        kept = {to: it.get(to) for to in map(target, range(21))}
        assert datapath.routes == {
            to: (one.mac or bytes(6), one.stack, one.mtu) for to, one in kept.items() if one is not None
        }
        ports = {to: port for to, port in ports.items() if kept[to] is not None}
        assert len(it) == len(datapath.routes) <= CAPACITY
        assert all(list(ports.values()).count(port) <= SHARE for port in range(4))
        assert datapath.uncommitted == 0
        assert (it.next_expiry() or now) <= now + DEAD


def test_unresolved_neighbours_are_shared_among_ports() -> None:
    it = Unresolved(limit=8, patience=5)
    assert [it.admit(1, target(n), 0) for n in range(6)] == [True] * 4 + [False] * 2
    assert it.admit(1, target(0), 0), "asked for already"
    assert [it.admit(2, target(n), 1) for n in range(10, 14)] == [True, True, False, False]
    for settled in (target(0), target(0), target(1)):
        it.settle(settled)
    assert it.admit(1, target(9), 1)
    assert it.admit(1, target(20), 5), "the first ones count no more"
    it.clear()
    assert len(it) == 0 and it.admit(1, target(0), 5)
