"""Frames through the daemon, and the daemon's death among them."""

from __future__ import annotations

import socket
import threading
from typing import Any

from tests.support import traffic as talk
from tests.support.patience import LIMIT
from tests.support.topology import Lab, inside, port4, port6

from .kernel import Module, descriptors
from .net import name, served, until_served

ETH_P_ALL = 3
PACKET_OUTGOING = 4
MTU = 1500
HEADER = 14


def traffic(module: Module) -> dict[str, Any]:
    """Ping and TCP between two ports, and with the wire; GSO frames cross in one piece."""
    with Lab(2) as lab, served(lab, 2) as daemon:
        one, two = lab.ports
        for address in (port4(2), port6(2)):
            assert lab.ping(one, address, count=5) == 5
        lab.reachable(one, "10.1.0.254")
        lab.reachable(lab.wire, port6(2))
        assert lab.ping(one, "10.1.0.1", wait=1) == 0, "the host answers a port"
        assert module.refuses_to_go(), "unloaded under a daemon and two devices"
        talk.send_gso_frames(lab, one)
        with Sizes(two, name(2)) as sizes:
            talk.tcp(one, two, port4(2), 10_000_000)
        assert max(sizes.received) > 10 * MTU, f"no GSO frame was received: {max(sizes.received)}"
        (stats,) = daemon.stats()
        sender = stats["ports"][f"{name(1)}@{one}"]
        mean = sender["rx_bytes"] // sender["rx_frames"]
        assert mean > MTU + HEADER, f"the daemon reads {mean} bytes a frame: these are segments"
        (shown,) = daemon.show()
        assert {port["kind"] for port in shown["ports"]} == {"link"}
        assert "link" in daemon.cli("show")
        return {"largest": max(sizes.received), "mean": mean, "offloads": shown["ports"][0]["offloads"]}


def restart(module: Module) -> dict[str, Any]:
    """kill -9 under TCP traffic: the devices stay, and the connection goes on when another daemon serves them."""
    with Lab(2) as lab, served(lab, 2) as daemon:
        one, two = lab.ports
        with talk.Stream(one, two, port4(2)) as stream:
            stream.flows()
            daemon.kill()
            assert module.refuses_to_go(), "unloaded under two devices"
            assert lab.link(one, name(1)) and lab.link(two, name(2))
            assert lab.ping(one, port4(2), wait=0.2) == 0, "frames cross without a daemon"
            daemon.start()
            daemon.wait()
            until_served(lab, daemon, 2)
            assert len(descriptors(daemon.pid)) == 2
            # TCP asks again at intervals that double: at most as long from now as it has had no answer.
            stream.flows(4 * LIMIT)
        assert lab.ping(one, port6(2), count=3) == 3
        return {}


class Sizes:
    """Lengths of the frames that a device sends and receives while the body lasts."""

    def __init__(self, netns: str, device: str) -> None:
        self.sent, self.received = {0}, {0}
        with inside(netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((device, ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Sizes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _watch(self) -> None:
        # A frame that the daemon hands over is seen on its way in and before that on its way out of the tap.
        while not self._over.is_set():
            try:
                data, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            (self.sent if address[2] == PACKET_OUTGOING else self.received).add(len(data))
