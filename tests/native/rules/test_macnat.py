"""A port whose endpoint uses a MAC address of its own: the rewriting by itself, and over socket pairs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsw._fast import OUTCOMES
from tests.native._probe import macnat_restore, macnat_rewrite
from tests.native.interfaces import BROADCAST, FOREIGN, MASTER, frame, ipv4, v4, v6
from tests.native.macnat_frames import ARP, GUEST, IPV6, LIAR, OTHER, arp, nd, option, verified
from tests.reference.macnat import Dropped, Offload, to_master, to_own, usable

# ---------------------------------------------------------------------------- frames


def passed(sent: bytes, header: bytes = bytes(10)) -> bytes:
    outcome, out, _ = macnat_rewrite(sent, header, GUEST, MASTER)
    assert outcome == -1
    assert out[6:12] == MASTER
    return out


def dropped(sent: bytes, header: bytes = bytes(10)) -> str:
    outcome, _, _ = macnat_rewrite(sent, header, GUEST, MASTER)
    return OUTCOMES[outcome] if outcome >= 0 else "passed"


# ---------------------------------------------------------------------------- from the endpoint


def test_the_source_is_the_masters_and_followed() -> None:
    sent = frame(FOREIGN, OTHER, ipv4(v4(0), v4(9)))
    assert macnat_rewrite(sent, bytes(10), GUEST, MASTER) == (-1, frame(FOREIGN, MASTER, ipv4(v4(0), v4(9))), OTHER)


@pytest.mark.parametrize("source", [bytes(6), BROADCAST, bytes.fromhex("333300000001")], ids=["none", "all", "group"])
def test_no_ones_address_is_hidden_but_not_followed(source: bytes) -> None:
    _, out, own = macnat_rewrite(frame(FOREIGN, source, ipv4(v4(0), v4(9))), bytes(10), GUEST, MASTER)
    assert (out[6:12], own) == (MASTER, GUEST)


def test_to_oneself_is_as_a_device_without_arp_says_it() -> None:
    assert passed(frame(GUEST, GUEST, ipv4(v4(0), v4(1))))[:12] == MASTER * 2


def test_arp() -> None:
    asked = passed(frame(BROADCAST, GUEST, arp(GUEST, v4(0), bytes(6), v4(1)), ARP))
    assert asked == frame(BROADCAST, MASTER, arp(MASTER, v4(0), bytes(6), v4(1)), ARP)
    answered = passed(frame(FOREIGN, GUEST, arp(GUEST, v4(0), FOREIGN, v4(9), 2), ARP))
    assert answered == frame(FOREIGN, MASTER, arp(MASTER, v4(0), FOREIGN, v4(9), 2), ARP)
    announced = passed(frame(BROADCAST, GUEST, arp(LIAR, v4(0), LIAR, v4(0), 2), ARP))
    assert announced == frame(BROADCAST, MASTER, arp(MASTER, v4(0), MASTER, v4(0), 2), ARP)


def test_what_a_monitor_announces_itself_with() -> None:
    """QEMU's announce_self is a RARP request."""
    packet = arp(GUEST, bytes(4), GUEST, bytes(4), 3)
    assert passed(frame(BROADCAST, GUEST, packet, 0x8035)) == frame(
        BROADCAST, MASTER, arp(MASTER, bytes(4), MASTER, bytes(4), 3), 0x8035
    )


@pytest.mark.parametrize(
    "packet",
    [
        arp(GUEST, v4(0), bytes(6), v4(1))[:27],
        b"",
        b"\0\1\x08\0\x08\4" + bytes(30),  # other hardware addresses
        b"\0\1\x08\0\6\x10" + bytes(60),  # other protocol addresses
        b"\0\1\x86\xdd\6\4" + bytes(30),
    ],
)
def test_other_arp_is_dropped(packet: bytes) -> None:
    assert dropped(frame(BROADCAST, GUEST, packet, ARP)) == "drop_macnat"


@pytest.mark.parametrize(("kind", "which"), [(133, 1), (134, 1), (135, 1), (136, 2), (137, 2)])
@pytest.mark.parametrize("tags", [b"", bytes.fromhex("81000005"), bytes.fromhex("88a8000581000006")])
def test_neighbour_discovery(kind: int, which: int, tags: bytes) -> None:
    between = bytes.fromhex("0501000000000005dc"[:16])  # an MTU option
    sent = nd(kind, between, option(which, GUEST), option(14, bytes(6)))
    assert verified(sent)
    head = BROADCAST + GUEST + tags + b"\x86\xdd"
    out = passed(head + sent)
    assert out[: len(head)] == BROADCAST + MASTER + tags + b"\x86\xdd"
    packet = out[len(head) :]
    assert verified(packet)
    assert packet[:42] == sent[:42] and packet[44:] == sent[44:].replace(GUEST, MASTER)
    assert GUEST not in out


