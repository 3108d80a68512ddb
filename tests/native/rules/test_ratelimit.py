"""Token buckets, at times that the test chooses: what passes in a window, and what a frame costs."""

from __future__ import annotations

import random

import pytest

from ipvsw._fast import OUTCOMES
from tests.native._probe import Limits
from tests.support.wire.packets import TCP, UDP, Made

SECOND = 10**9
BURST = SECOND // 50  # of rates and packets
BROADCAST_BURST = 2 * SECOND
RX, TX = 0, 1
PASSES = -1
RATE, PACKETS = OUTCOMES.index("limit_rate"), OUTCOMES.index("limit_packets")
START = 1000 * SECOND  # of the clock


def plain(length: int) -> bytes:
    """A frame of so many bytes, with its virtio_net_hdr."""
    return bytes(10 + length)


@pytest.mark.parametrize(
    ("rate", "length"),
    [(1000, 60), (1000, 65_000), (64_000, 1514), (10**6, 60), (10**9, 60), (10**9, 65_000), (10**11, 65_000)],
)
def test_a_sender_without_rest_gets_its_rate(rate: int, length: int) -> None:
    limits = Limits(rate=(rate, 0))
    cost = 8 * length * SECOND / rate  # ns
    step = cost / 2  # twice the rate
    burst = next(k for k in range(10**6) if limits.check(RX, plain(length), START) != PASSES)
    assert 0.99 * BURST / cost - 1 <= burst <= 1.01 * BURST / cost + 1
    passed = [limits.check(RX, plain(length), START + int(k * step)) == PASSES for k in range(4000)].count(True)
    assert 1980 <= passed <= 2001
    assert all(limits.check(TX, plain(length), START) == PASSES for _ in range(1000))


def test_no_window_has_more_than_its_share() -> None:
    """Naively: bits of all frames that passed, between any two of them."""
    rng = random.Random(4)
    rate, longest = 10**8, 65_000
    limits, now, passed = Limits(rate=(rate, 0)), START, []
    for _ in range(3000):
        now += int(rng.expovariate(1) * 400_000) if rng.random() < 0.98 else SECOND
        length = rng.choice([60, 1514, longest])
        if limits.check(RX, plain(length), now) == PASSES:
            passed.append((now, 8 * length))
    assert len(passed) > 300
    for at in range(0, len(passed), 7):
        bits = 0
        for when, cost in passed[at:]:
            bits += cost
            assert bits <= rate * (when - passed[at][0] + BURST) / SECOND + 8 * longest


def test_packets_have_a_bucket_of_their_own() -> None:
    limits = Limits(packets=(1000, 10))
    found = [limits.check(RX, plain(60), START + k * 500_000) for k in range(1000)]
    assert set(found) == {PASSES, PACKETS}
    assert 520 <= found.count(PASSES) <= 522  # half a second's, and 20 ms of a burst
    assert limits.check(TX, plain(60), START) == PASSES
    assert limits.check(TX, plain(60), START + SECOND // 20) == PACKETS  # 20 ms of a burst, and 80 ms paid for
    assert limits.check(TX, plain(60), START + SECOND // 10) == PASSES


def test_a_frame_that_one_limit_stops_costs_the_other_nothing() -> None:
    limits = Limits(rate=(8 * 1000 * 100, 0), packets=(1, 0))  # 100 frames of 1000 bytes a second, one packet
    assert limits.check(RX, plain(1000), START) == PASSES
    assert all(limits.check(RX, plain(1000), START + SECOND // 10) == PACKETS for _ in range(1000))
    assert limits.check(RX, plain(1000), START + SECOND) == PASSES


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
def test_a_gso_frame_costs_what_its_packets_cost(version: int, protocol: int) -> None:
    packet = Made(version=version, protocol=protocol, payload=bytes(40_000))
    kind = 5 if protocol == UDP else 1 if version == 4 else 4
    frame = packet.frame(kind, 1400)
    head = 14 + packet.transport + (20 if protocol == TCP else 8)
    count = -(-40_000 // 1400)
    bits = 8 * (len(frame) - 10 + (count - 1) * head)
    rate = 10**6
    limits, paid = Limits(rate=(rate, 0)), bits * SECOND // rate - BURST  # ns that are paid for
    assert limits.check(RX, frame, START) == PASSES
    assert limits.check(RX, frame, START + paid - 1000) == RATE
    assert limits.check(RX, frame, START + paid + 1000) == PASSES
    limits = Limits(packets=(1000, 0))
    assert limits.check(RX, frame, START) == PASSES
    assert limits.check(RX, frame, START + count * 1_000_000 - BURST - 1000) == PACKETS
    assert limits.check(RX, frame, START + count * 1_000_000 - BURST + 1000) == PASSES


def test_a_gso_header_that_lies_is_no_way_out() -> None:
    """It claims tiny segments of no protocol: it costs at least as many packets as its length says."""
    frame = bytes([0, 1, 0, 0, 10, 0, 0, 0, 0, 0]) + bytes(10_000)
    limits = Limits(packets=(1000, 0))
    assert limits.check(RX, frame, START) == PASSES
    assert limits.check(RX, frame, START + SECOND - BURST) == PACKETS
    assert limits.check(RX, frame, START + 2 * SECOND) == PASSES
    assert Limits(packets=(1000, 0)).check(RX, bytes([0, 1]) + bytes(1000), START) == PASSES  # segments of 0 bytes


def test_broadcast_has_the_burst_of_a_host_that_starts() -> None:
    limits = Limits(broadcast=500)
    burst = [limits.fan_out(plain(60), START) for _ in range(1500)]
    assert burst.count(True) == 1001  # 2 s, and the frame with which the bucket is empty
    later = [limits.fan_out(plain(60), START + k * SECOND // 1000) for k in range(1, 4000)]
    assert 1995 <= later.count(True) <= 2001
    assert limits.check(RX, plain(60), START) == PASSES  # the other buckets have no limit


def test_no_clock_is_too_young() -> None:
    """A machine that has just started: less than a burst is behind it."""
    limits = Limits(rate=(8 * 60 * 100, 0))  # 100 frames a second
    assert limits.check(RX, plain(60), 1) == PASSES
    assert limits.check(RX, plain(60), 1) == RATE
    assert limits.check(RX, plain(60), 10_000_100) == PASSES


@pytest.mark.parametrize("bad", [{"rate": (-1, 0)}, {"rate": (1 << 64, 0)}, {"packets": ("x", 0)}, {"rate": (1,)}])
def test_what_is_no_limit(bad: dict[str, object]) -> None:
    with pytest.raises((OverflowError, TypeError, ValueError)):
        Limits(**bad)
