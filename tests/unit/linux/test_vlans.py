"""VLAN devices as link messages tell of them."""

from __future__ import annotations

import struct

import pytest

from ipvsw.linux.netlink.vlans import is_vlan, read_vlan

IFNAME, LINK, LINKINFO, LINK_NETNSID, KIND, DATA, ID, PROTOCOL = 3, 5, 18, 37, 1, 2, 1, 5
Q, AD = b"\x81\x00", b"\x88\xa8"


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(
    vid: int, *, link: int = 4, kind: bytes = b"vlan\0", protocol: bytes = Q, netns: int | None = None
) -> bytes:
    data = attribute(ID, struct.pack("=H", vid)) + attribute(PROTOCOL, protocol)
    info = attribute(KIND, kind) + attribute(DATA, data)
    body = (
        struct.pack("=BxHiII", 0, 1, 7, 1, 0)
        + attribute(IFNAME, b"eth0.10\0")
        + attribute(LINK, struct.pack("=i", link))
    )
    if netns is not None:
        body += attribute(LINK_NETNSID, struct.pack("=i", netns))
    return body + attribute(LINKINFO, info)


@pytest.mark.parametrize(("body", "vlan"), [(message(10), 10), (message(4094), 4094), (message(10, protocol=AD), 4106)])
def test_a_vlan_device_on_the_device(body: bytes, vlan: int) -> None:
    assert is_vlan(body) and read_vlan(body, 4) == vlan


@pytest.mark.parametrize(
    "body",
    [message(10, link=5), message(10, netns=0), message(10, kind=b"macvlan\0"), message(10, kind=b"vlan_\0")],
    ids=["another", "of another namespace", "another kind", "a longer kind"],
)
def test_what_is_none(body: bytes) -> None:
    assert read_vlan(body, 4) is None


def test_without_attributes_it_is_none() -> None:
    """As wireless events are, and a device that is being removed."""
    bare = struct.pack("=BxHiII", 0, 1, 7, 1, 0)
    assert not is_vlan(bare) and read_vlan(bare, 4) is None
    short = bare + attribute(LINK, struct.pack("=i", 4)) + attribute(LINKINFO, attribute(KIND, b"vlan\0"))
    assert is_vlan(short) and read_vlan(short, 4) is None
