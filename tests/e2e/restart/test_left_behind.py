"""What left the file while no daemon ran is undone by the next start, whatever it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leftovers
from tests.support.patience import until
from tests.support.running import Daemon, port, switch, toml
from tests.support.topology import WIRE4, Lab, inside, port4, run

Table = dict[str, Any]
MODES = ("l2", "l3", "l3s")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two masters."""
    with Lab(3) as made:
        made.make_master("m1", "w1")
        yield made


def of_every_kind(lab: Lab, mode: str) -> Table:
    """A switch with devices, rules, routes, sysctls and programs."""
    first, second, third = lab.ports
    ports = [
        port("plain", first, [f"{port4(1)}/16"]),
        port("fast", second, [f"{port4(2)}/16"], device="veth"),
        port("tap", third, [f"{port4(3)}/16"], kind="tap", ifname="tap0"),
        port("macvtap", third, [f"{port4(4)}/16"], kind="macvtap", ifname="mvt0"),
    ]
    return switch("m0", lab.host, ports, mode=mode, host_access="both")


def other(lab: Lab) -> Table:
    return switch("m1", lab.host, [port("other", lab.ports[0], ["10.9.0.1/16"])]) | {"name": "other"}


def state(lab: Lab) -> dict[str, object]:
    """Everything that a daemon leaves, by names without the number that the kernel gives what is made again."""
    rules = [sorted(run("ip", family, "-n", lab.host, "rule").splitlines()) for family in ("-4", "-6")]
    with inside(lab.host):
        forwarding = {
            str(path): path.read_text() for path in sorted(Path("/proc/sys/net").glob("ipv[46]/conf/m*/*forwarding"))
        }
    devices = {
        name: sorted(re.sub(r"^(s.-)\d+$", r"\1", one["ifname"]) for one in lab.links(name))
        for name in (lab.host, lab.wire, *lab.ports)
    }
    programs = {name: len(leftovers.tc_programs(lab.host, name)) for name in ("m0", "m1") if name in devices[lab.host]}
    return {"rules": rules, "forwarding": forwarding, "devices": devices, "programs": programs}


def follows(daemon: Daemon, *tables: Table) -> None:
    """The file says something else while nobody reads it, and a daemon is started."""
    daemon.kill()
    daemon.config.write_text(toml(daemon.socket, tables))
    daemon.start()
    daemon.wait(states=("up", "waiting"))


@pytest.mark.parametrize("mode", MODES)
def test_a_switch_that_left_the_file(lab: Lab, mode: str) -> None:
    nothing = state(lab)
    with Daemon(other(lab), home=lab.home) as daemon:
        daemon.wait()
        alone = state(lab)
    with Daemon(of_every_kind(lab, mode), other(lab), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        assert state(lab) != alone
        follows(daemon, other(lab))
        assert "switch lan is not in the configuration any more" in daemon.said()
        assert state(lab) == alone
        lab.reachable(lab.ports[0], "10.9.0.1")
    assert state(lab) == nothing


def test_a_switch_whose_master_is_gone(lab: Lab) -> None:
    with Daemon(other(lab), home=lab.home) as daemon:
        daemon.wait()
        lab.ip(lab.host, "link", "del", "m0")
        alone = state(lab)
    lab.make_master()
    with Daemon(of_every_kind(lab, "l2"), other(lab), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        lab.ip(lab.host, "link", "del", "m0")
        follows(daemon, other(lab))
        assert state(lab) == alone


@pytest.mark.parametrize("key", ["name", "master", "netns"])
def test_a_switch_that_is_another_one_now(lab: Lab, key: str) -> None:
    """Its master is another one's, or its name is another master's, or the device is in another namespace."""
    second = {"name": "wan", "master": "m1", "netns": lab.wire}[key]
    before = of_every_kind(lab, "l3s")
    after = [before | {key: second} | ({"master": "w0"} if key == "netns" else {})]
    nothing = state(lab)
    with Daemon(*after, home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        alone = state(lab)
    with Daemon(before, home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        follows(daemon, *after)
        until(lambda: state(lab) == alone, f"a first daemon makes {alone}", every=0.1)
        lab.reachable(lab.ports[0], port4(2))
    assert state(lab) == nothing


def test_a_port_whose_device_stays_without_descriptors(lab: Lab) -> None:
    every = of_every_kind(lab, "l2")
    with Daemon(every, home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        follows(daemon, every | {"port": [one for one in every["port"] if one["name"] not in ("tap", "fast")]})
        found = state(lab)["devices"]
        assert isinstance(found, dict)
        assert "tap0" not in found[lab.ports[2]] and "mvt0" in found[lab.ports[2]]
        assert not [name for name in found[lab.host] if name.startswith("se-")]
        lab.reachable(lab.ports[0], WIRE4)


def test_a_port_that_is_another_one_now(lab: Lab) -> None:
    every = of_every_kind(lab, "l2")
    with Daemon(every, home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        changed = [one | {"ifname": "tap9"} if one["name"] == "tap" else one for one in every["port"]]
        follows(daemon, every | {"port": changed})
        assert [one["ifname"] for one in lab.links(lab.ports[2]) if one["ifname"].startswith("tap")] == ["tap9"]


def test_ports_whose_namespace_is_gone(lab: Lab) -> None:
    with Daemon(of_every_kind(lab, "l2"), other(lab), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        daemon.kill()
        run("ip", "netns", "del", lab.ports[2])
        daemon.start()
        daemon.wait(states=("up", "waiting"))
        lab.reachable(lab.ports[0], port4(2))
        lab.add(lab.ports[2])
        until(lambda: lab.link(lab.ports[2], "tap0"), "the port is in the new one")
        assert "Traceback" not in daemon.said()
