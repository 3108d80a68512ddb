"""Frames copied for readers: each as it was read, with how it ended, and as it was written."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from ipvsw._fast import ACCESS, CAPTURE_RING, FLAGS, GUARDS, MODES, OUTCOMES
from ipvsw.capture.ring import HELD, HOST, RECORD, RX, TX, WIRE, Captured, Rings
from tests.native.interfaces import (
    BROADCAST,
    FOREIGN,
    GSO_HEADER,
    MASTER,
    Interface,
    Lab,
    between,
    broadcast,
    frame,
    ipv4,
    lab,
    v4,
)
from tests.support.patience import until
from tests.support.wire.attacks import arp

HEAD, SIZE, RECORD_SIZE = CAPTURE_RING
OWN = bytes.fromhex("0a0000000007")


class Reader:
    """Reads every record of a datapath; port k has the tag k + 3."""

    def __init__(self, made: Lab, ports: tuple[int, ...] = (0, 1, 2), wire: bool = True, host: bool = True) -> None:
        self.datapath = made.datapath
        fd = made.datapath.open_capture()
        made.datapath.capture(None, wire)
        made.datapath.capture("host", host)
        for number in made.numbers:
            made.datapath.capture(number, number in ports, number + 3)
        made.datapath.commit()
        self.rings = Rings(fd, head=HEAD, size=SIZE)
        self.seen: list[Captured] = []

    def read(self, count: int) -> list[Captured]:
        """Once there are so many, all."""

        def enough() -> bool:
            self.seen += self.rings.read()
            return len(self.seen) >= count

        until(enough, f"{count} frames")
        found, self.seen = self.seen, []
        return found


def ends(found: list[Captured]) -> list[tuple[int, int, str, int]]:
    """Direction, interface, outcome and peer of each, as they came."""
    names = {HELD: "held", **dict(enumerate(OUTCOMES))}
    return [
        (one.direction, one.interface, names[one.outcome] if one.direction == RX else "", one.peer) for one in found
    ]


@pytest.fixture
def made(io: str) -> Iterator[Lab]:
    with lab() as found:
        yield found


def test_the_layout_is_that_of_the_writer() -> None:
    assert RECORD.size == RECORD_SIZE


def test_a_frame_between_ports_is_there_as_read_and_as_written(made: Lab) -> None:
    reader = Reader(made)
    made.interfaces[0].send(between(0, 1))
    assert made.interfaces[1].receive() == between(0, 1)
    found = reader.read(2)
    assert ends(found) == [(RX, 3, "to_port", 4), (TX, 4, "", 3)]
    assert {one.frame for one in found} == {between(0, 1)} and found[0].time <= found[1].time


def test_many_frames_at_once_have_their_outcomes(made: Lab) -> None:
    """With io_uring their writes end later, and some fail: the receiver's queue is full."""
    reader = Reader(made)
    frames = 2000
    made.interfaces[1].room(1 << 16)
    for k in range(frames):
        made.interfaces[0].send(between(0, 1, bytes(60 + k % 1000)))
    counted = made.settled(0, frames).outcomes
    assert counted["to_port"] < frames
    found = reader.read(frames + counted["to_port"])
    names = [name for _, interface, name, _ in ends(found) if interface == 3]
    assert {name: names.count(name) for name in set(names)} == counted
    assert [one.frame for one in found if one.direction == TX] == made.interfaces[1].waiting()


def test_drops_are_captured_with_their_reason(made: Lab) -> None:
    reader = Reader(made)
    made.datapath.set_mode(MODES["l2"], FLAGS["private"], ACCESS["none"])
    made.datapath.set_guards(2, sum(GUARDS.values()))
    made.datapath.commit()
    made.interfaces[0].send(between(0, 1))
    made.interfaces[0].send(bytes(6))
    made.interfaces[2].send(between(0, 1))
    found = reader.read(3)
    assert sorted(ends(found)) == [
        (RX, 3, "drop_private", 0),
        (RX, 3, "drop_runt", 0),
        (RX, 5, "guard_ip_source", 0),
    ]
    assert bytes(6) in [one.frame for one in found]


def test_the_wire_both_ways(made: Lab) -> None:
    reader = Reader(made)
    out = frame(FOREIGN, MASTER, ipv4(v4(0), v4(9)))
    back = frame(MASTER, FOREIGN, ipv4(v4(9), v4(0)))
    made.interfaces[0].send(out)
    assert made.master[0].receive() == out
    assert ends(reader.read(2)) == [(RX, 3, "to_master", 0), (TX, WIRE, "", 3)]
    made.master[0].send(back)
    assert made.interfaces[0].receive() == back
    assert ends(reader.read(2)) == [(RX, WIRE, "to_port", 3), (TX, 3, "", WIRE)]


