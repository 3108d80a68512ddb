"""When addresses are announced, and in which words."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ipvsw.addresses.announcements import BURST, MAX_ANNOUNCED, PAUSE, SPACING, TIMES, Announcements, announcement
from tests.support.wire.packets import total

MAC = bytes.fromhex("020000000001")
A, B = (ip_address(text).packed for text in ("10.0.0.1", "fd00::1"))


def test_three_times_a_second_apart() -> None:
    plan = Announcements()
    assert plan.next() is None and plan.take(0) == []
    plan.want([A], 5.0)
    told = []
    while (when := plan.next()) is not None:
        told += [(when, address) for address in plan.take(when)]
    assert told == [(5.0, A), (5.0 + SPACING, A), (5.0 + 2 * SPACING, A)]


def test_what_is_wanted_again_begins_anew() -> None:
    plan = Announcements()
    plan.want([A, B], 0.0)
    assert plan.take(0.0) == [A, B]
    plan.want([A], 0.5)
    assert plan.take(0.5) == [A]
    assert plan.take(1.0) == [B]
    assert plan.take(1.5) == [A]
    assert plan.take(9.0) == [B, A]
    assert plan.next() is None


def test_link_local_addresses_are_left_out() -> None:
    plan = Announcements()
    near, far = (ip_address(text).packed for text in ("169.254.0.1", "fec0::1"))
    plan.want([ip_address("fe80::1").packed, near, ip_address("febf::1").packed, far], 0.0)
    assert plan.take(0.0) == [near, far]


def test_too_many_are_left_to_themselves() -> None:
    plan = Announcements()
    plan.want((n.to_bytes(4) for n in range(MAX_ANNOUNCED + 10)), 0.0)
    told = set()
    while (when := plan.next()) is not None:
        told.update(plan.take(when))
    assert len(told) == MAX_ANNOUNCED


def test_many_come_in_bursts() -> None:
    plan = Announcements()
    every = [(0x0A000000 + n).to_bytes(4) for n in range(2 * BURST + 1)]
    plan.want(every, 0.0)
    assert plan.take(0.0) == every[:BURST]
    assert plan.take(0.0) == [] and plan.next() == PAUSE
    assert plan.take(PAUSE) + plan.take(3 * PAUSE) == every[BURST:]


@given(st.lists(st.tuples(st.floats(0, 3), st.lists(st.integers(1, 50), max_size=5)), max_size=20))
def test_whatever_is_wanted_is_told_three_times_from_then_on(wishes: list[tuple[float, list[int]]]) -> None:
    plan, now, last = Announcements(), 0.0, {}
    told: list[tuple[float, int]] = []

    def until(end: float) -> None:
        while (when := plan.next()) is not None and when <= end:
            found = plan.take(when)
            assert 0 < len(found) <= BURST
            told.extend((when, int.from_bytes(address)) for address in found)

    for wait, numbers in wishes:
        now += wait
        until(now)
        plan.want([number.to_bytes(4) for number in numbers], now)
        last.update(dict.fromkeys(numbers, now))
    until(float("inf"))
    for number, since in last.items():
        times = [when for when, one in told if one == number and when >= since]
        assert len(times) >= TIMES and times[-1] - since < 2 * SPACING + 1


def test_the_frame_for_ipv4() -> None:
    frame = announcement(A, MAC)
    packed = bytes([10, 0, 0, 1])
    arp = bytes.fromhex("00010800060400 01".replace(" ", "")) + MAC + packed + bytes(6) + packed
    assert frame == bytes(10) + b"\xff" * 6 + MAC + b"\x08\x06" + arp


def test_the_frame_for_ipv6() -> None:
    frame = announcement(B, MAC)
    assert frame[:24] == bytes(10) + bytes.fromhex("333300000001") + MAC + b"\x86\xdd"
    packet = frame[24:]
    assert packet[4:8] == bytes([0, 32, 58, 255])
    source, to, message = packet[8:24], packet[24:40], packet[40:]
    assert source == B and to == ip_address("ff02::1").packed
    assert message[:2] == bytes([136, 0]) and message[4] == 0x20 and message[8:24] == B
    assert message[24:] == bytes([2, 1]) + MAC
    assert total(source + to + struct.pack("!II", 32, 58) + message) == 0xFFFF
