"""Announcements on the wire and to siblings: on bind of a virtual machine's address, on moves, on a new master MAC."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from ipvsw.addresses.announcements import TIMES, announcement
from ipvsw.client import Client
from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import Sniffer, sniffing
from tests.support.topology import MASTER_MAC, WIRE4, WIRE6, Lab, port4, port6

MASTER = bytes.fromhex(MASTER_MAC.replace(":", ""))
OTHER_MAC = "02:00:00:00:00:77"
GUEST4, GUEST6 = "10.1.0.50", "fd00:1::50"


def told(address: str, mac: bytes = MASTER) -> bytes:
    return announcement(ip_address(address).packed, mac)[10:]


def wait_for_all(sniffer: Sniffer, addresses: list[str], mac: bytes = MASTER) -> None:
    for address in addresses:
        sniffer.wait(told(address, mac), TIMES)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(2) as made:
        yield made


def started(lab: Lab, *more: dict[str, Any], mode: str = "l2") -> Daemon:
    ports = [port(f"ipvl{k}", lab.ports[k - 1], [f"{port4(k)}/16", f"{port6(k)}/64"]) for k in (1, 2)]
    return Daemon(switch("m0", lab.host, [*ports, *more], mode=mode), home=lab.home)


def settled(lan: Daemon) -> None:
    """The namespaces' ports are up; a virtual machine's may wait."""
    lan.wait(states=("up", "waiting"))
    until(lambda: all(lan.port(f"ipvl{k}")["state"] == "up" for k in (1, 2)), "the ports are up")


def machine(**more: Any) -> dict[str, Any]:
    return {"name": "vm1", "kind": "tap", "addresses": [f"{GUEST4}/16", f"{GUEST6}/64"], **more}


def seen(sniffer: Sniffer, address: str, mac: bytes = MASTER) -> int:
    return sniffer.count(told(address, mac))


def take(lan: Daemon) -> int:
    """A virtual machine's end of vm1, which is up when this returns."""
    until(lambda: lan.port("vm1")["reason"] == "for a virtual machine", "the port waits")
    _, (fd,) = Client(str(lan.socket)).hand_over("vm1")
    until(lambda: lan.port("vm1")["state"] == "up", "the port is up")
    return fd


def test_a_machines_addresses_are_announced_when_it_comes_and_a_namespaces_are_not(lab: Lab) -> None:
    with started(lab, machine()) as lan, sniffing(lab.wire, "w0") as wire:
        settled(lan)
        with sniffing(lab.ports[0], "ipvl1") as sibling:
            fd = take(lan)
            try:
                for hears in (wire, sibling):
                    wait_for_all(hears, [GUEST4, GUEST6])
            finally:
                os.close(fd)
            assert not any(seen(wire, address) for address in (port4(1), port6(1), port4(2), port6(2)))


def test_an_address_that_moves_is_announced(lab: Lab) -> None:
    with started(lab) as lan, sniffing(lab.wire, "w0") as wire:
        lan.wait()
        for k in (1, 2):
            lab.ip(lab.ports[k - 1], "addr", "add", "10.1.7.7/16", "dev", f"ipvl{k}")
            wanted = ["owned", "duplicate"][k - 1]
            until(lambda: wanted in states(lan, f"ipvl{k}", "10.1.7.7"), "it is known")  # noqa: B023
        assert not seen(wire, "10.1.7.7")
        lab.ip(lab.ports[0], "addr", "del", "10.1.7.7/16", "dev", "ipvl1")
        wait_for_all(wire, ["10.1.7.7"])


def states(lan: Daemon, name: str, address: str) -> list[str]:
    return [one["state"] for one in lan.port(name)["addresses"] if one["address"] == address]


def test_everybody_is_announced_when_the_master_has_another_mac_address(lab: Lab) -> None:
    with started(lab, machine()) as lan, sniffing(lab.wire, "w0") as wire:
        settled(lan)
        fd = take(lan)
        try:
            for address in (port4(1), port6(1)):
                lab.reachable(lab.wire, address)
            lab.ip(lab.host, "link", "set", "m0", "address", OTHER_MAC)
            new = bytes.fromhex(OTHER_MAC.replace(":", ""))
            wait_for_all(wire, [port4(1), port6(1), port4(2), port6(2), GUEST4, GUEST6], new)
            known = lab.ip(lab.wire, "neigh", "show")
            for address in (port4(1), port6(1)):
                line = next(line for line in known.splitlines() if line.split()[0] == address)
                assert OTHER_MAC in line, known
            for address in (WIRE4, WIRE6):
                lab.reachable(lab.ports[0], address)
        finally:
            os.close(fd)


def test_nothing_is_announced_where_nobody_asks_for_mac_addresses(lab: Lab) -> None:
    with started(lab, machine(), mode="l3") as lan, sniffing(lab.wire, "w0") as wire:
        settled(lan)
        fd = take(lan)
        try:
            until(lambda: "owned" in states(lan, "vm1", GUEST4), "it is in the table")
            assert lab.ping(lab.wire, WIRE4)
            assert not seen(wire, GUEST4) and not seen(wire, GUEST6)
        finally:
            os.close(fd)
