"""The real loop over socket pairs: who gets which frame, and that each is counted once."""

from __future__ import annotations

import select
import threading

import pytest

from ipvsw._fast import ACCESS, EVENT_GONE, EVENT_GROUPS, FLAGS, MODES
from tests.native.interfaces import (
    FOREIGN,
    GSO_HEADER,
    LONGEST,
    MASTER,
    MDNS,
    between,
    broadcast,
    frame,
    ipv4,
    lab,
    v4,
    v6,
)
from tests.support.patience import LIMIT, until

pytestmark = pytest.mark.usefixtures("io")


@pytest.mark.parametrize("workers", [1, 3])
def test_unicast_between_siblings_and_to_the_wire(workers: int) -> None:
    with lab(4, workers=workers) as it:
        for a in range(4):
            b = (a + 1) % 4
            it.interfaces[a].send(between(a, b))
            assert it.interfaces[b].receive() == between(a, b)
            out = frame(FOREIGN, MASTER, ipv4(v4(a), v4(99)))
            it.interfaces[a].send(out)
            assert it.master[a % workers].receive() == out
            counted = it.settled(a, 2)
            assert counted.outcomes == {"to_port": 1, "to_master": 1}
            assert counted.rx_bytes == len(between(a, b)) + len(out)
        assert it.counted(1).tx_frames == 1
        assert it.counted(1).tx_bytes == len(between(0, 1))
        assert it.counted(None).tx_frames == 4


def test_ipv6_and_the_header_pass_unchanged() -> None:
    with lab(2) as it:
        packet = b"\x60\0\0\0\0\x08\x11\x40" + v6(0) + v6(1) + b"payload."
        header = bytes([1, 4, 66, 0, 0xA0, 0x05, 54, 0, 16, 0])  # partial checksum, TSO for IPv6
        it.interfaces[0].send(frame(MASTER, MASTER, packet, 0x86DD), header)
        assert it.interfaces[1].outside.recv(LONGEST) == header + frame(MASTER, MASTER, packet, 0x86DD)


def test_a_gso_frame_passes_whole_and_a_large_plain_one_does_not() -> None:
    with lab(2) as it:
        large = between(0, 1, bytes(65000))
        it.interfaces[0].send(large, GSO_HEADER)
        assert it.interfaces[1].receive() == large
        it.interfaces[0].send(large)
        just = between(0, 1, bytes(1500 - 20 + 4))
        it.interfaces[0].send(just + b"!")
        it.interfaces[0].send(just)
        assert it.interfaces[1].receive() == just
        assert it.settled(0, 4).outcomes == {"to_port": 2, "drop_too_big": 2}


def test_arrivals_go_to_the_owner_or_are_the_hosts() -> None:
    with lab(2) as it:
        mine, other = (frame(MASTER, FOREIGN, ipv4(v4(50), v4(k))) for k in (1, 40))
        it.master[0].send(other)
        it.master[0].send(mine)
        assert it.interfaces[1].receive() == mine
        assert it.settled(None, 2).outcomes == {"to_port": 1, "left_to_host": 1}


def test_what_nobody_owns_is_injected_and_a_tag_hides_nothing_from_the_host() -> None:
    with lab(2) as it:
        up = frame(MASTER, MASTER, ipv4(v4(0), v4(77)))
        it.interfaces[0].send(up)
        assert it.host.receive() == up
        tagged = frame(MASTER, MASTER, ipv4(v4(0), v4(1)), tags=[b"\x81\0\0\7"])
        it.interfaces[0].send(tagged)
        assert it.interfaces[1].receive() == tagged
        assert it.settled(0, 2).outcomes == {"to_host": 1, "to_port": 1}


def test_without_a_master_frames_for_it_are_counted() -> None:
    with lab(2, master=False) as it:
        it.interfaces[0].send(frame(FOREIGN, MASTER, ipv4(v4(0), v4(99))))
        it.interfaces[0].send(frame(MASTER, MASTER, ipv4(v4(0), v4(99))))
        it.interfaces[0].send(between(0, 1))
        assert it.interfaces[1].receive() == between(0, 1)
        assert it.settled(0, 3).outcomes == {"drop_no_master": 2, "to_port": 1}


@pytest.mark.parametrize(
    ("flag", "outcome"), [("bridge", "to_port"), ("private", "drop_private"), ("vepa", "to_master")]
)
def test_the_flag_decides_between_siblings_and_may_change(flag: str, outcome: str) -> None:
    with lab(2, flag=flag) as it:
        it.interfaces[0].send(between(0, 1))
        assert it.settled(0, 1).outcomes == {outcome: 1}
        it.datapath.set_mode(MODES["l2"], FLAGS["bridge"])
        it.datapath.commit()
        it.interfaces[0].send(between(0, 1, b"second.."))
        until(lambda: between(0, 1, b"second..") in it.interfaces[1].waiting(), "the second frame")


