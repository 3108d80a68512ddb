"""Tunnels that end in a port: what their sender's card would have segmented arrives there, and at full speed."""

from __future__ import annotations

import time

import pytest

from tests.support import traffic
from tests.support.running import Daemon, port, switch
from tests.support.topology import WIRE4, WIRE6, Lab, port4, port6

SIZE = 20_000_000  # bytes each way; by retransmissions alone they would take minutes
QUICK = 20.0  # seconds
INNER = {"here": ("192.168.77.1", "fd77::1"), "there": ("192.168.77.2", "fd77::2")}


def vxlan(lab: Lab, netns: str, device: str, ends: tuple[str, str], inner: tuple[str, str], checksum: bool) -> None:
    local, remote = ends
    words = ["udpcsum" if checksum else "noudpcsum"]
    if ":" in local:
        words = ["noudp6zerocsumtx" if checksum else "udp6zerocsumtx", "udp6zerocsumrx"]
    lab.ip(
        netns, *f"link add vx type vxlan id 7 local {local} remote {remote} dstport 4789 dev {device}".split(), *words
    )
    for address, length in zip(inner, (24, 64), strict=True):
        lab.ip(netns, "addr", "add", f"{address}/{length}", "dev", "vx", *(["nodad"] if ":" in address else []))
    lab.ip(netns, "link", "set", "vx", "up")


@pytest.mark.parametrize("checksum", [False, True], ids=["no-sum", "sum"])
@pytest.mark.parametrize("outer", [4, 6])
def test_tcp_through_vxlan(lab: Lab, outer: int, checksum: bool) -> None:
    """From a sender that leaves all segmentation to its card, which is the master's other end."""
    ports = [port("ipvl1", lab.ports[0], [f"{port4(1)}/16", f"{port6(1)}/64"])]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait()
        mine, peer = (port4(1), WIRE4) if outer == 4 else (port6(1), WIRE6)
        lab.reachable(lab.ports[0], peer)
        vxlan(lab, lab.ports[0], "ipvl1", (mine, peer), INNER["here"], checksum)
        vxlan(lab, lab.wire, "w0", (peer, mine), INNER["there"], checksum)
        for address in INNER["here"]:
            started = time.monotonic()
            traffic.tcp(lab.wire, lab.ports[0], address, SIZE)
            assert time.monotonic() - started < QUICK
        stats = daemon.stats()[0]
        assert stats["master"]["offload_fixed"] > 100
        if "tunnel" in daemon.port("ipvl1")["offloads"]:  # then most frames are longer than the MTU, both ways
            counted = stats["ports"]["ipvl1"]
            assert counted["rx_bytes"] > 2000 * counted["rx_frames"]
            assert counted["tx_bytes"] > 2000 * counted["tx_frames"]
        errors = traffic.checksum_errors(lab.read(lab.ports[0], "snmp"), lab.read(lab.ports[0], "snmp6"))
        assert not errors
