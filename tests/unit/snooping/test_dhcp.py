"""DHCP messages of both protocols, read and touched up."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.snooping import dhcp4, dhcp6
from ipvsw.snooping.dhcp4 import DhcpAction
from tests.support.wire.dhcp import CHADDR, bootp, checksummed, in_frame, option6, said6, udp_is_right

LEASED = "192.0.2.50"
CLIENT_ID = b"\xff\0\0\0\1\0\3\0\1" + CHADDR


def read4(message: bytes) -> dhcp4.DhcpMessage | None:
    """To the port that such messages go to."""
    return dhcp4.read(message, 67 if message[:1] == b"\1" else 68)


def read(message: bytes) -> dhcp4.DhcpMessage:
    said = read4(message)
    assert said is not None
    return said


def read6(message: bytes) -> dhcp4.DhcpMessage:
    said = dhcp6.read(message)
    assert said is not None
    return said


def test_a_question_is_known_by_its_transaction() -> None:
    said = read(bootp(1, kind=1, xid=77, client=CLIENT_ID, hostname=b"one\0"))
    assert (said.action, said.xid, said.chaddr, said.client) == (DhcpAction.ASK, 77, CHADDR, CLIENT_ID)
    assert said.hostname == "one" and not said.is_reply


@pytest.mark.parametrize(
    ("kind", "more", "given_up"),
    [(4, {"requested": LEASED}, True), (7, {"ciaddr": LEASED}, True), (3, {"requested": LEASED}, False)],
    ids=["decline", "release", "request"],
)
def test_what_a_client_gives_up(kind: int, more: dict[str, str], given_up: bool) -> None:
    said = read(bootp(1, kind=kind, **more))
    assert said.action is (DhcpAction.GIVE_UP if given_up else DhcpAction.ASK)
    assert said.addresses == (((IPv4Address(LEASED), 0),) if given_up else ())


@pytest.mark.parametrize(("seconds", "valid"), [(3600, 3600), (0xFFFFFFFF, None)])
def test_a_lease(seconds: int, valid: int | None) -> None:
    said = read(bootp(2, kind=5, yiaddr=LEASED, seconds=seconds, server="192.0.2.1"))
    assert said.action is DhcpAction.GRANT and said.addresses == ((IPv4Address(LEASED), valid),)
    assert said.server == "192.0.2.1"


def test_answers_that_lease_nothing() -> None:
    assert read(bootp(2, kind=2, yiaddr=LEASED, seconds=60)).action is DhcpAction.OTHER  # an offer
    assert read(bootp(2, kind=5)).action is DhcpAction.OTHER  # of an inform
    assert read(bootp(2, kind=6)).action is DhcpAction.REFUSE
    assert read(bootp(2, yiaddr=LEASED)).action is DhcpAction.OTHER  # plain BOOTP


def test_options_in_pieces_and_in_other_fields() -> None:
    whole = bootp(2, kind=5, yiaddr=LEASED)
    split = whole[:-1] + b"\x3d\x03abc\x3d\x02de" + b"\x34\x01\x03\xff"
    overloaded = split[:108] + b"\x33\x04\0\0\0\x3c\xff".ljust(128, b"\0") + split[236:]
    overloaded = overloaded[:44] + b"\x0c\x02vm\xff".ljust(64, b"\0") + overloaded[108:]
    said = read(overloaded)
    assert said.client == b"abcde" and said.hostname == "vm"
    assert said.addresses == ((IPv4Address(LEASED), 60),)


def test_what_is_none_of_ours() -> None:
    message = bootp(1, kind=1)
    assert read4(message[:239]) is None
    assert read4(b"\3" + message[1:]) is None
    assert read4(message[:24] + b"\1\2\3\4" + message[28:]) is None  # from a relay to its server
    assert read4(message[:236] + b"BOOT" + message[240:]) is None
    assert read4(message[:2] + b"\x11" + message[3:]) is None  # hardware addresses have 16 bytes at most


@pytest.mark.parametrize(
    ("more", "wanted"), [({}, True), ({"flags": 0x8000}, False), ({"ciaddr": LEASED}, False)], ids=str
)
def test_who_is_made_to_ask_for_a_broadcast(more: dict[str, object], wanted: bool) -> None:
    assert dhcp4.wants_broadcast(bootp(1, kind=3, **more)) is wanted


def test_an_answer_is_not_changed() -> None:
    assert not dhcp4.wants_broadcast(bootp(2, kind=5, yiaddr=LEASED))


@given(filler=st.binary(max_size=64), xid=st.integers(0, 0xFFFFFFFF), flags=st.integers(0, 0x7FFF))
def test_the_checksum_stays_right(filler: bytes, xid: int, flags: int) -> None:
    frame = checksummed(in_frame(bootp(1, kind=1, xid=xid, flags=flags) + filler))
    where = dhcp4.datagram(frame)
    assert where is not None and udp_is_right(frame)
    changed = dhcp4.with_broadcast(frame, where)
    assert udp_is_right(changed)
    assert read4(changed[where.payload]) == read4(frame[where.payload])
    assert not dhcp4.wants_broadcast(changed[where.payload])
    assert [at for at in range(len(frame)) if frame[at] != changed[at]] in (
        [where.udp + 6, where.udp + 18],
        [where.udp + 7, where.udp + 18],
        [where.udp + 6, where.udp + 7, where.udp + 18],
    )


@pytest.mark.parametrize("header", [bytes(10), b"\1\0\0\0\0\0\x22\0\6\0"], ids=["none", "partial"])
def test_a_checksum_that_is_none_or_partial_stays(header: bytes) -> None:
    frame = header + in_frame(bootp(1, kind=1))[10:]
    where = dhcp4.datagram(frame)
    assert where is not None
    checksum = slice(where.udp + 6, where.udp + 8)
    if header[0]:
        frame = frame[: checksum.start] + b"\x12\x34" + frame[checksum.stop :]
    assert dhcp4.with_broadcast(frame, where)[checksum] == frame[checksum]


def test_only_a_whole_datagram_is_looked_at() -> None:
    frame = in_frame(bootp(1, kind=1))
    assert dhcp4.datagram(frame) is not None
    assert dhcp4.datagram(frame + b"padding") == dhcp4.datagram(frame)
    assert dhcp4.datagram(frame[:-1]) is None
    assert dhcp4.datagram(frame[:30] + b"\x20\0" + frame[32:]) is None  # a fragment
    assert dhcp4.datagram(frame[:24] + b"\x44" + frame[25:]) is None
    assert dhcp4.datagram(frame[:22] + b"\x81\0" + frame[24:]) is None


# ---------------------------------------------------------------------------- IPv6

ADDRESS6 = "2001:db8::50"


def test_a_lease_for_ipv6() -> None:
    said = read6(said6(7, addresses={ADDRESS6: 600, "2001:db8::51": 0}))
    assert said.action is DhcpAction.GRANT and said.xid == 0x123456 and said.client == b"\0\3\0\1abcdef"
    assert said.addresses == ((IPv6Address(ADDRESS6), 600), (IPv6Address("2001:db8::51"), 0))
    assert read6(said6(7, addresses={ADDRESS6: 0xFFFFFFFF})).addresses[0][1] is None


@pytest.mark.parametrize("kind", [1, 3, 4, 5, 6, 11])
def test_a_question_for_ipv6(kind: int) -> None:
    assert read6(said6(kind, addresses={ADDRESS6: 600})).action is DhcpAction.ASK


@pytest.mark.parametrize("kind", [8, 9])
def test_what_a_client_gives_up_of_ipv6(kind: int) -> None:
    said = read6(said6(kind, addresses={ADDRESS6: 0}))
    assert said.action is DhcpAction.GIVE_UP and said.addresses == ((IPv6Address(ADDRESS6), 0),)


def test_a_refusal_for_ipv6_leases_nothing() -> None:
    failed = option6(13, b"\0\2none left")
    address = option6(5, IPv6Address(ADDRESS6).packed + bytes(4) + struct.pack("!I", 60) + failed)
    for options in (
        option6(3, bytes(12) + failed),
        option6(3, bytes(12) + address),
        option6(3, bytes(12) + address[:-13]) + failed,
    ):
        assert read6(said6(7, more=options)).action is DhcpAction.OTHER
    assert read6(said6(2, addresses={ADDRESS6: 60})).action is DhcpAction.OTHER


def test_what_is_none_of_ours_for_ipv6() -> None:
    assert dhcp6.read(said6(12)) is None  # a relay's
    assert dhcp6.read(b"\1\0\0\1") is None  # nobody's
    assert dhcp6.read(b"\1\0\0") is None


# ---------------------------------------------------------------------------- nonsense


@given(st.binary(max_size=400))
def test_no_message_raises(message: bytes) -> None:
    read4(message)
    dhcp6.read(message)
    read4(bootp(1, kind=1)[:240] + message)
    dhcp6.read(said6(7, more=message))


@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06", b""]))
def test_no_frame_raises(tail: bytes, kind: bytes) -> None:
    dhcp4.datagram(bytes(22) + kind + tail)


@given(st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), max_size=6))
def test_no_damage_raises(damage: list[tuple[int, int]]) -> None:
    frame = bytearray(in_frame(bootp(2, kind=5, yiaddr=LEASED, seconds=60, client=CLIENT_ID)))
    for at, value in damage:
        frame[at] = value
    where = dhcp4.datagram(bytes(frame))
    if where is not None:
        read4(bytes(frame)[where.payload])


@pytest.mark.parametrize("kind", [2, 5, 6])
def test_what_a_relay_hands_on_to_a_client_has_the_relays_address(kind: int) -> None:
    """RFC 1542 section 4.1.2: only between relay and server is it nobody's business."""
    plain = bootp(2, kind=kind, yiaddr=LEASED, seconds=60, server="192.0.2.1")
    relayed = bootp(2, kind=kind, yiaddr=LEASED, seconds=60, server="192.0.2.1", giaddr="192.0.2.254")
    assert dhcp4.read(relayed, 68) == dhcp4.read(plain, 68) is not None
    for message in (plain, relayed):
        assert dhcp4.read(message, 67) is None
    assert dhcp4.read(bootp(1, kind=1), 68) is None


def test_a_priority_tag_is_looked_through() -> None:
    plain = in_frame(bootp(1, kind=1))
    without = dhcp4.datagram(plain)
    for tag, is_read in ((b"\x81\0\0\0", True), (b"\x81\0\xe0\0", True), (b"\x81\0\0\7", False), (b"\x81\0", False)):
        tagged = plain[:22] + tag + plain[22:]
        where = dhcp4.datagram(tagged)
        assert (where is not None) is is_read
        if where is not None and without is not None:
            assert tagged[where.payload] == plain[without.payload]
            assert not dhcp4.wants_broadcast(dhcp4.with_broadcast(tagged, where)[where.payload])
