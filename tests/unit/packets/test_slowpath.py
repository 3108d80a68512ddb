"""What becomes of a frame: errors for its sender and about what there are none, and frames that lie."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsw.packets.pathmtu import (
    Malformed,
    Result,
    complete,
    for_path,
    fragmentation_needed,
    packet_too_big,
    parse,
    segment,
)
from tests.support.wire.packets import (
    A4,
    A6,
    DF,
    ICMP,
    ICMPV6,
    M4,
    M6,
    MF,
    TCP,
    TCPV4,
    TCPV6,
    UDP,
    UFO,
    USO,
    Made,
    decide,
    verify,
    wrap,
)

ECHO, UNREACHABLE4, PARAMETER6, REDIRECT6 = b"\x08\0", b"\3\1", b"\4\0", b"\x89\0"

# ---------------------------------------------------------------------------- whole


def test_the_caller_that_keeps_headers_gets_nothing_made() -> None:
    frame = Made(4, TCP, bytes(9000), field=DF).frame(TCPV4, 1000)
    assert decide(frame, headers_kept=True).whole and not decide(frame, headers_kept=True).send
    assert not decide(frame, 1039, headers_kept=True).whole
    padded = decide(frame[:12] + frame[12:] + b"\0", headers_kept=True)
    assert not padded.whole and len(padded.send) == 10
    lying = frame[:2] + b"\xff\xff" + frame[4:]  # hdr_len
    assert not decide(lying, headers_kept=True).whole and len(decide(lying).send) == 9


# ---------------------------------------------------------------------------- answers


def test_fragmentation_needed() -> None:
    made = Made(payload=bytes(1400), field=DF)
    answer = decide(made.frame(), 1280).answer
    assert answer
    verify(answer)
    assert (len(answer), answer[9], answer[12:16], answer[16:20]) == (576, ICMP, M4, A4)
    assert answer[20:22] == b"\3\4" and answer[24:28] == struct.pack("!HH", 0, 1280)
    whole = complete(parse(made.frame()))
    assert answer[28:] == whole[:548]


def test_packet_too_big() -> None:
    made = Made(6, payload=bytes(1400))
    answer = decide(made.frame(), 1280).answer
    assert answer
    verify(answer)
    assert (len(answer), answer[6], answer[8:24], answer[24:40]) == (1280, ICMPV6, M6, A6)
    assert answer[40:42] == b"\2\0" and answer[44:48] == (1280).to_bytes(4, "big")
    assert answer[48:] == complete(parse(made.frame()))[:1232]


def test_a_short_packet_is_quoted_whole() -> None:
    packet = Made(4, 99, bytes(100), field=DF).packet()
    answer = fragmentation_needed(packet, 90, M4)
    assert answer and answer[28:] == packet
    packet = Made(6, 99, bytes(100)).packet()
    answer = packet_too_big(packet, 90, M6)
    assert answer and answer[48:] == packet


@pytest.mark.parametrize(("version", "gso", "at"), ((4, TCPV4, 28), (6, TCPV6, 48)))
def test_an_error_about_a_gso_frame_quotes_its_first_segment(version: int, gso: int, at: int) -> None:
    made = Made(version, TCP, bytes(9000), field=DF, sequence=77)
    answer = decide(made.frame(gso, 1440), 1400).answer
    assert answer
    verify(answer)
    first = segment(parse(made.frame(gso, 1440)))[0]
    assert first.startswith(answer[at:]) and len(answer) == (576 if version == 4 else 1280)


@pytest.mark.parametrize(
    ("made", "answered"),
    (
        (Made(4, ICMP, ECHO + bytes(1600), field=DF), True),
        (Made(4, ICMP, UNREACHABLE4 + bytes(1600), field=DF), False),
        (Made(4, 99, bytes(1600), field=DF | MF), True),
        (Made(4, 99, bytes(1600), field=DF | 1), False),
        (Made(4, 99, bytes(1600), field=DF, source=bytes(4)), False),
        (Made(4, 99, bytes(1600), field=DF, source=b"\xe0\0\0\1"), False),
        (Made(4, 99, bytes(1600), field=DF, source=b"\xff\xff\xff\xff"), False),
        (Made(4, 99, bytes(1600), field=DF, source=b"\x7f\0\0\1"), False),
        (Made(4, 99, bytes(1600), field=DF, destination=b"\xe0\0\0\1"), False),
        (Made(4, 99, bytes(1600), field=DF, source=b"\xf0\0\0\1"), True),
        (Made(6, ICMPV6, b"\x80\0" + bytes(1600)), True),
        (Made(6, ICMPV6, PARAMETER6 + bytes(1600)), False),
        (Made(6, ICMPV6, PARAMETER6 + bytes(1600), extensions=bytes((58, 0)) + bytes(6), first=60), False),
        (Made(6, ICMPV6, REDIRECT6 + bytes(1600)), False),
        (Made(6, 99, bytes(1600), source=bytes(16)), False),
        (Made(6, 99, bytes(1600), source=b"\xff" + bytes(15)), False),
        (Made(6, 99, bytes(1600), destination=b"\xff\2" + bytes(14)), True),
        (Made(6, 99, bytes(1600), extensions=bytes((99, 0, 0, 1, 0, 0, 0, 9)), first=44), True),
        (Made(6, 99, bytes(1600), extensions=bytes((99, 0, 0, 8, 0, 0, 0, 9)), first=44), False),
    ),
)
def test_about_what_there_is_an_error(made: Made, answered: bool) -> None:
    result = decide(made.frame())
    assert bool(result.answer) is answered
    assert result.drop == ("" if answered else "too_big")


def test_who_answers_without_an_address() -> None:
    answer = for_path(Made(4, 99, bytes(1600), field=DF).frame(), 1500, None, None).answer
    assert answer and answer[12:16] == ip_address("192.0.0.8").packed
    assert for_path(Made(6, 99, bytes(1600)).frame(), 1500, None, None).drop == "too_big"


# ---------------------------------------------------------------------------- hostile frames

UDP4, TCP4 = Made(), Made(4, TCP, bytes(3000), field=DF)


@pytest.mark.parametrize(
    "frame",
    (
        b"",
        bytes(9),
        bytes(24),
        wrap(b"\x45" + bytes(18)),
        wrap(b"\x60" + bytes(38)),
        wrap(b"\x4f" + bytes(30)),  # IHL beyond the data
        wrap(Made().packet(), kind=0x8100),
        wrap(Made().packet(), kind=0x0806),
        wrap(b"\x45" + bytes(0xFFFF)),
        wrap(b"\x60" + bytes(0xFFFF + 40)),
        wrap(UDP4.packet(), flags=1, start=0, offset=0),
        wrap(UDP4.packet(), flags=1, start=14, offset=16),  # would write into the destination
        wrap(UDP4.packet(), flags=1, start=34, offset=15),
        wrap(UDP4.packet(), flags=1, start=0xFFFF, offset=0xFFFF),
        wrap(Made(6).packet(), flags=1, start=34, offset=6),
        TCP4.frame(TCPV4, 0),
        TCP4.frame(TCPV4, 1),  # thousands of segments
        TCP4.frame(TCPV6, 1000),
        TCP4.frame(USO, 1000),
        TCP4.frame(UFO, 1000),
        TCP4.frame(0x7F, 1000),
        UDP4.frame(TCPV4, 1000),
        replace(TCP4, field=MF).frame(TCPV4, 1000),
        replace(TCP4, field=9).frame(TCPV4, 1000),
        Made(6, TCP, bytes(300), extensions=bytes((6, 0, 0, 1, 0, 0, 0, 9)), first=44).frame(TCPV6, 100),
        wrap(TCP4.packet()[:30], gso=TCPV4, size=1000),
        wrap(TCP4.packet()[:39], gso=TCPV4, size=1000),
        wrap(UDP4.packet()[:27], gso=USO, size=1000),
        wrap(b"\x44" + UDP4.packet()[1:], gso=USO, size=1000),
        wrap(TCP4.packet(), gso=TCPV4, size=1000, flags=1, start=38, offset=16),
        wrap(b"\x44" + TCP4.packet()[1:], gso=TCPV4, size=1000),
        wrap(TCP4.packet()[:32] + b"\x40" + TCP4.packet()[33:], gso=TCPV4, size=1000),  # TCP header of 16
        wrap(TCP4.packet()[:32] + b"\xf0" + TCP4.packet()[33:60], gso=TCPV4, size=1000),
        Made(4, 99, bytes(2000), field=0x1FFF).frame(),  # ends beyond what an offset can say, when it's cut
        wrap(b"\x44" + Made(4, 99, bytes(2000)).packet()[1:]),
    ),
)
def test_malformed(frame: bytes) -> None:
    assert decide(frame) == Result(drop="malformed")


def test_a_chain_of_extension_headers_ends() -> None:
    chain = bytes((60, 0, 1, 4, 0, 0, 0, 0)) * 8000
    assert decide(Made(6, 59, b"", extensions=chain, first=60).frame(), 65575).whole


def test_parse_says_what_is_wrong() -> None:
    with pytest.raises(Malformed, match="0x0806 is not IP"):
        parse(wrap(bytes(46), kind=0x0806))


headers = st.builds(
    lambda flags, gso, *words: struct.pack("<BBHHHH", flags, gso, *words),
    st.integers(0, 3),
    st.sampled_from((0, 0, 1, 3, 4, 5, 0x81, 0x84, 255)),
    *[st.one_of(st.integers(0, 80), st.integers(0, 0xFFFF))] * 4,
)
packets = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda made, edits: bytes(dict(edits).get(at, byte) for at, byte in enumerate(made.packet())),
        st.builds(
            Made,
            st.sampled_from((4, 6)),
            st.sampled_from((TCP, UDP, ICMP, ICMPV6, 99)),
            st.binary(max_size=300),
            st.sampled_from((0, DF, MF, 5, DF | 5, 0x1FFF)),
        ),
        st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4),
    ),
)


@settings(max_examples=250, deadline=None)
@given(headers, st.sampled_from((0x0800, 0x86DD, 0x8100)), packets, st.integers(0, 300), st.booleans())
def test_nothing_is_raised_and_nothing_is_changed(
    header: bytes, kind: int, packet: bytes, mtu: int, headers_kept: bool
) -> None:
    frame = bytearray(header + bytes(12) + kind.to_bytes(2, "big") + packet)
    before = bytes(frame)
    result = for_path(frame, mtu, M4, M6, headers_kept=headers_kept)
    assert frame == before
    assert bool(result.send) + bool(result.answer) + bool(result.drop) == (0 if headers_kept and result.whole else 1)
    assert all(len(one) <= max(mtu, 68) for one in result.send)
    assert result.drop in ("", "malformed", "too_big")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes(frame: bytes) -> None:
    decide(frame)
