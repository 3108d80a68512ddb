"""The router without a namespace: the kernel, the datapath and the sockets are made up, the loop is real."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from typing import Any, TypeVar, cast

import pytest

from ipvsw.linux.netlink import NeighbourChanged, RouteAnswer, RoutesChanged
from ipvsw.model import Address
from ipvsw.routing import cache, router
from ipvsw.routing.router import NO_OFFLOAD, NextHop, Router, RouterUplink, ends, ethernet, to_next_hop
from tests.support.patience import LIMIT
from tests.support.wire.packets import DF, UDP, Made

T = TypeVar("T")

MASTER, GATEWAY_MAC, OTHER_MAC = (bytes.fromhex(text) for text in ("020000000001", "0200000000fe", "0200000000fd"))
INDEX, ELSEWHERE = 7, 9
GATEWAY, GATEWAY6 = ip_address("10.1.0.254"), ip_address("fe80::fe")
SOURCE, FAR, FARTHER = ip_address("10.1.0.11"), ip_address("192.0.2.1"), ip_address("198.51.100.1")
SOURCE6, FAR6 = ip_address("fd00:1::11"), ip_address("2001:db8::1")


def way(**changes: Any) -> RouteAnswer:
    """Out on the master by a gateway that is known."""
    usual = {"local": False, "index": INDEX, "via": GATEWAY, "mac": GATEWAY_MAC, "permanent": False, "mtu": 0}
    return RouteAnswer(**{**usual, **changes})


def frame(to: Address = FAR, payload: int = 8, field: int = 0) -> bytes:
    by = SOURCE if to.version == 4 else SOURCE6
    made = Made(to.version, UDP, bytes(payload), field=field, source=by.packed, destination=to.packed)
    return made.frame()


class Kernel:
    """`RouteLookup`: what the host's routing says, and what it was asked."""

    def __init__(self) -> None:
        self.ways: dict[Address, RouteAnswer | OSError | None] = {FAR: way(), FARTHER: way()}
        self.plain = True
        self.asked: list[tuple[Address, Address]] = []
        self.rules_read = 0
        self.confirmed: list[Address] = []
        self.trouble: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def destination_decides(self, version: int) -> bool:
        self.rules_read += 1
        if self.trouble is not None:
            raise self.trouble
        return self.plain

    def route_to(self, to: Address, by: Address, index: int) -> RouteAnswer | None:
        assert index == INDEX
        self.asked.append((to, by))
        self.may_answer.wait(5)
        if self.trouble is not None:
            raise self.trouble
        answer = self.ways[to]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def use_neighbour(self, index: int, address: Address) -> None:
        assert index == INDEX
        self.confirmed.append(address)


class Datapath:
    """The route cache, as the hot loop would see it, and the frames that it has for the router."""

    def __init__(self) -> None:
        self.datapath = self
        self.waiting: list[tuple[int, bytes]] = []
        self.routes: dict[Address, tuple[bytes, bool, int]] = {}
        self.used: set[Address] = set()
        self.guarded: dict[int, tuple[str, ...]] = {}  # by port number
        self._edits: list[Callable[[], object]] = []

    def set_route(self, address: bytes, *, mac: bytes, stack: bool, local: bool, mtu: int) -> None:
        self._edits.append(lambda: self.routes.update({ip_address(address): (mac, stack, mtu)}))

    def slow(self) -> list[tuple[int, bytes]]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def forget_route(self, address: bytes) -> None:
        self._edits.append(lambda: self.routes.pop(ip_address(address), None))

    def guards(self, port: int) -> tuple[str, ...]:
        return self.guarded.get(port, ())

    def clear_routes(self) -> None:
        self._edits.append(self.routes.clear)

    @contextmanager
    def batch(self) -> Iterator[Datapath]:
        """`Changes` as well: the edits are made at the end."""
        yield self
        for edit in self._edits:
            edit()
        self._edits = []

    def used_routes(self) -> set[Address]:
        used, self.used = self.used, set()
        return used


