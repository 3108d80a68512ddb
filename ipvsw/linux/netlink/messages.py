"""rtnetlink's messages from the event socket, parsed into the structs below.

Parsed by hand and not by pyroute2, which takes 100 us for a link: a thousand namespaces that come up
together make tens of thousands of messages, and they are parsed on the daemon's loop.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from ipvsw.model import Address


class KmodAttrs(Struct, frozen=True, kw_only=True):
    """The attributes of a device of kind "ipvsw" (kmod-shim/module/ipvsw.h)."""

    tap: int  # minor number of its character device
    netns: int  # inode number of the namespace that it is in
    master: int  # the master's index
    master_netns: int  # inode number of the master's namespace
    mode: int | None = None  # IPVLAN_MODE_*, if it was ever set
    flags: int | None = None  # IPVLAN_F_*, if it was ever set


class Link(Struct, frozen=True, kw_only=True):
    """A network device as its namespace sees it."""

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool  # IFF_UP: set by the administrator
    carrier: bool  # IFF_LOWER_UP
    all_multicast: bool  # IFF_PROMISC or IFF_ALLMULTI
    ethernet: bool  # ARPHRD_ETHER
    kind: str  # IFLA_INFO_KIND, "" if none
    master: int = 0  # the index of the bridge, bond or team that it is part of, 0 if none
    addr_gen_mode: int | None = None  # IN6_ADDR_GEN_MODE_*, None without IPv6
    served: KmodAttrs | None = None  # of kind "ipvsw" only


class LinkEvent(Struct, frozen=True):
    nsid: int | None  # None: the daemon's own namespace
    link: Link
    gone: bool


class AddressEvent(Struct, frozen=True):
    nsid: int | None
    index: int
    address: Address  # as the kernel's driver would own it: IFA_ADDRESS (a peer's, if any) for IPv4
    prefix: int
    gone: bool


class GroupsEvent(Struct, frozen=True):
    """A multicast group was joined or left (kernels from 6.14 tell)."""

    nsid: int | None
    index: int


class RemovalEvent(Struct, frozen=True):
    """A default or static route, filter or queueing discipline of a device was removed."""

    nsid: int | None
    index: int


class NamespaceGone(Struct, frozen=True):
    nsid: int


class Overrun(Struct, frozen=True):
    """Events were lost (ENOBUFS): everything must be read anew."""


Event = LinkEvent | AddressEvent | GroupsEvent | RemovalEvent | NamespaceGone | Overrun

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWMULTICAST, RTM_DELMULTICAST = 56, 57
RTM_NEWROUTE, RTM_DELROUTE, RTM_DELQDISC, RTM_DELTFILTER = 24, 25, 37, 45
RTM_DELNSID = 89

# linux/if.h, linux/if_arp.h
IFF_UP, IFF_NOARP, IFF_PROMISC, IFF_ALLMULTI, IFF_LOWER_UP = 0x1, 0x80, 0x100, 0x200, 0x10000
ARPHRD_ETHER = 1
ETH_ALEN = 6  # bytes of a MAC address

_IFLA_ADDRESS, IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE = 26, 8
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NETNSA_NSID = 1

# kmod-shim/module/ipvsw.h
SERVED_KIND = "ipvsw"
_IFLA_IPVSW_MODE, _IFLA_IPVSW_FLAGS, _IFLA_IPVSW_TAP, _IFLA_IPVSW_NETNS, _IFLA_IPVSW_LINK_NETNS = 1, 2, 3, 4, 5
_NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
IFINFOMSG = struct.Struct("=BxHiII")  # family, ARPHRD_*, index, flags, change
IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_TCMSG_INDEX = struct.Struct("=4xi")  # struct tcmsg: family, padded, index
_RTMSG_SIZE, _RTA_OIF = 12, 4
_RTGENMSG_SIZE = 4  # family, padded
_RTATTR = struct.Struct("=HH")  # length with this header, type
_INT = struct.Struct("=i")
_SHORT = struct.Struct("=H")


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message in one datagram."""
    start = 0
    while start + _NLMSGHDR.size <= len(data):
        length, kind, *_ = _NLMSGHDR.unpack_from(data, start)
        if length < _NLMSGHDR.size:
            return
        yield kind, data[start + _NLMSGHDR.size : start + length]
        start += (length + 3) & ~3


def read_events(data: bytes, nsid: int | None) -> Iterator[Event]:
    """The events in one datagram from the namespace `nsid`; messages of other kinds are passed over. One that can't be
    read is an event lost."""
    for kind, body in messages(data):
        try:
            event = _read_event(kind, body, nsid)
        except (struct.error, LookupError, ValueError):
            event = Overrun()
        if event is not None:
            yield event


