"""What a guest's frames say of its addresses, and what is kept of that."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.snooping.learned import AGE, SILENT, Full, Learning, claimed_address, is_fit
from ipvsw.status import AddressSource

DHCP, DAD, ARP, ND, TRAFFIC = (
    *(AddressSource.DHCP, AddressSource.DAD, AddressSource.ARP, AddressSource.ND),
    AddressSource.TRAFFIC,
)
MAC = bytes.fromhex("020000000001")
A, B, C = (IPv4Address(f"192.0.2.{k}") for k in (1, 2, 3))
LINK_LOCAL, GLOBAL = IPv6Address("fe80::1"), IPv6Address("2001:db8::1")
NOWHERE = IPv6Address("::")


def frame(ethertype: int, packet: bytes) -> bytes:
    return bytes(10) + b"\xff" * 6 + MAC + ethertype.to_bytes(2, "big") + packet


def arp(sender: str, target: str, operation: int = 1) -> bytes:
    addresses = MAC + IPv4Address(sender).packed + bytes(6) + IPv4Address(target).packed
    return frame(0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + addresses)


def ipv6(source: IPv6Address, protocol: int, body: bytes, hops: int = 255) -> bytes:
    to = IPv6Address("ff02::1").packed
    return frame(0x86DD, struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + source.packed + to + body)


def nd(source: IPv6Address, kind: int, target: IPv6Address | None = None, hops: int = 255) -> bytes:
    return ipv6(source, 58, bytes([kind]) + bytes(7) + (target.packed if target else b""), hops)


def ipv4(source: str) -> bytes:
    return frame(0x0800, b"\x45" + bytes(11) + IPv4Address(source).packed + bytes(4))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (arp("192.0.2.1", "192.0.2.2"), (A, ARP)),
        (arp("192.0.2.1", "192.0.2.1"), (A, ARP)),  # an announcement
        (arp("192.0.2.1", "192.0.2.2", 2), (A, ARP)),
        (arp("0.0.0.0", "192.0.2.2"), (B, DAD)),  # a probe
        (nd(NOWHERE, 135, LINK_LOCAL), (LINK_LOCAL, DAD)),
        (nd(LINK_LOCAL, 135, GLOBAL), (LINK_LOCAL, ND)),
        (nd(LINK_LOCAL, 136, GLOBAL), (GLOBAL, ND)),
        (nd(LINK_LOCAL, 133), (LINK_LOCAL, ND)),
        (nd(LINK_LOCAL, 136, GLOBAL, hops=64), (LINK_LOCAL, TRAFFIC)),  # from elsewhere
        (nd(LINK_LOCAL, 128), (LINK_LOCAL, TRAFFIC)),
        (ipv6(GLOBAL, 17, bytes(8)), (GLOBAL, TRAFFIC)),
        (ipv4("192.0.2.1"), (A, TRAFFIC)),
        (ipv4("169.254.7.7"), (IPv4Address("169.254.7.7"), TRAFFIC)),
        (ipv4("0.0.0.0"), None),
        (nd(NOWHERE, 133), None),
        (nd(NOWHERE, 135, IPv6Address("ff02::1")), None),
        (frame(0x0806, b"\0\6" + bytes(26)), None),
        (frame(0x88CC, bytes(40)), None),
        (frame(0x8100, b"\0\1\x08\0" + ipv4("192.0.2.1")[24:]), None),
    ],
)
def test_what_a_frame_says(said: bytes, found: object) -> None:
    assert claimed_address(said) == found


@pytest.mark.parametrize(
    "address",
    [*("0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:192.0.2.1")],
)
def test_what_no_machine_may_have(address: str) -> None:
    assert not is_fit(ip_address(address))


@given(st.binary(max_size=120), st.sampled_from([0x0800, 0x0806, 0x86DD, 0x8100]))
def test_no_frame_raises(packet: bytes, kind: int) -> None:
    claimed_address(frame(kind, packet))
    claimed_address(packet)


def test_the_first_way_is_shown_but_a_lease_counts_more() -> None:
    learning = Learning(4)
    assert learning.learn(A, DAD, 0)
    assert not learning.learn(A, TRAFFIC, 1)
    assert learning.addresses == {A: DAD}
    assert learning.learn(A, DHCP, 2) and not learning.learn(A, DHCP, 3) and not learning.learn(A, ARP, 4)
    assert learning.addresses == {A: DHCP}
    assert learning.forget(A) and not learning.forget(A)


def test_silence_is_forgotten_but_a_lease_holds() -> None:
    learning = Learning(4)
    learning.learn(A, ARP, 0)
    learning.learn(B, DHCP, 0)
    learning.learn(C, ND, 0)
    learning.use([C, LINK_LOCAL], 100)
    assert not learning.age(AGE - 1)
    assert learning.age(AGE)
    assert set(learning.addresses) == {B, C}
    assert learning.age(AGE + 100) and not learning.age(AGE * 10)
    assert set(learning.addresses) == {B}


def test_a_full_port() -> None:
    learning = Learning(2)
    learning.learn(A, ARP, 0)
    learning.learn(B, ARP, 1)
    with pytest.raises(Full):
        learning.learn(C, ARP, SILENT - 1)
    learning.use([A], SILENT)
    assert learning.learn(C, ARP, SILENT + 1)
    assert set(learning.addresses) == {A, C}
    assert learning.learn(GLOBAL, DHCP, SILENT + 2)  # a lease doesn't wait
    assert set(learning.addresses) == {C, GLOBAL}
    learning.learn(C, DHCP, SILENT + 2)
    with pytest.raises(Full):
        learning.learn(A, DHCP, SILENT * 9)


addresses = st.sampled_from([A, B, C, LINK_LOCAL, GLOBAL])


@given(st.lists(st.tuples(addresses, st.sampled_from([DHCP, ARP, TRAFFIC]), st.integers(0, 4000)), max_size=50))
def test_never_more_than_the_cap(steps: list[tuple[IPv4Address, AddressSource, int]]) -> None:
    learning, now = Learning(3), 0
    for address, source, pause in steps:
        now += pause
        learning.age(now)
        before = set(learning.addresses)
        try:
            learning.learn(address, source, now)
        except Full:
            assert set(learning.addresses) == before and len(before) == 3 and address not in before
        else:
            assert address in learning.addresses
        assert len(learning.addresses) <= 3
