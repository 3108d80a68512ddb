"""The verifier of checksums itself: it must see every single wrong bit that a checksum can see."""

from __future__ import annotations

import pytest

from tests.support.wire import frames


def test_own_frame_is_right() -> None:
    assert frames.wrong(frames.udp4("10.1.0.1", "10.1.0.2", b"hello"), frames.Reassembly()) is None


@pytest.mark.parametrize("at", range(14, 14 + 20 + 8 + 5))
def test_flipped_bit_is_wrong(at: int) -> None:
    frame = bytearray(frames.udp4("10.1.0.1", "10.1.0.2", b"hello"))
    frame[at] ^= 0x10
    assert frames.wrong(bytes(frame), frames.Reassembly()) is not None


def test_partial_checksum_is_completed() -> None:
    whole = frames.udp4("10.1.0.1", "10.1.0.2", b"hello")
    start = frames.total(frames.pseudo(whole[26:30], whole[30:34], frames.UDP, 13))
    partial = whole[:40] + start.to_bytes(2, "big") + whole[42:]
    header = bytes([1, 0, 0, 0, 0, 0, 34, 0, 6, 0])
    assert frames.wrong(partial, frames.Reassembly()) is not None
    assert frames.complete(header, partial) == whole


def test_fragments_are_verified_together() -> None:
    whole = frames.udp4("10.1.0.1", "10.1.0.2", bytes(range(48)))

    def part(offset: int, data: bytes, more: bool) -> bytes:
        header = bytearray(whole[14:34])
        header[2:4] = (20 + len(data)).to_bytes(2, "big")
        header[6:8] = (offset // 8 | 0x2000 * more).to_bytes(2, "big")
        header[10:12] = b"\0\0"
        header[10:12] = frames.checksum(bytes(header)).to_bytes(2, "big")
        return whole[:14] + bytes(header) + data

    parts = [part(32, whole[66:], False), part(0, whole[34:66], True)]
    good = frames.Reassembly()
    assert [frames.wrong(frame, good) for frame in parts] == [None, None]
    bad = frames.Reassembly()
    spoilt = parts[1][:60] + bytes([parts[1][60] ^ 1]) + parts[1][61:]
    assert [frames.wrong(frame, bad) for frame in (parts[0], spoilt)][1] is not None
