"""A daemon that serves the lab, for all tests of a module; each starts from its settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.host.hostnet import Net, know_ports
from tests.support import running
from tests.support.topology import Lab, port4, port6


@pytest.fixture(scope="module")
def shared() -> Iterator[Net]:
    """Two ports with addresses, and a third that gets one by DHCP."""
    with Lab(3) as lab:
        for device in ("all", "default", "m0"):
            lab.sysctl(lab.host, f"net/ipv4/conf/{device}/rp_filter", "1")
        ports = [
            running.port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"])
            for k, netns in enumerate(lab.ports[:2], 1)
        ]
        ports.append(running.port("ipvl3", lab.ports[2]))
        know_ports(lab)
        with running.Daemon(running.switch("m0", lab.host, ports), home=lab.home) as daemon:
            yield Net(lab, daemon.wait(), ports)


@pytest.fixture
def net(shared: Net) -> Iterator[Net]:
    yield shared
    shared.set("l2", "none")
