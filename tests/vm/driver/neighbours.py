"""Neighbour tables over rtnetlink: what a stack could not find is forgotten at once.

A failed entry stays until a timer of the kernel's comes by, and as long as it stays, any request of that neighbour's
that is overheard makes it known. Whether it is there is chance; without it there is none.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

RTM_GETNEIGH, RTM_DELNEIGH, RTM_NEWNEIGH = 30, 29, 28
NLMSG_DONE, NLM_F_REQUEST, NLM_F_DUMP = 3, 1, 0x300
NUD_FAILED = 0x20
NDA_DST = 1


def forget_failed(netlink: socket.socket) -> None:
    """Remove every failed entry in the namespace that the rtnetlink socket was made in."""
    failed = [(header, address) for header, address in _entries(netlink) if header[3] & NUD_FAILED]
    for (family, _, index, _, _, _), address in failed:
        body = struct.pack("=BxHiHBB", family, 0, index, 0, 0, 0)
        body += struct.pack("=HH", 4 + len(address), NDA_DST) + address
        netlink.send(struct.pack("=IHHII", 16 + len(body), RTM_DELNEIGH, NLM_F_REQUEST, 0, 0) + body)


def _entries(netlink: socket.socket) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Each entry's struct ndmsg and its address."""
    netlink.send(struct.pack("=IHHII12x", 28, RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, 0, 0))
    while True:
        answer = netlink.recv(1 << 16)
        while answer:
            length, kind = struct.unpack_from("=IH", answer)
            message, answer = answer[16:length], answer[(length + 3) & ~3 :]
            if kind == NLMSG_DONE:
                return
            if kind != RTM_NEWNEIGH:
                continue
            attributes = message[12:]
            while attributes:
                size, name = struct.unpack_from("=HH", attributes)
                if name == NDA_DST:
                    yield struct.unpack_from("=BxHiHBB", message), attributes[4:size]
                attributes = attributes[(size + 3) & ~3 :]