def test_nothing_changes_before_the_commit_and_all_at_once_after() -> None:
    with lab(3) as it:
        it.datapath.unbind(v4(1))
        it.datapath.bind(v4(1), it.numbers[2])
        it.interfaces[0].send(between(0, 1))
        assert it.interfaces[1].receive() == between(0, 1)
        it.datapath.commit()
        it.interfaces[0].send(between(0, 1))
        assert it.interfaces[2].receive() == between(0, 1)
        assert it.settled(0, 2).outcomes == {"to_port": 2}


@pytest.mark.parametrize(("workers", "start"), [(1, True), (3, True), (2, False)])
def test_more_changes_than_a_worker_makes_at_once_are_all_made_in_their_order(workers: int, start: bool) -> None:
    many = [bytes([10, 9, k >> 7, k & 127]) for k in range(5000)]
    with lab(3, workers=workers, start=start) as it:
        it.datapath.bind_all(many, it.numbers[1])
        it.datapath.bind_all(many[::2], it.numbers[2])
        for address in many[::3]:
            it.datapath.unbind(address)
        it.datapath.commit()
        if not start:
            it.datapath.start()
        for k in (0, 1, 2, 255, 256, 257, 3001, 4998, 4999):
            out = frame(MASTER, MASTER, ipv4(v4(0), many[k]))
            it.interfaces[0].send(out)
            interface = it.host if k % 3 == 0 else it.interfaces[1] if k % 2 else it.interfaces[2]
            assert interface.receive() == out


def test_a_frame_waits_for_no_more_than_a_slice_of_a_long_commit() -> None:
    """While a hundred thousand addresses are bound, others go on being found."""
    with lab(2) as it:
        stop, arrived = threading.Event(), 0

        def ask() -> None:
            nonlocal arrived
            while not stop.is_set():
                it.interfaces[0].send(between(0, 1))
                it.interfaces[1].receive()
                arrived += 1

        def commit() -> bool:
            it.datapath.bind_all(many, it.numbers[1])
            before = arrived
            it.datapath.commit()
            return arrived - before > 2

        many = [(0x0B000000 + k).to_bytes(4, "big") for k in range(100_000)]
        thread = threading.Thread(target=ask)
        thread.start()
        try:
            until(lambda: arrived > 10, "frames before the commit")
            until(commit, "frames that arrive during a commit")
        finally:
            stop.set()
            thread.join()
        assert it.settled(0, arrived).outcomes == {"to_port": arrived}


def test_a_port_that_is_down_receives_nothing() -> None:
    with lab(3) as it:
        it.datapath.set_port(it.numbers[1], up=False, mtu=1500)
        it.datapath.commit()
        it.interfaces[0].send(between(0, 1))
        it.interfaces[0].send(broadcast(0))
        it.master[0].send(frame(MASTER, FOREIGN, ipv4(v4(9), v4(1))))
        assert it.interfaces[2].receive() == broadcast(0)
        assert it.settled(0, 2).outcomes == {"drop_port_down": 1, "to_ports": 1}
        assert it.settled(None, 1).outcomes == {"left_to_host": 1}
        assert it.interfaces[1].waiting() == []


# ------------------------------------------------------------------------------------------ multicast frames


def test_more_frames_for_the_wire_than_one_call_sends_all_go_in_order() -> None:
    with lab(6, start=False) as it:
        it.master[0].room(1 << 22)
        out = [[frame(FOREIGN, MASTER, ipv4(v4(a), v4(99), bytes([a, n]))) for n in range(60)] for a in range(6)]
        for a, interface in enumerate(it.interfaces):
            for sent in out[a]:
                interface.send(sent)
            interface.send(broadcast(a))
        it.datapath.start()
        for a in range(6):
            assert it.settled(a, 61).outcomes == {"to_master": 60, "to_ports": 1}
        came = [it.master[0].receive() for _ in range(6 * 61)]
        for a in range(6):
            assert [f for f in came if f in out[a]] == out[a]
            assert broadcast(a) in came


# ------------------------------------------------------------------------------------------ trouble