class Wire:
    """A socket that remembers."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.error: int = 0

    def send(self, data: bytes, version: int = 0) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.sent.append(data)


class Monitor:
    """Events as the event socket has them."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self.unread: list[RoutesChanged | NeighbourChanged] = []

    def fileno(self) -> int:
        return self._reader

    def tell(self, *events: RoutesChanged | NeighbourChanged) -> None:
        self.unread += events
        os.write(self._writer, b"!")

    def events(self) -> Iterator[RoutesChanged | NeighbourChanged]:
        os.read(self._reader, 100)
        unread, self.unread = self.unread, []
        yield from unread

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class Rig:
    def __init__(self) -> None:
        self.kernel, self.datapath, self.monitor = Kernel(), Datapath(), Monitor()
        self.wire, self.stack = Wire(), Wire()
        self.answers: list[tuple[int, bytes]] = []
        self.routes_changed = 0
        self.router = Router(
            cast(Any, self.datapath), lambda port, frame: self.answers.append((port, frame)), self._count_change
        )
        self.uplink = RouterUplink(
            index=INDEX,
            mac=MASTER,
            mtu=1500,
            ipv4=ip_address("10.1.0.1"),
            ipv6=ip_address("fd00:1::1"),
            frames=cast(Any, self.wire),
            stack=cast(Any, self.stack),
            monitor=cast(Any, self.monitor),
            lookup=cast(Any, self.kernel),
        )

    def _count_change(self, changes: Sequence[RoutesChanged]) -> None:
        self.routes_changed += len(changes)

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.router.counters)

    async def carry(self, *frames: bytes, port: int = 3) -> None:
        """Hands frames over and waits for the end of each."""
        before = self.router.counters.total()
        self.hand_over([(port, one) for one in frames])
        await until(lambda: self.router.counters.total() == before + len(frames))

    def hand_over(self, frames: list[tuple[int, bytes]]) -> None:
        self.datapath.waiting += frames
        self.router.wake()

    async def hear(self, *events: RoutesChanged | NeighbourChanged) -> None:
        self.monitor.tell(*events)
        await until(lambda: not self.monitor.unread)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.001)  # the thread that asks the kernel needs the interpreter, too


@asynccontextmanager
async def rig(*, exact: bool = False, uplink: bool = True) -> AsyncIterator[Rig]:
    it = Rig()
    it.router.start()
    it.router.set_mode(routes=True, exact=exact)
    if uplink:
        it.router.set_uplink(it.uplink)
    try:
        yield it
    finally:
        await it.router.stop()
        it.monitor.close()


# ---------------------------------------------------------------------------- pure


@pytest.mark.parametrize(
    ("answer", "exact", "hop"),
    [
        (None, False, NextHop()),
        (None, True, NextHop()),
        (way(), False, NextHop(mtu=1500, mac=GATEWAY_MAC, via=GATEWAY)),
        (way(permanent=True), False, NextHop(mtu=1500, mac=GATEWAY_MAC, via=GATEWAY, permanent=True)),
        (way(mtu=1280), False, NextHop(mtu=1280, mac=GATEWAY_MAC, via=GATEWAY)),
        (way(mtu=9000), False, NextHop(mtu=1500, mac=GATEWAY_MAC, via=GATEWAY)),
        (way(mac=None), False, NextHop(mtu=1500, stack=True, via=GATEWAY)),
        (way(), True, NextHop(mtu=1500, stack=True)),
        (way(mtu=1280), True, NextHop(mtu=1280, stack=True)),
        (way(index=ELSEWHERE), False, NextHop(mtu=65535, stack=True)),
        (way(index=ELSEWHERE, mtu=1400), False, NextHop(mtu=1400, stack=True)),
        (way(index=ELSEWHERE, mtu=9000), True, NextHop(mtu=9000, stack=True)),
        (way(local=True, index=1, via=FAR, mac=None), False, NextHop(mtu=65535, stack=True, local=True)),
        (way(local=True), False, NextHop(mtu=65535, stack=True, local=True)),
    ],
)
def test_what_follows_from_the_kernels_answer(answer: RouteAnswer | None, exact: bool, hop: NextHop) -> None:
    uplink = RouterUplink(INDEX, MASTER, 1500, None, None, *[cast(Any, None)] * 4)
    assert to_next_hop(answer, uplink, exact=exact) == hop


def test_ends_are_read_as_they_stand_there() -> None:
    assert ends(frame(FAR)) == (SOURCE, FAR)
    assert ends(frame(FAR6)) == (SOURCE6, FAR6)
    broken = bytearray(frame(FAR))
    broken[24] = 0x61  # version and header length
    assert ends(bytes(broken)) == (SOURCE, FAR)
    assert ends(bytes(broken[: 24 + 20])) == (SOURCE, FAR)


