"""What others change of what the daemon has set on the host is put back, while frames are on their way."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.support import leftovers
from tests.support.patience import patient, until
from tests.support.running import Daemon, port, switch
from tests.support.topology import MASTER_MAC, WIRE4, Lab, batch, port4, port6, run
from tests.support.upkeep import HOST_DEVICE, MODES, host_state, settings, under_traffic

SOON = patient(5)  # seconds in which everything is to be put back
PIDFD_GETFD = 438
SOL_PACKET, PACKET_DROP_MEMBERSHIP = 263, 2

_libc = ctypes.CDLL(None, use_errno=True)


class Net:
    def __init__(self, lab: Lab, daemon: Daemon) -> None:
        self.lab, self.daemon = lab, daemon
        self.wanted = host_state(lab)

    def repaired(self, subject: str) -> int:
        return int(self.daemon.stats()[0]["repaired"].get(subject, 0))

    def mended(self, subject: str, change: Callable[[], object]) -> None:
        """`change` is noticed, counted and put back."""
        before = self.repaired(subject)
        change()
        until(lambda: self.repaired(subject) > before, f"{subject} are repaired", limit=SOON, every=0.02)
        until(lambda: host_state(self.lab) == self.wanted, f"{subject} are as before", limit=SOON, every=0.05)


@pytest.fixture(scope="module", params=MODES)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with Lab(2) as lab:
        before = leftovers.network(lab), host_state(lab)
        ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"]) for k, netns in enumerate(lab.ports, 1)]
        for k in (1, 2):
            for address in (port4(k), port6(k)):
                lab.ip(lab.wire, "neigh", "replace", address, "lladdr", MASTER_MAC, "dev", "w0")
        table = switch("m0", lab.host, ports, mode=request.param, host_access="both")
        with Daemon(table, home=lab.home) as daemon:
            daemon.wait()
            works(lab)
            yield Net(lab, daemon)
        until(lambda: (leftovers.network(lab), host_state(lab)) == before, "the host is as it was", every=0.1)


def works(lab: Lab) -> None:
    for netns, address in ((lab.wire, port4(1)), (lab.ports[0], WIRE4), (lab.host, port4(1)), (lab.host, port6(2))):
        lab.reachable(netns, address)


def drop_group(net: Net, group: bytes) -> None:
    """Undo a membership of the daemon's, with its own sockets: the kernel lets nobody else."""
    index = net.lab.link(net.lab.host, "m0")["ifindex"]  # type: ignore[index]
    request = struct.pack("=iHH8s", index, 0, len(group), group)  # struct packet_mreq
    process = os.pidfd_open(net.daemon.pid)
    dropped = 0
    for entry in os.listdir(f"/proc/{net.daemon.pid}/fd"):
        copy = _libc.syscall(PIDFD_GETFD, process, int(entry), 0)
        if copy >= 0:
            dropped += not _libc.setsockopt(copy, SOL_PACKET, PACKET_DROP_MEMBERSHIP, request, len(request))
            os.close(copy)
    os.close(process)
    assert dropped


def change(lab: Lab, *words: str) -> Callable[[], str]:
    return lambda: lab.ip(lab.host, *words)


