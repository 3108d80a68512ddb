"""Clients as people run them, behind all guards: none of their frames is ever dropped.

IPVSW_HONEST_SECONDS says for how long they go on; `make honest` lasts ten minutes, in which they do what takes them
hours otherwise. Otherwise each client has one turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import traffic
from tests.support.machine import idle
from tests.support.patience import LIMIT, until
from tests.support.programs.guest import guest
from tests.support.running import Daemon, port, switch
from tests.support.topology import WIRE4, WIRE6, Lab, inside

SECONDS = float(os.environ.get("IPVSW_HONEST_SECONDS", "0"))
PINNED4, PINNED6 = "10.1.0.60", "fd00:1::60"
ESP = 50
HOOK = """#!/bin/sh
case "$reason$1" in
BOUND*|RENEW*|REBIND*|REBOOT*|*bound|*renew)
    ip addr replace "${new_ip_address:-$ip}/16" dev "$interface" ;;
esac
exit 0
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With duplicate address detection and router solicitations, as systems have them."""
    with Lab(3, dad=True) as made:
        yield made


class Client:
    """A system on the network: a namespace with its device, at a port."""

    def __init__(self, lab: Lab, daemon: Daemon, port: str, netns: str, device: str, directory: Path) -> None:
        self.lab, self.daemon, self.port, self.netns, self.device = lab, daemon, port, netns, device
        self.hook = directory / "hook"
        self.hook.write_text(HOOK)
        self.hook.chmod(0o755)
        self.files = directory / netns

    def addresses(self, family: str, *, temporary: bool = False) -> list[str]:
        """Those that may be used, and are not link-local."""
        return [
            one["local"]
            for one in self.lab.addresses(self.netns, self.device)
            if one["family"] == family
            and one["scope"] == "global"
            and not one.get("tentative")
            and (one.get("temporary", False) or not temporary)
        ]

    def run(self, *command: str) -> None:
        self.lab.execute(self.netns, *command)

    def turn(self, *, pinned: bool) -> None:
        """The link goes down and comes back; then every client."""
        for key, value in (("use_tempaddr", "2"), ("router_solicitations", "3")):
            self.lab.sysctl(self.netns, f"net/ipv6/conf/{self.device}/{key}", value)
        self.lab.sysctl(self.netns, f"net/ipv6/conf/{self.device}/accept_ra_pinfo", str(int(not pinned)))
        self.lab.ip(self.netns, "addr", "flush", "dev", self.device)
        self.lab.ip(self.netns, "link", "set", self.device, "down")
        self.lab.ip(self.netns, "link", "set", self.device, "up")
        if pinned:
            self.lab.ip(self.netns, "addr", "add", f"{PINNED4}/16", "dev", self.device)
            self.lab.ip(self.netns, "addr", "add", f"{PINNED6}/64", "dev", self.device)
            until(lambda: PINNED6 in self.addresses("inet6"), "it has passed detection")
            self.talk()
            return
        until(lambda: self.addresses("inet6", temporary=True), "it has a privacy address")
        for lease in (self.udhcpc, self.dhclient, self.dhcpcd):
            with lease():
                until(lambda: self.addresses("inet"), "it has a lease")
                self.talk()
            self.lab.ip(self.netns, "-4", "addr", "flush", "dev", self.device)

    @contextlib.contextmanager
    def udhcpc(self) -> Iterator[None]:
        self.run("busybox", "udhcpc", "-n", "-q", "-t20", "-T1", "-i", self.device, "-s", str(self.hook))
        yield

    @contextlib.contextmanager
    def dhclient(self) -> Iterator[None]:
        files = ["-lf", f"{self.files}.leases", "-pf", f"{self.files}.pid", "-sf", str(self.hook), "-cf", "/dev/null"]
        self.run("dhclient", "-4", "-1", *files, self.device)
        yield
        self.run("dhclient", "-4", "-r", *files, self.device)
        until(lambda: not self.leased(), "the switch has seen the release")

    def leased(self) -> list[str]:
        """Of the addresses that it has those with a lease."""
        own = self.addresses("inet")
        leases = self.daemon.get("/v1/leases")
        return [one["address"] for one in leases if one["port"] == self.port and one["address"] in own]

    @contextlib.contextmanager
    def dhcpcd(self) -> Iterator[None]:
        """If there is one: it asks by ARP whether its address is free."""
        if shutil.which("dhcpcd") is None:
            self.run("busybox", "udhcpc", "-n", "-q", "-a", "-t20", "-T1", "-i", self.device, "-s", str(self.hook))
            yield
            return
        words = ["dhcpcd", "-4", "-f", "/dev/null", "-1", "-c", str(self.hook), "-t", str(int(LIMIT)), self.device]
        self.run("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", *words)
        yield

    def talk(self) -> None:
        """From each address: ping, TCP, UDP, ESP, mDNS."""
        for family, far in (("inet", WIRE4), ("inet6", WIRE6)):
            for own in self.addresses(family):
                self.run("ping", "-n", "-q", "-c3", "-i0.05", f"-W{LIMIT:g}", "-I", own, far)
                self.encrypted(own, far)
                self.mdns(own)
            traffic.tcp(self.netns, self.lab.wire, far, 100_000)
            traffic.udp(self.netns, self.lab.wire, far, (10, 1400, 4000))

    def encrypted(self, own: str, far: str) -> None:
        """A packet as IPsec sends it."""
        with inside(self.netns):
            sock = socket.socket(traffic.family(own), socket.SOCK_RAW, ESP)
        with sock:
            sock.bind((own, 0))
            sock.sendto(os.urandom(80), (far, 0))

    def mdns(self, own: str) -> None:
        """A question, with the reports of the group that go before it."""
        with inside(self.netns):
            sock = socket.socket(traffic.family(own), socket.SOCK_DGRAM)
            with sock:
                sock.bind((own, 5353))
                index = socket.if_nametoindex(self.device)
                if ":" in own:
                    group = socket.inet_pton(socket.AF_INET6, "ff02::fb") + index.to_bytes(4, "little")
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
                    sock.sendto(bytes(12), ("ff02::fb", 5353, 0, index))
                else:
                    group = socket.inet_aton("224.0.0.251") + socket.inet_aton(own)
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
                    sock.sendto(bytes(12), ("224.0.0.251", 5353))


@pytest.fixture
def servers(lab: Lab, tmp_path: Path) -> None:
    """Leases and router advertisements on the wire."""
    lab.spawn(
        *(lab.wire, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0"),
        *(f"--pid-file={tmp_path}/pid", f"--dhcp-leasefile={tmp_path}/leases", "--interface=w0", "--no-ping"),
        *("--bind-interfaces", "--dhcp-authoritative", "--dhcp-range=10.1.9.1,10.1.9.99,255.255.0.0,1h"),
        *("--enable-ra", "--dhcp-range=fd00:1::,ra-only,64", "--ra-param=w0,5,600"),
    )
    until(lambda: (tmp_path / "pid").exists(), "dnsmasq runs")


def dropped(daemon: Daemon) -> dict[str, Any]:
    """What guards have dropped of all ports."""
    ports = daemon.stats()[0]["ports"].items()
    found = {
        name: {outcome: count for outcome, count in one["outcomes"].items() if outcome.startswith("guard_") and count}
        for name, one in ports
    }
    return {name: counts for name, counts in found.items() if counts}


def several(clients: list[Callable[[], None]]) -> None:
    """At the same time, again and again."""
    faults: list[BaseException] = []
    end = time.monotonic() + SECONDS

    def work(client: Callable[[], None]) -> None:
        try:
            client()
            while time.monotonic() < end and not faults:
                client()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


@pytest.mark.usefixtures("servers")
def test_guards_drop_nothing_of_honest_clients(lab: Lab, tmp_path: Path) -> None:
    """A namespace, a machine whose addresses are learned, and one whose addresses are pinned."""
    ports: list[dict[str, Any]] = [
        port("ipvl1", lab.ports[0], guard="strict"),
        {"name": "vm1", "kind": "tap", "learn": True},
        {"name": "vm2", "kind": "macvtap", "addresses": [f"{PINNED4}/16", f"{PINNED6}/64"]},
    ]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1", "vm2")
        assert all(len(daemon.port(name)["guards"]) == 9 for name in ("ipvl1", "vm1", "vm2"))
        with guest(lab, daemon, "vm1", lab.ports[1]), guest(lab, daemon, "vm2", lab.ports[2]):
            names = ("ipvl1", "vm1", "vm2")
            clients = [
                Client(lab, daemon, name, netns, device, tmp_path)
                for name, netns, device in zip(names, lab.ports, ("ipvl1", "eth0", "eth0"), strict=True)
            ]
            several([lambda one=one, k=k: one.turn(pinned=k == 2) for k, one in enumerate(clients)])  # type: ignore[misc]
            traffics = daemon.stats()[0]["ports"]
            print(json.dumps({name: one["rx_frames"] for name, one in traffics.items()}))
            assert dropped(daemon) == {}, daemon.said()