@pytest.mark.parametrize(
    ("before", "size"),
    [
        (bytes([0, 58, 0, 1, 4, 0, 0, 0, 0]), 8),
        (bytes([60, 58, 1]) + bytes(14), 16),
        (bytes([51, 58, 2]) + bytes(14), 16),
        (bytes([0, 43, 0, 1, 4, 0, 0, 0, 0]) + bytes([58, 0]) + bytes(6), 16),
    ],
    ids=["hop-by-hop", "destination", "authentication", "two"],
)
def test_neighbour_discovery_behind_other_headers(before: bytes, size: int) -> None:
    packet = passed(frame(BROADCAST, GUEST, nd(136, option(2, LIAR), before=before), IPV6))[14:]
    assert verified(packet, 40 + size) and MASTER in packet and LIAR not in packet


def test_padding_is_no_option() -> None:
    short = nd(133, option(1, GUEST))
    assert passed(frame(BROADCAST, GUEST, short + bytes(30), IPV6))[14:] != short
    assert verified(passed(frame(BROADCAST, GUEST, short + bytes(30), IPV6))[14 : 14 + len(short)])


def test_a_checksum_that_is_to_be_completed_stays_as_it_was_begun() -> None:
    sent = nd(135, option(1, GUEST))
    partial = sent[:42] + b"\x12\x34" + sent[44:]
    header = Offload(flags=1, start=54, offset=2).packed()
    assert passed(frame(BROADCAST, GUEST, partial, IPV6), header)[14:] == partial.replace(GUEST, MASTER)


def test_a_redirect_to_somebody_else_is_dropped() -> None:
    assert dropped(frame(FOREIGN, GUEST, nd(137, option(2, OTHER)), IPV6)) == "drop_macnat"
    assert dropped(frame(FOREIGN, GUEST, nd(137, option(2, MASTER)), IPV6)) == "passed"
    assert dropped(frame(FOREIGN, GUEST, nd(137), IPV6)) == "passed"


FRAGMENT = bytes([44, 58, 0, 0, 0, 1, 2, 3, 4])  # whole, by itself


@pytest.mark.parametrize(
    "packet",
    [
        nd(135, option(1, GUEST))[:-1],
        nd(135, option(1, GUEST))[:70],
        nd(135, b"\1\0" + bytes(6)),
        nd(135, b"\1\2" + bytes(6)),
        nd(135, b"\1\2" + bytes(14)),
        nd(135, b"\1\1" + bytes(4)),
        nd(135, b"\1"),
        nd(135)[:4] + b"\0\0" + nd(135)[6:],
        nd(135)[:4] + b"\0\x08" + nd(135)[6:],
        nd(135, option(1, GUEST), before=FRAGMENT),
        nd(135, option(1, GUEST), before=b"\0" + bytes([58, 200]) + bytes(6)),
        nd(135)[:4] + b"\0\4\0" + nd(135)[7:44],
        nd(133)[:40] + bytes([141]) + nd(133)[41:],
        nd(133)[:40] + bytes([142]) + nd(133)[41:],
        nd(133)[:40],
        nd(133)[:46],
    ],
)
def test_neighbour_discovery_that_can_not_be_put_right_is_dropped(packet: bytes) -> None:
    assert dropped(frame(BROADCAST, GUEST, packet, IPV6)) == "drop_macnat"


@pytest.mark.parametrize(
    "packet",
    [
        nd(133)[:40] + bytes([128]) + nd(133)[41:],  # an echo request
        nd(135, before=FRAGMENT)[:42] + b"\0\x08" + nd(135, before=FRAGMENT)[44:],  # a later fragment
        nd(133)[:6] + b"\x11" + nd(133)[7:],  # UDP
        nd(133)[:6] + b"\x3b" + nd(133)[7:40],  # nothing at all
        nd(133)[:39],
        b"",
    ],
)
def test_the_rest_of_ipv6_passes(packet: bytes) -> None:
    assert passed(frame(BROADCAST, GUEST, packet, IPV6))[14:] == packet