def test_multicast_is_there_once_read_and_as_each_copy(made: Lab) -> None:
    reader = Reader(made)
    made.interfaces[0].send(broadcast(0))
    found = ends(reader.read(4))
    assert found[0] == (RX, 3, "to_ports", 0)
    assert sorted(found[1:]) == [(TX, WIRE, "", 0), (TX, 4, "", 3), (TX, 5, "", 3)]


def test_what_is_for_the_host_is_seen(made: Lab) -> None:
    reader = Reader(made)
    made.datapath.set_mode(MODES["l2"], FLAGS["bridge"], ACCESS["both"])
    made.datapath.bind_host(v4(200))
    made.datapath.commit()
    made.interfaces[0].send(frame(MASTER, MASTER, ipv4(v4(0), v4(200))))
    assert ends(reader.read(2)) == [(RX, 3, "to_host", HOST), (TX, HOST, "", 3)]


def test_a_held_frame_is_there_twice(made: Lab) -> None:
    reader = Reader(made)
    probe = frame(BROADCAST, MASTER, arp(bytes(4), v4(9), mac=MASTER), 0x0806)
    made.interfaces[0].send(probe)
    assert ends(reader.read(1)) == [(RX, 3, "held", 0)]
    ((source, held),) = until(made.datapath.punted, "the punted frame")
    made.datapath.reinject(source, held)
    made.datapath.commit()
    found = reader.read(4)
    assert ends(found)[0] == (RX, 3, "to_ports", 0) and found[0].again


def test_mac_nat_is_seen_on_both_sides(made: Lab) -> None:
    endpoint = Interface()
    made.numbers.append(made.add(endpoint, 5, own=OWN))
    reader = Reader(made, ports=(3,))
    asked = frame(FOREIGN, OWN, ipv4(v4(5), v4(9)))
    endpoint.send(asked)
    rewritten = made.master[0].receive()
    assert [one.frame for one in reader.read(2)] == [asked, rewritten] and rewritten != asked
    endpoint.close()


def test_a_gso_frame_is_whole(made: Lab) -> None:
    reader = Reader(made)
    long = between(0, 1, bytes(9000))
    made.interfaces[0].send(long, GSO_HEADER)
    assert made.interfaces[1].receive() == long
    found = reader.read(2)
    assert [one.frame for one in found] == [long, long] and {one.header for one in found} == {GSO_HEADER}


def test_only_what_was_asked_for_is_copied(made: Lab) -> None:
    reader = Reader(made, ports=(1,), wire=False, host=False)
    made.interfaces[0].send(between(0, 2))
    assert made.interfaces[2].receive() == between(0, 2)
    made.interfaces[0].send(between(0, 1))
    assert ends(reader.read(1)) == [(TX, 4, "", 3)]
    made.interfaces[1].send(between(1, 0))
    assert ends(reader.read(1)) == [(RX, 4, "to_port", 3)]


def test_a_slow_reader_is_told_what_it_has_lost(made: Lab) -> None:
    reader = Reader(made, ports=(0,), wire=False, host=False)
    long, sent = between(0, 1, bytes(60_000)), 0
    made.interfaces[0].send(between(0, 1))
    reader.read(1)
    while sent * len(long) < 2 * SIZE:
        made.interfaces[0].send(long, GSO_HEADER)
        assert made.interfaces[1].receive()[:20]
        sent += 1
    made.settled(0, 1 + sent)
    seen = list(reader.rings.read())
    made.interfaces[0].send(between(0, 1))
    seen += reader.read(1)
    assert reader.rings.lost == 1 + sent - len(seen) and reader.rings.lost > 0


def test_the_memory_can_be_neither_written_nor_cut(made: Lab) -> None:
    fd = made.datapath.open_capture()
    made.datapath.commit()
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 0)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_it_ends_and_begins_again(made: Lab) -> None:
    for _ in range(3):
        reader = Reader(made)
        with pytest.raises(RuntimeError):
            made.datapath.open_capture()
        made.interfaces[0].send(between(0, 1))
        assert made.interfaces[1].receive() == between(0, 1)
        assert len(reader.read(2)) == 2
        made.datapath.close_capture()
        made.datapath.commit()
        made.interfaces[0].send(between(0, 1))
        assert made.interfaces[1].receive() == between(0, 1)
