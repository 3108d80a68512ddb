"""`export = "routes"`: the ports' addresses as routes in the kernel, in step with the table of the switch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.routes.exported import exported, kernel_routes, removals, until_exported
from tests.support.patience import until
from tests.support.running import Daemon, port, switch, take_over, toml
from tests.support.topology import Lab

FIRST, SECOND = ("10.2.0.11", "fd02::11"), ("10.2.0.12", "fd02::12")


def of(lab: Lab, **more: Any) -> dict[str, Any]:
    """The switch, with two ports."""
    ports = [
        port("ipvl1", lab.ports[0], [f"{FIRST[0]}/24", f"{FIRST[1]}/64"]),
        port("ipvl2", lab.ports[1], [f"{SECOND[0]}/24", f"{SECOND[1]}/64"]),
    ]
    return switch("m0", lab.host, ports, **({"mode": "l3", "export": "routes"} | more))


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(of(lab), home=lab.home) as made:
        yield made.wait()


def reload(daemon: Daemon, *switches: dict[str, Any]) -> str:
    daemon.config.write_text(toml(daemon.socket, switches))
    return daemon.cli("reload")


def test_each_owned_address_is_a_route_that_the_host_does_not_take(lab: Lab, daemon: Daemon) -> None:
    until_exported(lab, *FIRST, *SECOND)
    index = daemon.show()[0]["index"]
    for route in kernel_routes(lab.host):
        assert (route["dev"], route["protocol"], route["metric"]) == ("m0", "118", index)
    assert "118" not in lab.ip(lab.host, "rule"), "no rule looks there"
    shown = daemon.show()[0]
    assert (shown["export"], shown["exported"], shown["state"]) == ("routes", 4, "up")
    assert "4 routes" in daemon.cli("show")
    lab.ip(lab.ports[0], "addr", "add", "10.2.0.77/24", "dev", "ipvl1")
    lab.ip(lab.ports[1], "link", "set", "ipvl2", "down")
    until_exported(lab, *FIRST, "10.2.0.77")
    lab.ip(lab.ports[1], "link", "set", "ipvl2", "up")
    lab.ip(lab.ports[0], "addr", "del", "10.2.0.77/24", "dev", "ipvl1")
    until(lambda: {*exported(lab)} >= {*FIRST, SECOND[0]}, "the second is back", every=0.02)
    assert "10.2.0.77" not in exported(lab)
    daemon.stop()
    assert kernel_routes(lab.host) == []


def test_what_a_user_has_chosen_is_no_route(lab: Lab) -> None:
    """Who is not root chooses any address; and one that root's port had is none any more when it is a user's."""
    of_user = {"label": "user:1000", "claim": ["10.8.0.0/16", "fe80::/10"]}
    ports = [
        port("ipvl1", lab.ports[0], ["10.8.0.1/32"], **of_user),
        port("ipvl2", lab.ports[1], [f"{SECOND[0]}/24"]),
    ]
    with Daemon(switch("m0", lab.host, ports, mode="l3", export="routes"), home=lab.home) as daemon:
        daemon.wait()
        until_exported(lab, SECOND[0])
        lab.ip(lab.ports[1], "addr", "add", "10.8.0.2/32", "dev", "ipvl2")
        until_exported(lab, SECOND[0], "10.8.0.2")
        lab.ip(lab.ports[0], "addr", "add", "10.8.0.2/32", "dev", "ipvl1")
        lab.ip(lab.ports[1], "addr", "del", "10.8.0.2/32", "dev", "ipvl2")
        until_exported(lab, SECOND[0])
        assert [one["state"] for one in daemon.port("ipvl1")["addresses"] if one["address"] == "10.8.0.2"] == ["owned"]


def test_a_prefix_of_claim_is_a_route_while_the_port_has_an_address_in_it(lab: Lab) -> None:
    one = port("ipvl1", lab.ports[0], claim=["10.8.0.0/16", "fd08::/64", "0.0.0.0/0"])
    with Daemon(of(lab) | {"port": [one]}, home=lab.home) as daemon:
        daemon.wait()
        lab.ip(lab.ports[0], "addr", "add", "10.9.0.1/32", "dev", "ipvl1")
        until_exported(lab, "10.9.0.1")
        lab.ip(lab.ports[0], "addr", "add", "10.8.0.1/32", "dev", "ipvl1")
        until_exported(lab, "10.9.0.1", "10.8.0.1", "10.8.0.0/16")
        reload(daemon, of(lab) | {"port": [one | {"claim": ["10.8.0.0/24", "10.9.0.0/24"]}]})
        until_exported(lab, "10.9.0.1", "10.8.0.1", "10.8.0.0/24", "10.9.0.0/24")
        lab.ip(lab.ports[0], "addr", "del", "10.8.0.1/32", "dev", "ipvl1")
        until_exported(lab, "10.9.0.1", "10.9.0.0/24")


def test_what_others_remove_comes_back_and_theirs_stays(lab: Lab, daemon: Daemon) -> None:
    until_exported(lab, *FIRST, *SECOND)
    lab.ip(lab.host, "route", "add", "192.0.2.9", "dev", "m0", "proto", "static", "table", "118")
    before = kernel_routes(lab.host)
    for words in (
        ("-4", "route", "del", FIRST[0], "table", "118"),
        ("-6", "route", "del", FIRST[1], "table", "118"),
        ("-4", "route", "flush", "table", "118", "proto", "118"),
    ):
        repaired = int(daemon.stats()[0]["repaired"].get("exports", 0))
        lab.ip(lab.host, *words)
        until(lambda: exported(lab) == {*FIRST, *SECOND}, f"{words} is undone", every=0.02)
        until(lambda: daemon.stats()[0]["repaired"].get("exports", 0) > repaired, "it is counted")  # noqa: B023
    assert sorted(map(str, kernel_routes(lab.host))) == sorted(map(str, before))
    lab.ip(lab.host, "link", "set", "m0", "down")
    until(lambda: daemon.show()[0]["exported"] == 0, "the master is down")
    lab.ip(lab.host, "link", "set", "m0", "up")
    until_exported(lab, *FIRST, *SECOND)
    assert daemon.show()[0]["reason"] == ""


def test_a_reload_switches_it_on_and_off(lab: Lab, daemon: Daemon) -> None:
    until_exported(lab, *FIRST, *SECOND)
    assert "export none" in reload(daemon, of(lab, export="none"))
    until_exported(lab)
    assert "export routes" in reload(daemon, of(lab))
    until_exported(lab, *FIRST, *SECOND)
    status, answer = daemon.call("PATCH", "/v1/switches/lan", {"mode": "l2"})
    assert (status, answer["error"]) == (
        409,
        "switch lan.export: routes needs mode l3 or l3s; hosts on the link find l2's by ARP",
    )
    assert daemon.show()[0]["mode"] == "l3"


def test_routes_outlive_the_daemon_and_do_not_flap(lab: Lab, daemon: Daemon, tmp_path: Path) -> None:
    until_exported(lab, *FIRST, *SECOND)
    with removals(lab.host, tmp_path / "removed") as removed:
        for again in ("kill", "take over", "kill"):
            if again == "kill":
                daemon.kill()
                assert exported(lab) == {*FIRST, *SECOND}
                daemon.start()
                daemon.wait()
            else:
                take_over(daemon)
            until(lambda: daemon.show()[0]["exported"] == 4, "the routes are its own")
            lab.reachable(lab.ports[0], SECOND[0])
        assert [line for line in removed.lines() if "table 118" in line or "table ipvsw" in line] == []
    daemon.kill()
    lab.ip(lab.ports[0], "addr", "del", f"{FIRST[0]}/24", "dev", "ipvl1")
    daemon.config.write_text(toml(daemon.socket, [of(lab) | {"port": of(lab)["port"][1:]}]))
    daemon.start()
    until_exported(lab, *SECOND)


def test_what_a_killed_daemon_leaves_is_cleaned_up(lab: Lab, daemon: Daemon) -> None:
    until_exported(lab, *FIRST, *SECOND)
    daemon.kill()
    daemon.start("--cleanup")
    assert daemon.process is not None
    assert daemon.process.wait() == 0
    daemon.process = None
    assert kernel_routes(lab.host) == []
    with Daemon(of(lab), home=lab.home) as other:
        other.wait()
        until_exported(lab, *FIRST, *SECOND)
        other.kill()
        other.config.write_text(toml(other.socket, [of(lab, export="none")]))
        other.start()
        other.wait()
        until_exported(lab)
