"""Links made and set up, and many deleted at once: the kernel waits for its readers once for all of them, and not for
each."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import socket
import struct
from collections.abc import Sequence

from ipvsw.linux.netlink.messages import IFINFOMSG, IFLA_IFNAME, RTM_NEWLINK, messages, pack_attribute
from ipvsw.linux.netlink.questions import NLM_F_CREATE, NLM_F_EXCL, Questions

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
RTM_DELLINK, RTM_SETLINK = 17, 19
IFLA_ADDRESS, IFLA_MTU, IFLA_LINKINFO, IFLA_GROUP, IFLA_NET_NS_FD = 1, 4, 18, 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1  # and linux/veth.h
_INT = struct.Struct("=i")

GROUPS = 1 << 30, 1 << 31  # numbers that administrators don't use, of which one is taken
BUFFER = 64 << 10  # bytes


def add_veth(kernel: Questions, name: str, peer: str, netns_fd: int, mac: bytes, mtu: tuple[int, int]) -> None:
    """A pair with the same MAC address, `name` here and `peer` there, `mtu` in the same order. Errors: OSError."""
    near, far = (_INT.pack(one) for one in mtu)
    there = _link(
        (IFLA_IFNAME, os.fsencode(peer) + b"\0"),
        (IFLA_ADDRESS, mac),
        (IFLA_MTU, far),
        (IFLA_NET_NS_FD, _INT.pack(netns_fd)),
    )
    info = pack_attribute(IFLA_INFO_KIND, b"veth\0")
    info += pack_attribute(IFLA_INFO_DATA, pack_attribute(VETH_INFO_PEER, there))
    here = _link((IFLA_IFNAME, os.fsencode(name) + b"\0"), (IFLA_ADDRESS, mac), (IFLA_MTU, near), (IFLA_LINKINFO, info))
    kernel.change_one(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, here)


def _link(*attributes: tuple[int, bytes]) -> bytes:
    return IFINFOMSG.pack(0, 0, 0, 0, 0) + b"".join(itertools.starmap(pack_attribute, attributes))


def delete_links(indices: Sequence[int]) -> None:
    """Of the namespace that the calling thread is in. They are made a group, which is deleted (rtnl_group_dellink in
    net/core/rtnetlink.c): some 0.2 ms for each, in which no process on this machine can change a link. Those that
    are gone already are no error. Errors: OSError, after which some may be there."""
    group = random.randrange(*GROUPS)
    requests = [_request(RTM_SETLINK, 0, index, group) for index in indices]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.bind((0, 0))
        route.send(b"".join([*requests, _request(RTM_DELLINK, NLM_F_ACK, 0, group)]))
        code = None
        while code is None:
            code = _answer(route.recv(BUFFER))
    if code not in (0, errno.ENODEV):
        raise OSError(code, f"{len(indices)} links: {os.strerror(code)}")


def _request(kind: int, flags: int, index: int, group: int) -> bytes:
    """A struct nlmsghdr, a struct ifinfomsg and one attribute."""
    header = struct.pack("=IHHII", 40, kind, NLM_F_REQUEST | flags, 0, 0)
    return header + struct.pack("=BxHiIIHHI", 0, 0, index, 0, 0, 8, IFLA_GROUP, group)


def _answer(data: bytes) -> int | None:
    """To the deletion, the last request: an errno or 0. None if it isn't among these messages. The others are answered
    only if they fail."""
    for kind, body in messages(data):
        if kind == NLMSG_ERROR:  # a struct nlmsgerr: with the header of the request
            error, _, asked = struct.unpack_from("=iIH", body)
            if asked == RTM_DELLINK:
                return -int(error)
    return None


def read_sysctl(path: str) -> str | None:
    """What /proc/sys/`path` says, None if it isn't there. To find it the kernel passes by the same path of all other
    namespaces (proc_sys_compare in fs/proc/proc_sysctl.c): what thousands of ports need is asked for by netlink."""
    try:
        with open(f"/proc/sys/{path}", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def write_sysctl(path: str, value: str) -> None:
    """Nothing happens if it isn't there. Errors: OSError."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
