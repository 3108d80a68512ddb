"""All links of a namespace, parsed as events are: pyroute2 leaves out what it doesn't know of a kind."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from ipvsw.linux.netlink.messages import RTM_NEWLINK, Link, LinkEvent, messages, read_events

# linux/netlink.h, linux/rtnetlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
RTM_GETLINK = 18

BUFFER = 64 << 10  # bytes; the kernel fills no more than 32 KiB of it at a time


def dump_links() -> Iterator[Link]:
    """The links of the namespace that the calling thread is in. Errors: OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.bind((0, 0))
        route.send(struct.pack("=IHHIIBxHiII", 32, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, 0, 0, 0, 0, 0))
        while True:
            data = route.recv(BUFFER)
            for kind, body in messages(data):
                if kind == NLMSG_ERROR:
                    code = -int(struct.unpack_from("=i", body)[0])
                    raise OSError(code, f"links: {os.strerror(code)}")
                if kind == NLMSG_DONE:
                    return
                if kind == RTM_NEWLINK:
                    yield from (event.link for event in read_events(data, None) if isinstance(event, LinkEvent))
                    break
