"""containerd, asked as a kubelet asks it, with the CNI plugin as it is installed, through restarts of each."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.judges.judged import Judged
from tests.support.patience import LIMIT, until
from tests.support.programs.dnsmasq import Dnsmasq
from tests.support.running import FOLLOWED, ROOT, Daemon, again, switch
from tests.support.sniff import sniffing
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, WIRE4, WIRE6, Lab
from tests.support.traffic import Stream

TOOLS = Path(__file__).with_name("cri")
SOCKET = "/run/containerd/containerd.sock"
OURS = bytes.fromhex(MASTER_MAC.replace(":", ""))
CONFIG = """
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/tree:1"
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "crun"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
BinaryName = "/usr/bin/crun"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
"""
HOST_LOCAL = {
    "type": "host-local",
    "ranges": [
        [{"subnet": "10.1.0.0/16", "rangeStart": "10.1.7.1", "rangeEnd": "10.1.7.99", "gateway": WIRE4}],
        [{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::7:1", "rangeEnd": "fd00:1::7:ff", "gateway": WIRE6}],
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}


class Pod:
    def __init__(self, containerd: Containerd, name: str) -> None:
        self._ask = containerd.ask
        self.id, self._container = self._ask("run", name).split()
        self.addresses = self._ask("addresses", self.id).split()

    @property
    def netns(self) -> str:
        """The name of its namespace."""
        return self._ask("namespace", self.id).strip().rpartition("/")[2]

    def tell(self, *words: str) -> str:
        return self._ask("exec", self._container, *words, check=False)

    def reaches(self, address: str) -> None:
        def answered() -> bool:
            return "1 packets received" in self.tell("ping", "-c", "1", "-W", "1", address)

        until(answered, f"{self.addresses} reaches {address}", every=0.1)

    def stop(self, *, check: bool = True) -> str:
        return self._ask("stop", self.id, check=check)


class Containerd:
    def __init__(self, judged: Judged, lab: Lab, daemon: Daemon) -> None:
        self.judged, self.lab, self.daemon = judged, lab, daemon
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        with Path(self.daemon.directory.name, "containerd.log").open("ab") as log:
            started = subprocess.Popen(self.judged.command("containerd"), stdout=log, stderr=log)

        def serves() -> bool:
            assert started.poll() is None, Path(self.daemon.directory.name, "containerd.log").read_text()[-2000:]
            return "Server:" in self.judged.run("ctr", "version", check=False)

        until(serves, "containerd serves", every=0.1)
        return started

    def end(self, how: str) -> None:
        self.judged.run("pkill", f"-{how}", "-x", "containerd")
        self.process.wait(LIMIT)

    def ask(self, *words: str, check: bool = True) -> str:
        return self.judged.run("/opt/cri/crictl", *words, check=check)

    def network(self, name: str, ipam: dict[str, Any]) -> None:
        """That of pods from now on."""
        plugin = {"type": "ipvsw", "master": "m0", "ipam": ipam, "ipvsw": {"socket": "/var/lib/ipvsw/api.sock"}}
        config = {"cniVersion": "1.0.0", "name": name, "plugins": [plugin]}
        self.judged.write("/etc/cni/net.d/10-lan.conflist", json.dumps(config))
        until(lambda: name in self.ask("networks", check=False).split(), "containerd has read it", every=0.1)
        assert "NetworkReady" not in self.ask("conditions")

    def ports(self) -> list[dict[str, Any]]:
        return [port for one in self.daemon.show() for port in one["ports"]]

    def reserved(self) -> list[str]:
        """Addresses that the IPAM plugin has given away."""
        return [path.name for path in (self.judged.path / "var/lib/cni/networks").glob("*/[1f]*")]


@pytest.fixture(scope="module")
def setting() -> Iterator[Containerd]:
    with Lab(0) as lab, sniffing(lab.wire, "w0") as wire:
        with Daemon(switch("m0", lab.host, host_access="both"), home=lab.home, keeps=True) as daemon:
            daemon.wait()
            with Judged(lab.home, Path(daemon.directory.name), netns_of_machine=True) as judged:
                subprocess.run([ROOT / "scripts/plugin", "cni", f"{judged.path}/usr/lib/cni/ipvsw"], check=True)
                judged.write("/etc/containerd/config.toml", CONFIG)
                for path in TOOLS.iterdir():
                    judged.write(f"/opt/cri/{path.name}", path.read_text(), 0o755)
                judged.run("protoc", "--proto_path=/opt/cri", "--python_out=/opt/cri", "cri.proto")
                judged.run("/opt/cri/image", judged.busybox("/srv/tree"), "localhost/tree:1", "/run/tree.tar")
                containerd = Containerd(judged, lab, daemon)
                judged.run("ctr", "--namespace", "k8s.io", "images", "import", "/run/tree.tar")
                held = daemon.fds()
                yield containerd
                containerd.end("TERM")
                assert not [link for link in lab.links(lab.home) if link["ifname"] != "lo"]
                until(lambda: daemon.fds() <= held, "no descriptor is left")
            assert not daemon.state.exists()
        assert {frame[6:12] for _, frame in wire.frames} == {OURS}


@pytest.fixture
def containerd(setting: Containerd) -> Iterator[Containerd]:
    """With a network of both families. Every pod of a test is stopped by it, and nothing is left."""
    setting.network("lan", HOST_LOCAL)
    yield setting
    until(lambda: not setting.ports(), "no port is left")
    assert not setting.reserved()


def test_pods_come_talk_and_go(containerd: Containerd) -> None:
    one, two = Pod(containerd, "one"), Pod(containerd, "two")
    assert [address.partition(":")[0] for address in one.addresses] == [one.addresses[0], "fd00"]
    for address in (*two.addresses, WIRE4, WIRE6, MASTER4, MASTER6):
        one.reaches(address)
    for netns in (containerd.lab.wire, containerd.lab.host):
        for address in one.addresses:
            containerd.lab.reachable(netns, address)
    assert {port["label"].split(":")[2] for port in containerd.ports()} == {one.id, two.id}
    one.stop()
    assert [port["label"].split(":")[2] for port in containerd.ports()] == [two.id]
    again = Pod(containerd, "one")
    again.reaches(two.addresses[0])
    for pod in (two, again):
        pod.stop()


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_connections_outlive_ipvswd(containerd: Containerd, how: str) -> None:
    daemon, lab = containerd.daemon, containerd.lab
    pod = Pod(containerd, "one")
    with Stream(lab.wire, pod.netns, pod.addresses[0]) as stream:
        stream.flows()
        FOLLOWED[how](daemon)
        stream.flows()
    pod.reaches(WIRE6)
    pod.stop()


def test_pods_outlive_containerd(containerd: Containerd) -> None:
    pod = Pod(containerd, "one")
    containerd.lab.reachable(containerd.lab.wire, pod.addresses[1])  # no other has the address: it may be bound to
    with Stream(containerd.lab.wire, pod.netns, pod.addresses[1]) as stream:
        stream.flows()
        containerd.end("KILL")
        containerd.process = containerd.start()
        stream.flows()
    pod.reaches(WIRE4)
    pod.stop()


def test_a_pod_stops_when_ipvswd_is_back(containerd: Containerd) -> None:
    """Without the daemon its address might be given to another; so the kubelet tries again."""
    pod = Pod(containerd, "one")
    containerd.daemon.stop()
    assert "does ipvswd run?" in pod.stop(check=False)
    assert "does ipvswd run?" in containerd.ask("run", "late", check=False)
    containerd.daemon.start()
    containerd.daemon.wait()
    pod.stop()


def test_a_pod_whose_namespace_is_gone(containerd: Containerd) -> None:
    """As after a crash of the host: the port goes by itself, the address when the runtime says so."""
    pod = Pod(containerd, "one")
    netns = pod.netns
    containerd.judged.run("pkill", "-KILL", "-x", "sleep")
    containerd.judged.run("umount", f"/run/netns/{netns}")
    containerd.judged.run("rm", "-f", f"/run/netns/{netns}")
    until(lambda: not containerd.ports(), "its port has gone")
    pod.stop()


def test_pods_lease_by_dhcp(containerd: Containerd, tmp_path: Path) -> None:
    server = Dnsmasq(containerd.lab, tmp_path)
    server.start()
    containerd.network("leased", {"type": "ipvsw-dhcp"})
    one, two = Pod(containerd, "one"), Pod(containerd, "two")
    assert one.addresses != two.addresses and one.addresses[0].startswith("10.1.9.")
    one.reaches(two.addresses[0])
    one.reaches(WIRE4)
    again(containerd.daemon)
    containerd.lab.reachable(containerd.lab.wire, one.addresses[0])
    for pod in (one, two):
        pod.stop()
    until(lambda: server.said("DHCPRELEASE") == 2, "both are given back")
    server.stop()


def test_a_master_that_is_missing_is_said(containerd: Containerd) -> None:
    plugin = {"type": "ipvsw", "master": "m9", "ipam": HOST_LOCAL, "ipvsw": {"socket": "/var/lib/ipvsw/api.sock"}}
    config = {"cniVersion": "1.0.0", "name": "nowhere", "plugins": [plugin]}
    containerd.judged.write("/etc/cni/net.d/10-lan.conflist", json.dumps(config))
    until(lambda: "nowhere" in containerd.ask("networks"), "containerd has read it", every=0.1)
    assert "m9" in containerd.ask("run", "lost", check=False)
    assert not containerd.ports()
