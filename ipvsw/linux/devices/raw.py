"""Raw sockets into the host's IP output. Made inside the master's namespace.

A packet is sent with its header as it is, and its own source is given in a control message, so that policy rules see
what they would see of the kernel's driver. The kernel routes it as local output: OUTPUT and POSTROUTING, no TTL
decrement.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from msgspec import Struct

IP_PKTINFO, IP_TRANSPARENT = 8, 19
IPV6_MULTICAST_LOOP, IPV6_HDRINCL, IPV6_TRANSPARENT = 19, 36, 75
SO_SNDBUFFORCE = 32
BUFFER = 8 << 20  # bytes


class Stack(Struct, frozen=True):
    """One socket for each IP version, and the master's index, which packets name as their output device."""

    ipv4: socket.socket
    ipv6: socket.socket
    index: int

    def send(self, packet: bytes, version: int) -> None:
        """A whole packet, checksums and all, that fits the path; `version` is what its EtherType says.
        Errors: OSError."""
        if version == 4:
            info = struct.pack("=i4s4x", self.index, packet[12:16])
            to4 = (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0)
            self.ipv4.sendmsg([packet], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, to4)
        else:
            info = struct.pack("=16sI", packet[8:24], self.index)
            to6 = (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0)
            self.ipv6.sendmsg([packet], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)], 0, to6)

    def close(self) -> None:
        self.ipv4.close()
        self.ipv6.close()


def open_stack(index: int) -> Stack:
    """Errors: OSError."""
    with contextlib.ExitStack() as undo:
        pair = []
        for family, level, options in (
            (socket.AF_INET, socket.IPPROTO_IP, {IP_TRANSPARENT: 1}),
            # The driver's multicast isn't looped back: it is sent from within another device's transmission.
            (socket.AF_INET6, socket.IPPROTO_IPV6, {IPV6_TRANSPARENT: 1, IPV6_HDRINCL: 1, IPV6_MULTICAST_LOOP: 0}),
        ):
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            sock = undo.enter_context(socket.socket(family, kind, socket.IPPROTO_RAW))
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
            for option, value in options.items():
                sock.setsockopt(level, option, value)
            pair.append(sock)
        undo.pop_all()
        return Stack(pair[0], pair[1], index)
