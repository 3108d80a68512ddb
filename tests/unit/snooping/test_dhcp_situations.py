"""DHCP's situations (RFC 2131, RFC 8415), each by a server at each place, for each kind of client: who hears the
answer, and what the switch knows of leases afterwards.

p0 is a client with a MAC address of its own, p1 one with the master's, p2 the port of a sibling that serves.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from ipvsw.snooping import dhcp4
from tests.support.wire.dhcp import CHADDR, bootp, in_frame, option6, said6
from tests.unit.snooping.runtime import MAC, WIRE, Runtime

OFFERED, OTHER, SERVER, SECOND, GIADDR = "192.0.2.50", "192.0.2.51", "192.0.2.1", "192.0.2.2", "203.0.113.1"
XID = 9
TAG = b"\x81\x00\x00\x00"  # VID 0: priority alone (IEEE 802.1Q clause 9.6)
SIBLING = 2

PLACES = ("wire", "relay", "host", "sibling")
CLIENTS = {"unicast": (1, 0, MAC), "broadcast": (1, 0x8000, MAC), "own mac": (0, 0, CHADDR)}  # port, flags, hardware

Steps = list[tuple[str, dict[str, Any]]]
"""What the client says ("c") and what the server does ("s"), in order."""

DISCOVER, REQUEST, DECLINE, RELEASE, INFORM = 1, 3, 4, 7, 8
OFFER, ACK, NAK = 2, 5, 6
LEASE: Steps = [
    ("c", {"kind": DISCOVER}),
    ("s", {"kind": OFFER, "yiaddr": OFFERED, "seconds": 60}),
    ("c", {"kind": REQUEST, "requested": OFFERED}),
    ("s", {"kind": ACK, "yiaddr": OFFERED, "seconds": 60}),
]
AGAIN = {"kind": REQUEST, "ciaddr": OFFERED, "xid": XID + 1}

SITUATIONS: dict[str, tuple[Steps, dict[str, str]]] = {  # and the leases that there are in the end, with their servers
    "a lease": (LEASE, {OFFERED: SERVER}),
    "an offer alone": (LEASE[:2], {}),
    "rapid commit": ([LEASE[0], LEASE[3]], {OFFERED: SERVER}),  # RFC 4039
    "a renewal": ([*LEASE, ("c", AGAIN), ("s", {**LEASE[3][1], "xid": XID + 1})], {OFFERED: SERVER}),
    "rebinding at another server": (
        [*LEASE, ("c", AGAIN), ("s", {**LEASE[3][1], "xid": XID + 1, "server": SECOND})],
        {OFFERED: SECOND},
    ),
    "two servers offer": (
        [*LEASE[:2], ("s", {"kind": OFFER, "yiaddr": OTHER, "seconds": 60, "server": SECOND}), *LEASE[2:]],
        {OFFERED: SERVER},
    ),
    "init-reboot refused": ([("c", {"kind": REQUEST, "requested": OTHER}), ("s", {"kind": NAK})], {}),
    "a renewal refused": ([*LEASE, ("c", AGAIN), ("s", {"kind": NAK, "xid": XID + 1})], {}),
    "declined after a probe": ([*LEASE, ("c", {"kind": DECLINE, "requested": OFFERED, "xid": XID + 1})], {}),
    "another after a decline": (
        [
            *LEASE,
            ("c", {"kind": DECLINE, "requested": OFFERED, "xid": XID + 1}),
            ("c", {"kind": DISCOVER, "xid": XID + 2}),
            ("s", {"kind": OFFER, "yiaddr": OTHER, "seconds": 60, "xid": XID + 2}),
            ("c", {"kind": REQUEST, "requested": OTHER, "xid": XID + 2}),
            ("s", {"kind": ACK, "yiaddr": OTHER, "seconds": 60, "xid": XID + 2}),
        ],
        {OTHER: SERVER},
    ),
    "released": ([*LEASE, ("c", {"kind": RELEASE, "ciaddr": OFFERED, "xid": XID + 1})], {}),
    "inform": ([("c", {"kind": INFORM, "ciaddr": OFFERED}), ("s", {"kind": ACK, "ciaddr": OFFERED})], {}),
    "inform of a client that has a lease": (
        [*LEASE, ("c", {"kind": INFORM, "ciaddr": OFFERED, "xid": XID + 1}), ("s", {"kind": ACK, "xid": XID + 1})],
        {OFFERED: SERVER},
    ),
    "for ever": ([*LEASE[:3], ("s", {**LEASE[3][1], "seconds": 0xFFFFFFFF})], {OFFERED: SERVER}),
}


@pytest.fixture
def runtime() -> Runtime:
    made = Runtime()
    made.names |= {SIBLING: "p2"}
    return made


def source_of(place: str) -> int:
    return SIBLING if place == "sibling" else WIRE


def with_relay_information(message: bytes) -> bytes:
    """Option 82 (RFC 3046), as the server repeats it and the relay should have taken it out."""
    return message[:-1] + bytes((82, 6, 1, 4)) + b"eth0" + b"\xff"


def answer(
    place: str, *, flags: int, hardware: bytes, tagged: bool, repeats: bool, client: bytes, **what: Any
) -> bytes:
    """A server's message in a frame, to the address that it gives or to everybody (RFC 2131 section 4.1)."""
    what = {"xid": XID, "server": SERVER, "giaddr": GIADDR if place == "relay" else "0.0.0.0", **what}
    message = bootp(2, flags=flags, chaddr=hardware, client=client if repeats else b"", **what)
    if place == "relay":
        message = with_relay_information(message)
    to = what.get("yiaddr") or what.get("ciaddr", "0.0.0.0")
    everybody = flags or what["kind"] == NAK or to == "0.0.0.0"
    frame = in_frame(message, to_port=68, source=SERVER, to="255.255.255.255" if everybody else to)
    frame = frame[:10] + (b"\xff" * 6 if everybody else MAC) + MAC + frame[22:]
    return frame[:22] + TAG + frame[22:] if tagged else frame


