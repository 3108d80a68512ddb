"""Membership reports of every version, who listens to what for how long, and the queries that guests answer."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.model import Address
from ipvsw.snooping.groups import (
    LAST_MEMBER,
    LIFETIME,
    MAX_GROUPS,
    Memberships,
    group_mac,
    is_query,
    queries,
    read_reports,
)
from tests.support.wire.frames import Reassembly, wrong

MDNS4, MDNS6, SSDP4 = ip_address("224.0.0.251"), ip_address("ff02::fb"), ip_address("239.255.255.250")
SSDP6 = ip_address("ff05::c")
MACS = b"\1\0\x5e\0\0\x16" + bytes.fromhex("020000000001")


def igmp(message: bytes, *, options: bytes = b"\x94\4\0\0", protocol: int = 2, trailer: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 + size // 4, 0, size + len(message), 0, 0, 1, protocol, 0) + bytes(8)
    return bytes(10) + MACS + b"\x08\0" + head + options + message + trailer


def mld(message: bytes, *, protocol: int = 58, trailer: bytes = b"") -> bytes:
    head = struct.pack("!IHBB", 6 << 28, 8 + len(message), 0, 1) + bytes(32)
    return bytes(10) + MACS + b"\x86\xdd" + head + bytes((protocol, 0, 5, 2, 0, 0, 1, 0)) + message + trailer


def old(kind: int, group: Address) -> bytes:
    return bytes((kind, 0, 0, 0)) + (b"" if group.version == 4 else bytes(4)) + group.packed


def records(kind: int, *found: tuple[int, Address, int]) -> bytes:
    """A report of IGMPv3 or MLDv2: records of a kind, a group and a number of sources, with auxiliary data."""
    body = b"".join(
        struct.pack("!BBH", record, 1, sources) + group.packed + group.packed * sources + b"aux."
        for record, group, sources in found
    )
    return bytes((kind,)) + bytes(5) + struct.pack("!H", len(found)) + body


@pytest.mark.parametrize(
    ("frame", "reports"),
    [
        (igmp(old(0x12, MDNS4), options=b""), [(MDNS4, True)]),
        (igmp(old(0x16, MDNS4), trailer=bytes(14)), [(MDNS4, True)]),
        (igmp(old(0x17, MDNS4)), [(MDNS4, False)]),
        (igmp(old(0x11, MDNS4)), []),
        (igmp(records(0x22, (4, MDNS4, 0), (3, SSDP4, 0))), [(MDNS4, True), (SSDP4, False)]),
        (igmp(records(0x22, (2, MDNS4, 3), (1, SSDP4, 2), (6, SSDP4, 1))), [(MDNS4, True), (SSDP4, True)]),
        (igmp(records(0x22, (1, MDNS4, 0), (5, SSDP4, 1))), [(MDNS4, False), (SSDP4, True)]),
        (igmp(records(0x22, (4, ip_address("10.0.0.1"), 0))), []),
        (igmp(records(0x22, (4, MDNS4, 0), (4, SSDP4, 0))[:-12]), [(MDNS4, True)]),
        (igmp(old(0x16, MDNS4), protocol=17), []),
        (igmp(old(0x16, MDNS4)[:7]), []),
        (mld(old(131, MDNS6)), [(MDNS6, True)]),
        (mld(old(132, MDNS6), trailer=bytes(9)), [(MDNS6, False)]),
        (mld(old(131, MDNS6)[:23]), []),
        (mld(old(130, MDNS6)), []),
        (mld(records(143, (4, MDNS6, 0), (3, SSDP6, 0))), [(MDNS6, True), (SSDP6, False)]),
        (mld(old(131, MDNS6), protocol=6), []),
    ],
)
def test_reports(frame: bytes, reports: list[tuple[Address, bool]]) -> None:
    assert read_reports(frame) == reports


@given(st.sampled_from([igmp(b""), mld(b"")]), st.binary(max_size=60), st.integers(0, 140))
def test_anything_is_read(head: bytes, body: bytes, size: int) -> None:
    for frame in (igmp(body), mld(body), (head + body)[:size]):
        assert all(group.is_multicast for group, _ in read_reports(frame))


def test_mac_addresses() -> None:
    assert group_mac(ip_address("239.128.1.2")).hex(":") == "01:00:5e:00:01:02"
    assert group_mac(MDNS6).hex(":") == "33:33:00:00:00:fb"


def test_a_group_from_join_to_silence() -> None:
    members = Memberships()
    members.report("vm1", [(MDNS4, True), (MDNS6, True)], 0.0)
    members.report("vm2", [(SSDP4, True)], 5.0)
    assert members.macs("vm1") == {group_mac(MDNS4), group_mac(MDNS6)} and members.next_end() == LIFETIME
    members.report("vm1", [(MDNS6, True)], 100.0)
    members.expire(LIFETIME)
    assert members.macs("vm1") == {group_mac(MDNS6)} and members.macs("vm2") == {group_mac(SSDP4)}
    members.forget("vm2")
    members.forget("none")
    assert members.macs("vm2") == frozenset() and members.ports() == ["vm1"]
    members.expire(100.0 + LIFETIME)
    assert members.next_end() is None


def test_a_group_that_one_leaves_stays_if_another_listens() -> None:
    members = Memberships()
    members.report("vm1", [(MDNS4, True), (SSDP4, True)], 0.0)
    members.report("vm1", [(MDNS4, False), (SSDP4, False), (MDNS6, False)], 10.0)
    assert members.next_end() == 10.0 + LAST_MEMBER
    members.report("vm1", [(SSDP4, True)], 10.5)
    members.expire(10.0 + LAST_MEMBER)
    assert members.macs("vm1") == {group_mac(SSDP4)}


def test_a_port_listens_to_a_bounded_number() -> None:
    members = Memberships()
    groups = [SSDP4 - k for k in range(2 * MAX_GROUPS)]
    members.report("vm1", [(group, True) for group in groups], 0.0)
    members.report("vm2", [(MDNS4, True)], 0.0)
    assert members.macs("vm1") == {group_mac(group) for group in groups[:MAX_GROUPS]}
    assert members.macs("vm2") == {group_mac(MDNS4)}


def test_who_needs_no_other_groups() -> None:
    """A machine that has reported some of an IP version, unless these are too many, or it is a router."""
    members = Memberships()
    assert members.versions("vm1") == frozenset()
    members.report("vm1", [(MDNS6, True)], 0.0)
    assert members.versions("vm1") == {6}
    members.report("vm1", [(MDNS4, True)], 1.0)
    assert members.versions("vm1") == {4, 6}
    members.report("vm1", [(MDNS4, False)], 2.0)
    members.expire(2.0 + LAST_MEMBER)
    assert members.versions("vm1") == {6}
    members.report("vm1", [(SSDP4 - k, True) for k in range(MAX_GROUPS)], 3.0)
    assert members.versions("vm1") == frozenset(), "there may be more than are remembered"
    members.report("vm2", [(MDNS4, True)], 0.0)
    members.query("vm2", 0.0)
    assert members.versions("vm2") == frozenset() and set(members.ports()) == {"vm1", "vm2"}
    members.report("vm2", [(MDNS4, True)], 100.0)
    members.expire(LIFETIME)
    assert members.versions("vm2") == {4}, "it asks no more"
    members.query("vm3", 0.0)
    assert members.forget("vm3") and not members.forget("vm3")


@pytest.mark.parametrize(
    ("frame", "asks"),
    [
        (igmp(old(0x11, MDNS4)), True),
        (igmp(old(0x16, MDNS4)), False),
        (igmp(old(0x11, MDNS4), protocol=17), False),
        (igmp(b""), False),
        (mld(old(130, MDNS6)), True),
        (mld(old(131, MDNS6)), False),
        (mld(old(130, MDNS6), protocol=6), False),
        (bytes(30), False),
    ],
)
def test_queries_of_others(frame: bytes, asks: bool) -> None:
    assert is_query(frame) is asks


def test_queries_are_right() -> None:
    for query, version in zip(queries(), (4, 6), strict=True):
        assert wrong(query[10:], Reassembly()) is None, "checksums"
        assert query[10] & 1 and query[16] & 3 == 2 and read_reports(query) == []
        at = 24 + (24 if version == 4 else 48)
        message = query[at:]
        assert message[0] == (0x11 if version == 4 else 130)
        assert len(message) == (12 if version == 4 else 28), "of the newest version"
        assert not any(message[4:8] if version == 4 else message[8:24]), "a general query"
    assert queries()[0][24] == 0x46 and queries()[0][44:48] == b"\x94\4\0\0", "with router alert"
