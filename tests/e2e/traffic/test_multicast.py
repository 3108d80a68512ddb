"""Packets for a group that don't come in multicast frames."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.support import frames
from tests.support.patience import until
from tests.support.running import Daemon
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER_MAC, WIRE4, WIRE6, WIRE_MAC, Lab, inside

GROUPS = {"224.0.0.251": frames.udp4, "ff02::fb": frames.udp6, "255.255.255.255": frames.udp4}


def joined(netns: str, device: str, group: str) -> socket.socket:
    """A socket in that namespace that listens to the group."""
    with inside(netns):
        if ":" in group:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            index = socket.if_nametoindex(device)
            member = socket.inet_pton(socket.AF_INET6, group) + index.to_bytes(4, "little")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        else:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            member = socket.inet_aton(group) + bytes(4) + socket.if_nametoindex(device).to_bytes(4, "little")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    return sock


@pytest.mark.parametrize("group", GROUPS)
def test_in_a_frame_for_the_masters_mac_address(lab: Lab, lan: Daemon, group: str) -> None:
    """RFC 6085, as access points send them: who listens to the group gets it, and the host as before."""
    make: Callable[..., bytes] = GROUPS[group]
    source = WIRE6 if ":" in group else WIRE4
    everybody = group == "255.255.255.255"
    listener = None if everybody else joined(lab.ports[0], "ipvl1", group)
    device = lab.execute(lab.ports[0], "ip", "maddr", "show", "dev", "ipvl1")
    assert everybody or group in device
    packet = make(source, group, b"to a group", to=MASTER_MAC, by=WIRE_MAC)
    reflected = make(source, group, b"reflected.", to=MASTER_MAC, by=MASTER_MAC)
    with (
        sniffing(lab.ports[0], "ipvl1") as one,
        sniffing(lab.ports[1], "ipvl2") as two,
        sniffing(lab.host, "m0") as host,
        raw(lab.wire, "w0") as wire,
    ):

        def arrives() -> bool:
            wire.send(reflected)
            wire.send(packet)
            return one.count(b"to a group") > 0

        until(arrives, "the packet arrives")
        until(lambda: host.count(b"to a group"), "the host has it too")
        assert not one.count(b"reflected.")
        if everybody:
            until(lambda: two.count(b"to a group"), "everybody gets it")
        else:
            assert not two.count(b"to a group")
    if listener is not None:
        listener.close()
