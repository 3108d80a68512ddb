"""Whether one reaches another, asked without a process for each question: a guest is slow to start one."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

from tests.support.patience import until
from tests.support.topology import inside
from tests.support.traffic import family

WAIT = 0.2  # s for an answer, before the question is repeated
ECHO_REQUEST = {socket.AF_INET: (socket.IPPROTO_ICMP, 8), socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128)}


def reaches(netns: str, *addresses: str, device: str = "") -> None:
    """Each answers an echo request from there, once it is asked often enough; through a device if one is named."""
    for address in addresses:
        protocol, kind = ECHO_REQUEST[family(address)]
        with inside(netns):
            sock = socket.socket(family(address), socket.SOCK_DGRAM, protocol)
        with sock:
            sock.settimeout(WAIT)
            if device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            request = struct.pack("!BBHHH", kind, 0, 0, 0, 1)

            def answered(sock: socket.socket = sock, address: str = address, request: bytes = request) -> bool:
                # What is said of a neighbour that does not answer is said by the next call.
                with contextlib.suppress(OSError):
                    sock.sendto(request, (address, 0))
                    return bool(sock.recvfrom(1 << 10)[1][0] == address)
                return False

            until(answered, f"{netns} reaches {address}")


def reach_each_other(ends: Iterable[tuple[str, str]]) -> None:
    """Namespaces, each with an address of it that the others are to reach."""
    ends = list(ends)
    for netns, own in ends:
        reaches(netns, *(address for there, address in ends if there != netns and (":" in own) == (":" in address)))
