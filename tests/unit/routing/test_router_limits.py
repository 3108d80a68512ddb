"""The router where much is asked of it: ports that scan, neighbours that are dead, packets that are too long."""

from __future__ import annotations

import asyncio
import errno
from ipaddress import ip_address

import pytest

from ipvsw.linux.netlink import NeighbourChanged
from ipvsw.model import Address
from ipvsw.routing import cache, router
from ipvsw.routing.router import NO_OFFLOAD
from tests.support.wire.packets import DF
from tests.unit.routing.fakes import (
    ELSEWHERE,
    FAR,
    FARTHER,
    GATEWAY,
    GATEWAY_MAC,
    INDEX,
    MASTER,
    OTHER_MAC,
    SOURCE,
    frame,
    rig,
    until,
    way,
)


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
