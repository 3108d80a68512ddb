"""Ports follow their namespaces and their master: addresses, links, and what is deleted and made again."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from tests.support.patience import LIMIT, until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import raw
from tests.support.spaces import Sleeper
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, WIRE4, WIRE6, WIRE_MAC, Lab, port4, port6, run
from tests.support.wire.frames import ICMP6, checksum, pseudo

NEW4, NEW6 = "10.1.0.77", "fd00:1::77"


def owner(daemon: Daemon, address: str) -> list[tuple[str, str]]:
    """(port, state) of everyone who holds or wants an address."""
    return [
        (p["name"], a["state"])
        for s in daemon.show()
        for p in s["ports"]
        for a in p["addresses"]
        if a["address"] == address
    ]


@pytest.mark.parametrize("address", [NEW4, NEW6])
def test_an_added_address_works_and_a_deleted_one_does_not(lab: Lab, lan: Daemon, address: str) -> None:
    """How soon, the benchmark tells (A1)."""
    # The neighbour is known beforehand, so that the address itself is all that is missing.
    lab.ip(lab.wire, "neigh", "replace", address, "lladdr", MASTER_MAC, "dev", "w0")
    six = ":" in address
    lab.reachable(lab.ports[0], WIRE6 if six else WIRE4)
    words = [address + ("/64" if six else "/16"), "dev", "ipvl1"]
    for _ in range(5):
        lab.ip(lab.ports[0], "addr", "add", *words, *(["nodad"] if six else []))
        lab.reachable(lab.wire, address)
        lab.ip(lab.ports[0], "addr", "del", *words)
        until(lambda: not owner(lan, address), "nobody owns it")
        assert lab.ping(lab.wire, address, wait=0.2) == 0, "still answered after `ip addr del`"


def test_a_port_that_is_down_owns_nothing(lab: Lab, lan: Daemon) -> None:
    lab.reachable(lab.ports[0], port4(2))
    lab.ip(lab.ports[1], "link", "set", "ipvl2", "down")
    until(lambda: lan.port("ipvl2")["state"] == "down", "ipvl2 is shown down")
    assert lab.ping(lab.ports[0], port4(2), wait=0.2) == 0
    assert ("ipvl2", "owned") not in owner(lan, port4(2))
    lab.ip(lab.ports[1], "link", "set", "ipvl2", "up")
    lab.reachable(lab.ports[0], port4(2))


@pytest.mark.parametrize("address", [NEW4, NEW6])
def test_a_duplicate_address_stays_with_the_first_and_is_handed_over(lab: Lab, lan: Daemon, address: str) -> None:
    words = address + ("/64" if ":" in address else "/16"), "dev"
    nodad = ["nodad"] if ":" in address else []
    lab.ip(lab.ports[0], "addr", "add", *words, "ipvl1", *nodad)
    until(lambda: owner(lan, address) == [("ipvl1", "owned")], "the first owns it")
    before = sum(s["duplicates"] for s in lan.stats())
    lab.ip(lab.ports[1], "addr", "add", *words, "ipvl2", *nodad)
    until(lambda: sorted(owner(lan, address)) == [("ipvl1", "owned"), ("ipvl2", "duplicate")], "the second is told")
    assert sum(s["duplicates"] for s in lan.stats()) == before + 1
    assert address in lan.said(), "no word of it in the log"
    lab.ip(lab.wire, "neigh", "replace", address, "lladdr", MASTER_MAC, "dev", "w0")
    lab.reachable(lab.wire, address)
    lab.ip(lab.ports[0], "addr", "del", *words, "ipvl1")
    until(lambda: owner(lan, address) == [("ipvl2", "owned")], "the second gets it")
    lab.reachable(lab.wire, address)


@pytest.mark.parametrize("address", [MASTER4, MASTER6])
def test_the_masters_own_address_is_refused(lab: Lab, lan: Daemon, address: str) -> None:
    lab.ip(
        lab.ports[0],
        "addr",
        "add",
        address + "/128" * (":" in address),
        "dev",
        "ipvl1",
        *(["nodad"] if ":" in address else []),
    )
    until(lambda: owner(lan, address) == [("ipvl1", "master")], "the address is shown as the master's")
    assert lab.ping(lab.wire, address, 5) == 5
    # The host gives it up: then it is the port's, and back when it takes it again... the first keeps it.
    lab.ip(lab.host, "addr", "del", address + ("/64" if ":" in address else "/16"), "dev", "m0")
    until(lambda: owner(lan, address) == [("ipvl1", "owned")], "the port gets what the master gave up")


def link_local(lab: Lab, netns: str, device: str) -> str | None:
    found = [a["local"] for a in lab.addresses(netns, device) if a["local"].startswith("fe80:")]
    return found[0] if found else None


def test_link_locals_are_unique_behind_one_mac(lab: Lab, lan: Daemon) -> None:
    first, second = (
        until(lambda k=k: link_local(lab, lab.ports[k - 1], f"ipvl{k}"), "a link-local address") for k in (1, 2)
    )
    host = until(lambda: link_local(lab, lab.host, "m0"), "the master's link-local address")
    assert len({first, second, host}) == 3
    assert {lab.link(lab.ports[k - 1], f"ipvl{k}")["address"] for k in (1, 2)} == {MASTER_MAC}  # type: ignore[index]
    lab.reachable(lab.ports[0], f"{second}%ipvl1")
    lab.reachable(lab.wire, f"{first}%w0")


def advertisement(prefix: str) -> bytes:
    """A router's frame to ff02::1: an RA (RFC 4861 section 4.2) with one /64 for autoconfiguration."""
    source, group = IPv6Address("fe80::fe").packed, IPv6Address("ff02::1").packed
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + IPv6Address(prefix).packed
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option
    body = body[:2] + checksum(pseudo(source, group, ICMP6, len(body)) + body).to_bytes(2, "big") + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMP6, 255) + source + group
    return bytes.fromhex("333300000001" + WIRE_MAC.replace(":", "") + "86dd") + header + body


