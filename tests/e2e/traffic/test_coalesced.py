"""Datagrams of one flow from the wire, handed to a namespace together: none of its applications but those that ask for
several at once sees a difference."""

from __future__ import annotations

import random
import socket
import subprocess

import pytest

from tests.support import traffic
from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.topology import WIRE4, WIRE6, Lab, exec_in, inside, port4, port6

SIZE, AT_ONCE, TIMES = 1200, 40, 50
SO_RCVBUFFORCE, UDP_GRO = 33, 104


@pytest.mark.parametrize("coalesce", [True, False])
def test_every_datagram_arrives_by_itself_and_in_order(lab: Lab, coalesce: bool) -> None:
    """The wire's card cuts what its sender has put together."""
    subprocess.run(exec_in(lab.wire, "ethtool", "-K", "w0", "tx-udp-segmentation", "off"), check=True)
    ports = [port("ipvl1", lab.ports[0], [f"{port4(1)}/16", f"{port6(1)}/64"])]
    with Daemon(switch("m0", lab.host, ports), home=lab.home, coalesce=coalesce) as daemon:
        daemon.wait()
        together = coalesce and "uso4" in daemon.port("ipvl1")["offloads"]
        for address, wire in ((port4(1), WIRE4), (port6(1), WIRE6)):
            lab.reachable(lab.ports[0], wire)
            assert flow(lab, daemon, address, gro=False) == SIZE
            assert (flow(lab, daemon, address, gro=True) > SIZE) == together


def flow(lab: Lab, daemon: Daemon, address: str, *, gro: bool) -> int:
    """The most that came with one read; `gro`: by a reader that takes several datagrams at once. All that was sent did
    come."""
    most = 0
    content = random.Random(SIZE).randbytes(AT_ONCE * SIZE)
    before = daemon.stats()[0]["ports"]["ipvl1"]
    with traffic.listen(lab.ports[0], address, socket.SOCK_DGRAM) as reader:
        reader.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        reader.setsockopt(socket.IPPROTO_UDP, UDP_GRO, gro)
        with inside(lab.wire):
            sender = socket.socket(traffic.family(address), socket.SOCK_DGRAM)
        with sender:
            sender.connect(reader.getsockname()[:2])
            sender.setsockopt(socket.IPPROTO_UDP, traffic.UDP_SEGMENT, SIZE)
            for number in range(TIMES):
                sent = number.to_bytes(4, "big") + content[4:]
                sender.send(sent)
                came = b""
                while len(came) < len(sent):
                    data = reader.recv(1 << 17)
                    most = max(most, len(data))
                    came += data
                assert came == sent
    until(
        lambda: daemon.stats()[0]["ports"]["ipvl1"]["tx_frames"] - before["tx_frames"] >= TIMES * AT_ONCE,
        "not every datagram is counted",
    )
    assert daemon.stats()[0]["ports"]["ipvl1"]["tx_errors"] == before["tx_errors"]
    return most
