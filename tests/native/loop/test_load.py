"""The real loop under load: random storms, and thousands of ports that come and go."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sys
import threading
from collections import Counter

import pytest

from ipvsw._fast import Datapath
from tests.native.interfaces import (
    FOREIGN,
    GSO_HEADER,
    HEADER,
    MASTER,
    Interface,
    Lab,
    between,
    broadcast,
    frame,
    ipv4,
    lab,
    v4,
    v6,
)
from tests.native.random_frames import GROUPS, V4, V6, random_frame, seed_from_environment
from tests.reference.rules import Port, Switch, decide_from_master, decide_from_port
from tests.support.patience import until

pytestmark = pytest.mark.usefixtures("io")

BACKLOG_OCTETS = 16 << 20  # bytes of multicast frames that may wait
STORM = 210_000  # frames, for each of five storms
PORTS = 5
PAGE = os.sysconf("SC_PAGE_SIZE")
QUARANTINE = 300 << 20 if "libasan" in os.environ.get("LD_PRELOAD", "") else 0  # what ASan does not give back


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes of memory in use."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * PAGE


def weather(rng: random.Random, it: Lab, mode: str, flag: str) -> Switch:
    """Ports of every kind, told to the datapath and written down for the model."""
    switch = Switch(MASTER, mode=mode, flag=flag)
    for number in range(PORTS):
        port = Port(
            up=number != 3, mtu=100 if number == 1 else 1500, all_multicast=number == 2, groups={GROUPS[1 + number % 4]}
        )
        switch.ports.append(port)
        it.datapath.set_port(number, up=port.up, mtu=port.mtu)
        it.datapath.set_groups(number, sorted(port.groups), all_multicast=port.all_multicast)
        it.datapath.unbind(v4(number))
        it.datapath.unbind(v6(number))
    for address in rng.sample(V4 + V6, 15):
        switch.table[address] = rng.randrange(PORTS)
        it.datapath.bind(address, switch.table[address])
    it.datapath.commit()
    return switch


# What a verdict can turn into when a device is full, in one bucket with what it would have been.
BUCKET = dict.fromkeys(("to_port", "to_master", "to_host", "drop_full"), "sent")
BUCKET |= dict.fromkeys(("to_ports", "to_route", "to_slowpath", "drop_backlog"), "queued")


@pytest.mark.parametrize(
    ("workers", "mode", "flag"),
    [(1, "l2", "bridge"), (3, "l2", "bridge"), (3, "l2", "private"), (2, "l3", "bridge"), (1, "l3s", "private")],
)
def test_in_a_storm_every_frame_ends_in_the_counter_that_the_model_names(workers: int, mode: str, flag: str) -> None:
    rng = random.Random(seed_from_environment())
    with lab(PORTS, workers=workers, mode=mode, flag=flag) as it:
        switch = weather(rng, it, mode, flag)
        frames = [random_frame(rng) for _ in range(4000)]
        ways: list[tuple[Interface, int | None, bytes, str]] = []
        for f in frames:
            port, gso = rng.randrange(PORTS), rng.random() < 0.2
            ended = decide_from_port(switch, f, gso).outcome
            ways.append((it.interfaces[port], port, (GSO_HEADER if gso else HEADER) + f, ended))
            ways.append((rng.choice(it.master), None, HEADER + f, decide_from_master(switch, f).outcome))
        sent: Counter[int] = Counter()
        received: Counter[int | None] = Counter()
        for n in range(STORM):
            way = rng.randrange(len(ways))
            ways[way][0].outside.send(ways[way][2])
            sent[way] += 1
            if n % 512 == 0:
                drain(it, received)
        expected: dict[int | None, Counter[str]] = {port: Counter() for port in [None, *range(PORTS)]}
        for way, times in sent.items():
            _, port, _, outcome = ways[way]
            expected[port][BUCKET.get(outcome, outcome)] += times
        until(
            lambda: all(it.counted(port).rx_frames >= wanted.total() for port, wanted in expected.items()),
            "all are read",
        )
        until(lambda: not give_back(it), "nothing waits for Python")
        for port, wanted in expected.items():
            counted = it.settled(port, wanted.total())
            assert counted.rx_frames == wanted.total()
            got: Counter[str] = Counter()
            for outcome, times in counted.outcomes.items():
                got[BUCKET.get(outcome, outcome)] += times
            assert got == wanted, port

        def everything_out() -> bool:
            drain(it, received)
            return all(received[port] == it.counted(port).tx_frames for port in [None, *range(PORTS)])

        until(everything_out, "as many frames out of the interfaces as were counted")


def drain(it: Lab, received: Counter[int | None]) -> None:
    for port, interface in enumerate(it.interfaces):
        received[port] += len(interface.waiting())
    for interface in it.master:
        received[None] += len(interface.waiting())
    it.host.waiting()
    it.datapath.slow()
    give_back(it)


def give_back(it: Lab) -> bool:
    """What was punted goes on by the rules. Whether there was any."""
    found = it.datapath.punted()
    for source, each in found:
        it.datapath.reinject(source, each)
    it.datapath.commit()
    return bool(found)


def test_ports_leave_under_load_and_their_descriptors_can_be_closed() -> None:
    """A descriptor that is closed after the commit, and used anew, must not be touched any more."""
    stop = threading.Event()
    with lab(3, workers=2) as it:

        def shower() -> None:
            while not stop.is_set():
                for f in (between(0, 1), between(0, 5), broadcast(0)):
                    it.interfaces[0].send(f)

        thread = threading.Thread(target=shower)
        thread.start()
        try:
            for _ in range(300):
                interface = Interface()
                number = it.add(interface, 5)
                it.datapath.commit()
                assert interface.receive() in (between(0, 5), broadcast(0))
                it.datapath.unbind(v4(5))
                it.datapath.unbind(v6(5))
                it.datapath.detach_port(number)
                it.datapath.commit()
                stranger_in, stranger_out = os.pipe()
                moved = os.dup2(stranger_out, interface.inside.detach())
                os.set_blocking(stranger_in, False)
                with contextlib.suppress(BlockingIOError):
                    pytest.fail(f"a frame went to a stranger: {os.read(stranger_in, 100)!r}")
                for fd in (stranger_in, stranger_out, moved):
                    os.close(fd)
                interface.close()
                drain(it, Counter())
        finally:
            stop.set()
            thread.join()


def test_thousands_of_ports_come_and_go_and_leave_nothing() -> None:
    with lab(1, workers=2) as it:
        interface = Interface()
        groups = [b"\x33\x33" + k.to_bytes(4, "big") for k in range(64)]

        def cycle(times: int) -> None:
            for k in range(times):
                number = it.add(interface, 5 + k % 200)
                it.datapath.set_groups(number, groups)
                it.datapath.commit()
                it.datapath.unbind(v4(5 + k % 200))
                it.datapath.unbind(v6(5 + k % 200))
                it.datapath.detach_port(number)
                it.datapath.commit()

        cycle(500)
        files, memory = open_files(), resident()
        cycle(5000)
        assert open_files() == files
        assert resident() - memory < QUARANTINE + (1 << 20)
        interface.close()


def test_floods_leave_no_memory_behind() -> None:
    with lab(3) as it:

        def flood(times: int) -> None:
            for _ in range(times):
                it.interfaces[0].send(broadcast(0, bytes(1400)))
                for interface in (it.interfaces[1], it.interfaces[2], it.master[0]):
                    interface.receive()

        flood(500)
        memory = resident()
        flood(5000)
        assert resident() - memory < QUARANTINE + (2 << 20)


def test_routes_and_frames_for_python_leave_no_memory_behind() -> None:
    with lab(1, workers=2, mode="l3") as it:
        sent = frame(FOREIGN, MASTER, ipv4(v4(0), bytes([192, 0, 2, 1]), bytes(1400)))

        def cycle(times: int) -> None:
            for _ in range(times):
                for k in range(2000):
                    it.datapath.set_route(bytes([198, 51, k >> 8, k & 255]), mac=FOREIGN)
                it.datapath.commit()
                for _ in range(100):
                    it.interfaces[0].send(sent)
                it.datapath.clear_routes()
                it.datapath.commit()
                it.datapath.slow()

        cycle(5)
        memory = resident()
        cycle(50)
        assert resident() - memory < QUARANTINE + (2 << 20)
        for _ in range(100):
            it.interfaces[0].send(sent)  # what still waits goes with the datapath


def test_a_hundred_ports_at_once_take_numbers_that_were_given_back() -> None:
    with lab(0) as it:
        interfaces = [Interface() for _ in range(100)]
        numbers = [it.datapath.attach_port(interface.inside.fileno(), 1500) for interface in interfaces]
        assert numbers == list(range(100))
        for gone in (3, 50, 98):
            it.datapath.detach_port(gone)
        it.datapath.commit()
        assert [it.datapath.attach_port(interfaces[k].inside.fileno(), 1500) for k in (3, 50, 98)] == [3, 50, 98]
        it.datapath.commit()
        for number in numbers:
            it.datapath.detach_port(number)
        it.datapath.commit()
        for interface in interfaces:
            interface.close()


def test_datapaths_come_and_go_and_leave_nothing() -> None:
    def cycle(times: int) -> None:
        for k in range(times):
            with lab(2, workers=1 + k % 3, start=bool(k % 2)) as it:
                it.interfaces[0].send(broadcast(0))

    cycle(10)
    files, memory, threads = open_files(), resident(), threading.active_count()
    cycle(100)
    assert open_files() == files
    assert threading.active_count() == threads
    assert resident() - memory < QUARANTINE + (8 << 20)
    Datapath(2)  # nobody closes it
    gc.collect()
    assert open_files() == files


def test_a_datapath_that_the_collector_finds_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    files = open_files()
    cycle: list[object] = [Datapath(2)]  # it is older than the rest of the cycle, so that the collector begins with it
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert open_files() == files
    assert complaints == []


def test_no_flow_is_reordered_by_several_workers() -> None:
    """Four ports on two workers, each flooding the next: what arrives of a flow arrives in order."""
    frames = 4000
    with lab(4, workers=2) as it:
        flows = [(a, (a + 1) % 4) for a in range(4)]

        def send(a: int, b: int) -> None:
            for n in range(frames):
                it.interfaces[a].send(between(a, b, n.to_bytes(8, "big")))

        threads = [threading.Thread(target=send, args=flow) for flow in flows]
        for thread in threads:
            thread.start()
        came: dict[int, list[int]] = {b: [] for _, b in flows}
        try:
            until(lambda: collected(it, came) and not any(t.is_alive() for t in threads), "all are sent")
        finally:
            for thread in threads:
                thread.join()
        for a, b in flows:
            counted = it.settled(a, frames)
            collected(it, came)
            assert len(came[b]) == counted.outcomes["to_port"]
            assert came[b] == sorted(came[b])


def collected(it: Lab, came: dict[int, list[int]]) -> bool:
    """Read what has come out by now: the numbers in the frames."""
    for b, numbers in came.items():
        numbers += [int.from_bytes(f[34:42], "big") for f in it.interfaces[b].waiting()]
    return True


def test_multicast_frames_that_wait_are_bounded_in_bytes() -> None:
    """An interface may have as many waiting as are left free."""
    with lab(2, start=False) as it:
        size = len(HEADER + broadcast(0, bytes(60_000)))
        expected = held = 0
        for port in (0, 1):
            for _ in range(200):
                it.datapath.announce(port, HEADER + broadcast(port, bytes(60_000)))
            it.datapath.commit()
            held = 0
            while held + size <= BACKLOG_OCTETS - expected * size:
                held, expected = held + size, expected + 1
        it.datapath.start()

        def left() -> bool:
            counted = it.counted(None)
            return counted.tx_frames + counted.tx_errors == expected

        until(left, f"{expected} frames leave on the wire")
        it.interfaces[0].send(broadcast(0))
        until(lambda: it.counted(0).outcomes == {"to_ports": 1}, "room again")
