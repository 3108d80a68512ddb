"""The daemon's own DHCP client, against a server that is this test: phases, times, and what it makes of options."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.snooping import dhcp4
from ipvsw.snooping.dhcp4 import COOKIE, FIXED, Code, Kind
from ipvsw.snooping.dhcpclient import ALL, MOST_ROUTES, MOST_SERVERS, NOBODY, PAUSE, RETRIES, DhcpClient, Outgoing

ADDRESS, OTHER, SERVER = IPv4Address("192.0.2.9"), IPv4Address("192.0.2.10"), IPv4Address("192.0.2.1")
MAC = bytes.fromhex("020000000001")
TERMS = {Code.SECONDS: struct.pack("!I", 1000), Code.MASK: IPv4Address("255.255.255.0").packed}


class Talk:
    """A client and what it last said."""

    def __init__(self) -> None:
        numbers = iter(range(500, 10**6, 1000))  # of which none moves a time
        self.client = DhcpClient(b"\0id", MAC, "web", lambda: next(numbers))
        self.now = 100.0
        self.out: Outgoing | None = self.client.begin(self.now)

    @property
    def said(self) -> tuple[Kind, dict[int, bytes]]:
        assert self.out is not None
        found = dhcp4.options(self.out.payload)
        return Kind(found[Code.KIND][0]), found

    def answer(self, kind: Kind, address: IPv4Address = ADDRESS, *, xid: int | None = None, **more: bytes) -> None:
        assert self.out is not None
        asked = FIXED.unpack_from(self.out.payload)
        head = (2, 1, 6, 0, asked[4] if xid is None else xid, 0, 0, bytes(4), address.packed, bytes(4), bytes(4))
        terms = TERMS if kind is not Kind.NAK else {}
        found = {Code.KIND: bytes([kind]), Code.SERVER_ID: SERVER.packed, **terms}
        found |= {Code[key]: content for key, content in more.items()}
        pieces = [
            (code, content[at : at + 255])  # RFC 3396
            for code, content in found.items()
            for at in range(0, max(len(content), 1), 255)
        ]
        body = b"".join(bytes([code, len(piece)]) + piece for code, piece in pieces)
        message = FIXED.pack(*head, MAC, b"", b"", COOKIE) + body + b"\xff"
        self.out = self.client.take(message, self.now) or self.out

    def wait(self) -> float:
        """Until it does something; the seconds."""
        assert self.client.due is not None
        waited, self.now = self.client.due - self.now, self.client.due
        self.out = self.client.tick(self.now)
        return waited

    def bind(self, **more: bytes) -> None:
        self.answer(Kind.OFFER)
        self.answer(Kind.ACK, **more)


def test_four_messages_and_a_lease() -> None:
    talk = Talk()
    kind, found = talk.said
    assert kind is Kind.DISCOVER and found[Code.CLIENT_ID] == b"\0id" and found[Code.HOSTNAME] == b"web"
    assert talk.out is not None and (talk.out.source, talk.out.destination) == (NOBODY, ALL)
    assert len(talk.out.payload) >= 300 and talk.out.payload[10] & 0x80, "the answer is to be a broadcast"
    assert dhcp4.read(talk.out.payload, dhcp4.SERVER) is not None
    talk.answer(Kind.OFFER)
    kind, found = talk.said
    assert kind is Kind.REQUEST and found[Code.REQUESTED] == ADDRESS.packed and found[Code.SERVER_ID] == SERVER.packed
    talk.answer(Kind.ACK)
    lease = talk.client.lease
    assert lease is not None and lease.address == "192.0.2.9/24" and lease.server == "192.0.2.1"
    assert (lease.renew, lease.rebind, lease.until) == (600.0, 975.0, 1100.0)


def test_it_asks_again_and_again_ever_more_rarely() -> None:
    talk = Talk()
    waits = [talk.wait() for _ in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64, 64] and talk.said[0] is Kind.DISCOVER
    talk.answer(Kind.OFFER)
    for _ in range(RETRIES):
        assert talk.said[0] is Kind.REQUEST
        talk.wait()
    assert talk.said[0] is Kind.DISCOVER, "the server that has offered is gone"


def test_it_renews_then_asks_everybody_and_then_has_nothing() -> None:
    talk = Talk()
    talk.bind()
    assert talk.wait() == 500 and talk.said[0] is Kind.REQUEST
    assert talk.out is not None and talk.out.source == ADDRESS, "from the address that it has"
    assert Code.REQUESTED not in talk.said[1] and Code.SERVER_ID not in talk.said[1]
    talk.answer(Kind.ACK)
    lease = talk.client.lease
    assert lease is not None and lease.until == 1600.0
    talk.wait()
    waits = []
    while talk.client.lease is not None:
        waits.append(talk.wait())
    assert waits == [187.5, 93.75, 60.0, 33.75, 62.5, 60.0, 2.5] and talk.now == 1600.0
    assert talk.said[0] is Kind.DISCOVER


def test_a_refusal_is_heeded_and_makes_no_storm() -> None:
    talk = Talk()
    talk.bind()
    talk.wait()
    talk.answer(Kind.NAK)
    assert talk.client.lease is None
    assert talk.wait() == PAUSE and talk.said[0] is Kind.DISCOVER


def test_a_known_lease_is_confirmed_when_the_link_is_there_again() -> None:
    talk = Talk()
    talk.bind()
    talk.now += 10
    talk.out = talk.client.begin(talk.now)
    kind, found = talk.said
    assert kind is Kind.REQUEST and found[Code.REQUESTED] == ADDRESS.packed and Code.SERVER_ID not in found
    for _ in range(RETRIES):
        talk.wait()
    assert talk.client.lease is not None and talk.client.due == 600.0, "nobody has said anything against it"
    talk.now = 2000.0
    talk.out = talk.client.begin(talk.now)
    assert talk.said[0] is Kind.DISCOVER and talk.client.lease is None, "it has ended in the meantime"


def test_it_declines_and_releases() -> None:
    talk = Talk()
    talk.bind()
    talk.out = talk.client.decline(talk.now)
    kind, found = talk.said
    assert kind is Kind.DECLINE and found[Code.REQUESTED] == ADDRESS.packed and talk.client.lease is None
    assert talk.wait() == PAUSE and talk.said[0] is Kind.DISCOVER
    talk.bind()
    talk.out = talk.client.release()
    kind, found = talk.said
    assert kind is Kind.RELEASE and talk.out is not None and talk.out.destination == SERVER
    assert FIXED.unpack_from(talk.out.payload)[7] == ADDRESS.packed and talk.client.due is None
    assert talk.client.release() is None


def test_what_is_not_for_it_changes_nothing() -> None:
    talk = Talk()
    talk.answer(Kind.OFFER, xid=1)
    talk.answer(Kind.ACK)
    assert talk.said[0] is Kind.DISCOVER
    talk.answer(Kind.OFFER, SERVER_ID=b"")
    talk.answer(Kind.OFFER, NOBODY)
    assert talk.said[0] is Kind.DISCOVER
    talk.answer(Kind.OFFER)
    talk.answer(Kind.ACK, SECONDS=b"\0\0\0\0")
    talk.answer(Kind.ACK, SECONDS=b"\1")
    assert talk.client.lease is None
    talk.answer(Kind.ACK)
    due = talk.client.due
    talk.answer(Kind.NAK)
    assert talk.client.lease is not None and talk.client.due == due, "nothing was asked"


def routes(*found: tuple[str, str]) -> bytes:
    content = b""
    for destination, gateway in found:
        to = IPv4Network(destination)
        covered = to.network_address.packed[: -(-to.prefixlen // 8)]
        content += bytes([to.prefixlen]) + covered + IPv4Address(gateway).packed
    return content


@pytest.mark.parametrize(
    ("options", "gateway", "there"),
    [
        ({}, "", ()),
        ({"ROUTER": SERVER.packed + OTHER.packed}, "192.0.2.1", ()),
        ({"ROUTER": ADDRESS.packed}, "", ()),
        ({"ROUTER": b"\1\2"}, "", ()),
        (
            {"ROUTER": OTHER.packed, "ROUTES": routes(("0.0.0.0/0", "192.0.2.1"), ("198.51.100.0/25", "192.0.2.7"))},
            "192.0.2.1",
            ("198.51.100.0/25 via 192.0.2.7",),
        ),
        ({"ROUTER": OTHER.packed, "ROUTES": routes(("203.0.113.0/24", "0.0.0.0"))}, "", ("203.0.113.0/24",)),
        ({"ROUTES": b"\x21\1\2\3\4\5\6\7"}, "", ()),
        ({"ROUTES": b"\x18\1\2\3\4"}, "", ()),
    ],
)
def test_gateways_and_routes(options: dict[str, bytes], gateway: str, there: tuple[str, ...]) -> None:
    talk = Talk()
    talk.bind(**options)
    assert talk.client.lease is not None
    assert (talk.client.lease.gateway, talk.client.lease.routes) == (gateway, there)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"T1": struct.pack("!I", 200), "T2": struct.pack("!I", 300)}, (300, 400, 1100)),
        ({"T1": struct.pack("!I", 2000), "T2": struct.pack("!I", 300)}, (600, 975, 1100)),
        ({"SECONDS": b"\xff\xff\xff\xff"}, (None, None, None)),
        ({"SECONDS": b"\0\0\0\1"}, (105, 108, 110)),
    ],
)
def test_times(options: dict[str, bytes], expected: tuple[float | None, ...]) -> None:
    talk = Talk()
    talk.bind(**options)
    lease = talk.client.lease
    assert lease is not None and (lease.renew, lease.rebind, lease.until) == expected
    assert talk.client.due == expected[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"MASK": b""}, "192.0.2.9/32"),
        ({"MASK": IPv4Address("255.0.255.0").packed}, "192.0.2.9/32"),
        ({"MASK": IPv4Address("255.255.240.0").packed}, "192.0.2.9/20"),
    ],
)
def test_masks(options: dict[str, bytes], expected: str) -> None:
    talk = Talk()
    talk.bind(**options)
    assert talk.client.lease is not None and talk.client.lease.address == expected


def test_names_that_are_none_are_left_out() -> None:
    for sent, kept in ((b"lan.test\0", "lan.test"), (b"a b", ""), (b"\xff", ""), (b"x;y", "")):
        talk = Talk()
        talk.bind(DOMAIN=sent)
        assert talk.client.lease is not None and talk.client.lease.domain == kept


CODES = st.dictionaries(
    st.sampled_from([one.name for one in Code if one not in (Code.PAD, Code.END)]), st.binary(max_size=255)
)


@given(CODES, CODES, st.sampled_from(Kind))
def test_whatever_a_server_says_raises_nothing(offered: dict[str, bytes], said: dict[str, bytes], kind: Kind) -> None:
    talk = Talk()
    talk.answer(Kind.OFFER, **offered)
    talk.answer(kind, **said)
    for _ in range(3):
        talk.wait()
        talk.answer(kind, **said)


@pytest.mark.parametrize("content", [b"", b"\0"])
def test_a_message_of_no_kind_is_no_answer(content: bytes) -> None:
    talk = Talk()
    talk.answer(Kind.OFFER, KIND=content)
    assert talk.said[0] is Kind.DISCOVER


def test_a_lease_brings_no_more_than_networks_have() -> None:
    talk = Talk()
    routes = b"".join(bytes([32, 198, 51, n >> 8, n & 255]) + SERVER.packed for n in range(1000))
    talk.bind(ROUTES=routes, DNS=SERVER.packed * 100, DOMAIN=b"a" * 1000)
    lease = talk.client.lease
    assert lease is not None
    assert (len(lease.routes), len(lease.dns), lease.domain) == (MOST_ROUTES, MOST_SERVERS, "")
    assert lease.routes[0] == f"198.51.0.0/32 via {SERVER}"