def test_a_full_receiver_loses_only_its_own_frames() -> None:
    with lab(4) as it:
        for n in range(2000):
            it.interfaces[0].send(between(0, 1, n.to_bytes(8, "big")))
            it.interfaces[0].send(between(0, 2, n.to_bytes(8, "big")))
            assert it.interfaces[2].receive() == between(0, 2, n.to_bytes(8, "big"))
        counted = it.settled(0, 4000)
        kept = it.interfaces[1].waiting()
        assert kept == [between(0, 1, n.to_bytes(8, "big")) for n in range(len(kept))], "the first stay, in order"
        assert counted.outcomes == {"to_port": 2000 + len(kept), "drop_full": 2000 - len(kept)}
        assert it.counted(1).tx_errors == 2000 - len(kept) > 0
        it.interfaces[0].send(between(0, 1))
        assert it.interfaces[1].receive() == between(0, 1)


def test_a_full_wire_is_counted_with_the_sender() -> None:
    with lab(2) as it:
        out = frame(FOREIGN, MASTER, ipv4(v4(0), v4(99)))
        for _ in range(2000):
            it.interfaces[0].send(out)
        counted = it.settled(0, 2000)
        passed = len(it.master[0].waiting())
        assert counted.outcomes == {"to_master": passed, "drop_full": 2000 - passed}
        assert it.counted(None).tx_frames == passed
        assert it.counted(None).tx_errors == 2000 - passed > 0


def test_a_frame_longer_than_any_is_dropped() -> None:
    with lab(1) as it:
        it.master[0].room(1 << 20)
        it.master[0].send(frame(MASTER, FOREIGN, bytes(66000)))
        assert it.settled(None, 1).outcomes == {"drop_error": 1}


def test_runts_and_pauses() -> None:
    with lab(2) as it:
        for length in (0, 1, 13):
            it.interfaces[0].send(bytes(length))
            it.master[0].send(bytes(length))
        it.interfaces[0].send(frame(bytes.fromhex("0180c2000001"), MASTER, bytes(46), 0x8808))
        assert it.settled(0, 4).outcomes == {"drop_runt": 3, "drop_pause": 1}
        assert it.settled(None, 3).outcomes == {"drop_runt": 3}


def test_a_port_that_is_gone_is_told_once_and_costs_nothing() -> None:
    with lab(3) as it:
        assert it.datapath.events() == []
        it.interfaces[1].outside.close()
        assert select.select([it.datapath.notify_fd], [], [], LIMIT)[0]
        assert it.datapath.events() == [(1, EVENT_GONE)]
        assert it.datapath.events() == []
        assert not select.select([it.datapath.notify_fd], [], [], 0)[0]
        it.interfaces[0].send(between(0, 1))
        it.interfaces[0].send(between(0, 2))
        assert it.interfaces[2].receive() == between(0, 2)
        # What an io_uring could not write is counted anew when it says so.
        until(lambda: it.counted(0).outcomes == {"drop_error": 1, "to_port": 1}, "the counts")
        it.datapath.unbind(v4(1))
        it.datapath.unbind(v6(1))
        it.datapath.detach_port(1)
        it.datapath.commit()
        assert it.datapath.events() == []


def test_membership_reports_raise_an_event_and_are_flooded() -> None:
    with lab(2) as it:
        report = frame(MDNS, MASTER, ipv4(v4(0), bytes([224, 0, 0, 251]), bytes(8), protocol=2))
        it.interfaces[0].send(report)
        assert it.master[0].receive() == report
        until(lambda: select.select([it.datapath.notify_fd], [], [], 0)[0], "an event")
        assert it.datapath.events() == [(0, EVENT_GROUPS)]
        it.master[0].send(frame(MDNS, FOREIGN, report[14:]))  # of the wire nobody needs to know
        it.settled(None, 1)
        assert it.datapath.events() == []


@pytest.mark.parametrize(("access", "outcome"), [("none", "drop_multicast"), ("both", "to_host")])
def test_membership_reports_raise_an_event_where_they_are_not_flooded(access: str, outcome: str) -> None:
    with lab(1, mode="l3") as it:
        it.datapath.set_mode(MODES["l3"], FLAGS["bridge"], ACCESS[access])
        it.datapath.commit()
        all_reports = bytes.fromhex("01005e000016")
        report = frame(all_reports, MASTER, ipv4(v4(0), bytes([224, 0, 0, 22]), bytes(16), protocol=2))
        it.interfaces[0].send(report)
        assert it.settled(0, 1).outcomes == {outcome: 1}
        until(lambda: select.select([it.datapath.notify_fd], [], [], 0)[0], "an event")
        assert it.datapath.events() == [(0, EVENT_GROUPS)]
