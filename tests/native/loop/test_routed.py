"""The real loop in the modes l3 and l3s: siblings, the route cache, the slow path, and the host's own interface."""

from __future__ import annotations

import random
import select
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from tests.native._probe import offloaded
from tests.native.interfaces import (
    BROADCAST,
    FAR4,
    FAR6,
    FOREIGN,
    GSO_HEADER,
    HEADER,
    LONGEST,
    MASTER,
    Interface,
    Lab,
    between,
    frame,
    ipv4,
    ipv6,
    lab,
    v4,
    v6,
)
from tests.native.rules.test_route import ROUTER, folded, offload, rewritten, tcp4
from tests.support.patience import LIMIT, until
from tests.support.wire.packets import TCP, TCPV4, TCPV6, UDP, USO, Made

pytestmark = pytest.mark.usefixtures("io")

SLOW, SLOW_OCTETS = 256, 2 << 20  # frames, and bytes of them, that may wait for Python

ROUTED = pytest.mark.parametrize("mode", ["l3", "l3s"])


def out4(payload: bytes = b"payload.") -> bytes:
    """What port 0 sends to far away, by the MAC that it gives every neighbour."""
    return frame(MASTER, MASTER, ipv4(v4(0), FAR4, payload))


def out6() -> bytes:
    return frame(MASTER, MASTER, ipv6(v6(0), FAR6), 0x86DD)


def commit_route(it: Lab, address: bytes, mac: bytes = bytes(6), *, stack: bool = False, mtu: int = 65535) -> None:
    it.datapath.set_route(address, mac=mac, stack=stack, mtu=mtu)
    it.datapath.commit()


# ------------------------------------------------------------------------------------------ siblings and arrivals


@ROUTED
@pytest.mark.parametrize("mac", [MASTER, FOREIGN, BROADCAST, bytes.fromhex("01005e000001")])
def test_a_sibling_is_known_by_its_address_whatever_the_mac(mode: str, mac: bytes) -> None:
    with lab(2, mode=mode) as it:
        for sent in (
            frame(mac, MASTER, ipv4(v4(0), v4(1))),
            frame(mac, FOREIGN, ipv6(v6(0), v6(1)), 0x86DD),
        ):
            it.interfaces[0].send(sent)
            assert it.interfaces[1].receive() == sent
        assert it.settled(0, 2).outcomes == {"to_port": 2}


@ROUTED
def test_no_multicast_frame_leaves_a_port_and_nothing_but_ip(mode: str) -> None:
    with lab(2, mode=mode) as it:
        for sent in (
            frame(BROADCAST, MASTER, ipv4(v4(0), b"\xff" * 4)),
            frame(bytes.fromhex("01005e0000fb"), MASTER, ipv4(v4(0), bytes([224, 0, 0, 251]), protocol=2)),
            frame(FOREIGN, MASTER, b"\0\1\x08\0\6\4\0\1" + bytes(20), 0x0806),
            frame(FOREIGN, MASTER, bytes(60), 0x88B5),
            frame(MASTER, MASTER, ipv4(v4(0), v4(1)), tags=[b"\x81\0\0\7"]),
            frame(MASTER, MASTER, bytes(19)),
            bytes(13),
        ):
            it.interfaces[0].send(sent)
        assert it.settled(0, 7).outcomes == {"drop_multicast": 2, "drop_not_ip": 4, "drop_runt": 1}
        assert it.interfaces[1].waiting() == it.master[0].waiting() == it.host.waiting() == []
        assert it.datapath.slow() == []


@pytest.mark.parametrize(("mode", "outcome"), [("l3", "to_port"), ("l3s", "left_to_host")])
def test_arrivals_are_the_owners_or_pass_the_host_first(mode: str, outcome: str) -> None:
    with lab(2, mode=mode) as it:
        it.master[0].send(frame(MASTER, FOREIGN, ipv4(FAR4, v4(1))))
        it.master[0].send(frame(BROADCAST, FOREIGN, ipv4(FAR4, v4(0))))
        it.master[0].send(frame(BROADCAST, FOREIGN, ipv4(FAR4, b"\xff" * 4)))
        counted = it.settled(None, 3)
        assert counted.outcomes.pop(outcome) >= 2
        assert set(counted.outcomes) <= {"left_to_host"}
        if mode == "l3":
            assert it.interfaces[1].receive() == frame(MASTER, FOREIGN, ipv4(FAR4, v4(1)))
            assert it.interfaces[0].receive() == frame(BROADCAST, FOREIGN, ipv4(FAR4, v4(0)))
        assert it.interfaces[0].waiting() == it.interfaces[1].waiting() == []


