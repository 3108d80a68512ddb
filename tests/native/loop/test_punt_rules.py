"""What the datapath punts is what Python parses: its rules against `snooping.learned`, `dhcp4` and `dhcp6`."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.snooping import dhcp4, dhcp6
from ipvsw.snooping.learned import claimed_address
from tests.native._probe import is_dhcp, sender_of
from tests.support.wire.dhcp import bootp, in_frame, said6

HEADER = bytes(10)
MACS = b"\xff" * 6 + bytes.fromhex("020000000001")
V4 = st.sampled_from([bytes(4), bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))])
V6 = st.sampled_from([bytes(16), bytes.fromhex("fe80") + bytes(13) + b"\1", bytes.fromhex("fd00") + bytes(13) + b"\2"])


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """ARP, IPv4 and neighbour discovery, at times damaged or cut off."""
    kind = draw(st.sampled_from(["arp", "ipv4", "ipv6", "nd"]))
    if kind == "arp":
        packet = b"\0\1\x08\0\6\4\0\1" + bytes(6) + draw(V4) + bytes(6) + draw(V4)
        frame = MACS + b"\x08\x06" + packet
    elif kind == "ipv4":
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 6, 0) + draw(V4) + draw(V4) + bytes(8)
        frame = MACS + b"\x08\x00" + packet
    else:
        protocol = 58 if kind == "nd" else draw(st.sampled_from([6, 17, 58]))
        body = bytes([draw(st.sampled_from([128, 133, 134, 135, 136, 137]))]) + bytes(7) + draw(V6)
        packet = struct.pack("!IHBB", 6 << 28, len(body), protocol, draw(st.sampled_from([255, 64])))
        frame = MACS + b"\x86\xdd" + packet + draw(V6) + draw(V6) + body
    damaged = bytearray(frame)
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(frame) - 1), st.integers(0, 255)), max_size=2)):
        damaged[at] = value
    return bytes(damaged[: draw(st.integers(0, len(frame)))]) if draw(st.booleans()) else bytes(damaged)


@given(frames())
def test_what_is_learned_is_what_was_punted(frame: bytes) -> None:
    found, punted = claimed_address(HEADER + frame), sender_of(frame)
    assert found is None or punted is None or found[0].packed == punted


@pytest.mark.parametrize("to_port", [67, 68])
@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(14, 340), st.integers(0, 255)), max_size=3))
def test_every_message_is_punted(to_port: int, tail: bytes, damage: list[tuple[int, int]]) -> None:
    frame = bytearray(in_frame(bootp(1 if to_port == 67 else 2, kind=1) + tail + bytes(40), to_port=to_port)[10:])
    for at, value in damage:
        frame[at % len(frame)] = value
    where = dhcp4.datagram(HEADER + bytes(frame))
    understood = (
        where is not None
        and where.to_port in (67, 68)
        and dhcp4.read((HEADER + bytes(frame))[where.payload], where.to_port) is not None
    )
    if understood:
        assert where is not None
        assert is_dhcp(bytes(frame), to_client=False)
        assert is_dhcp(bytes(frame), to_client=True) is (where.to_port == 68)


@given(st.sampled_from([546, 547]), st.integers(0, 255), st.integers(0, 60))
def test_every_message_for_ipv6_is_punted(to_port: int, kind: int, size: int) -> None:
    message = said6(kind)[:size]
    udp = struct.pack("!HHHH", 1, to_port, 8 + len(message), 0) + message
    packet = struct.pack("!IHBB", 6 << 28, len(udp), 17, 1) + bytes(15) + b"\1" + bytes(15) + b"\2"
    frame = MACS + b"\x86\xdd" + packet + udp
    where = dhcp4.datagram(HEADER + frame)
    assert where is not None and where.to_port == to_port
    assert is_dhcp(frame, to_client=False)
    assert is_dhcp(frame, to_client=True) is (to_port == 546)
    dhcp6.read((HEADER + frame)[where.payload])


@given(st.binary(max_size=100), st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x86\xdd"]))
def test_nothing_is_read_past_the_end(packet: bytes, kind: bytes) -> None:
    """Under the sanitizers that is an error."""
    for frame in (packet, MACS + kind + packet):
        sender_of(frame)
        is_dhcp(frame, to_client=False)
