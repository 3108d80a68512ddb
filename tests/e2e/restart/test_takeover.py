"""Another daemon goes on in the place of the one that runs, and nothing between is lost."""

from __future__ import annotations

import pytest

from ipvsw.daemon.state import VERSION
from tests.e2e.restart.test_kill import index
from tests.support import leftovers
from tests.support.outage import LinkEvents, Numbered
from tests.support.patience import LIMIT, until
from tests.support.running import Daemon, port, switch, take_over
from tests.support.topology import WIRE4, Lab, port4
from tests.support.traffic import Stream


@pytest.mark.parametrize("io", ["epoll", "auto"])
def test_nothing_between_ports_is_lost_or_doubled(lab: Lab, io: str) -> None:
    before = leftovers.network(lab)
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home, io=io) as daemon:
        daemon.wait()
        lab.ip(lab.ports[0], "addr", "add", "10.1.77.7/16", "dev", "ipvl1")
        was = index(lab, lab.ports[0], "ipvl1")
        lab.reachable(lab.ports[0], port4(2))
        with (
            LinkEvents(lab, lab.ports[0]) as events,
            Stream(lab.ports[0], lab.ports[1], port4(2)) as stream,
            Numbered(lab.ports[0], lab.ports[1], port4(2)) as between,
            Numbered(lab.ports[0], lab.wire, WIRE4) as outwards,
            Numbered(lab.wire, lab.ports[1], port4(2)) as inwards,
        ):
            for _ in range(3):
                take_over(daemon)
                for each in (between, outwards, inwards):
                    each.goes_on()
                stream.flows()
            assert events.disturbances() == []
        for each in (between, outwards, inwards):
            print(f"{each.sent} sent, gap {each.gap:.3f} s")
            assert (each.lost, each.doubled) == (0, 0)
        assert index(lab, lab.ports[0], "ipvl1") == was
        lab.reachable(lab.wire, "10.1.77.7")
        daemon.stop()
        until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_hosts_interface_stays(lab: Lab, workers: int) -> None:
    """With routes and rules; what the host sends meanwhile arrives."""
    before = leftovers.network(lab)
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1)]
    lan = switch("m0", lab.host, ports, mode="l3s", host_access="both")
    with Daemon(lan, home=lab.home, workers=workers) as daemon:
        daemon.wait()
        was = index(lab, lab.host, "ipvsw-m0")
        rules = lab.ip(lab.host, "rule")
        lab.reachable(lab.host, port4(1))
        with LinkEvents(lab, lab.host) as events, Numbered(lab.host, lab.ports[0], port4(1), rate=300) as numbered:
            take_over(daemon)
            numbered.goes_on()
            daemon.kill()
            daemon.start()
            daemon.wait()
            numbered.goes_on()
            assert events.disturbances() == []
        assert (numbered.lost, numbered.doubled) == (0, 0)
        assert index(lab, lab.host, "ipvsw-m0") == was
        assert lab.ip(lab.host, "rule") == rules
        daemon.kill()
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace('mode = "l3s"', 'mode = "l2"').replace('"both"', '"none"'))
        daemon.start()
        daemon.wait()
        until(lambda: lab.link(lab.host, "ipvsw-m0") is None, "the file does not want it any more")
        lab.reachable(lab.wire, port4(1))
        daemon.stop()
        until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)


def test_an_older_successor_takes_nothing(lab: Lab, lan: Daemon) -> None:
    """It could not read what may wait in the ports' devices."""
    was = index(lab, lab.ports[0], "ipvl1")
    for version in (1, VERSION - 1):
        status, answer = lan.call("POST", "/v1/takeover", {"state": version})
        assert (status, "an older one can't take over" in str(answer)) == (409, True)
    lab.reachable(lab.ports[0], port4(2))
    assert index(lab, lab.ports[0], "ipvl1") == was


def test_counters_and_what_was_added_go_on(lab: Lab, lan: Daemon) -> None:
    lab.add(f"{lab.prefix}-p3")
    lan.cli(*f"link add link m0 name ipvl3 netns {lab.prefix}-p3 type ipvlan address {port4(3)}/16".split())
    lab.ping(lab.ports[0], WIRE4, 20)
    before = lan.stats()[0]["ports"]["ipvl1"]["rx_frames"]
    take_over(lan)
    assert lan.stats()[0]["ports"]["ipvl1"]["rx_frames"] >= before >= 20
    lab.reachable(f"{lab.prefix}-p3", WIRE4)


def test_a_successor_with_a_wrong_file_takes_nothing(lab: Lab, lan: Daemon) -> None:
    process, good = lan.process, lan.config.read_text()
    lan.config.write_text(good.replace('master = "m0"', 'master = "nothing"'))
    lan.start("--takeover")
    assert lan.process is not None
    assert lan.process.wait(LIMIT) == 2
    lan.process = process
    assert process is not None and process.poll() is None
    lan.config.write_text(good)
    lab.reachable(lab.ports[0], WIRE4)


def test_without_a_daemon_it_is_an_ordinary_start(lab: Lab, lan: Daemon) -> None:
    lan.stop()
    lan.start("--takeover")
    lan.wait()
    lab.reachable(lab.ports[0], WIRE4)


def test_an_older_state_is_not_handed_over(lab: Lab, lan: Daemon) -> None:
    status, answer = lan.call("POST", "/v1/takeover", {"state": 0})
    assert (status, "an older one can't take over" in answer["error"]) == (409, True)
    status, _ = lan.call("POST", "/v1/takeover", {"version": 1})
    assert status == 400
    lab.reachable(lab.ports[0], WIRE4)