def test_more_tags_than_can_be_looked_behind() -> None:
    tag = bytes.fromhex("81000005")
    packet = arp(GUEST, v4(0), bytes(6), v4(1))
    assert MASTER + v4(0) in passed(BROADCAST + GUEST + tag * 2 + b"\x08\x06" + packet)
    for tags in (tag * 3, tag * 2 + b"\x91\0\0\1"):
        assert dropped(BROADCAST + GUEST + tags + b"\x08\x06" + packet) == "drop_macnat"
    assert dropped(BROADCAST + GUEST + tag[:2]) == "drop_macnat"


def test_ethertypes_behind_snap() -> None:
    packet = arp(GUEST, v4(0), bytes(6), v4(1))
    head = b"\0\x24" + bytes.fromhex("aaaa03000000") + b"\x08\x06"
    assert passed(BROADCAST + GUEST + head + packet) == BROADCAST + MASTER + head + packet.replace(GUEST, MASTER)


UDP = frame(FOREIGN, GUEST, ipv4(v4(0), v4(9)))
ASKED = frame(BROADCAST, GUEST, arp(GUEST, v4(0), bytes(6), v4(1)), ARP)


@pytest.mark.parametrize(
    ("sent", "offload"),
    [
        (UDP, Offload(flags=1, start=0, offset=8)),  # which would write into the source
        (UDP, Offload(flags=1, start=6, offset=0)),
        (UDP, Offload(flags=1, start=12, offset=0)),  # into the ethertype
        (ASKED, Offload(flags=1, start=14, offset=8)),
        (ASKED, Offload(gso=1)),
        (frame(BROADCAST, GUEST, nd(136, option(2, GUEST)), IPV6), Offload(flags=1, start=54, offset=26)),
        (frame(BROADCAST, GUEST, nd(136, option(2, GUEST)), IPV6), Offload(flags=1, start=14, offset=42)),
        (frame(BROADCAST, GUEST, nd(136, option(2, GUEST)), IPV6), Offload(gso=4)),
        (frame(BROADCAST, GUEST, nd(133)[:6] + b"\x11" + nd(133)[7:], IPV6), Offload(flags=1, start=14, offset=6)),
        (frame(BROADCAST, GUEST, b"\x40" + nd(133)[1:], IPV6), Offload(flags=1, start=14, offset=0)),
        (frame(BROADCAST, GUEST, nd(135, before=FRAGMENT)[:42] + b"\0\x08" + bytes(40), IPV6), Offload(1, 0, 54, 2)),
    ],
)
def test_no_checksum_is_filled_in_over_an_address(sent: bytes, offload: Offload) -> None:
    assert dropped(sent, offload.packed()) == "drop_bad_header"


def test_checksums_are_filled_in_where_they_belong() -> None:
    assert dropped(UDP, Offload(flags=1, start=34, offset=6).packed()) == "passed"


# ---------------------------------------------------------------------------- to the endpoint


def test_what_is_for_the_master_is_for_the_endpoint() -> None:
    packet = ipv4(v4(9), v4(0))
    for routed in (False, True):
        got = macnat_restore(frame(MASTER, FOREIGN, packet), GUEST, MASTER, routed=routed)
        assert got == frame(GUEST, FOREIGN, packet)
        assert macnat_restore(frame(BROADCAST, FOREIGN, packet), GUEST, MASTER, routed=routed) == frame(
            BROADCAST, FOREIGN, packet
        )
    assert macnat_restore(frame(OTHER, FOREIGN, packet), GUEST, MASTER, routed=False)[:6] == OTHER
    assert macnat_restore(frame(OTHER, FOREIGN, packet), GUEST, MASTER, routed=True)[:6] == GUEST


@pytest.mark.parametrize("tags", [b"", bytes.fromhex("81000005")])
def test_arp_for_the_endpoint(tags: bytes) -> None:
    answer = MASTER + FOREIGN + tags + b"\x08\x06" + arp(FOREIGN, v4(9), MASTER, v4(0), 2)
    got = macnat_restore(answer, GUEST, MASTER, routed=False)
    assert got == GUEST + FOREIGN + tags + b"\x08\x06" + arp(FOREIGN, v4(9), GUEST, v4(0), 2)


# ---------------------------------------------------------------------------- against the model

MACS = st.sampled_from([GUEST, MASTER, OTHER, FOREIGN, BROADCAST, bytes(6)])
OPTIONS = st.one_of(
    st.builds(option, st.sampled_from([1, 2, 3, 14]), MACS),
    st.sampled_from([b"\1", b"\1\0" + bytes(6), b"\2\2" + bytes(14), b"\5\1" + bytes(6), b"\3\4" + bytes(30)]),
)
EXTENSIONS = st.lists(st.tuples(st.sampled_from([0, 43, 44, 51, 60, 135]), st.integers(0, 3)), max_size=3)
CUTS = st.one_of(st.none(), st.none(), st.integers(0, 120))


