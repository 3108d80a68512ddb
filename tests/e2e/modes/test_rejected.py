"""What the host's OUTPUT chain rejects of a port's packets in l3s: the port is told, without host_access."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.support import traffic
from tests.support.patience import LIMIT
from tests.support.routed import FAR4, FAR6, Routed, change, inner
from tests.support.topology import exec_in, inside, run

QUIET = 0.3  # seconds in which what must not come would have come
MODE = "l3s"

CASES = {
    "reset": ("tcp", "reject with tcp reset", errno.ECONNREFUSED),
    "port": ("tcp", "reject", errno.ECONNREFUSED),
    "admin": ("tcp", "reject with icmpx admin-prohibited", errno.EHOSTUNREACH),
    "udp": ("udp", "reject", errno.ECONNREFUSED),
}


def error_of(lab: Routed, netns: str, address: str, protocol: str) -> int:
    """Of connecting from `netns`, or of what is sent there."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with inside(netns):
        client = socket.socket(traffic.family(address), kind)
    with client:
        client.settimeout(LIMIT)
        try:
            client.connect((address, 9))
            client.send(b"question")
            client.recv(100)
        except OSError as error:
            return error.errno or errno.ETIMEDOUT
    return 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", CASES)
def test_the_port_is_told(lab: Routed, case: str, version: int) -> None:
    change(lab.routers[1], "route del 10.2.0.0/24", "route del fd02::/64")  # which would send it back
    protocol, words, expected = CASES[case]
    chain = f"chain o {{ type filter hook output priority 0; oifname m0 {protocol} dport 9 {words}; }}"
    run(*exec_in(lab.host, "nft", "-f", "-"), text=f"table inet t {{ {chain}; }}")
    if (case, version) == ("admin", 6):
        expected = errno.EACCES
    assert error_of(lab, lab.ports[0], FAR4 if version == 4 else FAR6, protocol) == expected


@pytest.mark.parametrize("version", [4, 6])
def test_the_host_and_the_ports_do_not_talk_all_the_same(lab: Routed, version: int) -> None:
    """By none of the host's addresses, in neither direction."""
    lab.reachable(lab.ports[0], FAR4 if version == 4 else FAR6)
    other = "10.3.0.1" if version == 4 else "fd03::1"
    for netns, address in ((lab.host, inner(1, version)), (lab.ports[0], other)):
        assert lab.ping(netns, address, wait=0.2) == 0
        with inside(lab.host if netns != lab.host else lab.ports[0]):
            server = socket.create_server((address, 0), family=traffic.family(address))
        with server, inside(netns):
            client = socket.socket(traffic.family(address), socket.SOCK_STREAM)
            with client, pytest.raises(OSError):
                client.settimeout(QUIET)
                client.connect(server.getsockname()[:2])
