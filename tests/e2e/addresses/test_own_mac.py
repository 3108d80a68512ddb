"""Namespaces that use MAC addresses of their own: everybody talks, and only the master's address is ever seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import sniffing
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, WIRE4, WIRE6, WIRE_MAC, Lab, port4, port6

HELD4, HELD6 = port4(1), port6(1)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(3) as made:
        yield made


def started(lab: Lab, mode: str, *, host_access: str = "both", workers: int = 1) -> Daemon:
    """Ports 1 and 2 use their own MAC addresses, 3 the master's."""
    ports = [
        port(f"ipvl{k}", lab.ports[k - 1], [f"{port4(k)}/16", f"{port6(k)}/64"], mac="master" if k == 3 else "own")
        for k in (1, 2, 3)
    ]
    return Daemon(
        switch("m0", lab.host, ports, mode=mode, host_access=host_access), home=lab.home, workers=workers
    ).wait()


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
@pytest.mark.parametrize("workers", [1, 2])
def test_everybody_talks_and_nobody_sees_whose_mac_address_it_is(lab: Lab, mode: str, workers: int) -> None:
    if mode == "l3s":
        lab.sysctl(lab.host, "net/ipv6/conf/all/forwarding", "1")
    if mode != "l2":  # nobody answers there for the ports but their router, the master
        for k in (1, 2, 3):
            lab.ip(lab.wire, "route", "add", port4(k), "via", MASTER4)
            lab.ip(lab.wire, "route", "add", port6(k), "via", MASTER6)
    with (
        started(lab, mode, workers=workers) as lan,
        sniffing(lab.wire, "w0") as wire,
        sniffing(lab.ports[2], "ipvl3") as sibling,
    ):
        for k in (1, 2, 3):
            for address in (*(port4(j) for j in (1, 2, 3) if j != k), *(port6(j) for j in (1, 2, 3) if j != k)):
                lab.reachable(lab.ports[k - 1], address)
            for address in (WIRE4, WIRE6, MASTER4, MASTER6):
                lab.reachable(lab.ports[k - 1], address)
            for netns in (lab.wire, lab.host):
                for address in (port4(k), port6(k)):
                    lab.reachable(netns, address)
        own = {lan.port(f"ipvl{k}")["mac"] for k in (1, 2)}
        assert len(own) == 2 and MASTER_MAC not in own
        for sniffer in (wire, sibling):
            known = {MASTER_MAC, WIRE_MAC} if sniffer is sibling else {MASTER_MAC}
            assert {frame[6:12].hex(":") for _, frame in list(sniffer.frames)} <= known
            for mac in own:
                assert not sniffer.count(bytes.fromhex(mac.replace(":", ""))), "a MAC address is told inside a frame"


def test_with_arp_in_l3(lab: Lab) -> None:
    """As a virtual machine has it, which doesn't know that its link needs none."""
    for k in (1, 2):
        lab.ip(lab.wire, "route", "add", port4(k), "via", MASTER4)
        lab.ip(lab.wire, "route", "add", port6(k), "via", MASTER6)
    with started(lab, "l3") as lan:
        lab.ip(lab.ports[0], "link", "set", "ipvl1", "arp", "on")
        for address in (port4(2), port6(2), port4(3), WIRE4, WIRE6, MASTER4, MASTER6):
            lab.reachable(lab.ports[0], address)
        for netns in (lab.wire, lab.host, lab.ports[1]):
            for address in (port4(1), port6(1)):
                lab.reachable(netns, address)
        assert lan.stats()[0]["ports"]["ipvl1"]["outcomes"]["answered"] >= 4
        known = lab.ip(lab.ports[0], "neigh", "show")
        assert {line.split()[4] for line in known.splitlines() if "lladdr" in line} == {MASTER_MAC}, known


def test_the_namespace_may_choose_another(lab: Lab) -> None:
    with started(lab, "l2") as lan:
        lab.ip(lab.ports[0], "link", "set", "ipvl1", "address", "02:aa:aa:aa:aa:aa")
        for address in (WIRE4, WIRE6, port4(2), port6(3), MASTER4):
            lab.reachable(lab.ports[0], address)
        for netns in (lab.wire, lab.host, lab.ports[2]):
            lab.reachable(netns, port4(1))
        assert lan.port("ipvl1")["mac"] == "02:aa:aa:aa:aa:aa"
        lab.ip(lab.host, "link", "set", "m0", "address", "02:00:00:00:00:77")
        for address in (WIRE4, WIRE6, port4(2), port6(3)):
            lab.reachable(lab.ports[0], address)
        assert lab.link(lab.ports[0], "ipvl1")["address"] == "02:aa:aa:aa:aa:aa"  # type: ignore[index]


@pytest.mark.parametrize("holder", ["sibling", "host", "wire"])
def test_duplicates_are_found(holder: str) -> None:
    """A namespace with a MAC address of its own takes an IPv6 address that somebody has, and is told."""
    with Lab(3, dad=True) as lab, started(lab, "l2"):
        held = {"sibling": port6(3), "host": MASTER6, "wire": WIRE6}[holder]
        until(lambda: not tentative(lab, lab.ports[2], "ipvl3"), "the sibling's own address is settled")
        lab.ip(lab.ports[0], "addr", "add", f"{held}/64", "dev", "ipvl1")
        until(
            lambda: any(one["local"] == held and one.get("dadfailed") for one in lab.addresses(lab.ports[0], "ipvl1")),
            "the address is refused by the namespace itself",
        )
        free = "fd00:1::1:777"
        lab.ip(lab.ports[0], "addr", "add", f"{free}/64", "dev", "ipvl1")
        until(lambda: not tentative(lab, lab.ports[0], "ipvl1"), "what nobody has is had")
        assert not [one for one in lab.addresses(lab.ports[0], "ipvl1") if one["local"] == free and "dadfailed" in one]


def tentative(lab: Lab, netns: str, device: str) -> bool:
    return any(one.get("tentative") and not one.get("dadfailed") for one in lab.addresses(netns, device))