@st.composite
def ipv6_packets(draw: st.DrawFn) -> bytes:
    chain = draw(EXTENSIONS)
    last = draw(st.sampled_from([58, 58, 58, 58, 6, 17, 59]))
    kinds = [kind for kind, _ in chain] + [last]
    headers = b""
    for (kind, size), after in zip(chain, kinds[1:], strict=True):
        length = 8 if kind == 44 else 4 * (size + 2) if kind == 51 else 8 * (size + 1)
        field = draw(st.sampled_from([0, 0, 1, 8])) if kind == 44 else size
        headers += (bytes([after, size, 0, field]) + bytes(20 + 8 * size))[:length]
    kind = draw(st.sampled_from([*range(132, 138), 128, 141, 142, 143]))
    message = bytes([kind, 0]) + draw(st.binary(min_size=2, max_size=2))
    message += bytes({133: 4, 134: 12, 137: 36}.get(kind, 20)) + b"".join(draw(st.lists(OPTIONS, max_size=3)))
    payload = (headers + message)[: draw(CUTS)]
    said = len(payload) + draw(st.sampled_from([0, 0, 0, 0, 0, -8, 8]))
    said = draw(st.sampled_from([max(said, 0)] * 7 + [0]))
    packet = struct.pack("!IHBB", 6 << 28, said, kinds[0], 255) + v6(0) + v6(1) + payload
    return packet + bytes(draw(st.sampled_from([0, 0, 0, 6, 46])))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([ARP, ARP, IPV6, IPV6, IPV6, 0x8035, 0x0800, 0x88CC, 0]))
    if kind in (ARP, 0x8035):
        packet = arp(draw(MACS), v4(0), draw(MACS), v4(1), draw(st.integers(1, 4)))
        if draw(st.integers(0, 5)) == 0:
            packet = packet[:4] + draw(st.binary(min_size=2, max_size=2)) + packet[6:]
    elif kind == IPV6:
        packet = draw(ipv6_packets())
    else:
        packet = draw(st.binary(max_size=60))
    tag = st.sampled_from([b"\x81\0\0\1", b"\x88\xa8\0\1", b"\x91\0\0\1", b"\0\x20" + bytes.fromhex("aaaa03000000")])
    tags = b"".join(draw(st.lists(tag, max_size=draw(st.sampled_from([0, 0, 0, 1, 2, 4])))))
    return (draw(MACS) + draw(MACS) + tags + kind.to_bytes(2, "big") + packet)[: draw(CUTS)]


OFFLOADS = st.one_of(
    st.just(Offload()),
    st.builds(Offload, st.integers(0, 1), st.sampled_from([0, 0, 1, 4]), st.integers(0, 110), st.integers(0, 20)),
    st.sampled_from([Offload(1, 0, 54, 2), Offload(1, 0, 58, 2), Offload(1, 0, 62, 2), Offload(1, 1, 65535, 65535)]),
)


def same_but_for_zero(a: bytes, b: bytes) -> bool:
    """0 and 0xffff are the same checksum. Where one stands is the model's business, which has it in one place."""
    if len(a) != len(b):
        return False
    others = [at for at in range(len(a)) if a[at] != b[at]]
    return not others or (
        len(others) <= 2 and others[-1] - others[0] <= 1 and all({a[at], b[at]} == {0, 255} for at in others)
    )


@settings(max_examples=1500, deadline=None)
@given(frames().filter(lambda sent: len(sent) >= 14), OFFLOADS)
def test_every_frame_leaves_as_the_model_says(sent: bytes, offload: Offload) -> None:
    outcome, out, own = macnat_rewrite(sent, offload.packed(), GUEST, MASTER)
    assert own == (sent[6:12] if usable(sent[6:12]) else GUEST)
    try:
        expected = to_master(sent, offload, MASTER)
    except Dropped as reason:
        assert outcome >= 0 and OUTCOMES[outcome] == str(reason), sent.hex()
    else:
        assert outcome == -1, (OUTCOMES[outcome], sent.hex(), offload)
        assert same_but_for_zero(out, expected), (out.hex(), expected.hex())


@settings(max_examples=500, deadline=None)
@given(frames().filter(lambda sent: len(sent) >= 14), st.booleans())
def test_every_frame_arrives_as_the_model_says(sent: bytes, routed: bool) -> None:
    assert macnat_restore(sent, GUEST, MASTER, routed=routed) == to_own(sent, GUEST, MASTER, routed=routed)
