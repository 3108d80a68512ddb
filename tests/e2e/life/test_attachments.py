"""Ports that the API has added: how long they stay."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.spaces import Sleeper
from tests.support.topology import WIRE4, Lab, port4, port6, run


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(2) as lab:
        before = devices(lab)
        yield lab
        assert devices(lab) == before


def devices(lab: Lab) -> list[list[str]]:
    return [[link["ifname"] for link in lab.links(netns)] for netns in (lab.home, lab.host)]


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    """A daemon that keeps what is added, with one port in its file."""
    with Daemon(
        switch("m0", lab.host, [port("ipvl1", lab.ports[0], [f"{port4(1)}/16"])]), home=lab.home, keeps=True
    ) as daemon:
        yield daemon.wait()


def add(daemon: Daemon, name: str, netns: str, **more: Any) -> dict[str, Any]:
    status, answer = daemon.call("POST", "/v1/ports", {"master": "m0", "name": name, "netns": netns, **more})
    assert status == 201, answer
    found: dict[str, Any] = answer
    return found


def names(daemon: Daemon) -> set[str]:
    return {one["name"] for one in daemon.show()[0]["ports"]}


def again(daemon: Daemon) -> None:
    daemon.stop()
    daemon.start()
    until(lambda: daemon.socket.exists() and "ready" in shown(daemon), "it serves")


def shown(daemon: Daemon) -> str:
    try:
        return "ready" if daemon.show() else ""
    except OSError:
        return ""


def test_a_port_is_back_after_a_stop_and_gone_once_it_is_removed(lab: Lab, lan: Daemon) -> None:
    assert not lan.state.exists()
    add(lan, "ipvl2", lab.ports[1], addresses=[f"{port4(2)}/16", f"{port6(2)}/64"], gateway=[WIRE4])
    lan.cli("link", "set", "ipvl2", "type", "ipvlan", "mode", "l2", "vepa")
    again(lan)
    lan.wait()
    assert lan.show()[0]["flag"] == "vepa"
    lab.reachable(lab.wire, port4(2))
    lab.reachable(lab.wire, port6(2))
    lan.cli("link", "set", "lan", "type", "ipvlan", "mode", "l2", "bridge")
    lan.cli("link", "delete", "ipvl2")
    assert not lan.state.exists(), "nothing is to be kept"
    again(lan)
    assert names(lan) == {"ipvl1"}


def test_a_port_that_does_not_persist_outlives_a_kill_and_no_stop(lab: Lab, lan: Daemon) -> None:
    add(lan, "ipvl2", lab.ports[1], persist=False)
    assert not lan.state.exists()
    lan.kill()
    lan.start()
    lan.wait()
    assert names(lan) == {"ipvl1", "ipvl2"}
    again(lan)
    assert names(lan) == {"ipvl1"}


def test_a_port_goes_with_its_namespace(lab: Lab, lan: Daemon) -> None:
    """While the daemon runs, and while it doesn't; one that waits for a namespace to come again does not."""
    lab.add(*(f"{lab.prefix}-c{k}" for k in (1, 2)))
    for k in (1, 2):
        add(lan, f"c{k}", f"/run/netns/{lab.prefix}-c{k}", persist="netns", addresses=[f"{port4(10 + k)}/16"])
    add(lan, "ipvl2", lab.ports[1])
    again(lan)
    until(lambda: names(lan) == {"ipvl1", "ipvl2", "c1", "c2"}, "all are back")
    lan.wait()
    run("ip", "netns", "del", f"{lab.prefix}-c1")
    until(lambda: "c1" not in names(lan), "its port is removed")
    lan.stop()
    run("ip", "netns", "del", f"{lab.prefix}-c2")
    lab.add(f"{lab.prefix}-c2")  # another one
    run("ip", "netns", "del", lab.ports[1])
    lan.start()
    until(lambda: bool(shown(lan)), "it serves")
    assert names(lan) == {"ipvl1", "ipvl2"}
    assert lan.port("ipvl2")["state"] == "waiting"
    assert [one["ifname"] for one in lab.links(f"{lab.prefix}-c2")] == ["lo"]
    add(lan, "c3", f"/run/netns/{lab.prefix}-c2", addresses=[f"{port4(12)}/16"])  # which nobody has any more
    lab.add(lab.ports[1])
    until(lambda: lan.port("ipvl2")["state"] == "up", "it has waited for it")


