"""A switch that can't be served doesn't keep the others of the file from starting, reloading or being taken over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.running import Daemon, port, refused, switch
from tests.support.topology import WIRE4, Lab, port4


def good(lab: Lab, **more: Any) -> dict[str, Any]:
    return switch("m0", lab.host, [port("ipvl1", lab.ports[0], [f"{port4(1)}/16"], **more)])


def bad(lab: Lab, name: str, master: str) -> dict[str, Any]:
    return {**switch(master, lab.host, [port(f"p-{name}", lab.ports[1], ifname=f"e-{name}")]), "name": name}


@pytest.fixture
def bridged(lab: Lab) -> Iterator[Lab]:
    """`lab` with v0, which is part of a bridge."""
    lab.ip(lab.host, "link", "add", "br0", "type", "bridge")
    lab.ip(lab.host, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    lab.ip(lab.host, "link", "set", "v0", "master", "br0", "up")
    lab.ip(lab.host, "link", "set", "v1", "up")
    yield lab


def states(daemon: Daemon) -> dict[str, tuple[str, str]]:
    """By switch: its state and the reason."""
    return {one["name"]: (one["state"], one["reason"]) for one in daemon.show()}


def _answers(daemon: Daemon) -> bool:
    assert daemon.process is not None
    assert daemon.process.poll() is None, daemon.said()
    try:
        return bool(daemon.show())
    except (FileNotFoundError, ConnectionError):
        return False


def started(daemon: Daemon) -> Daemon:
    until(lambda: _answers(daemon), "the API answers")
    until(lambda: states(daemon).get("lan", ("", ""))[0] == "up", "the good switch is up")
    until(lambda: daemon.port("ipvl1")["state"] == "up", "its port is up")
    return daemon


BRIDGED = "v0 is part of another device, such as a bridge or a bond"


@pytest.mark.parametrize("last", [False, True])
def test_the_others_start_and_the_bad_ones_follow(bridged: Lab, last: bool) -> None:
    lab = bridged
    wrong = [bad(lab, "away", "nowhere"), bad(lab, "part", "v0")]
    with Daemon(*([good(lab), *wrong] if last else [*wrong, good(lab)]), home=lab.home) as daemon:
        started(daemon)
        lab.reachable(lab.ports[0], WIRE4)
        assert states(daemon)["away"] == ("waiting", "for the device nowhere")
        assert states(daemon)["part"] == ("failed", BRIDGED)
        at = {one: index for index, one in enumerate(one["name"] for one in daemon.show())}
        assert f"switch[{at['away']}].master: nowhere does not exist; the other switches start" in daemon.said()
        assert f"switch[{at['part']}].master: {BRIDGED}; the other switches start" in daemon.said()
        assert BRIDGED in daemon.cli("show")
        lab.ip(lab.host, "link", "add", "nowhere", "type", "veth", "peer", "name", "peer")
        lab.ip(lab.host, "link", "set", "nowhere", "up")
        lab.ip(lab.host, "link", "set", "peer", "up")
        lab.ip(lab.host, "link", "set", "v0", "nomaster")
        until(lambda: {state for state, _ in states(daemon).values()} == {"up"}, "the others are served too")
        until(lambda: {p["state"] for s in daemon.show() for p in s["ports"]} == {"up"}, "and so are their ports")


def test_none_that_can_be_served_is_a_mistake(bridged: Lab) -> None:
    status, said = refused(bad(bridged, "away", "nowhere"), bad(bridged, "part", "v0"), home=bridged.home)
    assert (status, said) == (2, "ipvswd: switch[0].master: nowhere does not exist\n")


def test_a_port_that_is_too_large_for_its_master_costs_the_others_nothing(lab: Lab) -> None:
    lab.ip(lab.host, "link", "add", "v0", "mtu", "1400", "type", "veth", "peer", "name", "v1")
    lab.ip(lab.host, "link", "set", "v0", "up")
    lab.ip(lab.host, "link", "set", "v1", "up")
    low = switch("v0", lab.host, [port("large", lab.ports[1], mtu=1500)])
    with Daemon(good(lab), {**low, "name": "low"}, home=lab.home) as daemon:
        daemon.wait()
        assert "switch[1].port[0].mtu: 1500 is larger than the master's 1400; the other switches start" in daemon.said()
        assert daemon.port("large")["mtu"] == 1400


def test_a_reload_goes_past_what_is_bad_already_and_refuses_what_is_newly_so(lab: Lab) -> None:
    with Daemon(bad(lab, "away", "nowhere"), good(lab), home=lab.home) as daemon:
        started(daemon)
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace("ipvl1", "other1"))
        daemon.cli("reload")
        until(lambda: daemon.port("other1")["state"] == "up", "the changed port is up")
        daemon.config.write_text(text.replace('"nowhere"', '"neither"'))
        status, answer = daemon.call("POST", "/v1/reload")
        assert (status, "neither does not exist" in json.dumps(answer)) == (409, True)
        assert states(daemon)["away"] == ("waiting", "for the device nowhere")


def test_a_master_that_another_daemon_serves_is_taken_over_when_that_ends(lab: Lab) -> None:
    lab.make_master("m1", "w1")
    second = {**switch("m1", lab.host, [port("ipvl2", lab.ports[1])]), "name": "second"}
    with Daemon({**second, "port": []}, home=lab.home) as first:
        first.wait()
        with Daemon(good(lab), second, home=lab.home) as daemon:
            started(daemon)
            assert states(daemon)["second"] == ("failed", "m1 is already served by another ipvswd")
            first.stop()
            daemon.wait()


def test_it_does_not_keep_a_successor_from_taking_over(lab: Lab) -> None:
    with Daemon(bad(lab, "away", "nowhere"), good(lab), home=lab.home) as daemon:
        started(daemon)
        old, daemon.process = daemon.process, None
        assert old is not None
        daemon.start("--takeover")
        assert old.wait() == 0
        started(daemon)
        assert states(daemon)["away"] == ("waiting", "for the device nowhere")
        lab.reachable(lab.ports[0], WIRE4)
