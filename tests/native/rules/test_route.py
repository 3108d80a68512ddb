"""The route cache and the header that it puts on, against slow and obvious models."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native._probe import Routes, route_rewrite, wire_length
from tests.native.random_frames import MASTER, seed_from_environment

ROUTER = bytes.fromhex("0200000000aa")
PLAIN, TCPV4, UDP, TCPV6, ECN, UDP_L4 = 0, 1, 3, 4, 0x80, 5
IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"


def to4(address: bytes, first: bytes = b"\x45") -> bytes:
    return bytes(12) + IPV4 + first.ljust(16, b"\0") + address


def to6(address: bytes) -> bytes:
    return bytes(12) + IPV6 + b"\x60".ljust(24, b"\0") + address


# ------------------------------------------------------------------------------------------ cache


def test_random_changes_leave_what_a_dictionary_has() -> None:
    rng = random.Random(seed_from_environment())
    for _ in range(30):
        routes, model = Routes(rng.getrandbits(64)), dict[bytes, tuple[int, bytes, int]]()
        known = [rng.randbytes(rng.choice([4, 16])) for _ in range(rng.choice([1, 40, 400]))]
        for _ in range(1000):
            address = rng.choice(known)
            what = rng.random()
            if what < 0.4:
                model[address] = rng.randrange(3), rng.randbytes(6), rng.randrange(1 << 32)
                routes.put(address, *model[address])
            elif what < 0.6:
                model.pop(address, None)
                routes.forget(address)
            elif what < 0.603:
                model.clear()
                routes.clear()
            else:
                frame = to4(address) if len(address) == 4 else to6(address)
                assert routes.find(frame) == model.get(address)
        assert len(routes) == len(model)
        assert routes.entries <= len(known), "what was forgotten makes room"


def test_families_are_told_apart() -> None:
    routes = Routes()
    routes.put(bytes([10, 0, 0, 1]), 0, ROUTER, 1500)
    routes.put(bytes(12) + bytes([10, 0, 0, 1]), 1, bytes(6), 1280)
    assert routes.find(to4(bytes([10, 0, 0, 1]))) == (0, ROUTER, 1500)
    assert routes.find(to6(bytes(12) + bytes([10, 0, 0, 1]))) == (1, bytes(6), 1280)


@pytest.mark.parametrize("first", [b"\x45", b"\x41", b"\x65", b"\x45\0\xff\xff", b"\x00"])
def test_a_destination_is_read_however_broken_the_header_is(first: bytes) -> None:
    routes = Routes()
    routes.put(b"\x0a\0\0\1", 0, ROUTER, 1500)
    assert routes.find(to4(b"\x0a\0\0\1", first)) == (0, ROUTER, 1500)


# ------------------------------------------------------------------------------------------ rewriting


def folded(header: bytes) -> int:
    """RFC 1071 with integers as long as they need to be; 0xFFFF for a header whose checksum is right."""
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, len(header), 2))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def rewritten(frame: bytes) -> bytes:
    """The model: MACs, lengths, checksum; not a byte more."""
    packet = bytearray(frame[14:])
    size = len(packet)
    if frame[12:14] == IPV4:
        packet[2:4] = (size if size < 65536 else 0).to_bytes(2, "big")
        header = 4 * (packet[0] & 15)
        if 20 <= header <= size:
            packet[10:12] = bytes(2)
            packet[10:12] = (0xFFFF ^ folded(packet[:header])).to_bytes(2, "big")
        elif header < 20:
            packet[10:12] = packet[:2]
    else:
        packet[4:6] = (size - 40 if size - 40 < 65536 else 0).to_bytes(2, "big")
    return ROUTER + MASTER + frame[12:14] + packet


@given(
    st.sampled_from([(IPV4, 20), (IPV6, 40)]).flatmap(
        lambda kind: st.binary(min_size=kind[1], max_size=150).map(lambda packet: bytes(12) + kind[0] + packet)
    )
)
def test_any_packet_gets_another_header_and_keeps_the_rest(frame: bytes) -> None:
    assert route_rewrite(frame, ROUTER, MASTER) == rewritten(frame)


@given(st.binary(min_size=60, max_size=60), st.integers(5, 15), st.integers(0, 100))
def test_ipv4_headers_of_any_length_end_up_right(header: bytes, words: int, payload: int) -> None:
    packet = bytes([0x40 | words]) + header[1 : words * 4] + bytes(payload)
    left = route_rewrite(bytes(12) + IPV4 + packet, ROUTER, MASTER)[14:]
    assert folded(left[: words * 4]) == 0xFFFF
    assert int.from_bytes(left[2:4], "big") == len(packet)
    kept = [*range(2), *range(4, 10), *range(12, len(packet))]
    assert bytes(left[i] for i in kept) == bytes(packet[i] for i in kept), "TTL, ID, options stay"


@pytest.mark.parametrize("size", [65535, 65536, 65575, 65576])
def test_what_no_length_field_can_say_is_said_with_zero(size: int) -> None:
    for kind, first in ((IPV4, b"\x45"), (IPV6, b"\x60")):
        frame = bytes(12) + kind + first.ljust(size, b"\0")
        assert route_rewrite(frame, ROUTER, MASTER) == rewritten(frame)


@pytest.mark.parametrize("frame", [bytes(13), to4(b"")[:-1], to6(b""), bytes(12) + b"\x08\x06" + bytes(60)])
def test_what_the_rules_do_not_route_the_probe_refuses(frame: bytes) -> None:
    with pytest.raises(ValueError):
        route_rewrite(frame, ROUTER, MASTER)


# ------------------------------------------------------------------------------------------ length


def offload(kind: int, start: int, size: int) -> bytes:
    fields = (0, size, start, 16)  # hdr_len, gso_size, csum_start, csum_offset
    return bytes([1, kind]) + b"".join(n.to_bytes(2, "little") for n in fields)


def tcp4(payload: int, *, words: int = 5, options: int = 0) -> bytes:
    tcp = bytes(12) + bytes([(5 + options) << 4]) + bytes(7 + 4 * options)
    return bytes(12) + IPV4 + bytes([0x40 | words]) + bytes(words * 4 - 1) + tcp + bytes(payload)


@pytest.mark.parametrize(
    ("frame", "header", "length"),
    [
        (tcp4(100), bytes(10), 140),
        (tcp4(4000), bytes(10), 4040),
        (tcp4(4000), offload(PLAIN, 34, 0), 4040),
        (tcp4(4000), offload(TCPV4, 34, 1448), 1488),
        (tcp4(4000), offload(TCPV4 | ECN, 34, 1448), 1488),
        (tcp4(4000, options=3), offload(TCPV4, 34, 1448), 1500),
        (tcp4(4000, words=7, options=3), offload(TCPV4, 42, 1440), 1500),
        (to6(bytes(16)) + tcp4(4000)[34:], offload(TCPV6, 54, 1440), 1500),
        (tcp4(4000), offload(UDP_L4, 34, 1400), 1428),
        (tcp4(4000), offload(UDP, 34, 1472), 1500),
        # Lies: the frame's own length, which no path takes.
        (tcp4(4000), offload(TCPV4, 13, 100), 4040),
        (tcp4(4000), offload(TCPV4, 0, 100), 4040),
        (tcp4(4000), offload(TCPV4, 14 + 4040 - 19, 100), 4040),
        (tcp4(4000), offload(TCPV4, 65535, 65535), 4040),
    ],
)
def test_a_gso_frame_is_as_long_as_its_segments(frame: bytes, header: bytes, length: int) -> None:
    assert wire_length(frame, header) == length


@given(st.binary(min_size=20, max_size=300), st.binary(min_size=10, max_size=10))
def test_no_offload_header_makes_it_read_behind_the_frame(packet: bytes, header: bytes) -> None:
    assert wire_length(bytes(12) + IPV4 + packet, header) <= max(len(packet), 65535 + 60 + 65535)
