"""mDNS as people run it: avahi in a namespace, in a virtual machine, on the wire and on the host see each other."""

from __future__ import annotations

import contextlib
import itertools

from tests.support.patience import until
from tests.support.programs.avahi import Avahi
from tests.support.programs.guest import guest
from tests.support.running import Daemon, port, switch
from tests.support.topology import Lab, port4

MDNS = {"01:00:5e:00:00:fb", "33:33:00:00:00:fb"}


def groups(lab: Lab, netns: str, device: str) -> set[str]:
    """Those that a device listens to."""
    shown = lab.execute(netns, "ip", "maddr", "show", "dev", device)
    return {line.split()[1] for line in shown.splitlines() if line.strip().startswith("link")}


def test_everybody_sees_everybody(lab: Lab) -> None:
    """Also by a card that filters, as a macvlan does: it has the groups that are listened to, and no others."""
    lab.ip(lab.host, "link", "add", "link", "m0", "name", "mv0", "type", "macvlan", "mode", "bridge")
    lab.ip(lab.host, "addr", "flush", "dev", "m0")
    lab.ip(lab.host, "link", "set", "mv0", "up")
    lab.ip(lab.host, "addr", "add", "10.1.0.2/16", "dev", "mv0")
    before = until(lambda: groups(lab, lab.host, "mv0"), "it listens to some itself")
    ports = [
        port("ipvl1", lab.ports[0], [f"{port4(1)}/16"]),
        {"name": "vm1", "kind": "tap", "addresses": [f"{port4(2)}/16"]},
    ]

    def of_ports(count: int) -> set[str]:
        places = ((lab.ports[0], "ipvl1"), (lab.ports[1], "eth0"))
        return set().union(*(groups(lab, *place) for place in places[:count]))

    with Daemon(switch("mv0", lab.host, ports, host_access="both"), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        with guest(lab, daemon, "vm1", lab.ports[1]), contextlib.ExitStack() as ending:
            lab.ip(lab.ports[1], "addr", "add", f"{port4(2)}/16", "dev", "eth0")
            where = {
                "space": (lab.ports[0], "ipvl1", port4(1)),
                "machine": (lab.ports[1], "eth0", port4(2)),
                "wire": (lab.wire, "w0", "10.1.0.254"),
                "host": (lab.host, "mv0", "10.1.0.2"),
            }
            running = {
                name: ending.enter_context(Avahi(netns, device, name)) for name, (netns, device, _) in where.items()
            }
            for one, other in itertools.permutations(running, 2):
                until(
                    lambda one=one, other=other: running[one].resolve(other, 4) == where[other][2],  # type: ignore[misc]
                    f"{one} sees {other}",
                )
            until(
                lambda: groups(lab, lab.host, "mv0") == before | MDNS | of_ports(2), "the card has these groups alone"
            )
        until(lambda: groups(lab, lab.host, "mv0") == before | of_ports(1), "and no longer than they are listened to")
