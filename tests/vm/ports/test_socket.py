"""Ports that are unix sockets with real QEMU guests: `-netdev stream` and `-netdev dgram`, every way in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.topology import WIRE4, Lab, port4, port6
from tests.vm.guest import Guest, booted
from tests.vm.ports.test_qemu import (
    GUEST4,
    GUEST6,
    ROOT_PORT,
    by_descriptor,
    cli,
    configure,
    converse,
    features,
    stream,
)
from tests.vm.wiretap import clean_wire

pytestmark = pytest.mark.usefixtures("bootable")

MAC = "52:54:00:00:00:07"
LEASED = """
set -e
echo '#!/bin/sh
[ "$1" != bound ] || ip addr add "$ip/$mask" dev "$interface"' >/tmp/bound
chmod +x /tmp/bound
ip link set eth0 up
busybox udhcpc -n -q -t 20 -T 1 -i eth0 -s /tmp/bound
ip addr add {} dev eth0 nodad
"""


class Way:
    """How QEMU and the daemon come together."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        ours, theirs = directory / "switch.sock", directory / "qemu.sock"
        unix = "addr.type=unix,addr.path"
        both = f"local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}"
        kind, netdev, keys = {
            "qemu-connects": ("stream", f"stream,id=n0,server=off,{unix}={ours}", {"path": str(ours)}),
            "qemu-listens": ("stream", f"stream,id=n0,server=on,{unix}={theirs}", {"connect": str(theirs)}),
            "stream-fd": ("stream", "stream,id=n0,addr.type=fd,addr.str={fd}", {}),
            "dgram": ("dgram", f"dgram,id=n0,{both}", {"local": str(ours), "remote": str(theirs)}),
            "dgram-fd": ("dgram", "dgram,id=n0,local.type=fd,local.str={fd}", {}),
        }[name]
        self.port: dict[str, Any] = {"name": "vm1", "kind": kind, **keys}
        self.words = ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=n0,mac={MAC}"]

    def prefix(self, lan: Daemon) -> list[str]:
        return by_descriptor(lan) if self.name.endswith("fd") else []


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(1) as made:
        yield made


@pytest.fixture
def start(lab: Lab) -> Iterator[Callable[..., Daemon]]:
    """Starts the daemon with a namespace's port, ipvl1, and a virtual machine's."""
    daemons: list[Daemon] = []

    def make(vm: dict[str, Any]) -> Daemon:
        ports = [port("ipvl1", lab.ports[0], [f"{port4(1)}/16", f"{port6(1)}/64"]), vm]
        daemons.append(Daemon(switch("m0", lab.host, ports, host_access="both"), home=lab.home))
        lan = daemons[-1].wait(states=("up", "waiting"))
        idle(lan)
        return lan

    yield make
    for daemon in daemons:
        daemon.stop()
        daemon.close()


def idle(lan: Daemon) -> None:
    until(lambda: lan.port("vm1")["reason"] == "for a virtual machine", "the port waits")


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> None:
    """Leases GUEST4 to the guest, on the wire."""
    lab.spawn(
        *(lab.wire, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--no-ping"),
        *(f"--pid-file={tmp_path}/pid", f"--dhcp-leasefile={tmp_path}/leases", "--interface=w0", "--bind-interfaces"),
        *("--dhcp-authoritative", "--dhcp-range=10.1.9.1,10.1.9.99,255.255.0.0,2m", f"--dhcp-host={MAC},{GUEST4}"),
    )
    until(lambda: (tmp_path / "pid").exists(), "dnsmasq runs")


@pytest.mark.parametrize("name", ["qemu-connects", "qemu-listens", "stream-fd", "dgram", "dgram-fd"])
def test_a_guest_on_the_lan(lab: Lab, server: None, start: Callable[..., Daemon], tmp_path: Path, name: str) -> None:
    way = Way(name, tmp_path)
    lan = start(way.port | {"learn": True, "addresses": [f"{GUEST6}/64"]})
    with clean_wire(lab), booted(*way.words, modules=["virtio_net"], prefix=way.prefix(lan)) as guest:
        lan.wait()
        guest.run(LEASED.format(f"{GUEST6}/64"))
        until(lambda: GUEST4 in sources(lan), "the lease is known")
        assert sources(lan)[GUEST4] == "dhcp"
        converse(lab, guest)
        has = features(guest)
        assert has["tx-checksumming"] == has["tcp-segmentation-offload"] == "off", "QEMU has nobody to do it"
        for netns, address in ((lab.wire, WIRE4), (lab.ports[0], port6(1))):
            stream(lab, guest, netns, address)
        assert lab.link(lab.ports[0], "ipvl1") and offloads(lan) >= {"csum", "tso4", "tso6"}, "a sibling keeps its own"
        guest.kill()
        idle(lan)


def sources(lan: Daemon) -> dict[str, str]:
    return {one["address"]: one["source"] for one in lan.port("vm1")["addresses"]}


def offloads(lan: Daemon) -> set[str]:
    return set(lan.port("ipvl1")["offloads"])


@pytest.mark.parametrize("name", ["qemu-connects", "qemu-listens"])
def test_qemu_is_killed_under_load(lab: Lab, start: Callable[..., Daemon], tmp_path: Path, name: str) -> None:
    way = Way(name, tmp_path)
    lan = start(way.port | {"addresses": [f"{GUEST4}/16", f"{GUEST6}/64"]})
    with clean_wire(lab):
        for _ in range(2):
            with booted(*way.words, modules=["virtio_net"]) as guest:
                lan.wait()
                configure(guest)
                guest.run("iperf3 -s -D")
                lab.reachable(lab.wire, GUEST4)
                load = lab.spawn(lab.wire, "iperf3", "-c", GUEST4, "-t", "3600")
                before = tx(lan)
                until(lambda: tx(lan) > before + 1_000_000, "load")  # noqa: B023
                guest.kill()
                idle(lan)
                load.kill()
                load.wait()
                assert lab.ping(lab.wire, port4(1), 5) == 5, "a sibling is cut off"


def tx(lan: Daemon) -> int:
    return int(lan.stats()[0]["ports"]["vm1"]["tx_bytes"])


@pytest.mark.parametrize("kind", ["stream", "dgram"])
def test_hot_plug(lab: Lab, start: Callable[..., Daemon], tmp_path: Path, kind: str) -> None:
    lan = start({"name": "vm1", "kind": kind, "addresses": [f"{GUEST4}/16", f"{GUEST6}/64"]})
    path = tmp_path / "qmp"
    with booted("-qmp", f"unix:{path},server=on,wait=off", "-device", ROOT_PORT, modules=["virtio_net"]) as guest:
        for _ in range(2):
            done = cli(lan, "attach", "vm1", "--qmp", str(path), "--bus", "rp0")
            assert done.returncode == 0, done.stderr
            lan.wait()
            talk(lab, guest)
            done = cli(lan, "detach", "vm1", "--qmp", str(path))
            assert done.returncode == 0, done.stderr
            idle(lan)


def talk(lab: Lab, guest: Guest) -> None:
    guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done")
    configure(guest)
    guest.run(f"for k in 1 2 3 4 5; do ping -n -c 1 -W 2 {WIRE4} && exit 0; done; exit 1")
    lab.reachable(lab.ports[0], GUEST6)
