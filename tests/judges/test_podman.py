"""Podman 5 with netavark, root and rootless, and the plugin as it is installed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.judges.judged import Judged
from tests.support.patience import until
from tests.support.running import ROOT, Daemon, switch
from tests.support.topology import WIRE4, WIRE6, Lab

PLUGINS = "/usr/local/lib/netavark"
CONTAINERS = f"""
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]
[engine]
runtime = "crun"
events_logger = "file"
cgroup_manager = "cgroupfs"
[network]
netavark_plugin_dirs = ["{PLUGINS}"]
"""
STORAGE = '[storage]\ndriver = "vfs"\nrunroot = "{run}"\ngraphroot = "{graph}"\n'
SUBNETS = ("--subnet", "10.1.0.0/16", "--gateway", WIRE4, "--ip-range", "10.1.7.0/24")
SUBNETS6 = ("--subnet", "fd00:1::/64", "--gateway", WIRE6, "--ip-range", "fd00:1::7:0/112")
USER, UID = "alice", "1000"


class Podman:
    def __init__(self, judged: Judged, lab: Lab, daemon: Daemon) -> None:
        self.judged, self.lab, self.daemon = judged, lab, daemon
        self.user = ""
        self.tree = ""

    def __call__(self, *words: str, check: bool = True) -> str:
        return self.judged.run("podman", *words, user=self.user, check=check)

    def network(self, name: str, *more: str) -> None:
        self("network", "create", "-d", "ipvsw", "-o", "parent=m0", *SUBNETS, *SUBNETS6, *more, name)

    def start(self, name: str, network: str, *more: str) -> None:
        self(
            "run",
            "-d",
            "--name",
            name,
            "--network",
            network,
            "--cap-add",
            "NET_RAW",
            *more,
            "--rootfs",
            self.tree,
            "sleep",
            "1000",
        )

    def ports(self) -> list[dict[str, Any]]:
        return [port for one in self.daemon.show() for port in one["ports"]]

    def reaches(self, name: str, address: str) -> None:
        def answered() -> bool:
            return "1 packets received" in self("exec", name, "ping", "-c", "1", "-W", "1", address, check=False)

        until(answered, f"{name} reaches {address}", every=0.1)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with Lab(0) as lab:
        daemon = Daemon(switch("m0", lab.host, users=[int(UID)]), home=lab.home, keeps=True, started=False)
        shared = Path(daemon.directory.name)
        shared.chmod(0o711)
        text = daemon.config.read_text().replace("[daemon]", f'[daemon]\nusers_socket = "{shared}/users.sock"')
        daemon.config.write_text(text)
        daemon.start()
        with daemon, Judged(lab.home, shared) as judged:
            daemon.wait()
            subprocess.run([ROOT / "scripts/plugin", "netavark", f"{judged.path}{PLUGINS}/ipvsw"], check=True)
            judged.write("/etc/containers/containers.conf", CONTAINERS)
            judged.write("/etc/containers/storage.conf", STORAGE.format(run="/run/storage", graph="/srv/storage"))
            judged.run("useradd", "--create-home", "--uid", UID, USER)
            one = Podman(judged, lab, daemon)
            yield one
            assert not one.ports()
        assert not daemon.state.exists()


@pytest.fixture(params=["root", "rootless"])
def who(podman: Podman, request: pytest.FixtureRequest) -> Iterator[Podman]:
    """Podman as root, and as a user: nothing of it is left."""
    judged = podman.judged
    podman.user = USER if request.param == "rootless" else ""
    if podman.user:
        judged.run("install", "-d", "-o", USER, f"/run/user/{USER}")
        judged.run(
            "sh", "-c", f"grep -q ^{USER} /etc/subuid || echo {USER}:100000:65536 | tee -a /etc/subuid /etc/subgid"
        )
        home = f"/home/{USER}"
        conf = STORAGE.format(run=f"/run/user/{USER}/storage", graph=f"{home}/storage")
        judged.run(
            "sh", "-c", f"mkdir -p {home}/.config/containers && echo '{conf}' > {home}/.config/containers/storage.conf"
        )
        judged.run("chown", "-R", f"{USER}:", home)
    podman.tree = judged.busybox(f"/home/{USER}/tree" if podman.user else "/srv/tree", USER if podman.user else "root")
    yield podman
    podman("rm", "--all", "--force", "--time", "0")
    podman("network", "prune", "--force")
    until(lambda: not podman.ports(), "no port is left")


def test_containers_come_talk_and_go(who: Podman) -> None:
    who.network("lan")
    who.start("one", "lan:ip=10.1.7.1,ip=fd00:1::7:1")
    who.start("two", "lan:ip=10.1.7.2,ip=fd00:1::7:2,interface_name=net7")
    for address in ("10.1.7.2", "fd00:1::7:2", WIRE4, WIRE6):
        who.reaches("one", address)
    who.lab.reachable(who.lab.wire, "10.1.7.2")
    assert "net7" in who("exec", "two", "ip", "-o", "addr")
    assert f"default via {WIRE4}" in who("exec", "one", "ip", "route")
    said = json.loads(who("inspect", "one"))[0]["NetworkSettings"]["Networks"]["lan"]
    assert said["IPAddress"] == "10.1.7.1" and said["MacAddress"] == who.ports()[0]["mac"]
    labels = {port["label"].removeprefix(f"user:{UID}:").split(":")[0] for port in who.ports()}
    assert labels == {"podman"} and len(who.ports()) == 2
    who("restart", "-t", "0", "one")
    who.reaches("one", "10.1.7.2")
    assert len(who.ports()) == 2
    if not who.user:  # a reload of rootless networks is not Podman's to offer
        who("network", "reload", "one")
        who.reaches("one", "10.1.7.2")
    who("rm", "-f", "-t", "0", "one")
    until(lambda: len(who.ports()) == 1, "its port has gone")


def test_a_second_network_comes_and_goes(who: Podman) -> None:
    who.network("lan")
    who("network", "create", "-d", "ipvsw", "-o", "parent=m0", "--subnet", "10.7.0.0/24", "--internal", "other")
    who.start("one", "lan")
    who("network", "connect", "other", "one")
    assert "10.7.0." in who("exec", "one", "ip", "-o", "addr")
    assert "via 10.7.0.1" not in who("exec", "one", "ip", "route")
    who("network", "disconnect", "lan", "one")
    until(lambda: len(who.ports()) == 1, "one is left")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_containers_outlive_the_daemon(who: Podman, how: str) -> None:
    who.network("lan")
    who.start("one", "lan:ip=10.1.7.1,ip=fd00:1::7:1")
    who.daemon.stop() if how == "stop" else who.daemon.kill()
    who.daemon.start()
    who.daemon.wait()
    until(lambda: bool(who.ports()) and who.ports()[0]["state"] == "up", "its port is back")
    who.reaches("one", WIRE4)
    who.lab.reachable(who.lab.wire, "10.1.7.1")
    who.daemon.stop()
    assert "no daemon" not in who("rm", "-f", "-t", "0", "one")
    who.daemon.start()
    who.daemon.wait()
    until(lambda: not who.ports(), "its port has gone with the namespace")


def test_what_is_wrong_is_said(who: Podman) -> None:
    for words, said in (
        (("-o", "mode=l4", "-o", "parent=m0"), "option mode: l4 is not l2, l3, l3s"),
        (("-o", "parnet=m0"), "option parnet: unknown"),
        ((), "option parent: missing"),
        (("-o", "parent=m0", "-o", "mtu=big"), "option mtu: big is not a number"),
        (("-o", "parent=m0", "--ipam-driver", "dhcp"), "--ipam-driver dhcp: not supported"),
    ):
        assert said in who("network", "create", "-d", "ipvsw", *words, "bad", check=False)
    who.network("lan")
    common = ("--network", "lan", "--rootfs", who.tree, "true")
    assert "-p: a container of this network" in who("run", "--rm", "-p", "8080:80", *common, check=False)
    who.start("one", "lan:ip=10.1.7.1")
    who("network", "create", "-d", "ipvsw", "-o", "parent=m9", "--subnet", "10.9.0.0/24", "nowhere")
    said = who("run", "--rm", "--network", "nowhere", "--rootfs", who.tree, "true", check=False)
    assert ("may not attach to m9" if who.user else "m9 does not exist") in said
    assert len(who.ports()) == 1


def test_a_gateway_that_nobody_named_is_not_invented(who: Podman) -> None:
    who("network", "create", "-d", "ipvsw", "-o", "parent=m0", "--subnet", "10.7.0.0/24", "bare")
    assert "default" not in who("run", "--rm", "--network", "bare", "--rootfs", who.tree, "ip", "route")


def test_a_user_gets_what_is_his_alone(podman: Podman) -> None:
    """Root's namespace, and root's keys, are not for a user; nor is a switch that does not name him."""
    judged, daemon = podman.judged, podman.daemon
    program = """
import array, json, socket, sys
def ask(method, path, body, netns):
    one = socket.socket(socket.AF_UNIX); one.connect("/var/lib/ipvsw/users.sock")
    content = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {len(content)}\\r\\n\\r\\n".encode()
    with open(netns) as file:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))]
        one.sendmsg([head + content], rights if body is not None else [])
    return one.recv(65536).decode()
print(ask("POST", "/v1/ports", {"master": "m0", "name": "x"}, "/proc/self/ns/net"))
print(ask("DELETE", "/v1/labels/podman", None, "/proc/self/ns/net"))
print(ask("GET", "/v1/switches", None, "/proc/self/ns/net"))
"""
    said = judged.run("python3", "-c", program, user=USER)
    assert "the network namespace is user 0's, and not this user's" in said
    assert f'no port with the label \\"user:{UID}:podman\\"' in said
    assert "/v1/switches: no such path" in said
    assert not podman.ports() and daemon.process is not None
