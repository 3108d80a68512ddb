"""GSO frames that no virtio_net_hdr describes: told from all others, and segmented as their sender would have."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native._probe import offload_fits, offloaded
from tests.reference.tunnels import ALL, MACS, PLAIN, SCTP, UDP, Inner, Tunnel, crc32c, ip, segments, super_frame
from tests.support.wire.packets import A4, B4, TCP, TCPV4, TCPV6, USO, Made

VNET = 10
BYTES = random.Random(1).randbytes(60_000)
INNERS = [Inner(version, protocol, BYTES[:3700]) for version in (4, 6) for protocol in (TCP, UDP)]


@pytest.mark.parametrize("inner", INNERS, ids=lambda one: f"{'tcp' if one.protocol == TCP else 'udp'}{one.version}")
@pytest.mark.parametrize("tunnel", ALL, ids=lambda one: one.name)
def test_a_tunnel_is_segmented_as_its_sender_would_have(tunnel: Tunnel, inner: Inner) -> None:
    frame = super_frame(tunnel, inner)
    assert not offload_fits(frame)
    assert offloaded(frame) == segments(tunnel, inner)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ALL), st.sampled_from(INNERS), st.integers(1, 60_000), st.integers(536, 8900), st.integers(0, 2**32)
)
def test_of_any_length(tunnel: Tunnel, inner: Inner, length: int, size: int, seed: int) -> None:
    inner = Inner(inner.version, inner.protocol, random.Random(seed).randbytes(length), size)
    assert offloaded(super_frame(tunnel, inner)) == segments(tunnel, inner)


@pytest.mark.parametrize("kind", [(4, TCP, TCPV4), (6, TCP, TCPV6), (4, UDP, USO), (6, UDP, USO)], ids=str)
@pytest.mark.parametrize("tags", [b"", b"\x81\0\0\5", b"\x88\xa8\0\5\x81\0\0\6"], ids=len)
def test_headers_that_are_true_are_left_alone(kind: tuple[int, int, int], tags: bytes) -> None:
    version, protocol, gso = kind
    for made in (Made(version, protocol, bytes(3000)), Made(version, protocol, bytes(3000), options=bytes(4))):
        for frame in (made.frame(gso, 1000), made.frame()):
            start = struct.unpack("<H", frame[6:8])[0] + len(tags)
            tagged = frame[:6] + struct.pack("<H", start) + frame[8:22] + tags + frame[22:]
            assert offload_fits(tagged)
            assert offloaded(tagged) is not None
    assert offload_fits(bytes(VNET) + made.frame()[VNET:])


@pytest.mark.parametrize("at", range(VNET + 14, VNET + 14 + 20 + 8 + 8 + 14 + 40))
def test_a_tunnel_that_is_cut_off_is_refused(at: int) -> None:
    assert offloaded(super_frame(PLAIN[0], INNERS[0])[:at]) is None


@pytest.mark.parametrize("tunnel", PLAIN, ids=lambda one: one.name)
def test_lengths_that_do_not_end_with_the_frame_lead_nowhere(tunnel: Tunnel) -> None:
    """Nothing is guessed: with any of the lengths wrong the frame is refused."""
    frame = super_frame(tunnel, INNERS[0])
    assert offloaded(frame + b"\0") is None
    for at in range(VNET + 16, VNET + 18):
        assert offloaded(frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]) is None


def test_what_is_no_known_encapsulation_is_refused() -> None:
    unknown = Tunnel("unknown", UDP, lambda packet, _version, _number: b"\xff" * 12 + packet)
    sequenced = Tunnel("sequence", 47, lambda packet, _version, number: b"\x10\0\x08\0" + bytes(4) + packet)
    for tunnel in (unknown, sequenced):
        frame = super_frame(tunnel, INNERS[0])
        assert not offload_fits(frame)
        assert offloaded(frame) is None


def test_packets_in_packets_without_end_are_refused() -> None:
    def wrap(packet: bytes, _version: int, number: int) -> bytes:
        for _ in range(9):
            packet = ip(4, 4, packet, number, (A4, B4))
        return packet

    assert offloaded(super_frame(Tunnel("deep", 4, wrap), INNERS[0])) is None


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ALL), st.data())
def test_whatever_it_says_it_is_read_within_its_bounds(tunnel: Tunnel, data: st.DataObject) -> None:
    frame = bytearray(super_frame(tunnel, INNERS[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, VNET + 120))] = data.draw(st.integers(0, 255))
    told = bytes(frame[: data.draw(st.integers(VNET, len(frame))) if data.draw(st.booleans()) else None])
    offload_fits(told)
    for segment in offloaded(told) or ():
        assert len(segment) <= len(told)


# ------------------------------------------------------------------------------------------ SCTP


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 1400, 1401])
@pytest.mark.parametrize("version", [4, 6])
def test_sctp_gets_a_crc(version: int, size: int) -> None:
    chunk = BYTES[:size]
    header = struct.pack("!HHI", 5000, 5001, 0x12345678)
    made = Made(version, SCTP, header + b"\xaa\xbb\xcc\xdd" + chunk)  # what stands there does not count
    frame = struct.pack("<BBHHHH", 1, 0, 0, 0, 14 + made.transport, 8) + made.frame()[VNET:]
    assert not offload_fits(frame)
    found = offloaded(frame)
    assert found is not None and len(found) == 1
    packet = found[0][14 + made.transport :]
    assert packet == header + struct.pack("<I", crc32c(header + bytes(4) + chunk)) + chunk
    assert found[0][: 14 + made.transport] == frame[VNET : VNET + 14 + made.transport]


def test_the_crc_is_that_of_the_standard() -> None:
    """RFC 3720 appendix B.4 has sums of known bytes; the frame's four bytes of checksum are in front of none."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_a_crc_that_would_not_fit_is_refused() -> None:
    frame = MACS + b"\x08\0" + ip(4, SCTP, bytes(11), 0, (A4, B4))
    assert offloaded(struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 8) + frame) is None
    assert offloaded(struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 8) + frame + b"\0") is not None
