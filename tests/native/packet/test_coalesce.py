"""Datagrams put together: taken apart again they are what came, byte for byte, in the order in which they came."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native._probe import coupled, offloaded
from tests.support.wire.packets import A4, A6, DF, MF, TCP, Made, verify

VNET = 10
BEGUN, WHOLE, VOUCHED, WRONG, NONE = "partial", "whole", "vouched", "wrong", "none"
WRONG_HEADER = "wrong header"
DATA_VALID = 2


@dataclass(frozen=True)
class Datagram:
    """`form`: what is said of its checksums, and whether that is true."""

    payload: bytes
    identity: int = 0
    field: int = DF
    version: int = 4
    flow: int = 0
    form: str = WHOLE

    def frame(self) -> bytes:
        source = (A4 if self.version == 4 else A6)[:-1] + bytes([self.flow])
        made = Made(version=self.version, payload=self.payload, identity=self.identity, field=self.field, source=source)
        partial = made.frame()
        if self.form == BEGUN:
            return partial
        (frame,) = offloaded(partial)
        check = 14 + (26 if self.version == 4 else 46)
        if self.form == WRONG:
            frame = frame[:check] + bytes([frame[check] ^ 1]) + frame[check + 1 :]
        elif self.form == NONE:
            frame = frame[:check] + b"\0\0" + frame[check + 2 :]
        elif self.form == WRONG_HEADER and self.version == 4:
            frame = frame[:24] + bytes([frame[24] ^ 1]) + frame[25:]
        return bytes([DATA_VALID if self.form == VOUCHED else 0]) + bytes(9) + frame


def apart(frames: list[bytes]) -> list[bytes]:
    """As a kernel takes GSO frames apart."""
    found = []
    for frame in frames:
        cut = offloaded(frame)
        assert cut is not None
        found += cut
    return found


def plain(frame: bytes) -> bytes:
    """Without what says nothing: the identifier of a packet that may not be fragmented (RFC 6864)."""
    if frame[12:14] == b"\x08\x00" and frame[20] & 0x40:
        return frame[:18] + b"\0\0" + frame[20:24] + b"\0\0" + frame[26:]
    return frame


DATAGRAMS = st.lists(
    st.builds(
        Datagram,
        payload=st.one_of(
            st.sampled_from([b"a" * 100, b"b" * 100, b"c" * 99, b"d"]), st.binary(min_size=0, max_size=120)
        ),
        identity=st.integers(0, 3),
        field=st.sampled_from([DF, DF, 0, MF, 3]),
        version=st.sampled_from([4, 4, 6]),
        flow=st.sampled_from([1, 1, 1, 2]),
        form=st.sampled_from([BEGUN, WHOLE, WHOLE, VOUCHED, WRONG, NONE, WRONG_HEADER]),
    ),
    max_size=12,
)


@given(DATAGRAMS, st.booleans())
@settings(max_examples=400)
def test_taken_apart_they_are_what_came(datagrams: list[Datagram], counting: bool) -> None:
    if counting:  # identifiers that go on as one sender's do
        datagrams = [
            Datagram(d.payload, (65_530 + k) & 0xFFFF, d.field, d.version, d.flow, d.form)
            for k, d in enumerate(datagrams)
        ]
    frames = [d.frame() for d in datagrams]
    came = apart(coupled(frames))
    assert [plain(frame) for frame in came] == [plain(frame) for frame in apart(frames)]
    for datagram, frame in zip(datagrams, came, strict=True):
        if datagram.form in (BEGUN, WHOLE, VOUCHED) and datagram.field in (0, DF):
            verify(frame[14:])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("form", [BEGUN, WHOLE, VOUCHED])
@pytest.mark.parametrize("field", [0, DF])
def test_a_flow_becomes_one(version: int, form: str, field: int) -> None:
    flow = [Datagram(bytes([k]) * 1400, 65_530 + k & 0xFFFF, field, version, form=form) for k in range(40)]
    flow.append(Datagram(b"short", 34, field, version, form=form))
    frames = [d.frame() for d in flow]
    (whole,) = coupled(frames)
    assert len(whole) == VNET + 14 + (20 if version == 4 else 40) + 8 + 40 * 1400 + 5
    assert apart([whole]) == apart(frames)


def sizes(datagrams: list[Datagram]) -> list[int]:
    """How many travelled together."""
    return [len(apart([frame])) for frame in coupled([d.frame() for d in datagrams])]


def test_what_is_not_alike_does_not_travel_together() -> None:
    one = Datagram(b"x" * 100)
    assert sizes([one, one, Datagram(b"x" * 100, flow=1), one]) == [2, 1, 1]
    assert sizes([one, Datagram(b"x" * 101), one]) == [1, 2]  # the shorter is the last
    assert sizes([one, Datagram(b"x" * 99), one]) == [2, 1]
    assert sizes([one, Datagram(b"x" * 100, version=6)]) == [1, 1]
    assert sizes([Datagram(b"x" * 100, identity=5, field=0), Datagram(b"x" * 100, identity=7, field=0)]) == [1, 1]
    assert sizes([one, Datagram(b"x" * 100, form=WRONG), one]) == [1, 1, 1]
    assert sizes([one, Datagram(b"x" * 100, form=WRONG_HEADER), one]) == [1, 1, 1]
    assert sizes([one, Datagram(b"x" * 100, form=NONE), one]) == [1, 1, 1]
    tos = one.frame()
    tos = tos[: VNET + 15] + b"\x03" + tos[VNET + 16 :]  # marked by a router: congestion
    assert len(coupled([one.frame(), tos])) == 2


def test_no_train_is_longer_than_the_kernel_takes() -> None:
    assert sizes([Datagram(b"x" * 10)] * 100) == [64, 36]
    assert sizes([Datagram(b"x" * 9000)] * 10) == [7, 3]  # 64 KB


def test_other_frames_never_travel() -> None:
    tcp = Made(protocol=TCP).frame()
    assert coupled([tcp, tcp]) == [tcp, tcp]
    for length in range(52):
        runt = bytes(VNET) + Datagram(b"x" * 10).frame()[VNET:][:length]
        assert coupled([runt, runt]) == [runt, runt]


@given(st.lists(st.binary(max_size=90), max_size=4))
def test_any_bytes_are_left_as_they_are(blobs: list[bytes]) -> None:
    frames = [bytes(VNET) + blob for blob in blobs]
    assert coupled(frames) == frames
