"""End-to-end tests need root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import Daemon, port, switch
from tests.support.topology import Lab, port4, port6


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root: namespaces, veth, TAP, BPF"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two empty namespaces for ports, the master's and the wire's."""
    with Lab(2) as made:
        yield made


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    """`lab` with the daemon running: ipvl1 and ipvl2 with an address of each family, reachable."""
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"]) for k, netns in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        yield daemon.wait()
