"""Docker with the network plugin as it is installed, through restarts of each of the three."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.judges.judged import Judged
from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, Daemon, switch
from tests.support.topology import WIRE4, WIRE6, Lab

PROGRAM = "/usr/local/sbin/ipvsw-docker"
CONTAINERD = "/run/containerd/containerd.sock"
DOCKERD = (
    "dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs --data-root=/run/docker-data"
    f" --live-restore --containerd={CONTAINERD}"
)
SUBNETS = ("--ipv6", "--subnet", "10.1.0.0/16", "--gateway", WIRE4, "--ip-range", "10.1.7.0/24")
SUBNETS6 = ("--subnet", "fd00:1::/64", "--gateway", WIRE6)


class Docker:
    """`dockerd` and the plugin in the root, each of which may be started anew."""

    def __init__(self, judged: Judged, lab: Lab, daemon: Daemon) -> None:
        self.judged, self.lab, self.daemon = judged, lab, daemon
        self.plugin = self.spawn(PROGRAM, "--socket", "/var/lib/ipvsw/api.sock")
        self.containerd = self.spawn("containerd")
        until(lambda: Path(f"{judged.path}{CONTAINERD}").exists(), "containerd serves")
        self.dockerd = self.start_dockerd()

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        with Path(self.daemon.directory.name, words[0].rpartition("/")[2] + ".log").open("ab") as log:
            return subprocess.Popen(self.judged.command(*words), stdout=log, stderr=log)

    def start_dockerd(self) -> subprocess.Popen[bytes]:
        started = self.spawn(*DOCKERD.split())
        log = Path(self.daemon.directory.name, "dockerd.log")

        def serves() -> bool:
            assert started.poll() is None, log.read_text()[-2000:]
            return "Server" in self("version", check=False)

        until(serves, "dockerd serves", every=0.2)
        return started

    def __call__(self, *words: str, check: bool = True) -> str:
        return self.judged.run("docker", *words, check=check)

    def network(self, name: str, *more: str) -> None:
        self("network", "create", "-d", "ipvsw", "-o", "parent=m0", *more, name)

    def start(self, name: str, network: str, *more: str) -> None:
        self("run", "-d", "--name", name, "--network", network, *more, "tree", "sleep", "1000")

    def ports(self) -> list[dict[str, Any]]:
        return [port for one in self.daemon.show() for port in one["ports"]]

    def reaches(self, name: str, address: str) -> None:
        def answered() -> bool:
            return "1 packets received" in self("exec", name, "ping", "-c", "1", "-W", "1", address, check=False)

        until(answered, f"{name} reaches {address}", every=0.1)

    def end(self) -> None:
        named = {"dockerd": self.dockerd, "containerd": self.containerd, PROGRAM: self.plugin}
        for name, one in named.items():
            self.judged.run("pkill", "-TERM", "-f" if one is self.plugin else "-x", name, check=False)
            one.wait(LIMIT)


@pytest.fixture(scope="module")
def setting() -> Iterator[Docker]:
    with Lab(0) as lab, Daemon(switch("m0", lab.host), home=lab.home, keeps=True) as daemon:
        daemon.wait()
        with Judged(lab.home, Path(daemon.directory.name), cgroups_of_machine=True) as judged:
            subprocess.run([ROOT / "scripts/plugin", "docker", f"{judged.path}{PROGRAM}"], check=True)
            docker = Docker(judged, lab, daemon)
            tree = judged.busybox("/srv/tree")
            judged.run("sh", "-c", f"tar -C {tree} -c . | docker import - tree")
            yield docker
            docker.end()
            assert not docker.ports()


@pytest.fixture
def docker(setting: Docker) -> Iterator[Docker]:
    yield setting
    for name in setting("ps", "--all", "--quiet").split():
        setting("rm", "-f", name)
    setting("network", "prune", "--force")
    until(lambda: not setting.ports(), "no port is left")
    assert not [link for link in setting.lab.links(setting.lab.home) if link["ifname"].startswith("dk")]


def test_containers_come_talk_and_go(docker: Docker) -> None:
    docker.network("lan", *SUBNETS, *SUBNETS6)
    docker.start("one", "lan", "--ip", "10.1.7.1", "--ip6", "fd00:1::7:1")
    docker.start("two", "lan", "--ip", "10.1.7.2", "--mac-address", "02:11:22:33:44:55")
    for address in ("10.1.7.2", WIRE4, WIRE6):
        docker.reaches("one", address)
    docker.lab.reachable(docker.lab.wire, "10.1.7.2")
    docker.lab.reachable(docker.lab.wire, "fd00:1::7:1")
    assert "02:11:22:33:44:55" in docker("exec", "two", "ip", "link", "show", "eth0")
    assert f"default via {WIRE4}" in docker("exec", "one", "ip", "route")
    docker("restart", "-t", "0", "one")
    docker.reaches("one", "10.1.7.2")
    assert len(docker.ports()) == 2
    docker("rm", "-f", "one")
    until(lambda: len(docker.ports()) == 1, "its port has gone")


def test_networks_are_connected_and_internal_ones_have_no_way_out(docker: Docker) -> None:
    docker.network("lan", *SUBNETS, *SUBNETS6)
    docker.network("inner", "--internal", "--subnet", "10.7.0.0/24")
    docker.start("one", "inner")
    assert "default" not in docker("exec", "one", "ip", "route")
    docker("network", "connect", "--ip", "10.1.7.3", "lan", "one")
    docker.reaches("one", WIRE4)
    docker("network", "disconnect", "lan", "one")
    until(lambda: len(docker.ports()) == 1, "one is left")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_containers_outlive_ipvswd(docker: Docker, how: str) -> None:
    docker.network("lan", *SUBNETS, *SUBNETS6)
    docker.start("one", "lan", "--ip", "10.1.7.1")
    docker.daemon.stop() if how == "stop" else docker.daemon.kill()
    docker.daemon.start()
    docker.daemon.wait()
    until(lambda: bool(docker.ports()) and docker.ports()[0]["state"] == "up", "its port is back")
    docker.reaches("one", WIRE4)
    docker.lab.reachable(docker.lab.wire, "10.1.7.1")


def test_dockerd_and_the_plugin_are_killed(docker: Docker) -> None:
    """With live-restore the container goes on, and its network with it; the plugin knows the network again."""
    docker.network("lan", *SUBNETS, *SUBNETS6)
    docker.start("one", "lan", "--ip", "10.1.7.1")
    docker.judged.run("pkill", "-KILL", "-x", "dockerd")
    docker.judged.run("pkill", "-KILL", "-f", PROGRAM)
    docker.dockerd.wait(LIMIT)
    docker.plugin.wait(LIMIT)
    docker.plugin = docker.spawn(PROGRAM, "--socket", "/var/lib/ipvsw/api.sock")
    docker.dockerd = docker.start_dockerd()
    docker.lab.reachable(docker.lab.wire, "10.1.7.1")
    docker.reaches("one", WIRE4)
    docker("restart", "-t", "0", "one")
    docker.reaches("one", WIRE4)
    assert len(docker.ports()) == 1


def test_what_is_wrong_is_said(docker: Docker) -> None:
    for words, said in (
        (("-o", "ipvlan_mode=l4", "-o", "parent=m0"), "option ipvlan_mode: l4 is not l2, l3, l3s"),
        (("-o", "parnet=m0"), "option parnet: unknown"),
        ((), "option parent: missing"),
    ):
        assert said in docker("network", "create", "-d", "ipvsw", *words, "bad", check=False)
    docker.network("lan", *SUBNETS, *SUBNETS6)
    said = docker("run", "--rm", "--network", "lan", "-p", "8080:80", "tree", "true", check=False)
    assert "-p: a container of this network" in said
    docker("network", "create", "-d", "ipvsw", "-o", "parent=m9", "--subnet", "10.9.0.0/24", "nowhere")
    assert "m9 does not exist" in docker("run", "--rm", "--network", "nowhere", "tree", "true", check=False)
    until(lambda: not docker.ports(), "nothing is left")
    assert json.loads(docker("network", "inspect", "lan"))[0]["Driver"] == "ipvsw"