def _read_event(kind: int, body: bytes, nsid: int | None) -> Event | None:
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        # Bridges tell about their ports as links of family AF_BRIDGE; a RTM_DELLINK of that kind
        # is a port that left a bridge, not a device that is gone.
        if body[0] != AF_UNSPEC:
            return None
        found = attributes(body, IFINFOMSG.size)
        if kind == RTM_NEWLINK and not _is_whole_link(body, found):
            return None
        return LinkEvent(nsid, _link_of(body, found), kind == RTM_DELLINK)
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        owned = read_address(body)
        return (
            None if owned is None else AddressEvent(nsid, IFADDRMSG.unpack_from(body)[4], *owned, kind == RTM_DELADDR)
        )
    if kind in (RTM_NEWMULTICAST, RTM_DELMULTICAST):
        return GroupsEvent(nsid, IFADDRMSG.unpack_from(body)[4])
    if kind in (RTM_DELQDISC, RTM_DELTFILTER):
        return RemovalEvent(nsid, _TCMSG_INDEX.unpack_from(body)[0])
    if kind == RTM_DELROUTE:
        device = attributes(body, _RTMSG_SIZE).get(_RTA_OIF)
        return None if device is None else RemovalEvent(nsid, _INT.unpack(device)[0])
    if kind == RTM_DELNSID and nsid is None:
        # Other namespaces have ids of their own for their neighbours; they are none of ours.
        return NamespaceGone(_INT.unpack(attributes(body, _RTGENMSG_SIZE)[_NETNSA_NSID])[0])
    return None


def _is_whole_link(body: bytes, found: dict[int, bytes]) -> bool:
    """Whether a message describes the device. A wireless event is a RTM_NEWLINK too, and has little but the name
    (`rtmsg_iwinfo` in net/wireless/wext-core.c); what it changes of the device is announced by itself."""
    hardware = IFINFOMSG.unpack_from(body)[1]
    return _IFLA_MTU in found and (hardware != ARPHRD_ETHER or len(found.get(_IFLA_ADDRESS, b"")) == ETH_ALEN)


def read_address(body: bytes) -> tuple[Address, int] | None:
    """Address and prefix length of a struct ifaddrmsg with its attributes; None if it is of another family."""
    family, prefix, *_ = IFADDRMSG.unpack_from(body)
    found = attributes(body, IFADDRMSG.size)
    address = _owned_address(family, found.get(_IFA_ADDRESS), found.get(_IFA_LOCAL))
    return None if address is None else (address, prefix)


def _owned_address(family: int, address: bytes | None, local: bytes | None) -> Address | None:
    """The address that the kernel's ipvlan would own, or None if the family is neither IPv4 nor IPv6.

    Source: ipvlan_addr4_event takes `ifa_address`, which is the peer's if the address has one;
    ipvlan_addr6_event takes `addr`, sent as IFA_LOCAL if there is a peer and as IFA_ADDRESS otherwise.
    """
    if family == AF_INET and address is not None:
        return IPv4Address(address)
    if family == AF_INET6 and (local or address) is not None:
        return IPv6Address(local or address)
    return None


def read_link(body: bytes) -> Link:
    """Of a struct ifinfomsg with its attributes."""
    return _link_of(body, attributes(body, IFINFOMSG.size))


def _link_of(body: bytes, found: dict[int, bytes]) -> Link:
    _, hardware, index, flags, _ = IFINFOMSG.unpack_from(body)
    info = attributes(found.get(_IFLA_LINKINFO, b""), 0)
    kind = _text(info.get(_IFLA_INFO_KIND, b""))
    served = _read_served(info, found.get(_IFLA_LINK)) if kind == SERVED_KIND else None
    return Link(
        index=index,
        name=_text(found.get(IFLA_IFNAME, b"")),
        mac=found.get(_IFLA_ADDRESS, b""),
        mtu=_INT.unpack(found[_IFLA_MTU])[0] if _IFLA_MTU in found else 0,
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        all_multicast=bool(flags & (IFF_PROMISC | IFF_ALLMULTI)),
        ethernet=hardware == ARPHRD_ETHER,
        kind=kind,
        master=_INT.unpack(found[_IFLA_MASTER])[0] if _IFLA_MASTER in found else 0,
        addr_gen_mode=_addr_gen_mode(found.get(_IFLA_AF_SPEC, b"")),
        served=served,
    )


def _addr_gen_mode(families: bytes) -> int | None:
    found = attributes(attributes(families, 0).get(AF_INET6, b""), 0).get(_IFLA_INET6_ADDR_GEN_MODE)
    return found[0] if found else None


def _read_served(info: dict[int, bytes], master: bytes | None) -> KmodAttrs | None:
    """None for a device that is on its way out, which has no character device any more."""
    data = attributes(info.get(_IFLA_INFO_DATA, b""), 0)
    values = [data.get(each) for each in (_IFLA_IPVSW_TAP, _IFLA_IPVSW_NETNS, _IFLA_IPVSW_LINK_NETNS)]
    tap, netns, master_netns = (int.from_bytes(value or b"", sys.byteorder) for value in values)
    if not tap or master is None:
        return None
    mode, flags = data.get(_IFLA_IPVSW_MODE), data.get(_IFLA_IPVSW_FLAGS)
    return KmodAttrs(
        tap=tap,
        netns=netns,
        master=_INT.unpack(master)[0],
        master_netns=master_netns,
        mode=_SHORT.unpack(mode)[0] if mode else None,
        flags=_SHORT.unpack(flags)[0] if flags else None,
    )


def attributes(data: bytes, start: int) -> dict[int, bytes]:
    """Type -> value of the attributes that begin at `start`."""
    found = {}
    while start + _RTATTR.size <= len(data):
        length, kind = _RTATTR.unpack_from(data, start)
        if length < _RTATTR.size:
            break
        found[kind & _NLA_TYPE_MASK] = data[start + _RTATTR.size : start + length]
        start += (length + 3) & ~3
    return found


def pack_attribute(kind: int, value: bytes) -> bytes:
    """An attribute with its header, padded."""
    return _RTATTR.pack(_RTATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="surrogateescape")
