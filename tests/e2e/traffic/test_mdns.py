"""mDNS as people run it: avahi in a namespace, in a virtual machine, on the wire and on the host see each other."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from tests.support.patience import until
from tests.support.programs.avahi import Avahi
from tests.support.programs.guest import guest
from tests.support.running import Daemon, port, switch
from tests.support.topology import Lab, port4

MDNS = {"01:00:5e:00:00:fb", "33:33:00:00:00:fb"}
LISTED = ["224.0.0.251", "ff02::fb", "239.255.255.250"]  # of the last of which nobody hears


def groups(lab: Lab, netns: str, device: str, *families: str) -> set[str]:
    """Those that a device listens to, by MAC address unless `families` say otherwise."""
    shown = lab.execute(netns, "ip", "maddr", "show", "dev", device)
    words = [line.split() for line in shown.splitlines() if line.startswith("\t")]
    return {group for family, group, *_ in words if family in (families or {"link"})}


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_everybody_sees_everybody(lab: Lab, mode: str) -> None:
    """Also by a card that filters, as a macvlan does: it has the groups that are listened to, in the routed modes of
    those that are listed, and no others."""
    lab.ip(lab.host, "link", "add", "link", "m0", "name", "mv0", "type", "macvlan", "mode", "bridge")
    lab.ip(lab.host, "addr", "flush", "dev", "m0")
    lab.ip(lab.host, "link", "set", "mv0", "up")
    lab.ip(lab.host, "addr", "add", "10.1.0.2/16", "dev", "mv0")
    before = until(lambda: groups(lab, lab.host, "mv0"), "it listens to some itself")
    ports = [
        port("ipvl1", lab.ports[0], [f"{port4(1)}/16"]),
        {"name": "vm1", "kind": "tap", "addresses": [f"{port4(2)}/16"]},
    ]
    routed = mode != "l2"

    def of_ports(count: int) -> set[str]:
        places = ((lab.ports[0], "ipvl1"), (lab.ports[1], "eth0"))
        joined = set().union(*(groups(lab, *place) for place in places[:count]))
        return joined & MDNS if routed else joined

    made = switch("mv0", lab.host, ports, host_access="both", mode=mode, **({"multicast": LISTED} if routed else {}))
    with Daemon(made, home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        with guest(lab, daemon, "vm1", lab.ports[1]), contextlib.ExitStack() as ending:
            lab.ip(lab.ports[1], "addr", "add", f"{port4(2)}/16", "dev", "eth0")
            where = {
                "machine": (lab.ports[1], "eth0", port4(2)),
                "space": (lab.ports[0], "ipvl1", port4(1)),
                "wire": (lab.wire, "w0", "10.1.0.254"),
                "host": (lab.host, "mv0", "10.1.0.2"),
            }
            running = {}
            for name, (netns, device, _) in where.items():
                running[name] = ending.enter_context(Avahi(netns, device, name))
                until(
                    lambda: groups(lab, lab.host, "mv0") == before | MDNS | of_ports(2),
                    f"the card has these groups alone, with {name}",
                )
                until(
                    lambda: not routed or groups(lab, lab.host, "mv0", "inet", "inet6") & {*LISTED} == {*LISTED[:2]},
                    "the host is a member in the ports' stead, so that the LAN's switches and routers know",
                )
            for one, other in itertools.permutations(running, 2):
                until(
                    lambda one=one, other=other: running[one].resolve(other, 4) == where[other][2],  # type: ignore[misc]
                    f"{one} sees {other}",
                )
        until(lambda: groups(lab, lab.host, "mv0") == before | of_ports(1), "and no longer than they are listened to")
