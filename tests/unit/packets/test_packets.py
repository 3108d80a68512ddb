"""Frames read, completed and cut: against checksums made word by word and reassembly made byte by byte."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsw.packets.segment import (
    complete,
    fragment,
    parse,
    segment,
)
from tests.support.wire.packets import (
    A4,
    A6,
    ACK,
    B4,
    B6,
    CHECKSUM_AT,
    CWR,
    DF,
    ECN,
    FIN,
    MF,
    PSH,
    TCP,
    TCPV4,
    TCPV6,
    UDP,
    USO,
    Made,
    decide,
    pseudo,
    reassemble,
    total,
    verify,
    wrap,
)

COPIED, FIRST_ONLY = b"\x88\x04\x12\x34", b"\x44\x04\x05\x00"  # stream id; timestamp

payloads = st.builds(
    lambda size, seed: random.Random(seed).randbytes(size), st.integers(0, 5000), st.integers(0, 1 << 32)
)
quick = settings(max_examples=60, deadline=None)

# ---------------------------------------------------------------------------- lengths and checksums


@pytest.mark.parametrize("version", (4, 6))
@pytest.mark.parametrize("protocol", (TCP, UDP))
@pytest.mark.parametrize("size", (0, 1, 8, 1400, 1401))
def test_a_checksum_that_was_begun_is_completed(version: int, protocol: int, size: int) -> None:
    result = decide(Made(version, protocol, b"\xa5" * size).frame())
    assert result.whole and len(result.send) == 1
    verify(result.send[0])


@quick
@given(st.sampled_from((4, 6)), st.sampled_from((TCP, UDP)), payloads)
def test_any_payload_is_completed(version: int, protocol: int, payload: bytes) -> None:
    verify(complete(parse(Made(version, protocol, payload).frame())))


def test_a_complete_packet_is_left_alone() -> None:
    packet = bytes.fromhex("45000024000100004011668a0a01000b0a010032045708ae0010882f495056435dc25905")
    result = decide(wrap(packet))
    assert result.send == (packet,) and result.whole


@pytest.mark.parametrize(("protocol", "stored"), ((UDP, b"\xff\xff"), (TCP, b"\0\0")))
def test_a_udp_checksum_of_zero_becomes_ones(protocol: int, stored: bytes) -> None:
    made = Made(protocol=protocol, payload=b"\0\0")
    at = made.transport + CHECKSUM_AT[protocol]
    value = complete(parse(made.frame()))[at : at + 2]
    finished = complete(parse(replace(made, payload=value).frame()))
    assert finished[at : at + 2] == stored
    verify(finished)


def test_a_sum_over_zeros_only_is_ones() -> None:
    packet = bytearray(Made(protocol=99, payload=bytes(20)).packet())
    finished = complete(parse(wrap(bytes(packet), flags=1, start=34, offset=4)))
    assert finished[24:26] == b"\xff\xff"


@pytest.mark.parametrize(
    ("given_", "wanted"),
    (
        # Padding counts as data, a length beyond the data is cut, a wrong header checksum is made right.
        ("4500001c000100004011668a0a01000b0a0100320001000200080000000000000000000000000000", 40),
        ("45000190000100004011beef0a01000b0a010032045708ae0010882f495056435dc25905", 36),
        ("45000000000100004011beef0a01000b0a010032045708ae0010882f495056435dc25905", 36),
    ),
)
def test_an_ipv4_header_is_repaired(given_: str, wanted: int) -> None:
    packet = bytes.fromhex(given_)
    result = decide(wrap(packet))
    (sent,) = result.send
    assert not result.whole and len(sent) == wanted == int.from_bytes(sent[2:4], "big")
    assert total(sent[:20]) == 0xFFFF
    assert sent[4:10] + sent[12:] == packet[4:10] + packet[12:]


def test_an_ipv6_length_is_repaired() -> None:
    packet = Made(6, 59, bytes(40)).packet()
    lying = packet[:4] + b"\0\x20" + packet[6:]
    result = decide(wrap(lying))
    assert result.send == (packet,) and not result.whole


@pytest.mark.parametrize("first", (0x44, 0x40, 0x60))
def test_an_ihl_below_5_leaves_with_what_the_kernel_takes_for_its_checksum(first: int) -> None:
    packet = bytes([first]) + bytes.fromhex("000024000100004011beef0a01000b0a010032045708ae0010882f495056435dc25905")
    assert decide(wrap(packet, kind=0x0800)).send == (packet[:10] + packet[:2] + packet[12:],)


def test_what_the_packet_is() -> None:
    packet = parse(Made(field=DF).frame())
    assert (packet.version, packet.protocol, packet.transport, packet.df) == (4, UDP, 20, True)
    assert (packet.source, packet.destination) == (A4, B4)
    packet = parse(Made(6, UDP, extensions=bytes((UDP, 0, 5, 2, 0, 0, 1, 0)), first=0).frame())
    assert (packet.version, packet.protocol, packet.transport, packet.df) == (6, UDP, 48, True)
    assert (packet.source, packet.destination) == (A6, B6)
    assert not parse(Made().frame()).df


# ---------------------------------------------------------------------------- GSO frames


@quick
@given(
    st.sampled_from((4, 6)), st.sampled_from((TCP, UDP)), payloads, st.integers(200, 3000), st.integers(0, 0xFFFFFFFF)
)
def test_segments_are_the_payload(version: int, protocol: int, payload: bytes, size: int, sequence: int) -> None:
    made = Made(version, protocol, payload, sequence=sequence, identity=0xFFFE, field=DF, tcp_options=b"\1" * 12)
    gso = USO if protocol == UDP else TCPV4 if version == 4 else TCPV6
    segments = segment(parse(made.frame(gso, size)))
    head = made.transport + (8 if protocol == UDP else 32)
    for number, packet in enumerate(segments):
        verify(packet)
        assert len(packet) - head == size or number == len(segments) - 1
        if version == 4:
            assert int.from_bytes(packet[4:6], "big") == (0xFFFE + number) & 0xFFFF
        if protocol == TCP:
            at = made.transport + 4
            assert int.from_bytes(packet[at : at + 4], "big") == (sequence + number * size) & 0xFFFFFFFF
    assert b"".join(packet[head:] for packet in segments) == payload
    assert len(segments) == max(1, -(-len(payload) // size))


@pytest.mark.parametrize(("version", "gso"), ((4, TCPV4 | ECN), (6, TCPV6 | ECN), (4, TCPV4)))
def test_flags_of_tcp_segments(version: int, gso: int) -> None:
    made = Made(version, TCP, bytes(2500), tcp_flags=CWR | ACK | PSH | FIN)
    flags = [packet[made.transport + 13] for packet in segment(parse(made.frame(gso, 1000)))]
    assert flags == [CWR | ACK, ACK, ACK | PSH | FIN]


def test_flags_stay_on_a_last_segment_that_is_full() -> None:
    segments = segment(parse(Made(4, TCP, bytes(2000), tcp_flags=ACK | FIN).frame(TCPV4, 1000)))
    assert [packet[33] for packet in segments] == [ACK, ACK | FIN]


def test_a_segment_with_a_udp_checksum_of_zero_gets_ones() -> None:
    made = Made(payload=bytes(10))
    (short,) = segment(parse(made.frame(USO, 100)))
    (zero,) = segment(parse(replace(made, payload=short[26:28] + bytes(8)).frame(USO, 100)))
    assert zero[26:28] == b"\xff\xff"
    verify(zero)


def test_a_gso_frame_below_its_segment_size_is_one_segment() -> None:
    result = decide(Made(4, TCP, bytes(500), field=DF).frame(TCPV4, 1460), 540)
    assert len(result.send) == 1 and result.whole


def test_a_whole_gso_frame() -> None:
    payload = random.Random(1).randbytes(65000)
    result = decide(Made(4, TCP, payload, field=DF, tcp_options=bytes(12)).frame(TCPV4, 1448))
    assert len(result.send) == 45 and max(map(len, result.send)) == 1500 and result.whole
    assert b"".join(packet[52:] for packet in result.send) == payload
    for packet in result.send:
        verify(packet)


def test_extension_headers_are_repeated() -> None:
    extensions = bytes((60, 0, 5, 2, 0, 0, 1, 0)) + bytes((UDP, 1)) + bytes(14)
    made = Made(6, UDP, bytes(range(200)), extensions=extensions, first=0)
    segments = segment(parse(made.frame(USO, 80)))
    assert [len(packet) - made.transport - 8 for packet in segments] == [80, 80, 40]
    for packet in segments:
        assert packet[40:64] == extensions
        data = packet[64:]
        assert total(pseudo(A6, B6, UDP, len(data)) + data) == 0xFFFF


def test_a_source_routed_gso_frame_keeps_its_senders_pseudo_header() -> None:
    last = ip_address("fd00:2::7").packed
    routing = bytes((TCP, 2, 4, 1, 0, 0, 0, 0)) + last
    made = Made(6, TCP, b"x" * 300, extensions=routing, first=43, destination=last)
    packet = bytearray(made.packet())
    packet[24:40] = B6  # the segment on the way; the sender summed with the last one
    frame = wrap(bytes(packet), flags=1, gso=TCPV6, size=100, start=14 + 64, offset=16)
    segments = segment(parse(frame))
    assert len(segments) == 3
    for one in segments:
        assert one[24:40] == B6
        assert total(pseudo(A6, last, TCP, len(one) - 64) + one[64:]) == 0xFFFF


# ---------------------------------------------------------------------------- fragments


@quick
@given(
    payloads,
    st.integers(68, 1600),
    st.sampled_from((b"", COPIED, FIRST_ONLY, FIRST_ONLY + COPIED + b"\1\1\1\0")),
    st.integers(1, 0xFFFF),
)
def test_fragments_are_the_packet(payload: bytes, mtu: int, options: bytes, identity: int) -> None:
    made = Made(4, 99, payload, options=options, identity=identity)
    pieces = fragment(made.packet(), mtu)
    assert reassemble(pieces) == payload
    assert max(map(len, pieces)) <= mtu
    for piece in pieces:
        assert int.from_bytes(piece[4:6], "big") == identity
        assert piece[8:10] + piece[12:20] == made.packet()[8:10] + made.packet()[12:20]
    for piece in pieces[:-1]:
        assert (len(piece) - made.transport) % 8 == 0 and len(piece) > mtu - 8


def test_options_are_copied_by_their_bit() -> None:
    made = Made(4, 99, bytes(300), options=FIRST_ONLY + COPIED + b"\1" + FIRST_ONLY + b"\1\1\0")
    first, *others = fragment(made.packet(), 136)
    assert first[20:36] == made.options
    assert others and all(piece[20:36] == b"\1" * 4 + COPIED + b"\1" * 5 + b"\1\1\0" for piece in others)


@pytest.mark.parametrize("options", (b"\x07\x00\x00\x00", b"\x07\xff\x00\x00", b"\1\1\1\x07", b"\x07\x01\x00\x00"))
def test_lying_options_end_nothing(options: bytes) -> None:
    made = Made(4, 99, bytes(200), options=options)
    assert reassemble(fragment(made.packet(), 100)) == bytes(200)


@pytest.mark.parametrize(("field", "last"), ((MF | 10, MF), (10, 0)))
def test_a_fragment_is_fragmented_again(field: int, last: int) -> None:
    pieces = fragment(Made(4, 99, bytes(range(240)), field=field).packet(), 100)
    fields = [int.from_bytes(piece[6:8], "big") for piece in pieces]
    assert fields == [MF | 10, MF | 20, last | 30]
    assert b"".join(piece[20:] for piece in pieces) == bytes(range(240))


def test_fragments_of_a_packet_without_identification_belong_together() -> None:
    pieces = fragment(Made(4, 99, bytes(300), identity=0).packet(), 100)
    assert len({piece[4:6] for piece in pieces}) == 1 and pieces[0][4:6] != b"\0\0"
    assert reassemble(pieces) == bytes(300)


def test_a_datagram_is_completed_before_it_is_cut() -> None:
    made = Made(payload=random.Random(2).randbytes(4001))
    result = decide(made.frame())
    assert len(result.send) == 3 and not result.whole
    data = reassemble(list(result.send))
    assert total(pseudo(A4, B4, UDP, len(data)) + data) == 0xFFFF


def test_segments_above_the_path_are_fragmented_one_by_one() -> None:
    result = decide(Made(4, TCP, bytes(3000)).frame(TCPV4, 1000), 576)
    assert len(result.send) == 6 and max(map(len, result.send)) <= 576
    for two in zip(result.send[::2], result.send[1::2], strict=True):
        data = reassemble(list(two))
        assert total(pseudo(A4, B4, TCP, len(data)) + data) == 0xFFFF
