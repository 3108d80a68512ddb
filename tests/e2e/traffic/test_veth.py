"""Ports whose device is a veth: the kernel forwards known unicast, the daemon everything else, and all that whenever
something is set that the kernel can't do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.outage import Numbered
from tests.support.patience import until
from tests.support.running import Daemon
from tests.support.sniff import Sniffer, raw, sniffing
from tests.support.topology import WIRE4, WIRE6, Lab, port4, port6
from tests.support.traffic import tcp
from tests.support.veths import COUNT, by_kernel, change, goes_by_kernel, table
from tests.support.wire.frames import udp4


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(3) as made:
        yield made


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    with Daemon(*table(lab), home=lab.home) as daemon:
        yield daemon.wait()


def test_known_unicast_is_the_kernels(lab: Lab, lan: Daemon) -> None:
    netns = lab.ports[0]
    for address in (port4(2), port6(2), WIRE4, WIRE6):
        assert goes_by_kernel(lab, lan, netns, address), address
    tcp(netns, lab.ports[1], port4(2))
    tcp(netns, lab.wire, WIRE4)
    tcp(lab.wire, netns, port6(1))
    stats = lan.stats()[0]
    assert stats["master"]["kernel_frames"] >= 2 * COUNT
    for one in (stats["master"], *stats["ports"].values()):
        assert one["rx_frames"] == sum(one["outcomes"].values())
        assert one["kernel_frames"] <= one["outcomes"]["to_port"] + one["outcomes"]["to_master"]
    assert (lan.port("ipvl1")["device"], lan.port("ipvl1")["path"]) == ("veth", "fast")
    assert "veth    fast" in lan.cli("show")


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"guard": ["ip-source"]}, "slow (guard)"),
        ({"rate": "1gbit"}, "slow (rate)"),
        ({"packets": "100k", "rate": "1gbit"}, "slow (rate, packets)"),
    ],
)
def test_what_the_kernel_can_not_do_is_the_daemons(lab: Lab, lan: Daemon, keys: dict[str, Any], path: str) -> None:
    netns = lab.ports[0]
    change(lab, lan, first=keys)
    until(lambda: lan.port("ipvl1")["path"] == path, f"the path is {path}")
    before = by_kernel(lan)
    lab.reachable(netns, WIRE4)
    assert lab.ping(netns, port4(2), COUNT) == COUNT
    assert by_kernel(lan) == before
    change(lab, lan)
    until(lambda: lan.port("ipvl1")["path"] == "fast", "the path is fast again")
    assert goes_by_kernel(lab, lan, netns, port4(2))


def test_the_mtu_may_be_the_masters(lab: Lab, lan: Daemon) -> None:
    lab.ip(lab.host, "link", "set", "m0", "mtu", "9000")
    lab.ip(lab.wire, "link", "set", "w0", "mtu", "9000")
    until(lambda: all(lan.port(f"ipvl{k}")["mtu"] == 9000 for k in (1, 2, 3)), "the ports have it")
    for address in (port4(2), WIRE4):
        lab.reachable(lab.ports[0], address)
        before = by_kernel(lan)
        lab.execute(lab.ports[0], "ping", "-n", "-q", "-c", "3", "-i", "0.1", "-M", "do", "-s", "8972", address)
        assert by_kernel(lan) - before == 3


def seen(sniffer: Sniffer) -> list[bytes]:
    return [frame for _, frame in sniffer.frames]


def test_a_guard_keeps_back_what_the_kernel_would_forward(lab: Lab, lan: Daemon) -> None:
    with raw(lab.ports[0], "ipvl1") as sock, sniffing(lab.ports[1], "ipvl2") as sibling:
        spoofed = udp4("10.1.9.9", port4(2), b"spoofed")
        sock.send(spoofed)
        until(lambda: spoofed in seen(sibling), "without a guard it arrives")
        change(lab, lan, first={"guard": ["ip-source"]})
        until(lambda: lan.port("ipvl1")["path"] == "slow (guard)", "the guard is on")
        kept = udp4("10.1.9.9", port4(2), b"kept back")
        sock.send(kept)
        until(lambda: lan.stats()[0]["ports"]["ipvl1"]["outcomes"]["guard_ip_source"] == 1, "it is dropped")
        assert kept not in seen(sibling)


def test_an_own_mac_address_is_the_daemons_to_rewrite(lab: Lab, lan: Daemon) -> None:
    change(lab, lan, first={"mac": "own"})
    until(lambda: lan.port("ipvl1")["path"] == "slow (mac own)", "it has a MAC address of its own")
    for address in (port4(2), WIRE4, WIRE6):
        lab.reachable(lab.ports[0], address)
    assert by_kernel(lan) == 0


def test_ports_of_both_kinds_reach_each_other(lab: Lab, lan: Daemon) -> None:
    change(lab, lan, third="tap")
    lan.wait()
    assert (lan.port("ipvl3")["device"], lan.port("ipvl3")["path"]) == ("tap", "")
    for (j, source), (k, target) in itertools.permutations(enumerate(lab.ports, 1), 2):
        for address in (port4(k), port6(k)):
            lab.reachable(source, address)
            tcp(source, target, address, size=100_000)
        assert j != k
    assert goes_by_kernel(lab, lan, lab.ports[0], port4(2))
    assert not goes_by_kernel(lab, lan, lab.ports[0], port4(3))


@pytest.mark.parametrize(("mode", "flag"), [("l3", "bridge"), ("l3s", "bridge"), ("l2", "private"), ("l2", "vepa")])
def test_modes_and_flags_hold(lab: Lab, lan: Daemon, mode: str, flag: str) -> None:
    netns = lab.ports[0]
    lab.reachable(netns, port4(2))
    change(lab, lan, mode=mode, flag=flag)
    until(lambda: (lan.show()[0]["mode"], lan.show()[0]["flag"]) == (mode, flag), "the switch has changed")
    if flag == "bridge":
        assert goes_by_kernel(lab, lan, netns, port4(2))
    else:
        assert goes_by_kernel(lab, lan, netns, WIRE4)
        assert lab.ping(netns, port4(2), 3, wait=0.3) == 0


def test_an_address_is_followed(lab: Lab, lan: Daemon) -> None:
    """From a port to another one, and to nobody."""
    lab.ip(lab.ports[1], "addr", "add", "10.1.8.8/16", "dev", "ipvl2")
    assert goes_by_kernel(lab, lan, lab.ports[0], "10.1.8.8")
    lab.ip(lab.ports[1], "addr", "del", "10.1.8.8/16", "dev", "ipvl2")
    until(lambda: lab.ping(lab.ports[0], "10.1.8.8", wait=0.2) == 0, "nobody has it")
    lab.ip(lab.ports[2], "addr", "add", "10.1.8.8/16", "dev", "ipvl3")
    assert goes_by_kernel(lab, lan, lab.ports[0], "10.1.8.8")


def test_nothing_is_lost_of_what_the_kernel_forwards_when_the_daemon_is_killed(lab: Lab, lan: Daemon) -> None:
    """Nor while none runs, nor when the next one starts."""
    netns, target = lab.ports[:2]
    lab.reachable(lab.wire, port6(1))
    with (
        Numbered(netns, target, port4(2)) as between,
        Numbered(lab.wire, netns, port6(1)) as inwards,
        Numbered(target, lab.wire, WIRE4) as outwards,
    ):
        every = (between, inwards, outwards)
        lan.kill()
        for one in every * 3:
            one.goes_on()
        assert [one.lost for one in every] == [0, 0, 0]
        lan.start()
        lan.wait()
        for one in every * 3:
            one.goes_on()
    assert [one.lost for one in every] == [0, 0, 0]
    assert [one.doubled for one in every] == [0, 0, 0]
    assert goes_by_kernel(lab, lan, netns, port4(2))


def test_the_switch_says_what_its_ports_are(lab: Lab, lan: Daemon) -> None:
    text = lan.config.read_text()
    by_default = text.replace('device = "veth"\n', "", 1)
    for changed, first in (
        (by_default, "tap"),
        (by_default.replace('name = "lan"', 'name = "lan"\ndevice = "auto"'), "veth"),
    ):
        lan.config.write_text(changed)
        done = lan.cli("reload")
        assert "remove port lan/ipvl1\n" in done and "add port lan/ipvl1 as" in done
        assert "ipvl2" not in done
        lan.wait()
        assert [lan.port(f"ipvl{k}")["device"] for k in (1, 2, 3)] == [first, "veth", "veth"]
    assert goes_by_kernel(lab, lan, lab.ports[0], port4(2))


def test_an_endpoint_that_was_deleted_comes_back(lab: Lab, lan: Daemon) -> None:
    lab.ip(lab.ports[1], "link", "del", "ipvl2")
    until(lambda: lab.link(lab.ports[1], "ipvl2"), "it is there again")
    lan.wait()
    assert goes_by_kernel(lab, lan, lab.ports[0], port4(2))
    lab.ip(lab.ports[1], "link", "set", "ipvl2", "down")
    until(lambda: lan.port("ipvl2")["state"] == "down", "it is seen to be down")
    assert lab.ping(lab.ports[0], port4(2), wait=0.2) == 0
    lab.ip(lab.ports[1], "link", "set", "ipvl2", "up")
    lan.wait()
    assert goes_by_kernel(lab, lan, lab.ports[0], port4(2))


def names(lab: Lab) -> set[str]:
    return {link["ifname"] for link in lab.links(lab.host)}


def pairs(lab: Lab) -> set[str]:
    return {name for name in names(lab) if name.startswith(("se-", "st-"))}


def test_nothing_is_left(lab: Lab) -> None:
    before = names(lab)
    with Daemon(*table(lab), home=lab.home) as daemon:
        daemon.wait()
        assert len(pairs(lab)) == 2 * len(lab.ports)
        change(lab, daemon, third="tap")
        daemon.wait()
        assert len(pairs(lab)) == 2 * (len(lab.ports) - 1)
    assert names(lab) == before
    assert all(lab.link(netns, f"ipvl{k}") is None for k, netns in enumerate(lab.ports, 1))


def test_the_next_daemon_deletes_what_nobody_has_any_more(lab: Lab, lan: Daemon) -> None:
    """Of a port that left the file while no daemon ran."""
    lan.kill()
    assert lab.link(lab.ports[2], "ipvl3")
    text = lan.config.read_text()
    lan.config.write_text(text[: text.rindex("[[switch.port]]")])
    lan.start()
    lan.wait()
    until(lambda: lab.link(lab.ports[2], "ipvl3") is None, "its endpoint is gone")
    assert goes_by_kernel(lab, lan, lab.ports[0], port4(2))