def given(runtime: Runtime, source: int, frame: bytes) -> list[tuple[int, bytes, int]]:
    """What is reinjected for a frame."""
    runtime.log.clear()
    runtime.snooper.take([(source, frame)])
    return [one for one in runtime.log if isinstance(one, tuple) and len(one) == 3]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("tagged", [False, True], ids=["", "VID 0"])
@pytest.mark.parametrize("repeats", [False, True], ids=["", "option 61"])
def test_ipv4(runtime: Runtime, situation: str, place: str, client: str, tagged: bool, repeats: bool) -> None:
    steps, leases = SITUATIONS[situation]
    number, flags, hardware = CLIENTS[client]
    name = b"\0client"
    for side, what in steps:
        if side == "c":
            message = bootp(1, flags=flags, chaddr=hardware, client=name, **{"xid": XID, **what})
            ((source, frame, to),) = given(runtime, number, in_frame(message))
            assert (source, to) == (number, -1), "a question goes where the rules say"
            asks = hardware == CHADDR and "ciaddr" not in what  # no server can send to a MAC that nobody shows
            where = dhcp4.datagram(frame)
            assert where is not None and bool(frame[where.payload][10] & 0x80) == bool(flags or asks)
        else:
            frame = answer(place, flags=flags, hardware=hardware, tagged=tagged, repeats=repeats, client=name, **what)
            # A sibling's broadcast goes on the wire too: the rules know who gets it.
            by_rules = place == "sibling" and frame[10:16] == b"\xff" * 6
            wanted = [(source_of(place), frame, -1 if by_rules else number)]
            assert given(runtime, source_of(place), frame) == wanted, "an answer goes to who has asked"
    found = {one.address: (one.port, one.server) for one in runtime.snooper.leases()}
    assert found == {address: (f"p{number}", server) for address, server in leases.items()}
    known = {str(one) for one in runtime.learned.get(f"p{number}", {})}
    assert known == set(leases), "and so are the port's addresses"