def test_an_ethernet_header_names_its_packet() -> None:
    assert ethernet(GATEWAY_MAC, MASTER, 4, b"\x65lies") == GATEWAY_MAC + MASTER + b"\x08\x00\x65lies"
    assert ethernet(GATEWAY_MAC, MASTER, 6, b"\x60rest") == GATEWAY_MAC + MASTER + b"\x86\xdd\x60rest"


# ---------------------------------------------------------------------------- asking


async def test_a_new_destination_is_asked_for_once_and_the_frame_goes_on_its_way() -> None:
    async with rig() as it:
        await it.carry(frame(), frame())
        assert it.kernel.asked == [(FAR, SOURCE)]
        assert it.datapath.routes == {FAR: (GATEWAY_MAC, False, 1500)}
        assert it.wire.sent == [frame()[:10] + GATEWAY_MAC + MASTER + frame()[22:]] * 2
        await it.carry(frame(FARTHER), frame())
        assert it.kernel.asked == [(FAR, SOURCE), (FARTHER, SOURCE)]
        assert it.counters == {"to_master": 4}


async def test_both_versions_are_asked_in_one_visit() -> None:
    async with rig() as it:
        it.kernel.ways[FAR6] = way(via=GATEWAY6, mtu=1400)
        await it.carry(frame(FAR6), frame())
        assert it.datapath.routes == {FAR: (GATEWAY_MAC, False, 1500), FAR6: (GATEWAY_MAC, False, 1400)}
        assert it.kernel.asked == [(FAR6, SOURCE6), (FAR, SOURCE)]


async def test_that_there_is_no_way_is_known_too() -> None:
    async with rig() as it:
        it.kernel.ways[FAR] = None
        await it.carry(frame(), frame())
        assert it.datapath.routes == {FAR: (bytes(6), False, 65535)}
        assert it.counters == {"drop_no_route": 2}
        assert it.wire.sent == it.stack.sent == []


@pytest.mark.parametrize("answer", [way(index=ELSEWHERE), way(local=True, via=FAR, mac=None), way(mac=None)])
async def test_what_the_cache_cannot_express_passes_the_hosts_output(answer: RouteAnswer) -> None:
    async with rig() as it:
        it.kernel.ways[FAR] = answer
        await it.carry(frame())
        assert it.datapath.routes[FAR][:2] == (bytes(6), True)
        assert [packet[16:20] for packet in it.stack.sent] == [FAR.packed]
        assert it.counters == {"to_stack": 1}


@pytest.mark.parametrize(("answer", "kept"), [(way(local=True, via=FAR, mac=None), True), (way(mac=None), False)])
async def test_a_guard_keeps_a_port_from_the_host_itself(answer: RouteAnswer, kept: bool) -> None:
    async with rig() as it:
        it.kernel.ways[FAR] = answer
        it.datapath.guarded[3] = ("host",)
        await it.carry(frame())
        assert it.counters == {"guard_host" if kept else "to_stack": 1}
        assert len(it.stack.sent) == (not kept)


async def test_exact_and_policy_by_more_than_the_destination_pass_the_hosts_output() -> None:
    async with rig(exact=True) as it:
        await it.carry(frame())
        assert it.datapath.routes == {FAR: (bytes(6), True, 1500)}
        it.router.set_mode(routes=True, exact=False)
        assert it.datapath.routes == {}
        it.kernel.plain = False
        await it.carry(frame())
        assert it.datapath.routes == {FAR: (bytes(6), True, 1500)}
        assert it.counters == {"to_stack": 2}


async def test_one_that_cannot_be_asked_about_does_not_take_the_others_with_it() -> None:
    async with rig() as it:
        it.kernel.ways[FAR] = OSError(errno.EINVAL, "no")
        await it.carry(frame(), frame(FARTHER))
        assert it.datapath.routes == {FARTHER: (GATEWAY_MAC, False, 1500)}
        assert it.counters == {"drop_no_route": 1, "to_master": 1}
        it.kernel.ways[FAR] = way()
        await it.carry(frame())
        assert FAR in it.datapath.routes


