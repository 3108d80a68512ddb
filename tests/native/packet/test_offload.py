"""Checksums and segments made by the data plane: byte for byte what segment.py makes, and right by themselves."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipvsw.packets import segment
from tests.native._probe import offloaded, ones_sum
from tests.support.wire.packets import (
    ACK,
    CWR,
    ECN,
    FIN,
    PSH,
    TCP,
    TCPV4,
    TCPV6,
    UDP,
    USO,
    Made,
    total,
    verify,
    wrap,
)

VNET = 10
KINDS = {(4, TCP): TCPV4, (6, TCP): TCPV6, (4, UDP): USO, (6, UDP): USO}
HEAD = 256  # bytes, the most that C copies in front of each segment


def sent(frame: bytes) -> list[bytes]:
    """The packets that leave, without their Ethernet header."""
    frames = offloaded(frame)
    assert frames is not None
    assert all(one[:14] == frame[VNET : VNET + 14] for one in frames)
    return [one[14:] for one in frames]


def lying(frame: bytes, **words: int) -> bytes:
    """With other words in its virtio_net_hdr."""
    header = list(struct.unpack("<BBHHHH", frame[:VNET]))
    for name, value in words.items():
        header[["flags", "gso", "hdr_len", "size", "start", "offset"].index(name)] = value
    return struct.pack("<BBHHHH", *header) + frame[VNET:]


def as_told_by_packets(frame: bytes) -> list[bytes] | None:
    """What segment.py makes of it; None for Malformed. A sum of 0 is never sent here, which is the same number."""
    try:
        packet = segment.parse(frame)
    except segment.Malformed:
        return None
    if packet.gso_size:
        return segment.segment(packet)
    whole = segment.complete(packet)
    if packet.checksum is not None:
        at = packet.checksum[1]
        whole = whole[:at] + (whole[at : at + 2].replace(b"\0\0", b"\xff\xff")) + whole[at + 2 :]
    return [whole]


# ------------------------------------------------------------------------------------------ sums


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xff" * 64)
@example(b"\xff" * 65521)
def test_sums_are_those_of_rfc_1071(data: bytes) -> None:
    assert ones_sum(data) == segment.ones_sum(data) == total(data)


@pytest.mark.parametrize("version", (4, 6))
@pytest.mark.parametrize("protocol", (TCP, UDP))
@pytest.mark.parametrize("size", (0, 1, 7, 8, 1400, 1401))
def test_a_sum_that_was_begun_is_completed(version: int, protocol: int, size: int) -> None:
    (packet,) = sent(Made(version, protocol, b"\xa5" * size).frame())
    verify(packet)


def test_a_complete_frame_is_left_alone() -> None:
    packet = bytes.fromhex("45000024000100004011668a0a01000b0a010032045708ae0010882f495056435dc25905")
    assert sent(wrap(packet)) == [packet]
    assert offloaded(bytes(VNET) + b"runt") == [b"runt"]
    assert offloaded(bytes(VNET)) == [b""]


def test_a_udp_sum_of_zero_becomes_ones() -> None:
    made = Made(protocol=UDP, payload=b"\0\0")
    (first,) = sent(made.frame())
    value = int.from_bytes(first[26:28], "big")
    (packet,) = sent(Made(protocol=UDP, payload=value.to_bytes(2, "big")).frame())
    assert packet[26:28] == b"\xff\xff"
    verify(packet)


# ------------------------------------------------------------------------------------------ segments


@pytest.mark.parametrize("version", (4, 6))
@pytest.mark.parametrize("protocol", (TCP, UDP))
@pytest.mark.parametrize("size", (1, 1000, 1001, 4000, 4096))
def test_segments_are_what_a_card_makes(version: int, protocol: int, size: int) -> None:
    made = Made(version, protocol, random.Random(size).randbytes(size), identity=0xFFFE, sequence=0xFFFFF000)
    found = sent(made.frame(KINDS[version, protocol], 1000))
    for packet in found:
        verify(packet)
    head = made.transport + (20 if protocol == TCP else 8)
    assert b"".join(packet[head:] for packet in found) == made.payload
    assert [len(packet) - head for packet in found[:-1]] == [1000] * (len(found) - 1)
    if version == 4:
        identities = [int.from_bytes(packet[4:6], "big") for packet in found]
        assert identities == [(0xFFFE + k) & 0xFFFF for k in range(len(found))]
    if protocol == TCP:
        at = made.transport + 4
        sequences = [int.from_bytes(packet[at : at + 4], "big") for packet in found]
        assert sequences == [(0xFFFFF000 + 1000 * k) & 0xFFFFFFFF for k in range(len(found))]


def test_flags_stay_where_they_belong() -> None:
    made = Made(protocol=TCP, payload=bytes(2500), tcp_flags=ACK | PSH | FIN | CWR)
    found = sent(made.frame(TCPV4 | ECN, 1000))
    assert [packet[33] for packet in found] == [ACK | CWR, ACK, ACK | PSH | FIN]
    for packet in found:
        verify(packet)


def test_one_vlan_tag_is_no_hindrance() -> None:
    for kind in ("8100", "88a8"):
        tag = bytes.fromhex(kind) + b"\0\5"
        frame = Made(6, TCP, bytes(2500)).frame(TCPV6, 1000)
        tagged = lying(frame, start=58 + 0)[: VNET + 12] + tag + frame[VNET + 12 :]
        frames = offloaded(tagged)
        assert frames is not None and len(frames) == 3
        assert all(one[12:16] == tag for one in frames)
        assert [one[18:] for one in frames] == sent(frame)


def test_a_gso_frame_without_a_partial_checksum_gets_its_own() -> None:
    frame = lying(Made(protocol=TCP, payload=bytes(2500)).frame(TCPV4, 1000), flags=0)
    for packet in sent(frame):
        verify(packet)


# ------------------------------------------------------------------------------------------ lies


GOOD = Made(protocol=TCP, payload=bytes(3000)).frame(TCPV4, 1000)
LENGTH = len(GOOD) - VNET


@pytest.mark.parametrize(
    "lie",
    [
        {"gso": 0, "start": LENGTH},
        {"gso": 0, "start": LENGTH - 17},
        {"gso": 0, "start": 65535, "offset": 65535},
        {"gso": 0, "start": 13},
        {"gso": 0, "offset": 65535},
        {"gso": 0, "hdr_len": LENGTH + 1},
        {"gso": 0, "flags": 0, "hdr_len": LENGTH + 1},
        {"hdr_len": 65535},
        {"size": 0},
        {"size": 1},
        {"start": 38},
        {"start": 30},
        {"offset": 6},
        {"gso": TCPV6},
        {"gso": USO},
        {"gso": 3},
        {"gso": 77},
        {"gso": ECN},
    ],
    ids=str,
)
def test_a_header_that_lies_is_told(lie: dict[str, int]) -> None:
    assert offloaded(GOOD) is not None
    assert offloaded(lying(GOOD, **lie)) is None


@pytest.mark.parametrize("at", range(VNET, VNET + 54))
def test_a_truncated_gso_frame_is_refused(at: int) -> None:
    assert offloaded(lying(GOOD, hdr_len=0)[:at]) is None


def test_fragments_and_long_headers_cannot_be_cut() -> None:
    assert offloaded(Made(protocol=TCP, payload=bytes(3000), field=0x2000).frame(TCPV4, 1000)) is None
    fragment = Made(6, TCP, bytes(3000), first=44, extensions=bytes([TCP, 0, 0, 1, 0, 0, 0, 1]))
    assert offloaded(fragment.frame(TCPV6, 1000)) is None
    long = Made(6, TCP, bytes(3000), first=60, extensions=bytes([TCP, 25]) + bytes(206))
    assert long.transport + 20 + 14 > HEAD
    assert offloaded(long.frame(TCPV6, 1000)) is None


# ------------------------------------------------------------------------------------------ against segment.py

payloads = st.builds(
    lambda size, seed: random.Random(seed).randbytes(size), st.integers(0, 3000), st.integers(0, 1 << 32)
)
routing = st.builds(
    lambda left: bytes([TCP, 2, 0, left]) + bytes(4) + bytes(range(16)), st.integers(0, 1)
)  # or one of segments left


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    version, protocol = draw(st.sampled_from(list(KINDS)))
    options = bytes(draw(st.sampled_from([0, 0, 4, 40])))
    extensions, first = b"", 0
    if version == 6 and draw(st.booleans()):
        first = draw(st.sampled_from([0, 43, 44, 60]))
        extensions = bytes([protocol]) + (draw(routing)[1:] if first == 43 else bytes(7))
    made = Made(
        version,
        protocol,
        draw(payloads),
        identity=draw(st.integers(0, 0xFFFF)),
        options=options if version == 4 else b"",
        extensions=extensions,
        first=first,
        sequence=draw(st.integers(0, 0xFFFFFFFF)),
        tcp_flags=draw(st.integers(0, 255)),
        tcp_options=bytes(draw(st.sampled_from([0, 12]))) if protocol == TCP else b"",
    )
    gso = draw(st.sampled_from([0, KINDS[version, protocol], KINDS[version, protocol] | ECN]))
    return made.frame(gso, draw(st.integers(1, 2000)) if gso else 0)


@settings(max_examples=400, deadline=None)
@given(frames())
def test_honest_frames_leave_as_packets_makes_them(frame: bytes) -> None:
    wanted = as_told_by_packets(frame)
    if wanted is None:
        assert offloaded(frame) is None
    else:
        assert sent(frame) == wanted


@settings(max_examples=600, deadline=None)
@given(frames(), st.data())
def test_what_packets_takes_for_a_lie_is_never_cut(frame: bytes, data: st.DataObject) -> None:
    header = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "flags": st.integers(0, 255),
                "gso": st.integers(0, 255),
                "hdr_len": st.integers(0, 65535),
                "size": st.integers(0, 65535),
                "start": st.integers(0, 100) | st.integers(0, 65535),
                "offset": st.integers(0, 30) | st.integers(0, 65535),
            },
        )
    )
    broken = bytearray(lying(frame, **header))
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(VNET + 12, min(len(broken), VNET + 90) - 1))] = data.draw(st.integers(0, 255))
    told = bytes(broken[: data.draw(st.integers(VNET + 14, len(broken))) if data.draw(st.booleans()) else None])
    found, wanted = offloaded(told), as_told_by_packets(told)
    gso = told[1] != 0
    if gso and wanted is None and found is not None:
        assert told[VNET + 12 : VNET + 14] in (b"\x81\x00", b"\x88\xa8"), "only a tag makes the difference"
    if gso and found is not None and wanted is not None:
        assert [one[14:] for one in found] == wanted
    if found is None and wanted is not None and told[1] != ECN:  # which says nothing by itself; the kernel refuses it
        hdr_len = int.from_bytes(told[2:4], "little")
        assert hdr_len > len(told) - VNET or segment.parse(told).head + 14 > HEAD, "C refuses no more than that"
