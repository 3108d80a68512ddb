"""The router's queue: shares, turns and age, by example and against a naive model."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ipvsw.model import Address
from ipvsw.routing.fairqueue import FairQueue

SOURCE = ip_address("10.2.0.11")
FRAMES, OCTETS, PATIENCE = 16, 4000, 10.0


def target(n: int) -> Address:
    return ip_address("192.0.2.0") + n


def queue() -> FairQueue:
    return FairQueue(frames=FRAMES, octets=OCTETS, patience=PATIENCE)


def fill(it: FairQueue, port: int, targets: range, size: int = 1) -> int:
    """How many frames, one for each destination, there was room for."""
    return sum(it.put(port, SOURCE, target(n), bytes([n]) * size, 0) for n in targets)


def test_ports_take_turns_and_so_do_their_destinations() -> None:
    it = queue()
    for port, destination in ((1, 1), (1, 1), (1, 2), (1, 3), (2, 9), (3, 1)):
        assert it.put(port, SOURCE, target(destination), bytes([destination]), 0)
    turns = it.take(10, OCTETS, 0)
    assert [(turn.port, turn.destination) for turn in turns] == [
        (1, target(1)), (2, target(9)), (3, target(1)), (1, target(2)), (1, target(3)),
    ]  # fmt: skip
    assert turns[0].frames == (b"\1", b"\1"), "one question for both"
    assert not it and it.take(10, OCTETS, 0) == []


def test_one_port_has_half_of_the_room_and_leaves_some_to_each_that_comes() -> None:
    it = queue()
    assert fill(it, 1, range(50)) == FRAMES // 2
    assert fill(it, 2, range(50)) == FRAMES // 4
    assert fill(it, 3, range(50)) == FRAMES // 8
    assert it.counters == {"drop_backlog": 150 - 14}


def test_long_frames_are_bounded_in_bytes() -> None:
    it = queue()
    assert fill(it, 1, range(50), size=500) == OCTETS // 500 // 2
    assert fill(it, 2, range(50), size=500) == OCTETS // 500 // 4
    assert fill(it, 3, range(50)) > 0, "short ones still find room"


def test_a_piece_is_bounded_in_turns_and_in_bytes() -> None:
    it = queue()
    fill(it, 1, range(8))
    assert len(it.take(3, OCTETS, 0)) == 3
    assert [len(turn.frames) for turn in it.take(9, 2, 0)] == [1, 1]
    for _ in range(2):
        it.put(2, SOURCE, target(1), bytes(500), 0)
    turns = it.take(9, 400, 0)
    assert [(turn.port, len(turn.frames)) for turn in turns] == [(1, 1), (2, 1)], "one frame at least"


def test_what_is_left_of_a_turn_waits_behind_the_ports_other_destinations() -> None:
    it = queue()
    for destination in (1, 1, 2):
        it.put(1, SOURCE, target(destination), bytes([destination]) * 10, 0)
    order = [it.take(1, 10, 0)[0].destination for _ in range(3)]
    assert order == [target(1), target(2), target(1)]


def test_what_has_waited_too_long_is_dropped_and_counted() -> None:
    it = queue()
    fill(it, 1, range(3))
    it.put(1, SOURCE, target(9), b"new", PATIENCE)
    assert [turn.frames for turn in it.take(9, OCTETS, PATIENCE + 1)] == [(b"new",)]
    assert it.counters == {"drop_stale": 3}
    assert not it


PUTS = st.tuples(st.just("put"), st.integers(0, 4), st.integers(0, 5), st.integers(1, 900))
TAKES = st.tuples(st.just("take"), st.integers(1, 6), st.integers(1, 1500), st.just(0))


@given(st.lists(PUTS | TAKES, max_size=120))
def test_random_work(steps: list[tuple[str, int, int, int]]) -> None:
    """Nothing is lost or made up, order is kept within a flow, bounds hold, and nobody is passed over."""
    it, held = queue(), {port: list[tuple[Address, bytes]]() for port in range(5)}
    serial, passed = 0, Counter[int]()
    for kind, first, second, size in steps:
        if kind == "put":
            serial += 1
            frame = serial.to_bytes(4, "big").ljust(4 + size, b"x")
            total = [len(one) for frames in held.values() for _, one in frames]
            mine = [len(one) for _, one in held[first]]
            room = len(mine) < FRAMES - len(total) and sum(mine) + len(frame) <= OCTETS - sum(total)
            assert it.put(first, SOURCE, target(second), frame, 0) == room
            if room:
                held[first].append((target(second), frame))
            continue
        waiting = {port for port, frames in held.items() if frames}
        turns = it.take(first, second, 0)
        assert bool(turns) == bool(waiting) and len(turns) <= first
        for turn in turns:
            flow = [frame for to, frame in held[turn.port] if to == turn.destination]
            assert turn.frames and turn.frames == tuple(flow[: len(turn.frames)])
            for frame in turn.frames:
                held[turn.port].remove((turn.destination, frame))
            passed[turn.port] = 0
            for port in waiting - {turn.port}:
                passed[port] += 1
                assert passed[port] < len(held), f"port {port} was passed over"
        for port, frames in held.items():
            if not frames:
                passed[port] = 0
        assert it.frames == sum(map(len, held.values()))
        assert it.octets == sum(len(frame) for frames in held.values() for _, frame in frames)