# ------------------------------------------------------------------------------------------ the route cache


@ROUTED
def test_without_a_route_it_is_pythons_turn(mode: str) -> None:
    with lab(2, mode=mode, workers=2) as it:
        it.interfaces[0].send(out4())
        assert select.select([it.datapath.notify_fd], [], [], LIMIT)[0]
        it.interfaces[1].send(out6(), GSO_HEADER)
        assert it.settled(0, 1).outcomes == it.settled(1, 1).outcomes == {"to_slowpath": 1}
        assert it.datapath.events() == []
        assert sorted(it.datapath.slow()) == [(0, HEADER + out4()), (1, GSO_HEADER + out6())]
        assert it.datapath.slow() == []
        assert it.master[0].waiting() == it.master[1].waiting() == []


@ROUTED
def test_a_known_next_hop_gets_the_frame_with_another_header(mode: str) -> None:
    with lab(1, mode=mode) as it:
        it.datapath.set_route(FAR4, mac=ROUTER, mtu=1500)
        it.datapath.set_route(FAR6, mac=ROUTER, mtu=1500)
        it.datapath.commit()
        for sent in (out4(), out6()):
            it.interfaces[0].send(sent)
            assert it.master[0].receive() == rewritten(sent)
        counted = it.settled(0, 2)
        assert counted.outcomes == {"to_master": 2}
        assert it.counted(None).tx_frames == 2
        assert it.counted(None).tx_bytes == counted.rx_bytes


def test_padding_becomes_payload_and_a_bad_length_is_mended() -> None:
    with lab(1, mode="l3") as it:
        commit_route(it, FAR4, ROUTER)
        for packet in (ipv4(v4(0), FAR4) + bytes(18), b"\x45\0\xff\xff" + ipv4(v4(0), FAR4)[4:]):
            it.interfaces[0].send(frame(FOREIGN, MASTER, packet))
            left = it.master[0].receive()[14:]
            assert int.from_bytes(left[2:4], "big") == len(left) == len(packet)
            assert folded(left[:20]) == 0xFFFF


def test_the_masters_mac_is_the_source_also_when_it_is_another() -> None:
    with lab(1, mode="l3") as it:
        commit_route(it, FAR4, ROUTER)
        it.datapath.set_master(FOREIGN)
        it.datapath.commit()
        it.interfaces[0].send(out4())
        assert it.master[0].receive()[:12] == ROUTER + FOREIGN


def test_no_way_is_counted() -> None:
    with lab(1, mode="l3") as it:
        commit_route(it, FAR4)
        it.interfaces[0].send(out4())
        assert it.settled(0, 1).outcomes == {"drop_no_route": 1}
        assert it.datapath.slow() == it.master[0].waiting() == []


def test_what_is_too_long_for_its_path_waits_for_python() -> None:
    with lab(1, mode="l3") as it:
        commit_route(it, FAR4, ROUTER, mtu=1280)
        just = out4(bytes(1280 - 20))
        it.interfaces[0].send(just)
        assert it.master[0].receive() == rewritten(just)
        it.interfaces[0].send(out4(bytes(1281 - 20)))
        assert it.settled(0, 2).outcomes == {"to_master": 1, "to_slowpath": 1}
        assert it.datapath.slow() == [(0, HEADER + out4(bytes(1281 - 20)))]


def test_a_gso_frame_is_measured_by_its_segments() -> None:
    with lab(1, mode="l3") as it:
        commit_route(it, FAR4, ROUTER, mtu=1500)
        sent = frame(MASTER, MASTER, tcp4(40_000)[14:30] + FAR4 + tcp4(40_000)[34:])
        fits, does_not = offload(TCPV4, 34, 1460), offload(TCPV4, 34, 1461)
        it.interfaces[0].send(sent, fits)
        assert it.master[0].outside.recv(LONGEST) == fits + rewritten(sent)
        it.interfaces[0].send(sent, does_not)
        it.interfaces[0].send(sent)
        assert it.settled(0, 3).outcomes == {"to_master": 1, "to_slowpath": 2}
        assert it.datapath.slow() == [(0, does_not + sent), (0, HEADER + sent)]


