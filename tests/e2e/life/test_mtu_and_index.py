"""A port's MTU and index: what the configuration says, what the namespace does, and what `link set` changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.topology import Lab, port4


def configured(lab: Lab, **more: Any) -> dict[str, Any]:
    return switch("m0", lab.host, [port("ipvl1", lab.ports[0], [f"{port4(1)}/16"], **more)])


def mtu(lab: Lab) -> int:
    link = lab.link(lab.ports[0], "ipvl1")
    assert link is not None
    return int(link["mtu"])


@pytest.mark.parametrize("device", ("tap", "veth"))
def test_an_mtu_of_the_configuration_is_put_back(lab: Lab, device: str) -> None:
    with Daemon(configured(lab, mtu=1300, device=device), home=lab.home) as daemon:
        daemon.wait()
        for other in (1500, 1290):
            lab.ip(lab.ports[0], "link", "set", "ipvl1", "mtu", str(other))
            until(lambda: mtu(lab) == 1300, "the configured MTU is back")
        assert "MTU 1300" in daemon.said()
        assert until(lambda: daemon.stats()[0]["repaired"].get("mtu", 0) == 2, "both were counted")


def test_without_one_the_namespace_may_choose(lab: Lab) -> None:
    with Daemon(configured(lab), home=lab.home) as daemon:
        daemon.wait()
        lab.ip(lab.ports[0], "link", "set", "ipvl1", "mtu", "1290")
        until(lambda: daemon.port("ipvl1")["mtu"] == 1290, "the daemon knows")
        lab.ip(lab.ports[0], "addr", "add", f"{port4(2)}/16", "dev", "ipvl1")  # its device is read again
        until(lambda: len(daemon.port("ipvl1")["addresses"]) > 1, "the address is known")
        assert mtu(lab) == 1290
        lab.ip(lab.host, "link", "set", "m0", "mtu", "1400")
        until(lambda: mtu(lab) == 1400, "the master's is every port's")


def test_link_set_changes_a_ports_mtu_in_place_and_for_the_next_daemon(lab: Lab) -> None:
    with Daemon(configured(lab, mtu=1400), home=lab.home) as daemon:
        daemon.wait()
        was = lab.link(lab.ports[0], "ipvl1")
        daemon.cli("link", "set", "dev", "ipvl1", "mtu", "1350")
        until(lambda: mtu(lab) == 1350, "the device has it")
        assert daemon.call("PATCH", "/v1/ports/ipvl1", {"mtu": 1501})[0] == 409
        assert daemon.call("PATCH", "/v1/ports/ipvl1", {})[0] == 400
        daemon.kill()
        daemon.start()
        daemon.wait()
        now = lab.link(lab.ports[0], "ipvl1")
        assert was is not None and now is not None
        assert (now["ifindex"], now["mtu"]) == (was["ifindex"], 1350)
        daemon.cli("reload")
        until(lambda: mtu(lab) == 1400, "a reload brings back what the file says")


def test_a_port_has_the_index_that_was_asked_for(lab: Lab) -> None:
    with Daemon(configured(lab, index=77), home=lab.home) as daemon:
        daemon.wait()
        link = lab.link(lab.ports[0], "ipvl1")
        assert link is not None and link["ifindex"] == 77 == daemon.port("ipvl1")["index"]
        words = ("link", "add", "link", "m0", "name", "ipvl2", "netns", lab.ports[0], "type", "ipvlan", "index")
        assert daemon.cli(*words, "77", check=False) == ""
        assert [p["name"] for p in daemon.show()[0]["ports"]] == ["ipvl1"]
        daemon.cli(*words, "78")
        assert daemon.port("ipvl2")["index"] == 78