async def test_a_master_whose_sockets_are_closed_costs_the_frames_alone() -> None:
    async with rig() as it:
        it.kernel.trouble = OSError(errno.EBADF, "closed")
        await it.carry(frame(), frame(FARTHER))
        assert it.datapath.routes == {}
        assert it.counters == {"drop_no_route": 2}
        it.kernel.trouble = None
        await it.carry(frame())
        assert it.counters == {"drop_no_route": 2, "to_master": 1}


async def test_a_mistake_of_ours_costs_the_frames_in_hand_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with rig() as it:
        it.kernel.trouble = RuntimeError("a mistake")
        it.hand_over([(0, frame())])
        await until(lambda: "a mistake" in caplog.text)
        it.kernel.trouble = None
        await it.carry(frame())
        assert it.counters == {"to_master": 1}


async def test_without_a_master_frames_are_counted() -> None:
    async with rig(uplink=False) as it:
        await it.carry(frame(), frame())
        assert it.counters == {"drop_no_master": 2}
        assert it.kernel.asked == []


# ---------------------------------------------------------------------------- events


async def test_a_changed_way_empties_the_cache() -> None:
    async with rig() as it:
        await it.carry(frame(), frame(FARTHER))
        it.kernel.ways[FAR] = way(via=GATEWAY6, mac=OTHER_MAC)
        await it.hear(RoutesChanged())
        assert it.datapath.routes == {}
        await it.carry(frame())
        assert it.datapath.routes == {FAR: (OTHER_MAC, False, 1500)}
        await it.carry(frame(FARTHER))
        assert it.kernel.asked.count((FARTHER, SOURCE)) == 2


async def test_a_neighbour_changes_the_ways_that_rest_on_it_without_asking() -> None:
    async with rig() as it:
        it.kernel.ways[FARTHER] = way(via=ip_address("10.1.0.253"))
        await it.carry(frame(), frame(FARTHER))
        await it.hear(NeighbourChanged(INDEX, GATEWAY, OTHER_MAC, permanent=False))
        assert it.datapath.routes == {FAR: (OTHER_MAC, False, 1500), FARTHER: (GATEWAY_MAC, False, 1500)}
        await it.hear(NeighbourChanged(INDEX, GATEWAY, None, permanent=False))
        assert it.datapath.routes[FAR] == (bytes(6), True, 1500), "the host's output asks for it"
        await it.hear(
            NeighbourChanged(INDEX, GATEWAY, None, permanent=False),
            NeighbourChanged(INDEX, GATEWAY, GATEWAY_MAC, permanent=True),
        )
        assert it.datapath.routes[FAR] == (GATEWAY_MAC, False, 1500)
        assert len(it.kernel.asked) == 2


async def test_neighbours_of_nobody_and_of_other_devices_change_nothing() -> None:
    async with rig() as it:
        await it.carry(frame())
        await it.hear(
            NeighbourChanged(ELSEWHERE, GATEWAY, OTHER_MAC, permanent=False),
            NeighbourChanged(INDEX, FARTHER, OTHER_MAC, permanent=False),
        )
        assert it.datapath.routes == {FAR: (GATEWAY_MAC, False, 1500)}


async def test_a_way_through_the_hosts_output_rests_on_no_neighbour() -> None:
    async with rig(exact=True) as it:
        await it.carry(frame())
        await it.hear(NeighbourChanged(INDEX, GATEWAY, OTHER_MAC, permanent=False))
        assert it.datapath.routes == {FAR: (bytes(6), True, 1500)}


async def test_an_answer_that_news_overtook_is_used_and_not_kept() -> None:
    async with rig() as it:
        it.kernel.may_answer.clear()
        carrying = asyncio.create_task(it.carry(frame()))
        await until(lambda: bool(it.kernel.asked))
        await it.hear(RoutesChanged())
        it.kernel.may_answer.set()
        await carrying
        assert it.counters == {"to_master": 1}
        assert it.datapath.routes == {}
        await it.carry(frame())
        assert it.datapath.routes == {FAR: (GATEWAY_MAC, False, 1500)}


async def test_a_neighbour_that_answers_while_the_kernel_is_asked_counts() -> None:
    async with rig() as it:
        it.kernel.ways[FAR] = way(mac=None)
        it.kernel.may_answer.clear()
        carrying = asyncio.create_task(it.carry(frame()))
        await until(lambda: bool(it.kernel.asked))
        await it.hear(NeighbourChanged(INDEX, GATEWAY, OTHER_MAC, permanent=False))
        it.kernel.may_answer.set()
        await carrying
        assert it.datapath.routes == {FAR: (OTHER_MAC, False, 1500)}
        assert it.wire.sent == [frame()[:10] + OTHER_MAC + MASTER + frame()[22:]]


