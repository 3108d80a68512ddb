"""Switches whose ports are veths, and what of their traffic the kernel has forwarded."""

from __future__ import annotations

from typing import Any

from tests.support.running import Daemon, port, switch, toml
from tests.support.topology import Lab, port4, port6

COUNT = 20  # echo requests


def table(lab: Lab, first: dict[str, Any] | None = None, third: str = "veth", **more: Any) -> list[dict[str, Any]]:
    """Ports with a veth each, but the third one; `first` are keys of the first one, `more` the switch's."""
    ports = [
        port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"], device=third if k == 3 else "veth", **keys)
        for k, (netns, keys) in enumerate(zip(lab.ports, (first or {}, {}, {}), strict=False), 1)
    ]
    return [switch("m0", lab.host, ports, **more)]


def change(lab: Lab, daemon: Daemon, **more: Any) -> None:
    daemon.config.write_text(toml(daemon.socket, table(lab, **more)))
    daemon.cli("reload")


def by_kernel(daemon: Daemon, name: str = "ipvl1") -> int:
    """Frames from the port that the kernel has forwarded."""
    return int(daemon.stats()[0]["ports"][name]["kernel_frames"])


def goes_by_kernel(lab: Lab, daemon: Daemon, source: str, address: str) -> bool:
    """Whether the echo requests of the first port's namespace do, most of them."""
    lab.reachable(source, address)
    before = by_kernel(daemon)
    assert lab.ping(source, address, COUNT) == COUNT
    return by_kernel(daemon) - before >= COUNT
