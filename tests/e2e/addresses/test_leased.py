"""Ports with `dhcp`: the daemon is the client, a real server answers, and the namespace has what was leased."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.programs.dnsmasq import Dnsmasq
from tests.support.running import Daemon, port, switch
from tests.support.topology import WIRE4, Lab

SOON = ("--dhcp-option=option:T1,2", "--dhcp-option=option:T2,4")  # seconds, of a lease of two minutes


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Dnsmasq:
    return Dnsmasq(lab, tmp_path)


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    ports: list[dict[str, Any]] = [port(f"ipvl{k}", netns, dhcp=True) for k, netns in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        yield daemon.wait()


def leases(lan: Daemon) -> dict[str, dict[str, Any]]:
    """By port, of those that have all that was leased."""
    found = lan.call("GET", "/v1/leases")[1]
    return {one["port"]: one for one in found if one["state"] == "owned" and one["prefix"] is not None}


def both(lan: Daemon) -> dict[str, dict[str, Any]]:
    return until(lambda: found if len(found := leases(lan)) == 2 else None, "both have leased") or {}


def test_ports_lease_and_renew(lab: Lab, lan: Daemon, server: Dnsmasq) -> None:
    server.start(*SOON, "--dhcp-option=option:classless-static-route,198.51.100.0/24,10.1.0.7,0.0.0.0/0," + WIRE4)
    found = both(lan)
    one = found["ipvl1"]
    assert one["address"] != found["ipvl2"]["address"]
    assert one["client_id"] != found["ipvl2"]["client_id"] and one["hostname"] == "ipvl1"
    terms = {key: one[key] for key in ("server", "prefix", "gateway", "routes", "dns", "domain")}
    assert terms == {
        "server": WIRE4,
        "prefix": 16,
        "gateway": WIRE4,
        "routes": ["198.51.100.0/24 via 10.1.0.7"],
        "dns": ["10.1.0.53"],
        "domain": "lan.test",
    }
    routes = lab.ip(lab.ports[0], "route")
    assert f"default via {WIRE4}" in routes and "198.51.100.0/24 via 10.1.0.7" in routes
    lab.reachable(lab.wire, one["address"])
    lab.reachable(lab.ports[1], one["address"])
    acks, asked = server.said("DHCPACK"), server.said("DHCPDISCOVER(w0)")
    until(lambda: server.said("DHCPACK") >= acks + 4, "both renew")
    assert server.said("DHCPDISCOVER(w0)") == asked and both(lan)["ipvl1"]["address"] == one["address"]


def test_a_server_that_comes_late_is_found(lan: Daemon, server: Dnsmasq) -> None:
    until(lambda: lan.said().count("no DHCP server answers") == 2, "nobody answers")
    server.start()
    both(lan)


def test_what_a_server_takes_back_is_gone(lab: Lab, lan: Daemon, server: Dnsmasq) -> None:
    """Another server, which knows nothing of the lease, has other addresses."""
    server.start(*SOON)
    had = both(lan)["ipvl1"]["address"]
    server.forget()
    server.start(*SOON, net="10.1.20")
    until(lambda: (new := leases(lan).get("ipvl1")) and new["address"].startswith("10.1.20."), "it has another")
    assert f"{had}/" not in lab.ip(lab.ports[0], "-o", "addr")


def test_an_address_that_a_port_has_is_declined(lab: Lab, lan: Daemon, server: Dnsmasq) -> None:
    lab.ip(lab.ports[1], "addr", "add", "10.1.9.1/16", "dev", "ipvl2")
    until(lambda: "10.1.9.1" in str(lan.port("ipvl2")["addresses"]), "it is known")
    server.start("--dhcp-host=ipvl1,10.1.9.1", "--dhcp-host=ipvl2,10.1.9.2")
    until(lambda: server.said("DHCPDECLINE"), "it is declined")
    assert "10.1.9.1 is declined" in lan.said() or "10.1.9.1/16 is declined" in lan.said()
    assert "10.1.9.1/" not in lab.ip(lab.ports[0], "-o", "addr")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_next_daemon_goes_on(lab: Lab, lan: Daemon, server: Dnsmasq, how: str) -> None:
    """After a kill with what the last one had leased; after an orderly stop it asks again, and has the same."""
    server.start()
    before, asked = both(lan), server.said("DHCPDISCOVER(w0)")
    lan.stop() if how == "stop" else lan.kill()
    assert not server.said("DHCPRELEASE")
    lan.start()
    lan.wait()
    after = both(lan)
    assert {name: one["address"] for name, one in after.items()} == {k: one["address"] for k, one in before.items()}
    assert (server.said("DHCPDISCOVER(w0)") > asked) == (how == "stop")
    assert f"default via {WIRE4}" in lab.ip(lab.ports[0], "route")
    lab.reachable(lab.wire, after["ipvl1"]["address"])
    assert "is not set" not in lan.said() and "File exists" not in lan.said()


def test_a_port_that_goes_gives_its_address_back(lan: Daemon, server: Dnsmasq) -> None:
    server.start()
    both(lan)
    lan.cli("link", "del", "ipvl1")
    until(lambda: server.said("DHCPRELEASE"), "the server hears of it")
    assert set(leases(lan)) == {"ipvl2"}


def test_a_link_that_was_down_has_its_routes_again(lab: Lab, lan: Daemon, server: Dnsmasq) -> None:
    server.start()
    both(lan)
    lab.ip(lab.ports[0], "link", "set", "ipvl1", "down")
    lab.ip(lab.ports[0], "link", "set", "ipvl1", "up")
    until(lambda: f"default via {WIRE4}" in lab.ip(lab.ports[0], "route"), "its gateway is back")


def test_it_needs_broadcast(lan: Daemon) -> None:
    body = {"master": "m0", "name": "x", "dhcp": True, "mode": "l3"}
    status, answer = lan.call("POST", "/v1/ports", body)
    assert status == 409 or status == 400
    assert "dhcp: needs mode l2; l3 passes no broadcast" in answer["error"]
