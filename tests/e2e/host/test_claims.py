"""What a port claims takes nothing from the host that the host's routes lead elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.host.hostnet import know_ports
from tests.e2e.host.test_host_access import pings
from tests.support import running
from tests.support.machine import addresses, arp, idle, machine, solicitation
from tests.support.patience import until
from tests.support.topology import MASTER4, MASTER6, WIRE4, WIRE6, Lab, port4, port6

FAR = {4: "203.0.113.9", 6: "2001:db8:f::9"}  # an address of the world, behind the gateway
GATEWAY, MASTER = {4: WIRE4, 6: WIRE6}, {4: MASTER4, 6: MASTER6}


class Net:
    def __init__(self, lab: Lab, daemon: running.Daemon) -> None:
        self.lab, self.daemon = lab, daemon

    def claim(self, address: str) -> None:
        """Port ipvl1's namespace gives itself the address."""
        bits = "128" if ":" in address else "32"
        self.lab.ip(self.lab.ports[0], "addr", "add", f"{address}/{bits}", "dev", "ipvl1", "nodad")

    def state(self, address: str) -> tuple[str, str] | None:
        """What the switch says of the address, and why."""
        found = (one for one in self.daemon.port("ipvl1")["addresses"] if one["address"] == address)
        return next(((one["state"], one["reason"]) for one in found), None)


@pytest.fixture(params=["l2", "l3", "l3s"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with Lab(2) as lab:
        know_ports(lab)
        for version, (gateway, master) in enumerate(((WIRE4, MASTER4), (WIRE6, MASTER6))):
            family = ("-4", "-6")[version]
            lab.ip(lab.host, family, "route", "add", "default", "via", gateway)
            lab.ip(lab.wire, family, "route", "add", "default", "via", master)
        ports = [
            running.port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"])
            for k, netns in enumerate(lab.ports, 1)
        ]
        table = running.switch("m0", lab.host, ports, mode=request.param, host_access="both")
        with running.Daemon(table, home=lab.home) as daemon:
            yield Net(lab, daemon.wait())


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_of_the_world_stays_where_the_hosts_routes_lead(net: Net, version: int) -> None:
    lab, far = net.lab, FAR[version]
    lab.ip(lab.wire, "addr", "add", f"{far}/{128 if version == 6 else 32}", "dev", "lo")
    assert pings(lab, lab.host, far)
    net.claim(far)
    until(lambda: net.state(far) == ("owned", ""), "the port owns it, for the wire")
    assert pings(lab, lab.host, far)
    lab.ip(lab.wire, "addr", "del", f"{far}/{128 if version == 6 else 32}", "dev", "lo")
    assert not pings(lab, lab.host, far, wanted=False), "the port answers in its place"


@pytest.mark.parametrize("version", [4, 6])
def test_no_port_gets_the_hosts_gateway(net: Net, version: int) -> None:
    gateway = GATEWAY[version]
    net.claim(gateway)
    reason = "a route of the host uses it as its gateway"
    until(lambda: net.state(gateway) == ("refused", reason), "the claim is refused")
    assert net.daemon.stats()[0]["refused"] >= 1
    assert pings(net.lab, net.lab.host, gateway)
    net.lab.ip(net.lab.host, f"-{version}", "route", "del", "default")
    until(lambda: net.state(gateway) == ("owned", ""), "the route is gone, and so is the reason")


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_on_link_or_pinned_is_the_ports(net: Net, version: int) -> None:
    lab, near, far = net.lab, {4: "10.1.0.77", 6: "fd00:1::77"}[version], FAR[version]
    net.claim(near)
    until(lambda: net.state(near) == ("owned", ""), "the port owns it")
    lab.reachable(lab.host, near)
    config = net.daemon.config.read_text()
    bits = 128 if version == 6 else 32
    changed = config.replace(f'"{port4(1)}/16"', f'"{port4(1)}/16", "{far}/{bits}"', 1)
    assert changed != config
    net.daemon.config.write_text(changed)
    net.daemon.cli("reload")
    until(lambda: net.state(far) == ("owned", ""), "the configuration pins it to the port")
    lab.reachable(lab.host, far)


def test_what_is_pinned_is_nobody_elses(net: Net) -> None:
    lab = net.lab
    lab.ip(lab.ports[1], "addr", "del", f"{port4(2)}/16", "dev", "ipvl2")
    net.claim(port4(2))
    reason = "the configuration pins it to port ipvl2"
    until(lambda: net.state(port4(2)) == ("refused", reason), "the claim is refused")


@pytest.mark.parametrize("access", ["to-host", "both"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_forged_frame_takes_nothing_from_the_host(version: int, access: str) -> None:
    """A machine whose addresses are learned, without guards: what is not on-link is not learned of it; and of one that
    may have anything, it takes none of the host's traffic. The gateway's address is never learned."""
    far, gateway, family = FAR[version], GATEWAY[version], f"-{version}"
    with Lab(1) as lab:
        lab.ip(lab.host, family, "route", "add", "default", "via", gateway)
        lab.ip(lab.wire, family, "route", "add", "default", "via", MASTER[version])
        lab.ip(lab.wire, "addr", "add", f"{far}/{128 if version == 6 else 32}", "dev", "lo")
        common = {"kind": "tap", "mac": "master", "learn": True, "guard": "off"}
        ports = [{"name": "vm1", **common}, {"name": "vm2", **common, "claim": "any"}]
        with running.Daemon(running.switch("m0", lab.host, ports, host_access=access), home=lab.home) as daemon:
            daemon.wait(states=("up", "waiting"))
            idle(daemon, "vm1", "vm2")
            with machine(daemon, "vm1") as one, machine(daemon, "vm2") as two:
                for guest in (one, two):
                    for address in (gateway, far):
                        guest.send(arp(address, gateway) if version == 4 else solicitation(address, "fd00:1::99"))
                until(lambda: far in addresses(daemon, "vm2"), "who may have anything has it")
                until(lambda: daemon.stats()[0]["learned"].get("refused") == 3, "the rest is refused")
                assert far not in addresses(daemon, "vm1")
                assert not {gateway} & {*addresses(daemon, "vm1"), *addresses(daemon, "vm2")}
                assert pings(lab, lab.host, far) and pings(lab, lab.host, gateway)