@pytest.mark.parametrize("place", PLACES)
def test_ipv4_two_clients_with_one_number(runtime: Runtime, place: str) -> None:
    """Their hardware addresses tell them apart; where both have the master's, their identifiers do if they are
    repeated, and otherwise nobody learns anything, and the rules say who hears it."""
    runtime.names |= {3: "p3"}
    for number, hardware, name in ((0, CHADDR, b"zero"), (1, MAC, b"one"), (3, MAC, b"three")):
        given(runtime, number, in_frame(bootp(1, kind=REQUEST, xid=XID, chaddr=hardware, client=name)))

    def heard(hardware: bytes, client: bytes) -> int:
        frame = answer(
            place, flags=0, hardware=hardware, tagged=False, repeats=bool(client), client=client, **LEASE[3][1]
        )
        ((_, _, to),) = given(runtime, source_of(place), frame)
        return to

    assert [heard(CHADDR, b""), heard(MAC, b"one"), heard(MAC, b"three")] == [0, 1, 3]
    before = {(one.port, one.address) for one in runtime.snooper.leases()}
    assert heard(MAC, b"") == -1
    assert {(one.port, one.address) for one in runtime.snooper.leases()} == before


# ---------------------------------------------------------------------------- IPv6

SOLICIT, ADVERTISE, REQUEST6, CONFIRM, RENEW, REBIND, REPLY, RELEASE6, DECLINE6, RECONFIGURE, ASK_INFO = range(1, 12)
ASSIGNED, ANOTHER, MY_LINK_LOCAL = "2001:db8::50", "2001:db8::51", "fe80::9"
RAPID = option6(14, b"")
DELEGATED = option6(25, bytes(12) + option6(26, bytes(8) + bytes([56]) + ip_address("2001:db8:1::").packed))
REFUSED = option6(3, bytes(12) + option6(13, b"\0\2"))  # no addresses available
LEASE6: Steps = [
    ("c", {"kind": SOLICIT}),
    ("s", {"kind": ADVERTISE, "addresses": {ASSIGNED: 60}}),
    ("c", {"kind": REQUEST6, "addresses": {ASSIGNED: 0}}),
    ("s", {"kind": REPLY, "addresses": {ASSIGNED: 60}}),
]
FIRST, OTHER_DUID = b"\0\1first", b"\0\1other"

SITUATIONS6: dict[str, tuple[Steps, dict[str, bytes]]] = {
    "a lease": (LEASE6, {ASSIGNED: FIRST}),
    "an advertisement alone": (LEASE6[:2], {}),
    "rapid commit": (
        [("c", {"kind": SOLICIT, "more": RAPID}), ("s", {"kind": REPLY, "addresses": {ASSIGNED: 60}, "more": RAPID})],
        {ASSIGNED: FIRST},
    ),
    "rebinding at another server": (
        [
            *LEASE6,
            ("c", {"kind": REBIND, "addresses": {ASSIGNED: 0}, "xid": 2}),
            ("s", {"kind": REPLY, "addresses": {ASSIGNED: 60}, "xid": 2, "server": OTHER_DUID}),
        ],
        {ASSIGNED: OTHER_DUID},
    ),
    "another prefix is in use now": (
        [
            *LEASE6,
            ("c", {"kind": RENEW, "addresses": {ASSIGNED: 0}, "xid": 2}),
            ("s", {"kind": REPLY, "addresses": {ASSIGNED: 0, ANOTHER: 60}, "xid": 2}),
        ],
        {ANOTHER: FIRST},
    ),
    "confirmed": (
        [*LEASE6, ("c", {"kind": CONFIRM, "addresses": {ASSIGNED: 0}, "xid": 2}), ("s", {"kind": REPLY, "xid": 2})],
        {ASSIGNED: FIRST},
    ),
    "refused": ([("c", {"kind": SOLICIT}), ("s", {"kind": REPLY, "more": REFUSED})], {}),
    "declined after a probe": ([*LEASE6, ("c", {"kind": DECLINE6, "addresses": {ASSIGNED: 0}, "xid": 2})], {}),
    "released": ([*LEASE6, ("c", {"kind": RELEASE6, "addresses": {ASSIGNED: 0}, "xid": 2})], {}),
    "information alone": ([("c", {"kind": ASK_INFO}), ("s", {"kind": REPLY})], {}),
    "a prefix is delegated": ([("c", {"kind": SOLICIT}), ("s", {"kind": REPLY, "more": DELEGATED})], {}),
    "an address and a prefix": (
        [("c", {"kind": SOLICIT}), ("s", {"kind": REPLY, "addresses": {ASSIGNED: 60}, "more": DELEGATED})],
        {ASSIGNED: FIRST},
    ),
    "reconfigured": (
        [
            *LEASE6,
            ("unasked", {"kind": RECONFIGURE, "xid": 0, "more": option6(19, bytes([RENEW]))}),
            ("c", {"kind": RENEW, "addresses": {ASSIGNED: 0}, "xid": 2}),
            ("s", {"kind": REPLY, "addresses": {ASSIGNED: 120}, "xid": 2}),
        ],
        {ASSIGNED: FIRST},
    ),
}


