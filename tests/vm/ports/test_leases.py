"""DHCP leases for everybody behind one MAC address: namespaces and guests, clients of every kind, one server."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipvsw.snooping import dhcp4
from tests.support.machine import idle
from tests.support.patience import LIMIT, until
from tests.support.running import Daemon, port, switch, words
from tests.support.sniff import Sniffer, sniffing
from tests.support.topology import MASTER_MAC, WIRE4, Lab
from tests.vm.guest import Guest, booted, programs
from tests.vm.wiretap import clean_wire

pytestmark = pytest.mark.usefixtures("bootable")

GUEST_MAC, ROM_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
SIMPLE_ID = "00:aa:bb"
DUID_ID = f"ff:{MASTER_MAC[6:]}:00:03:00:01:{MASTER_MAC}"  # RFC 4361: type 255, the end of the MAC, DUID-LL
RESERVED = {f"id:{SIMPLE_ID}": "10.1.9.171", f"id:{DUID_ID}": "10.1.9.172", GUEST_MAC: "10.1.9.173"}
SIMPLE, DUID, GUEST = RESERVED.values()
RENEWAL = 8  # seconds: T1 as the server says it. It leases for two minutes at least

BOUND = '#!/bin/sh\n[ "$1" != bound ] || ip addr add "$ip/$mask" dev "$interface"\n'
DHCLIENT_BOUND = """#!/bin/sh
case "$reason" in
BOUND) ip addr add "$new_ip_address/16" dev "$interface" ;;
esac
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(2) as made:
        yield made