def test_autoconfigured_addresses_are_unique_and_work(lab: Lab, lan: Daemon) -> None:
    for k, netns in enumerate(lab.ports, 1):
        lab.sysctl(netns, f"net/ipv6/conf/ipvl{k}/accept_ra", "1")
        until(lambda k=k, netns=netns: link_local(lab, netns, f"ipvl{k}"), "a link-local address")
    lab.ip(lab.wire, "addr", "add", "fd00:5::1/64", "dev", "w0", "nodad")

    def slaac(k: int) -> str | None:
        found = [a["local"] for a in lab.addresses(lab.ports[k - 1], f"ipvl{k}") if a["local"].startswith("fd00:5:")]
        return found[0] if found else None

    with raw(lab.wire, "w0") as router:

        def announced() -> bool:
            router.send(advertisement("fd00:5::"))
            time.sleep(0.05)
            return slaac(1) is not None and slaac(2) is not None

        until(announced, "both ports make themselves an address")
    assert slaac(1) != slaac(2)
    for k in (1, 2):
        lab.reachable(lab.wire, str(slaac(k)))
    lab.reachable(lab.ports[0], str(slaac(2)))


def test_a_changed_mac_of_the_master_is_followed(lab: Lab, lan: Daemon) -> None:
    lab.reachable(lab.ports[0], WIRE4)
    changed = "02:00:00:00:77:01"
    lab.ip(lab.host, "link", "set", "m0", "address", changed)
    for k, netns in enumerate(lab.ports, 1):
        until(
            lambda k=k, netns=netns: (lab.link(netns, f"ipvl{k}") or {}).get("address") == changed,
            f"ipvl{k} has the new MAC address",
        )
    for netns, device in ((lab.wire, "w0"), (lab.ports[0], "ipvl1"), (lab.ports[1], "ipvl2")):
        lab.ip(netns, "neigh", "flush", "dev", device)
    for address in (port4(2), port6(2), WIRE4, WIRE6):
        lab.reachable(lab.ports[0], address)
    lab.reachable(lab.wire, port4(1))


def test_a_changed_mtu_of_the_master_is_followed(lab: Lab, lan: Daemon) -> None:
    for mtu in (1400, 1500):
        lab.ip(lab.host, "link", "set", "m0", "mtu", str(mtu))
        for k, netns in enumerate(lab.ports, 1):
            until(
                lambda k=k, netns=netns, mtu=mtu: (lab.link(netns, f"ipvl{k}") or {}).get("mtu") == mtu,
                f"ipvl{k} has MTU {mtu}",
            )
    assert lab.execute(lab.ports[0], "ping", "-n", "-q", "-c1", f"-W{LIMIT}", "-M", "do", "-s", "1472", port4(2))