@contextmanager
def with_stack(ports: int = 1) -> Iterator[tuple[Lab, list[Interface]]]:
    """The raw sockets of IPv4 and IPv6 as socket pairs, which take packets for any address."""
    pairs = [Interface(), Interface()]
    with lab(ports, mode="l3s", master=False) as it:
        masters = [one.inside.fileno() for one in it.master]
        sockets = pairs[0].inside.fileno(), pairs[1].inside.fileno()
        it.datapath.attach_master(masters, it.host.inside.fileno(), MASTER, stack_fds=sockets)
        for address in (FAR4, FAR6):
            commit_route(it, address, stack=True)
        for pair in pairs:
            pair.room(1 << 22)
        yield it, pairs
    for pair in pairs:
        pair.close()


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
def test_a_raw_socket_gets_whole_packets_alone(version: int, protocol: int) -> None:
    """GSO frames as segments, a hundred of them too, and partial checksums complete."""
    gso = USO if protocol == UDP else TCPV4 if version == 4 else TCPV6
    ends = (v4(0), FAR4) if version == 4 else (v6(0), FAR6)
    with with_stack() as (it, stack):
        sent = [
            Made(version, protocol, random.Random(size).randbytes(length), source=ends[0], destination=ends[1]).frame(
                gso if size else 0, size
            )
            for length, size in [(8, 0), (1400, 0), (3001, 1400), (50_000, 500), (20, 1400), (17, 0)]
        ]
        for one in sent:
            it.interfaces[0].outside.send(one)
            wanted = offloaded(one)
            assert wanted is not None
            assert [stack[version == 6].outside.recv(LONGEST) for _ in wanted] == [packet[14:] for packet in wanted]
        assert it.settled(0, len(sent)).outcomes == {"to_stack": len(sent)}


def test_what_contradicts_itself_is_for_python_to_count() -> None:
    with with_stack() as (it, stack):
        for lie in (offload(TCPV4, 34, 100), bytes([1, 0, 0, 0, 0, 0, 34, 0, 60, 0])):
            it.interfaces[0].send(out4(), lie)
        assert it.settled(0, 2).outcomes == {"to_slowpath": 2}
        assert stack[0].waiting() == []


@pytest.mark.parametrize("header", [HEADER, bytes([1, 0, 0, 0, 0, 0, 34, 0, 6, 0])], ids=["plain", "partial"])
def test_without_a_raw_socket_it_is_counted(header: bytes) -> None:
    with lab(1, mode="l3") as it:
        commit_route(it, FAR4, stack=True)
        it.interfaces[0].send(out4(), header)
        assert it.settled(0, 1).outcomes == {"drop_error": 1}


def test_an_answer_replaces_an_older_one_and_all_can_be_forgotten() -> None:
    with lab(1, mode="l3", workers=2) as it:
        commit_route(it, FAR4)
        commit_route(it, FAR4, ROUTER)
        it.interfaces[0].send(out4())
        assert it.master[0].receive() == rewritten(out4())
        it.datapath.clear_routes()
        it.interfaces[0].send(out4())
        assert it.master[0].receive() == rewritten(out4()), "not before the commit"
        it.datapath.commit()
        it.interfaces[0].send(out4())
        assert it.settled(0, 3).outcomes == {"to_master": 2, "to_slowpath": 1}
        commit_route(it, FAR4, ROUTER)
        it.interfaces[0].send(out4())
        assert it.master[0].receive() == rewritten(out4())


def test_the_destinations_in_use_are_told_once() -> None:
    with lab(2, mode="l3", workers=2) as it:
        for far in (FAR4, FAR6, v4(200)):
            it.datapath.set_route(far, mac=ROUTER)
        it.datapath.commit()
        assert it.datapath.used_routes() == set()
        it.interfaces[0].send(out4())
        it.interfaces[1].send(out4())
        it.interfaces[1].send(out6())
        it.settled(0, 1)
        it.settled(1, 2)
        assert it.datapath.used_routes() == {ip_address(FAR4), ip_address(FAR6)}
        assert it.datapath.used_routes() == set()