def test_after_a_reboot_only_what_can_be_there_again_is(lab: Lab, lan: Daemon) -> None:
    add(lan, "ipvl2", lab.ports[1])
    add(lan, "c1", f"/run/netns/{lab.ports[1]}", ifname="eth1", persist="netns")
    lan.stop()
    state = json.loads(lan.state.read_text())
    assert set(state["births"]) == {"lan/ipvl2", "lan/c1"}
    state["births"] = {name: f"{birth.rsplit(' ', 1)[0]} another-boot" for name, birth in state["births"].items()}
    lan.state.write_text(json.dumps(state))
    lan.start()
    until(lambda: bool(shown(lan)), "it serves")
    assert names(lan) == {"ipvl1", "ipvl2"}


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_the_number_of_a_process_is_another_ones_after_a_restart(lab: Lab, lan: Daemon, how: str) -> None:
    with Sleeper() as first:
        add(lan, "ipvl2", f"pid:{first.pid}", addresses=[f"{port4(2)}/16"])
        lan.stop() if how == "stopped" else lan.kill()
        first.end()
        with Sleeper(first.pid) as second:
            lan.start()
            until(lambda: bool(shown(lan)), "it serves")
            assert names(lan) == {"ipvl1"}
            assert second.links() == ["lo"]


def test_the_same_process_has_its_port_again(lab: Lab, lan: Daemon) -> None:
    with Sleeper() as first:
        add(lan, "ipvl2", f"pid:{first.pid}", addresses=[f"{port4(2)}/16"])
        again(lan)
        lan.wait()
        assert first.links() == ["lo", "ipvl2"]
        lab.reachable(lab.wire, port4(2))


def test_a_state_that_cannot_be_read_is_named_and_changes_nothing(lab: Lab, lan: Daemon) -> None:
    lan.stop()
    for content, said in (("nonsense", "can't be read"), (json.dumps({"version": 99}), "newer ipvswd")):
        lan.state.parent.mkdir(exist_ok=True)
        lan.state.write_text(content)
        lan.start()
        assert lan.process is not None and lan.process.wait() == 2
        assert said in lan.said() and str(lan.state) in lan.said()
        assert lan.state.read_text() == content
    os.unlink(lan.state)
    lan.start()
    lan.wait()


def test_labels(lab: Lab, lan: Daemon) -> None:
    for k, label in enumerate(("lab:a:1", "lab:a:2", "lab:ab:1"), 1):
        add(lan, f"x{k}", lab.ports[1], label=label)
    assert [one["ifalias"] for one in json.loads(lan.cli("--json", "link", "show", "label", "lab:a"))] == [
        "lab:a:1",
        "lab:a:2",
    ]
    lan.cli("link", "delete", "label", "lab:a")
    assert names(lan) == {"ipvl1", "x3"}
    assert "there is no port with the label" in lan.call("DELETE", "/v1/labels/lab%3Aa")[1]["error"]


def test_routes_metric_and_a_mac_address_of_its_own(lab: Lab, lan: Daemon) -> None:
    netns = lab.ports[1]
    routes = ["198.51.100.0/24 via 10.1.0.254", "203.0.113.0/24", "2001:db8::/32 via fd00:1::254 metric 7"]
    shown = add(
        lan,
        "ipvl2",
        netns,
        addresses=[f"{port4(2)}/16", f"{port6(2)}/64"],
        gateway=[WIRE4],
        metric=50,
        routes=routes,
        mac="02:00:00:00:77:01",
    )
    assert (shown["mac"], shown["mac_source"], shown["state"]) == ("02:00:00:00:77:01", "own", "up")

    def has_all() -> bool:
        four, six = (lab.ip(netns, version, "route") for version in ("-4", "-6"))
        wanted = ("default via 10.1.0.254 dev ipvl2 proto static metric 50", "198.51.100.0/24 via 10.1.0.254")
        return (
            all(one in four for one in (*wanted, "203.0.113.0/24 dev ipvl2 proto static scope link"))
            and "2001:db8::/32 via fd00:1::254 dev ipvl2 proto static metric 7" in six
        )

    assert has_all()
    lab.reachable(lab.wire, port4(2))
    lab.ip(netns, "route", "del", "198.51.100.0/24")
    until(has_all, "the route is put back")
    lab.ip(netns, "link", "set", "ipvl2", "down")
    lab.ip(netns, "link", "set", "ipvl2", "up")
    until(has_all, "all are put back")