def test_everything_is_put_back(net: Net) -> None:
    lab = net.lab
    routed = net.daemon.show()[0]["mode"] != "l2"
    groups = [name for _, name in net.wanted["groups"] if name.startswith("3333ff01")]  # type: ignore[attr-defined]
    assert bool(groups) is not routed  # of the ports' addresses
    with under_traffic(lab):
        net.mended("filters", lambda: run("tc", "-n", lab.host, "qdisc", "del", "dev", "m0", "clsact"))
        for side in ("ingress", "egress"):
            net.mended("filters", lambda side=side: run("tc", "-n", lab.host, "filter", "del", "dev", "m0", side))  # type: ignore[misc]
        for group in groups:
            net.mended("groups", lambda group=group: drop_group(net, bytes.fromhex(group)))  # type: ignore[misc]
        net.mended("host_device", change(lab, "link", "set", HOST_DEVICE, "down"))
        net.mended("host_device", change(lab, "link", "set", HOST_DEVICE, "address", "02:00:00:00:00:99"))
        net.mended("host_device", change(lab, "link", "set", HOST_DEVICE, "name", "stolen"))
        net.mended("host_device", change(lab, "link", "del", HOST_DEVICE))
        for name, value in settings(lab).items():
            if name.startswith(("ipv4/conf/m0", "ipv6/conf/m0")) and (name.endswith("addr_gen_mode") or value == "0\n"):
                continue  # not set by the daemon
            if value == "1\n":
                net.mended("sysctls", lambda name=name: lab.sysctl(lab.host, f"net/{name}", "0"))  # type: ignore[misc]
        for family in ("-4", "-6"):
            shown = run("ip", family, "-n", lab.host, "rule", "show").splitlines()
            preferences = {line.partition(":")[0] for line in shown if "proto 118" in line}
            assert bool(preferences) is routed
            for preference in sorted(preferences):
                net.mended("rules", change(lab, family, "rule", "del", "pref", preference))
            if routed:
                table = run("ip", family, "-n", lab.host, "route", "show", "table", "all", "proto", "118").split()
                number = table[table.index("table") + 1]
                net.mended("routes", change(lab, family, "route", "flush", "table", number))
    works(lab)
    assert net.daemon.show()[0]["state"] == "up", net.daemon.show()[0]
    assert "changed by others, put back: BPF programs of m0" in net.daemon.said()


def test_what_can_not_be_put_back_is_shown(net: Net) -> None:
    lab = net.lab
    # With clsact gone, an ingress qdisc takes its place in the same breath.
    batched = "qdisc del dev m0 clsact\nqdisc add dev m0 ingress\n"
    run("tc", "-n", lab.host, "-batch", "-", text=batched)
    if leftovers.tc_programs(lab.host, "m0"):
        pytest.skip("the daemon was faster")
    shown = until(lambda: net.daemon.show()[0]["state"] == "degraded" and net.daemon.show()[0], "it is shown")
    assert "a qdisc of kind ingress is in the way of clsact" in shown["reason"]
    run("tc", "-n", lab.host, "qdisc", "del", "dev", "m0", "ingress")
    until(lambda: net.daemon.show()[0]["state"] == "up", "it is up again", limit=SOON)
    until(lambda: host_state(lab) == net.wanted, "everything is as before", limit=SOON)


@pytest.mark.parametrize("net", ["l2"], indirect=True)
def test_a_fight_is_no_busy_loop(net: Net) -> None:
    """Somebody who removes it each time."""
    before, cpu = net.repaired("filters"), net.daemon.cpu_ns()
    removed = 0
    while removed < 8:
        until(lambda: leftovers.tc_programs(net.lab.host, "m0"), "it is put back", every=0.01)
        run("tc", "-n", net.lab.host, "qdisc", "del", "dev", "m0", "clsact")
        removed += 1
    shown = until(lambda: net.daemon.show()[0]["state"] == "degraded" and net.daemon.show()[0], "it is shown")
    assert "BPF programs of m0 is changed by others again and again" in shown["reason"]
    assert net.repaired("filters") - before <= removed
    assert net.daemon.cpu_ns() - cpu < 3_000_000_000
    until(lambda: host_state(net.lab) == net.wanted, "and put back all the same", every=0.1)


def test_a_master_without_a_global_address(lab: Lab) -> None:
    """Its link-local one is no source for routes to ports; they work, for both IP versions."""
    lab.ip(lab.host, "addr", "flush", "dev", "m0", "scope", "global")
    until(lambda: [one for one in lab.addresses(lab.host, "m0") if one["scope"] == "link"], "it has a link-local one")
    lab.ip(lab.host, "addr", "add", "10.1.0.1/16", "dev", "m0")
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"]) for k, netns in enumerate(lab.ports, 1)]
    for mode in ("l3", "l3s"):
        with Daemon(switch("m0", lab.host, ports, mode=mode, host_access="both"), home=lab.home) as daemon:
            daemon.wait()
            assert daemon.show()[0]["state"] == "up", daemon.show()[0]
            for k in (1, 2):
                lab.reachable(lab.host, port4(k))
                shown = run("ip", "-6", "-n", lab.host, "route", "show", "table", "all", "proto", "118")
                assert f"{port6(k)} dev {HOST_DEVICE}" in shown
            batch(["addr add fd00:1::1/64 dev m0 nodad"], lab.host)
            lab.reachable(lab.host, port6(1))
            lab.ip(lab.host, "addr", "del", "fd00:1::1/64", "dev", "m0")
