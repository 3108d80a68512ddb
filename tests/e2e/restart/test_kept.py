"""What the configuration says of a port's device stays so, whatever happens in its namespace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.support import leftovers
from tests.support.patience import patient, until
from tests.support.running import Daemon, port, switch
from tests.support.topology import MASTER_MAC, WIRE4, WIRE6, Lab, port4, port6, run
from tests.support.upkeep import MODES, host_state, under_traffic

SOON = patient(5)  # seconds in which everything is to be put back
ROUTE: dict[str, Any] = {"routes": [f"198.51.100.0/24 via {WIRE4}"]}

# Commands of `ip` inside, and what the daemon counts for each.
REMOVALS = [
    ("link set ipvl1 down; link set ipvl1 up", ("addresses", "gateways", "routes")),
    ("addr flush dev ipvl1", ("addresses", "gateways", "routes")),
    (f"addr del {port4(1)}/16 dev ipvl1", ("addresses", "gateways", "routes")),
    ("-6 addr flush dev ipvl1 scope global", ("addresses",)),
    ("route del default", ("gateways",)),
    ("-6 route del default", ("gateways",)),
    ("route del 198.51.100.0/24", ("routes",)),
    ("link set ipvl1 address 02:00:00:00:00:77", ("mac",)),
    ("link set ipvl1 mtu 1300", ("mtu",)),
]


class Net:
    def __init__(self, lab: Lab, daemon: Daemon) -> None:
        self.lab, self.daemon, self.netns = lab, daemon, lab.ports[0]
        self.wanted = self.state()

    def state(self) -> dict[str, object]:
        """Of ipvl1, as the daemon has made it."""
        link = self.lab.link(self.netns, "ipvl1")
        assert link is not None
        addresses = self.lab.addresses(self.netns, "ipvl1")
        with_global = {(one["local"], one["prefixlen"]) for one in addresses if one["scope"] == "global"}
        routes = [run("ip", version, "-n", self.netns, "route", "show", "default") for version in ("-4", "-6")]
        others = run("ip", "-n", self.netns, "route", "show", "198.51.100.0/24").split()[:5]
        return {
            "mac": link["address"],
            "up": "UP" in link["flags"],
            "mtu": link["mtu"],
            "mode": link["inet6_addr_gen_mode"],
            "addresses": with_global,
            "gateways": [sorted(line.split()[2] for line in text.splitlines()) for text in routes],
            "routes": others,
        }

    def repaired(self, subject: str) -> int:
        return int(self.daemon.stats()[0]["repaired"].get(subject, 0))

    def mended(self, change: Callable[[], object], *subjects: str) -> None:
        before = {subject: self.repaired(subject) for subject in subjects}
        change()
        for subject in subjects:
            until(lambda: self.repaired(subject) > before[subject], f"{subject} are repaired", limit=SOON, every=0.02)  # noqa: B023
        until(lambda: self.state() == self.wanted, "everything is as before", limit=SOON, every=0.05)
        for source, target in ((self.lab.wire, port4(1)), (self.lab.wire, port6(1)), (self.netns, "192.0.2.1")):
            self.lab.reachable(source, target)
        until(lambda: self.shown()["state"] == "up", "it is shown up", limit=SOON)

    def shown(self) -> dict[str, Any]:
        return self.daemon.port("ipvl1")

    def ip(self, *words: str) -> str:
        return self.lab.ip(self.netns, *words)


@pytest.fixture(scope="module", params=[(mode, "tap") for mode in MODES], ids="-".join)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with Lab(2) as lab:
        before = leftovers.network(lab), host_state(lab)
        mode, device = request.param
        lab.ip(lab.wire, "addr", "add", "192.0.2.1/32", "dev", "lo")
        lab.ip(lab.host, "route", "add", "192.0.2.1", "via", WIRE4)
        for k in (1, 2):
            for address in (port4(k), port6(k)):
                lab.ip(lab.wire, "neigh", "replace", address, "lladdr", MASTER_MAC, "dev", "w0")
        ports = [
            port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"], gateway=[WIRE4, WIRE6], mtu=1400, **ROUTE)
            for k, netns in enumerate(lab.ports, 1)
        ]
        table = switch("m0", lab.host, ports, mode=mode, device=device)
        with Daemon(table, home=lab.home) as daemon:
            daemon.wait()
            lab.reachable(lab.wire, port4(1))
            lab.reachable(lab.wire, port6(1))
            with under_traffic(lab):
                yield Net(lab, daemon)
        until(lambda: (leftovers.network(lab), host_state(lab)) == before, "the network is as it was", every=0.1)


@pytest.mark.parametrize("net", [(mode, device) for mode in MODES for device in ("tap", "veth")], indirect=True)
@pytest.mark.parametrize(("words", "subjects"), REMOVALS, ids=[words for words, _ in REMOVALS])
def test_what_is_removed_is_put_back(net: Net, words: str, subjects: Sequence[str]) -> None:
    def remove() -> None:
        for command in words.split("; "):
            net.ip(*command.split())

    net.mended(remove, *subjects)


def test_identifiers_are_put_back(net: Net) -> None:
    net.mended(lambda: net.lab.sysctl(net.netns, "net/ipv6/conf/ipvl1/addr_gen_mode", "0"), "addr_gen_mode")
    eui64 = [one["local"] for one in net.lab.addresses(net.netns, "ipvl1") if "ff:fe00" in one["local"]]
    for address in eui64:
        net.ip("addr", "del", f"{address}/64", "dev", "ipvl1")


def test_without_ipv6_the_port_is_degraded(net: Net) -> None:
    net.lab.sysctl(net.netns, "net/ipv6/conf/ipvl1/disable_ipv6", "1")
    until(lambda: net.shown()["state"] == "degraded", "it is shown", limit=SOON)
    assert f"{port6(1)}/64" in net.shown()["reason"]
    net.lab.reachable(net.lab.wire, port4(1))
    net.mended(lambda: net.lab.sysctl(net.netns, "net/ipv6/conf/ipvl1/disable_ipv6", "0"), "addresses", "gateways")


def test_a_device_that_was_set_down_stays_down(net: Net) -> None:
    net.ip("link", "set", "ipvl1", "down")
    until(lambda: net.shown()["state"] == "down", "it is shown down")
    before = net.repaired("addresses")
    lab, other = net.lab, net.lab.ports[1]
    lab.ip(other, "addr", "flush", "dev", "ipvl2")
    until(lambda: net.repaired("addresses") > before, "what happened later was noticed", limit=SOON)
    assert not net.state()["up"]
    assert port6(1) not in {one["local"] for one in lab.addresses(net.netns, "ipvl1")}
    net.mended(lambda: net.ip("link", "set", "ipvl1", "up"), "addresses")


@pytest.mark.parametrize("net", [("l2", "tap")], indirect=True)
def test_a_namespace_that_removes_it_each_time_is_no_busy_loop(net: Net) -> None:
    cpu, end, removed = net.daemon.cpu_ns(), time.monotonic() + 10, 0
    while time.monotonic() < end:
        if any(one["local"] == port4(1) for one in net.lab.addresses(net.netns, "ipvl1")):
            net.ip("addr", "del", f"{port4(1)}/16", "dev", "ipvl1")
            removed += 1
    assert removed < 12
    assert net.daemon.cpu_ns() - cpu < 2_000_000_000
    assert net.shown()["state"] == "degraded"
    assert f"{port4(1)}/16 is changed by others again and again" in net.shown()["reason"]
    until(lambda: net.state() == net.wanted, "it is put back all the same", every=0.1)


def test_the_host_gets_nothing_of_a_virtual_machines_tap(lab: Lab) -> None:
    vm = port("vm", lab.ports[0], [f"{port4(1)}/16"], kind="tap", ifname="tap0")
    with Daemon(switch("m0", lab.host, [vm]), home=lab.home) as daemon:
        until(lambda: lab.link(lab.ports[0], "tap0"), "the TAP")
        program = until(lambda: leftovers.tc_programs(lab.ports[0], "tap0"), "its program")
        run("tc", "-n", lab.ports[0], "qdisc", "del", "dev", "tap0", "clsact")
        until(lambda: daemon.stats()[0]["repaired"].get("filters"), "the program is put back", limit=SOON)
        assert leftovers.tc_programs(lab.ports[0], "tap0") == program
        # IPv6 has nothing to tell before a machine is there. Any event of the device will do.
        lab.sysctl(lab.ports[0], "net/ipv6/conf/tap0/disable_ipv6", "0")
        lab.ip(lab.ports[0], "link", "set", "tap0", "mtu", "1400")
        until(lambda: daemon.stats()[0]["repaired"].get("sysctls"), "the sysctl is put back", limit=SOON)
