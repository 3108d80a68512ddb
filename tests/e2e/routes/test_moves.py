"""An endpoint moves to another host with its address, under a TCP stream: routers learn of it by BGP.

The endpoint is a namespace, whose sockets stay what they are: one host's daemon gives up its port, another's makes one.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.cluster.fabric import CLIENT, Fabric
from tests.e2e.routes.engines import Bird
from tests.support.running import Daemon
from tests.support.traffic import Stream


def attach(daemon: Daemon, netns: str, addresses: list[str], routes: list[str]) -> None:
    body = {"master": "m0", "name": "moving", "netns": netns, "addresses": addresses, "routes": routes}
    status, answer = daemon.call("POST", "/v1/ports", body)
    assert status == 201, answer


def move(old: Daemon, new: Daemon, netns: str, addresses: list[str], routes: list[str]) -> None:
    status, answer = old.call("DELETE", "/v1/ports/moving")
    assert status == 204, answer
    attach(new, netns, addresses, routes)


def test_a_stream_goes_on_at_another_host(tmp_path: Path) -> None:
    Bird.need()
    with Fabric(tmp_path, racks=2, per_rack=1, addresses=2) as fabric:
        first, second = fabric.hosts
        for host in fabric.hosts:
            host.start(ports=0)
        old, new = (host.daemon for host in fabric.hosts)
        assert old is not None and new is not None
        old.wait()
        new.wait()
        (address,), routes = first.addresses, [f"{CLIENT}/32"]
        attach(old, first.inside, [f"{address}/32"], routes)
        fabric.until_there({address: first.rack})
        fabric.lab.reachable(fabric.core, address)
        with Stream(fabric.core, first.inside, address) as stream:
            stream.flows()
            begun = time.monotonic()
            move(old, new, first.inside, [f"{address}/32"], routes)
            fabric.until_there({address: second.rack})
            stream.flows()
            print(f"moved: the stream flows again after {time.monotonic() - begun:.3f} s")