def test_ten_thousand_destinations_find_their_own() -> None:
    with lab(1, mode="l3") as it:
        far = [bytes([192, 0, n >> 8, n & 255]) for n in range(10_000)]
        for n, address in enumerate(far):
            it.datapath.set_route(address, mac=b"\2\0" + n.to_bytes(4, "big"))
        it.datapath.commit()
        for n in range(0, 10_000, 97):
            it.interfaces[0].send(frame(MASTER, MASTER, ipv4(v4(0), far[n])))
            assert it.master[0].receive()[:6] == b"\2\0" + n.to_bytes(4, "big")


def test_few_wait_for_python_and_the_rest_is_counted() -> None:
    """A port may have as many there as are left free: half, of the rest half, and so on."""
    with lab(3, mode="l3") as it:
        for port, share in enumerate((SLOW // 2, SLOW // 4, SLOW // 8)):
            for _ in range(SLOW):
                it.interfaces[port].send(out4())
            assert it.settled(port, SLOW).outcomes == {"to_slowpath": share, "drop_backlog": SLOW - share}
        it.interfaces[1].send(between(1, 0))
        assert it.interfaces[0].receive() == between(1, 0), "nobody else has to wait"
        waiting = [port for port, _ in it.datapath.slow()]
        assert waiting == [0] * (SLOW // 2) + [1] * (SLOW // 4) + [2] * (SLOW // 8)
        it.interfaces[0].send(out4())
        until(lambda: it.datapath.slow() == [(0, HEADER + out4())], "room again")


def test_what_waits_for_python_is_bounded_in_bytes() -> None:
    with lab(3, mode="l3") as it:
        long = out4(bytes(60_000))
        size, total = len(HEADER + long), 0
        for port in (0, 1):
            held = 0
            while held + size <= SLOW_OCTETS - total:
                held, total = held + size, total + size
            for _ in range(SLOW // 4):
                it.interfaces[port].send(long)
            taken = held // size
            assert it.settled(port, SLOW // 4).outcomes == {"to_slowpath": taken, "drop_backlog": SLOW // 4 - taken}
        it.interfaces[2].send(out4())
        assert it.settled(2, 1).outcomes == {"to_slowpath": 1}, "a short one finds room"
        assert sum(len(waiting) for _, waiting in it.datapath.slow()) == total + len(HEADER + out4())
        it.interfaces[0].send(long)
        until(lambda: it.datapath.slow() == [(0, HEADER + long)], "room again")


def test_what_a_port_that_left_had_waiting_is_nobodys() -> None:
    with lab(2, mode="l3") as it:
        for _ in range(SLOW):
            it.interfaces[0].send(out4())
        it.settled(0, SLOW)
        for address in (v4(0), v6(0)):
            it.datapath.unbind(address)
        it.datapath.detach_port(0)
        it.datapath.commit()
        assert len(it.datapath.slow()) == SLOW // 2
        for _ in range(SLOW):
            it.interfaces[1].send(out6())
        assert it.settled(1, SLOW).outcomes == {"to_slowpath": SLOW // 2, "drop_backlog": SLOW // 2}


def test_a_route_that_is_forgotten_is_pythons_turn_again() -> None:
    with lab(1, mode="l3") as it:
        commit_route(it, FAR4, ROUTER)
        commit_route(it, FAR6, ROUTER)
        it.datapath.forget_route(FAR4)
        it.datapath.forget_route(bytes(4))
        it.datapath.commit()
        it.interfaces[0].send(out4())
        it.interfaces[0].send(out6())
        assert it.settled(0, 2).outcomes == {"to_slowpath": 1, "to_master": 1}


def test_without_a_master_routed_frames_are_counted() -> None:
    with lab(1, mode="l3", master=False) as it:
        commit_route(it, FAR4, ROUTER)
        it.interfaces[0].send(out4())
        assert it.settled(0, 1).outcomes == {"drop_no_master": 1}


def test_bad_routes_are_refused() -> None:
    with lab(1, mode="l3") as it:
        for error, call in (
            (ValueError, lambda: it.datapath.set_route(b"12345")),
            (ValueError, lambda: it.datapath.set_route(FAR4, mac=b"12345")),
            (TypeError, lambda: it.datapath.set_route(None)),  # type: ignore[arg-type]
            (OverflowError, lambda: it.datapath.set_route(FAR4, mtu=-1)),
        ):
            with pytest.raises(error):
                call()
        it.datapath.commit()
        it.interfaces[0].send(out4())
        assert it.settled(0, 1).outcomes == {"to_slowpath": 1}
