"""The CNI plugin with `"ipam": {"type": "ipvsw-dhcp"}`: the daemon leases the address, of a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.plugins.cni import REAL, Cni
from tests.support.patience import until
from tests.support.programs.dnsmasq import Dnsmasq
from tests.support.running import Daemon, switch
from tests.support.topology import WIRE4, Lab

DHCP = {"type": "ipvsw-dhcp"}


@pytest.fixture
def cni(tmp_path: Path) -> Iterator[Cni]:
    if not REAL.is_dir():
        pytest.skip("the reference CNI plugins are not installed (Debian: containernetworking-plugins)")
    with Lab(2) as lab, Daemon(switch("m0", lab.host), home=lab.home, keeps=True) as daemon:
        daemon.wait()
        yield Cni(lab, daemon, tmp_path)
        assert not daemon.state.exists()


def test_containers_lease_and_give_back(cni: Cni, tmp_path: Path) -> None:
    server = Dnsmasq(cni.lab, tmp_path)
    server.start("--dhcp-option=option:classless-static-route,198.51.100.0/24,10.1.0.7,0.0.0.0/0," + WIRE4)
    config = cni.config(ipam=DHCP)
    answers = [
        cni.done("ADD", config, CNI_CONTAINERID=f"c{k}", CNI_NETNS=f"/run/netns/{netns}")
        for k, netns in enumerate(cni.lab.ports)
    ]
    addresses = [answer["ips"][0]["address"] for answer in answers]
    assert len(set(addresses)) == 2 and all(one.startswith("10.1.9.") and one.endswith("/16") for one in addresses)
    assert answers[0]["ips"] == [{"interface": 0, "address": addresses[0], "gateway": WIRE4}]
    assert answers[0]["routes"] == [{"dst": "0.0.0.0/0", "gw": WIRE4}, {"dst": "198.51.100.0/24", "gw": "10.1.0.7"}]
    assert answers[0]["dns"] == {"nameservers": ["10.1.0.53"], "domain": "lan.test"}
    cni.lab.reachable(cni.lab.wire, addresses[0].split("/")[0])
    cni.lab.reachable(cni.lab.ports[0], addresses[1].split("/")[0])
    cni.done("CHECK", config | {"prevResult": answers[0]}, CNI_CONTAINERID="c0")
    for k, netns in enumerate(cni.lab.ports):
        cni.done("DEL", config, CNI_CONTAINERID=f"c{k}", CNI_NETNS=f"/run/netns/{netns}")
    until(lambda: server.said("DHCPRELEASE") == 2, "the server has both back")
    assert not cni.ports() and cni.link() is None


def test_an_add_without_a_server_has_left_nothing(cni: Cni) -> None:
    """The runtime is told to try again."""
    assert cni.failed("ADD", cni.config(ipam=DHCP)) == 11
    assert not cni.ports() and cni.link() is None


def test_the_address_is_leased_in_l2_alone(cni: Cni) -> None:
    assert cni.failed("ADD", cni.config(ipam=DHCP, mode="l3")) == 100
    assert not cni.ports()