def in_frame6(payload: bytes, to_port: int, macs: bytes, tagged: bool) -> bytes:
    udp = (1093 - to_port).to_bytes(2, "big") + to_port.to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big")
    head = b"\x60\0\0\0" + (8 + len(payload)).to_bytes(2, "big") + b"\x11\x40"
    ends = ip_address("fe80::1").packed + ip_address(MY_LINK_LOCAL).packed
    return bytes(10) + macs + (TAG if tagged else b"") + b"\x86\xdd" + head + ends + udp + bytes(2) + payload


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("client", [0, 1], ids=["own mac", "the master's"])
@pytest.mark.parametrize("situation", SITUATIONS6)
@pytest.mark.parametrize("tagged", [False, True], ids=["", "VID 0"])
def test_ipv6(runtime: Runtime, situation: str, place: str, client: int, tagged: bool) -> None:
    """A relay hands on what the server said as it is (RFC 8415 section 19.2): to the client it is another server."""
    steps, leases = SITUATIONS6[situation]
    runtime.max_learned = 8
    for side, what in steps:
        what = {"xid": 1, **({} if side == "c" else {"server": FIRST}), **what}
        message = said6(what.pop("kind"), **what)
        if side == "c":
            frame = in_frame6(message, 547, b"\x33\x33\0\1\0\2" + (CHADDR if client == 0 else MAC), False)
            assert [one for one in given(runtime, client, frame) if one[1] == frame] == [(client, frame, -1)]
        else:
            frame = in_frame6(message, 546, MAC + MAC, tagged)
            to = client if side == "s" else -1  # to the client's own address, which the table has
            assert given(runtime, source_of(place), frame) == [(source_of(place), frame, to)]
    found = {one.address: (one.port, one.server) for one in runtime.snooper.leases()}
    assert found == {address: (f"p{client}", server.hex(":")) for address, server in leases.items()}


@pytest.mark.parametrize("kind", [12, 13])
def test_ipv6_between_relays(runtime: Runtime, kind: int) -> None:
    """Relay-forward and relay-reply are nobody's lease, whatever is inside, and go where the rules say."""
    inner = option6(9, said6(REPLY, addresses={ASSIGNED: 60}, server=FIRST))
    frame = in_frame6(bytes([kind, 0]) + bytes(32) + inner, 547, MAC + MAC, False)
    given(runtime, 1, in_frame6(said6(REQUEST6), 547, b"\x33\x33\0\1\0\2" + MAC, False))
    assert given(runtime, WIRE, frame) == [(WIRE, frame, -1)]
    assert not list(runtime.snooper.leases())


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame[:22] + b"\x81\x00\x00\x0a" + frame[22:],  # a VLAN's
        lambda frame: frame[:22] + b"\x88\xa8\x00\x00" + frame[22:],
        lambda frame: frame[:22] + TAG + TAG + frame[22:],
    ],
    ids=["VID 10", "802.1ad", "two tags"],
)
def test_other_tags_are_no_answers(runtime: Runtime, change: Change) -> None:
    given(runtime, 1, in_frame(bootp(1, kind=REQUEST, xid=XID, chaddr=MAC)))
    frame = change(answer("wire", flags=0, hardware=MAC, tagged=False, repeats=False, client=b"", **LEASE[3][1]))
    assert given(runtime, WIRE, frame) == [(WIRE, frame, -1)]
    assert not list(runtime.snooper.leases())