async def test_another_master_or_mode_starts_anew() -> None:
    async with rig() as it:
        for change in (
            lambda: it.router.set_uplink(it.uplink),
            lambda: it.router.set_mode(routes=True, exact=False),
            lambda: it.router.set_mode(routes=False, exact=False),
            lambda: it.router.set_uplink(None),
        ):
            it.router.set_uplink(it.uplink)
            await it.carry(frame())
            assert it.datapath.routes
            change()
            assert it.datapath.routes == {}


async def test_a_switch_that_does_not_route_passes_on_that_routes_have_changed() -> None:
    """Which addresses are gateways of the host's matters in every mode."""
    async with rig() as it:
        it.router.set_mode(routes=False, exact=False)
        it.monitor.tell(RoutesChanged())
        await until(lambda: it.routes_changed == 1)


async def test_policy_rules_are_read_once_until_something_changes() -> None:
    async with rig() as it:
        await it.carry(frame())
        await it.carry(frame(FARTHER))
        assert it.kernel.rules_read == 1
        await it.hear(RoutesChanged())
        await it.carry(frame())
        assert it.kernel.rules_read == 2


# ---------------------------------------------------------------------------- a port that scans


def scanned(count: int) -> list[Address]:
    return [ip_address("172.16.0.1") + n for n in range(count)]


async def test_a_port_that_scans_does_not_hold_up_another() -> None:
    async with rig() as it:
        far = scanned(2000)
        it.kernel.ways.update(dict.fromkeys(far, way()))
        it.hand_over([(1, frame(to)) for to in far])
        it.hand_over([(2, frame(FAR))])
        await until(lambda: FAR in it.datapath.routes)
        assert len(it.kernel.asked) <= 2 * router.TURNS, "it had its turn among the first"
        await until(lambda: it.router.counters.total() == 2001)
        assert it.counters == {"to_master": 512 + 1, "drop_backlog": 2000 - 512}, "half of the room, and no more"


async def test_the_loop_is_free_between_two_pieces() -> None:
    async with rig() as it:
        far = scanned(500)
        it.kernel.ways.update(dict.fromkeys(far, way()))
        it.hand_over([(1, frame(to)) for to in far])
        sizes = set()

        def sent() -> bool:
            sizes.add(len(it.wire.sent) % router.TURNS)
            return len(it.wire.sent) == 500

        await until(sent)
        assert sizes == {0, 500 % router.TURNS}


async def test_a_port_has_the_host_ask_for_few_neighbours_at_a_time() -> None:
    async with rig() as it:
        dead = scanned(router.UNRESOLVED)
        it.kernel.ways.update({to: way(via=to, mac=None) for to in (*dead, FAR)})
        await it.carry(*(frame(to) for to in dead), port=1)
        half = router.UNRESOLVED // 2
        assert it.counters == {"to_stack": half, "drop_unresolved": half}
        await it.carry(frame(), port=2)
        assert it.counters["to_stack"] == half + 1, "another port has room"
        await it.hear(*(NeighbourChanged(INDEX, to, None, permanent=False, failed=True) for to in dead[:half]))
        await it.carry(frame(dead[half]), port=1)
        assert it.counters["to_stack"] == half + 2, "room again"


async def test_a_dead_neighbour_is_left_alone_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "DEAD", 0.05)
    async with rig() as it:
        it.kernel.ways[FAR] = way(via=FAR, mac=None)
        await it.carry(frame())
        assert it.datapath.routes == {FAR: (bytes(6), True, 1500)}
        await it.hear(NeighbourChanged(INDEX, FAR, None, permanent=False, failed=True))
        assert it.datapath.routes == {FAR: (bytes(6), False, 1500)}, "the datapath drops by itself"
        await until(lambda: it.datapath.routes == {})
        await it.carry(frame())
        assert it.kernel.asked == [(FAR, SOURCE)] * 2
        assert it.counters == {"to_stack": 2}