@pytest.fixture
def lan(lab: Lab, tmp_path: Path) -> Iterator[Daemon]:
    """Two namespaces, two machines' ports that learn, and a server on the wire."""
    lab.spawn(
        *(lab.wire, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--no-ping"),
        *(f"--pid-file={tmp_path}/pid", f"--dhcp-leasefile={tmp_path}/leases", "--interface=w0", "--bind-interfaces"),
        *("--dhcp-authoritative", "--dhcp-range=10.1.9.1,10.1.9.99,255.255.0.0,2m"),
        *(f"--dhcp-option-force=option:T1,{RENEWAL}", *(f"--dhcp-host={who},{what}" for who, what in RESERVED.items())),
    )
    ports: list[dict[str, Any]] = [port(f"ipvl{k}", netns) for k, netns in enumerate(lab.ports, 1)]
    ports += [{"name": "vm1", "kind": "macvtap", "learn": True}, {"name": "vm2", "kind": "tap", "learn": True}]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1", "vm2")
        until(lambda: (tmp_path / "pid").exists(), "dnsmasq runs")
        yield daemon


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def start_clients(lab: Lab, tmp_path: Path) -> None:
    """In the namespaces: one that asks for a unicast answer with a simple identifier, and one with a DUID."""
    bound = script(tmp_path / "udhcpc", BOUND)
    identifier = SIMPLE_ID.replace(":", "")
    lab.spawn(
        *(lab.ports[0], "busybox", "udhcpc", "-f", "-t20", "-T2", "-i", "ipvl1", "-s", bound),
        *("-x", f"0x3d:{identifier}"),
    )
    (tmp_path / "dhclient.conf").write_text("timeout 600;\nretry 1;\ninitial-interval 2;\nbackoff-cutoff 4;\n")
    lab.spawn(
        *(lab.ports[1], "dhclient", "-4", "-d", "-i", "-D", "LL", "-cf", f"{tmp_path}/dhclient.conf"),
        *("-lf", f"{tmp_path}/dhclient.leases", "-pf", f"{tmp_path}/dhclient.pid"),
        *("-sf", script(tmp_path / "dhclient", DHCLIENT_BOUND), "ipvl2"),
    )


def by_descriptor(lan: Daemon, name: str) -> list[str]:
    return [*words("IPVSW", "ipvsw.cli"), "--socket", str(lan.socket), "exec", name, "--"]


@contextlib.contextmanager
def boot_rom(lan: Daemon) -> Iterator[None]:
    """A machine without a system: the ROM of its network card, iPXE, asks for an address."""
    nic = f"virtio-net-pci,netdev=n0,bootindex=0,mac={ROM_MAC}"
    qemu = subprocess.Popen(
        [
            *(*by_descriptor(lan, "vm2"), programs()["qemu-system-x86_64"], "-M", "q35", "-accel", "tcg", "-m", "64"),
            *("-nographic", "-nodefaults", "-netdev", "tap,id=n0,fd={fd}", "-device", nic),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        until(lambda: lan.port("vm2")["state"] == "up" or qemu.poll() is not None, "QEMU has the port")
        assert qemu.poll() is None, qemu.stderr and qemu.stderr.read()
        yield
    finally:
        qemu.kill()
        qemu.wait()
        assert qemu.stderr
        qemu.stderr.close()


def start_in_guest(guest: Guest) -> None:
    guest.run(f"cat >/tmp/bound <<'END'\n{BOUND}END\nchmod 755 /tmp/bound\nip link set eth0 up")
    guest.run("busybox udhcpc -b -p /tmp/pid -t20 -T2 -i eth0 -s /tmp/bound </dev/null >/tmp/udhcpc 2>&1")


def leases(lan: Daemon) -> dict[str, dict[str, Any]]:
    """Port -> the lease that its client has."""
    return {one["port"]: one for one in json.loads(lan.cli("lease", "list", "--json")) if one["state"] == "owned"}


@dataclass(frozen=True)
class Message:
    """One of DHCP's, as it was seen."""

    ether: bytes
    ends: bytes  # both IPv4 addresses
    said: bytes

    @property
    def xid(self) -> bytes:
        return self.said[4:8]

    def is_kind(self, kind: int) -> bool:
        return bytes((53, 1, kind)) in self.said


REQUEST, ACK = 3, 5


def messages(wire: Sniffer) -> Iterator[Message]:
    for header, frame in list(wire.frames):
        where = dhcp4.datagram(header + frame)
        if where is not None and where.to_port in (67, 68):
            yield Message(frame[:14], frame[26:34], (header + frame)[where.payload])


def renewals(wire: Sniffer, address: str) -> list[Message]:
    """What went from the leased address to the server's, each with its answer."""
    packed, server = (bytes(map(int, one.split("."))) for one in (address, WIRE4))
    asked = [
        one
        for one in messages(wire)
        if one.ends == packed + server and one.said[12:16] == packed and one.is_kind(REQUEST) and not one.ether[0] & 1
    ]
    answered = {one.xid for one in messages(wire) if one.ends == server + packed and one.is_kind(ACK)}
    return [one for one in asked if one.xid in answered]


def test_four_clients_hold_four_leases(lab: Lab, lan: Daemon, tmp_path: Path) -> None:
    nic = f"virtio-net-pci,netdev=n0,mac={GUEST_MAC}"
    with clean_wire(lab), sniffing(lab.wire, "w0", outgoing=True) as wire, boot_rom(lan):
        start_clients(lab, tmp_path)
        extra = ("-netdev", "tap,id=n0,fd={fd}", "-device", nic)
        with booted(*extra, modules=["virtio_net"], prefix=by_descriptor(lan, "vm1")) as guest:
            start_in_guest(guest)
            until(lambda: len(leases(lan)) == 4, "four leases", every=0.2)
            found = leases(lan)
            by_rom = found["vm2"]["address"]
            assert {name: one["address"] for name, one in found.items()} == {
                "ipvl1": SIMPLE,
                "ipvl2": DUID,
                "vm1": GUEST,
                "vm2": by_rom,
            }
            assert by_rom.startswith("10.1.9.") and by_rom not in RESERVED.values()
            assert (found["ipvl1"]["client_id"], found["ipvl2"]["client_id"]) == (SIMPLE_ID, DUID_ID)
            assert (found["vm1"]["mac"], found["vm2"]["mac"]) == (GUEST_MAC, ROM_MAC)
            assert {one["server"] for one in found.values()} == {WIRE4}
            for name, address in (("vm1", GUEST), ("vm2", by_rom)):
                sources = {one["address"]: one["source"] for one in lan.port(name)["addresses"]}
                assert sources[address] == "dhcp"
            for address in (SIMPLE, DUID, GUEST):
                lab.reachable(lab.wire, address)
            guest.run(f"ping -n -q -c 3 -i 0.2 -W {LIMIT:g} {SIMPLE} && ping -n -q -c 3 -i 0.2 -W {LIMIT:g} {WIRE4}")
            guest.run("kill -USR1 $(cat /tmp/pid)")  # it doesn't look at T1: renew now
            until(lambda: renewals(wire, GUEST), "the guest renews")
            until(lambda: renewals(wire, DUID), "the client with the DUID renews at T1")
            assert len(leases(lan)) == 4
            guest.run("kill -USR2 $(cat /tmp/pid)")
            until(lambda: "vm1" not in leases(lan), "the guest releases")
