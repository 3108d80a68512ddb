"""Is the address free? Whoever has it says so, and who has asked behind the one MAC address is told."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.machine import SERVER_MAC, arp, idle, machine
from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.topology import MASTER4, MASTER6, WIRE4, WIRE6, WIRE_MAC, Lab, port4, port6

FREE4, FREE6 = "10.1.9.9", "fd00:1::9:9"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(3, dad=True) as made:
        yield made


@pytest.fixture
def lan(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Daemon]:
    """Port 1 asks, port 2 has addresses, port 3 has a MAC address of its own."""
    ports = [
        port("ipvl1", lab.ports[0]),
        port("ipvl2", lab.ports[1], [f"{port4(2)}/16", f"{port6(2)}/64"]),
        port("ipvl3", lab.ports[2], mac="own"),
        {"name": "vm1", "kind": "tap", "learn": True, "mac": "master"},
    ]
    with Daemon(
        switch("m0", lab.host, ports, host_access="both"), home=lab.home, workers=getattr(request, "param", 1)
    ) as daemon:
        daemon.wait(states=("up", "waiting"))
        for k in (1, 2, 3):
            until(lambda: daemon.port(f"ipvl{k}")["state"] == "up", f"port {k} is up")  # noqa: B023
        until(lambda: not any("tentative" in one for one in lab.addresses(lab.ports[1], "ipvl2")), "port 2 has its own")
        yield daemon


def is_taken(lab: Lab, netns: str, device: str, address: str) -> bool:
    """By the machines' usual tool, which reports it by its exit status."""
    script = f"busybox arping -q -D -c1 -w2 -I {device} {address}; echo $?"
    return lab.execute(netns, "sh", "-c", script).strip() != "0"


@pytest.mark.parametrize("asker", [1, 3])
@pytest.mark.parametrize("lan", [1, 2], ids=["one worker", "two workers"], indirect=True)
def test_arp(lab: Lab, lan: Daemon, asker: int) -> None:
    netns, device = lab.ports[asker - 1], f"ipvl{asker}"
    for address in (WIRE4, port4(2), MASTER4):
        assert is_taken(lab, netns, device, address), address
    assert not is_taken(lab, netns, device, FREE4)
    assert is_taken(lab, lab.wire, "w0", port4(2))


def test_who_has_asked_still_talks_to_the_owner(lab: Lab, lan: Daemon) -> None:
    """What makes the sibling's reply be taken notice of doesn't stay in a neighbour table."""
    lab.ip(lab.ports[0], "addr", "add", f"{port4(1)}/16", "dev", "ipvl1")
    lab.reachable(lab.ports[0], port4(2))
    before = neighbour(lab, port4(2))
    assert is_taken(lab, lab.ports[0], "ipvl1", port4(2))
    assert neighbour(lab, port4(2)) == before
    assert lab.ping(lab.ports[0], port4(2))


def neighbour(lab: Lab, address: str) -> str:
    shown = json.loads(lab.ip(lab.ports[0], "-j", "neigh", "show", address))
    return str(shown[0]["lladdr"])


@pytest.mark.parametrize("asker", [1, 3])
@pytest.mark.parametrize("taken", [WIRE6, port6(2), MASTER6])
def test_ipv6(lab: Lab, lan: Daemon, asker: int, taken: str) -> None:
    netns, device = lab.ports[asker - 1], f"ipvl{asker}"
    for address, is_free in ((taken, False), (FREE6, True)):
        lab.ip(netns, "addr", "add", f"{address}/64", "dev", device)

        def settled(address: str = address) -> bool:
            found = next(one for one in lab.addresses(netns, device) if one["local"] == address)
            return "dadfailed" in found or "tentative" not in found

        until(settled, f"{address} is settled")
        found = next(one for one in lab.addresses(netns, device) if one["local"] == address)
        assert ("dadfailed" not in found) is is_free, found


def test_a_virtual_machine(lab: Lab, lan: Daemon) -> None:
    idle(lan, "vm1")
    lab.reachable(lab.host, WIRE4)
    with machine(lan) as guest:
        guest.send(arp("0.0.0.0", WIRE4))
        reply = guest.receive(lambda frame: frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2")
        assert reply[22:28] == SERVER_MAC == bytes.fromhex(WIRE_MAC.replace(":", ""))
        guest.send(arp("0.0.0.0", port4(2)))
        reply = guest.receive(lambda frame: frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2")
        assert not any(one["state"] == "owned" for one in lan.port("vm1")["addresses"])