async def test_a_dead_neighbour_that_comes_to_life_is_used_at_once() -> None:
    async with rig() as it:
        it.kernel.ways[FAR] = way(via=FAR, mac=None)
        await it.carry(frame())
        await it.hear(NeighbourChanged(INDEX, FAR, None, permanent=False, failed=True))
        await it.hear(NeighbourChanged(INDEX, FAR, OTHER_MAC, permanent=False))
        assert it.datapath.routes == {FAR: (OTHER_MAC, False, 1500)}


async def test_a_gateway_that_fails_is_asked_for_on_and_on() -> None:
    async with rig() as it:
        await it.carry(frame())
        await it.hear(NeighbourChanged(INDEX, GATEWAY, None, permanent=False, failed=True))
        assert it.datapath.routes == {FAR: (bytes(6), True, 1500)}


async def test_few_neighbours_are_confirmed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "CONFIRM", 0.01)
    monkeypatch.setattr(router, "CONFIRMATIONS", 2)
    async with rig() as it:
        far = scanned(5)
        it.kernel.ways.update({to: way(via=to) for to in far})
        await it.carry(*map(frame, far))
        it.datapath.used = set(far)
        await until(lambda: len(it.kernel.confirmed) == 2)
        await until(lambda: len(it.kernel.confirmed) == 5)
        assert set(it.kernel.confirmed) == set(far), "each once"


# ---------------------------------------------------------------------------- sending


async def test_what_is_too_long_is_answered_to_its_port_or_cut() -> None:
    async with rig() as it:
        it.kernel.ways[FAR] = way(mtu=1280)
        await it.carry(frame(payload=1400, field=DF), port=5)
        assert it.counters == {"answered": 1}
        [(port, answer)] = it.answers
        assert port == 5
        assert answer[:24] == NO_OFFLOAD + MASTER + MASTER + b"\x08\x00"
        assert answer[24 + 12 : 24 + 20] == ip_address("10.1.0.1").packed + SOURCE.packed
        await it.carry(frame(payload=1400))
        assert it.counters == {"answered": 1, "to_master": 1}
        assert [sent[:24] for sent in it.wire.sent] == [NO_OFFLOAD + GATEWAY_MAC + MASTER + b"\x08\x00"] * 2
        assert all(len(sent) <= 24 + 1280 for sent in it.wire.sent)


async def test_frames_that_lie_are_dropped_by_name() -> None:
    async with rig() as it:
        lying = b"\1\1" + frame()[2:]  # TCP segmentation of no TCP
        await it.carry(lying)
        assert it.counters == {"drop_malformed": 1}


@pytest.mark.parametrize(
    ("error", "counter"),
    [
        (errno.ENETUNREACH, "drop_no_route"),
        (errno.EHOSTUNREACH, "drop_no_route"),
        (errno.EACCES, "drop_no_route"),
        (errno.EMSGSIZE, "drop_error"),
        (errno.EBADF, "drop_error"),
    ],
)
async def test_what_a_socket_refuses_is_counted(error: int, counter: str) -> None:
    async with rig() as it:
        it.wire.error = it.stack.error = error
        await it.carry(frame())
        it.kernel.ways[FARTHER] = way(index=ELSEWHERE)
        await it.carry(frame(FARTHER))
        assert it.counters == {counter: 2}


# ---------------------------------------------------------------------------- neighbours in use


async def test_neighbours_in_use_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "CONFIRM", 0.01)
    async with rig() as it:
        by_hand, elsewhere, unused = (ip_address(f"203.0.113.{n}") for n in range(3))
        it.kernel.ways[by_hand] = way(via=by_hand, permanent=True)
        it.kernel.ways[elsewhere] = way(via=elsewhere, index=ELSEWHERE)
        it.kernel.ways[unused] = way(via=unused)
        await it.carry(frame(), frame(FARTHER), frame(by_hand), frame(elsewhere), frame(unused))
        it.datapath.used = {FAR, FARTHER, by_hand, elsewhere, ip_address("192.0.2.77")}
        await until(lambda: bool(it.kernel.confirmed))
        assert it.kernel.confirmed == [GATEWAY], "once for both destinations that rest on it"


async def test_a_stopped_router_leaves_nothing_behind() -> None:
    async with rig() as it:
        await it.carry(frame())
        await it.router.stop()
        assert it.datapath.routes == {}
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "router"]
        await it.router.stop()
