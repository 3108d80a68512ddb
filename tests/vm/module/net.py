"""The topology of `lab`, with ports that `ip link add ... type ipvsw` makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.support.patience import until
from tests.support.running import Daemon, switch
from tests.support.topology import Lab, port4, port6


def name(k: int) -> str:
    return f"ipvl{k}"


def add(lab: Lab, k: int, master: str = "m0") -> None:
    """Port number `k` (from 1), made beside the master, moved, up and with its addresses."""
    netns = lab.ports[k - 1]
    lab.ip(lab.host, "link", "add", "link", master, "name", name(k), "type", "ipvsw")
    lab.ip(lab.host, "link", "set", name(k), "netns", netns)
    lab.ip(netns, "link", "set", name(k), "up")
    lab.ip(netns, "addr", "add", f"{port4(k)}/16", "dev", name(k))
    lab.ip(netns, "addr", "add", f"{port6(k)}/64", "dev", name(k), "nodad")


@contextlib.contextmanager
def served(lab: Lab, ports: int, master: str = "m0") -> Iterator[Daemon]:
    """The daemon on the master, and that many ports, served."""
    with Daemon(switch(master, lab.host), home=lab.home) as daemon:
        daemon.wait()
        for k in range(1, ports + 1):
            add(lab, k, master)
        until_served(lab, daemon, ports)
        yield daemon


def until_served(lab: Lab, daemon: Daemon, ports: int) -> None:
    wanted = {f"{name(k)}@{lab.ports[k - 1]}": {port4(k), port6(k)} for k in range(1, ports + 1)}

    def as_wanted() -> bool:
        (shown,) = daemon.show()
        found = {
            port["name"]: {each["address"] for each in port["addresses"] if each["state"] == "owned"}
            for port in shown["ports"]
            if port["kind"] == "link" and port["state"] == "up"
        }
        return found.keys() == wanted.keys() and all(wanted[one] <= found[one] for one in wanted)

    until(as_wanted, "the daemon serves the links", every=0.1)