def test_a_master_with_a_larger_mtu_than_a_port_can_have(lab: Lab) -> None:
    for netns, device in ((lab.host, "m0"), (lab.wire, "w0")):
        lab.ip(netns, "link", "set", device, "mtu", "65535")
    ports = [port("ipvl1", lab.ports[0], [f"{port4(1)}/16"]), port("ipvl2", lab.ports[1], mtu=65535)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait()
        for netns, name in zip(lab.ports, ("ipvl1", "ipvl2"), strict=True):
            assert (lab.link(netns, name) or {})["mtu"] == 65521
        assert lab.execute(lab.wire, "ping", "-n", "-q", "-c1", f"-W{LIMIT}", "-M", "do", "-s", "60000", port4(1))


def test_a_port_that_is_down_yields_its_address(lab: Lab, lan: Daemon) -> None:
    """As when a service moves to another container while the first is only stopped."""
    for address, prefix in ((port4(1), 16), (port6(1), 64)):
        lab.ip(lab.ports[1], "addr", "add", f"{address}/{prefix}", "dev", "ipvl2")
        until(lambda: ("ipvl2", "refused") in owner(lan, address), "it is the configuration's")  # noqa: B023
        lab.ip(lab.ports[1], "addr", "del", f"{address}/{prefix}", "dev", "ipvl2")
    for netns, device in zip(lab.ports, ("ipvl1", "ipvl2"), strict=True):
        lab.ip(netns, "addr", "add", f"{NEW4}/16", "dev", device)
        until(lambda: any(name == device for name, _ in owner(lan, NEW4)), f"{device} claims it")  # noqa: B023
    assert sorted(owner(lan, NEW4)) == [("ipvl1", "owned"), ("ipvl2", "duplicate")]
    lab.ip(lab.ports[0], "link", "set", "ipvl1", "down")
    until(lambda: ("ipvl2", "owned") in owner(lan, NEW4), "the other has it")
    lab.reachable(lab.wire, NEW4)
    lab.ip(lab.ports[0], "link", "set", "ipvl1", "up")
    until(lambda: lan.port("ipvl1")["state"] == "up", "the first is up again")
    assert sorted(owner(lan, NEW4)) == [("ipvl1", "duplicate"), ("ipvl2", "owned")]
    lab.ip(lab.ports[1], "addr", "del", f"{NEW4}/16", "dev", "ipvl2")
    until(lambda: owner(lan, NEW4) == [("ipvl1", "owned")], "and is the next")


def test_a_port_is_the_master_of_another_switch(lab: Lab) -> None:
    """It is one like any other, whichever of the two the file has first."""
    first = switch("m0", lab.host, [port("inner", lab.home, [f"{port4(1)}/16"], ifname="inner0")])
    second = switch("inner0", lab.home, [port("ipvl2", lab.ports[1])]) | {"name": "second"}
    with Daemon(second, first, home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        until(lambda: {p["state"] for s in daemon.show() for p in s["ports"]} == {"up"}, "all ports are up")
        assert (lab.link(lab.ports[1], "ipvl2") or {})["address"] == MASTER_MAC
        lab.reachable(lab.wire, port4(1))


def test_a_master_that_goes_down_and_up_is_followed(lab: Lab, lan: Daemon) -> None:
    lab.reachable(lab.wire, port4(1))
    lab.ip(lab.host, "link", "set", "m0", "down")
    assert lab.ping(lab.wire, port4(1), wait=0.2) == 0
    lab.ip(lab.host, "link", "set", "m0", "up")
    lab.reachable(lab.wire, port4(1))
    lab.reachable(lab.wire, port6(1))
    lab.reachable(lab.ports[0], port4(2))


def test_a_wire_that_loses_its_carrier_is_followed(lab: Lab, lan: Daemon) -> None:
    def carrier() -> bool:
        return "LOWER_UP" in (lab.link(lab.ports[0], "ipvl1") or {"flags": []})["flags"]

    assert carrier()
    lab.ip(lab.wire, "link", "set", "w0", "down")
    until(lambda: not carrier(), "ipvl1 loses its carrier with the master")
    lab.ip(lab.wire, "link", "set", "w0", "up")
    until(carrier, "ipvl1 gets its carrier back")
    lab.reachable(lab.wire, port4(1))


def test_a_master_that_is_deleted_and_made_again_is_followed(lab: Lab, lan: Daemon) -> None:
    for _ in range(2):
        lab.ip(lab.host, "link", "del", "m0")
        until(lambda: lan.show()[0]["state"] == "waiting", "the switch waits for its master")
        lab.make_master()
        until(lambda: lan.show()[0]["state"] == "up", "the switch is up again")
        for address in (port4(1), port6(2)):
            lab.reachable(lab.wire, address)
        lab.reachable(lab.ports[0], port4(2))


def test_a_namespace_that_is_deleted_and_made_again_is_followed(lab: Lab, lan: Daemon) -> None:
    fds = lan.fds()
    for _ in range(3):
        run("ip", "netns", "del", lab.ports[0])
        until(lambda: lan.port("ipvl1")["state"] == "waiting", "the port waits for its namespace")
        assert lab.ping(lab.wire, port4(2)) == 1, "its sibling suffers"
        lab.add(lab.ports[0])
        until(lambda: lan.port("ipvl1")["state"] == "up", "the port is up again")
        lab.reachable(lab.wire, port4(1))
        lab.reachable(lab.ports[1], port6(1))
    until(lambda: lan.fds() <= fds, f"no more descriptors than before: {fds}")


@pytest.fixture
def early(lab: Lab) -> Iterator[Daemon]:
    """A daemon whose only port names a namespace that does not exist yet."""
    waiting = port("ipvl9", f"{lab.prefix}-later", [f"{port4(9)}/16"], gateway=[WIRE4])
    with Daemon(switch("m0", lab.host, [waiting]), home=lab.home) as daemon:
        yield daemon.wait(states=("waiting",))


def test_a_namespace_that_appears_later_gets_its_port(lab: Lab, early: Daemon) -> None:
    lab.add(f"{lab.prefix}-later")
    until(lambda: early.port("ipvl9")["state"] == "up", "the port comes up")
    lab.reachable(lab.wire, port4(9))
    assert WIRE4 in lab.ip(f"{lab.prefix}-later", "route", "show", "default")


def test_a_namespace_by_process_is_that_processs_alone(lab: Lab) -> None:
    """Another process that gets the number gets nothing, in the host's namespace or in one of its own, until the
    configuration is read again."""
    with Sleeper() as first:
        table = switch("m0", lab.host, [port("ipvl1", f"pid:{first.pid}", [f"{port4(1)}/16"])])
        with Daemon(table, home=lab.home) as daemon:
            daemon.wait()
            lab.reachable(lab.wire, port4(1))
            first.end()
            until(lambda: daemon.port("ipvl1")["state"] == "waiting", "the port is gone")
            with Sleeper(first.pid) as second:
                for _ in range(3):  # it looks every second
                    time.sleep(0.7)
                    assert second.links() == ["lo"]
                assert daemon.port("ipvl1")["reason"].endswith("the process has ended")
                daemon.cli("reload")
                until(lambda: daemon.port("ipvl1")["state"] == "up", "the port is back")
                assert second.links() == ["lo", "ipvl1"]
                lab.reachable(lab.wire, port4(1))


def test_a_port_that_is_added_anew_is_the_new_processs(lab: Lab) -> None:
    def added(pid: int) -> bool:
        body = {"master": "m0", "name": "ipvl1", "netns": f"pid:{pid}"}
        return bool(daemon.call("POST", "/v1/ports", body)[1]["state"] == "up")

    with Daemon(switch("m0", lab.host), home=lab.home) as daemon, Sleeper() as first:
        daemon.wait()
        assert added(first.pid)
        first.end()
        until(lambda: daemon.port("ipvl1")["state"] == "waiting", "the port is gone")
        daemon.cli("link", "del", "ipvl1")
        with Sleeper(first.pid) as second:
            assert added(second.pid)
            assert second.links() == ["lo", "ipvl1"]
