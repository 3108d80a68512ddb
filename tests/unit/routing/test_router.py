"""The router without a namespace: the kernel, the datapath and the sockets are made up, the loop is real."""

from __future__ import annotations

import asyncio
import errno
from ipaddress import ip_address
from typing import Any, cast

import pytest

from ipvsw.linux.netlink import NeighbourChanged, RouteAnswer, RoutesChanged
from ipvsw.routing.router import NextHop, RouterUplink, ends, ethernet, to_next_hop
from tests.unit.routing.fakes import (
    ELSEWHERE,
    FAR,
    FAR6,
    FARTHER,
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    INDEX,
    MASTER,
    OTHER_MAC,
    SOURCE,
    SOURCE6,
    frame,
    rig,
    until,
    way,
)

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
