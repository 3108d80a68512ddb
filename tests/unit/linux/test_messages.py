"""What a device of the kernel module says of itself, as it is heard."""

from __future__ import annotations

import struct

from ipvsw.linux.netlink.messages import (
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    KmodAttrs,
    LinkEvent,
    Overrun,
    read_events,
)

ADDRESS, IFNAME, MTU, LINK, WIRELESS, LINKINFO, KIND, DATA = 1, 3, 4, 5, 11, 18, 1, 2
MAC = bytes.fromhex("020000000001")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def heard(kind: str, data: dict[int, bytes], *, message: int = RTM_NEWLINK) -> LinkEvent:
    inside = b"".join(attribute(number, value) for number, value in data.items())
    info = attribute(KIND, kind.encode() + b"\0") + attribute(DATA, inside)
    body = struct.pack("=BxHiII", 0, 1, 7, 1, 0) + attribute(IFNAME, b"ipvl0\0") + attribute(ADDRESS, MAC)
    body += attribute(MTU, struct.pack("=i", 1500)) + attribute(LINK, struct.pack("=i", 4)) + attribute(LINKINFO, info)
    (event,) = read_events(struct.pack("=IHHII", 16 + len(body), message, 0, 0, 0) + body, 3)
    assert isinstance(event, LinkEvent)
    return event


PLACE = {3: struct.pack("=I", 9), 4: struct.pack("=I", 4026532200), 5: struct.pack("=I", 4026531840)}


def test_a_device_of_the_module_says_where_it_is_served() -> None:
    event = heard("ipvsw", PLACE)
    assert (event.nsid, event.link.index, event.link.name) == (3, 7, "ipvl0")
    assert event.link.served == KmodAttrs(tap=9, netns=4026532200, master=4, master_netns=4026531840)


def test_mode_and_flags_are_there_once_somebody_set_them() -> None:
    served = heard("ipvsw", PLACE | {1: struct.pack("=H", 2), 2: struct.pack("=H", 1)}).link.served
    assert served is not None and (served.mode, served.flags) == (2, 1)


def test_a_device_on_its_way_out_is_not_to_be_served() -> None:
    event = heard("ipvsw", PLACE | {3: struct.pack("=I", 0)}, message=RTM_DELLINK)
    assert event.gone and event.link.served is None


def test_other_kinds_say_nothing_of_the_sort() -> None:
    assert heard("ipvlan", PLACE).link.served is None


def link(*attributes: bytes, index: int = 7, hardware: int = 1) -> bytes:
    body = struct.pack("=BxHiII", 0, hardware, index, 1, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, 0, 0, 0) + body


NAME, SIZE = attribute(IFNAME, b"wlan0\0"), attribute(MTU, struct.pack("=i", 1500))
WHOLE = link(NAME, attribute(ADDRESS, MAC), SIZE)


def test_what_says_little_of_a_device_is_not_the_device() -> None:
    """As wireless events do, of which roaming makes many."""
    partial = [
        link(NAME, attribute(WIRELESS, bytes(20))),
        link(NAME, attribute(ADDRESS, MAC)),
        link(NAME, SIZE),
        link(NAME, SIZE, attribute(ADDRESS, MAC[:4])),
    ]
    found = list(read_events(b"".join([WHOLE, *partial, WHOLE]), None))
    assert [type(one) for one in found] == [LinkEvent, LinkEvent]
    assert all(isinstance(one, LinkEvent) and (one.link.mac, one.link.mtu) == (MAC, 1500) for one in found)
    (tunnel,) = read_events(link(NAME, SIZE, hardware=65534), None)
    assert isinstance(tunnel, LinkEvent) and tunnel.link.mac == b"" and not tunnel.link.ethernet


def test_a_message_that_cannot_be_read_costs_no_other() -> None:
    damaged = struct.pack("=IHHII", 20, RTM_NEWADDR, 0, 0, 0) + bytes(4)
    damaged += struct.pack("=IHHII", 16, RTM_NEWLINK, 0, 0, 0)
    found = list(read_events(WHOLE + damaged + WHOLE, None))
    assert [type(one) for one in found] == [LinkEvent, Overrun, Overrun, LinkEvent]
