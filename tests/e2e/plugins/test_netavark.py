"""The netavark plugin as Podman starts it, and what a user may do on the socket that is for users.

`tests/judges` has Podman itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, Daemon, switch
from tests.support.topology import WIRE4, Lab, run

USER = 1234
NETWORK = {
    "name": "lan",
    "id": "n1",
    "driver": "ipvsw",
    "network_interface": None,
    "subnets": [{"subnet": "10.1.0.0/16", "gateway": WIRE4}, {"subnet": "fd00:1::/64"}],
    "routes": [{"destination": "198.51.100.0/24", "gateway": WIRE4, "metric": 7}],
    "ipv6_enabled": True,
    "internal": False,
    "ipam_options": {"driver": "host-local"},
    "options": {"parent": "m0"},
    "network_dns_servers": ["10.1.0.254"],
}
OWN = {"interface_name": "eth0", "static_ips": ["10.1.7.1", "fd00:1::7:1"], "static_mac": None}


class Netavark:
    def __init__(self, lab: Lab, daemon: Daemon, program: Path) -> None:
        self.lab, self.daemon, self.program = lab, daemon, program
        self.socket = f"{daemon.directory.name}/users.sock"

    def call(self, *words: str, given: Any = "") -> tuple[int, Any]:
        text = given if isinstance(given, str) else json.dumps(given)
        done = subprocess.run([self.program, *words], input=text, capture_output=True, text=True, timeout=LIMIT)
        assert not done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def refused(self, *words: str, given: Any = "") -> str:
        code, answer = self.call(*words, given=given)
        assert code == 1 and list(answer) == ["error"], answer
        return str(answer["error"])

    def network(self, **options: Any) -> dict[str, Any]:
        code, kept = self.call("create", given={**NETWORK, "options": {"parent": "m0", **options}})
        assert code == 0, kept
        found: dict[str, Any] = kept
        return found

    def asked(self, **more: Any) -> dict[str, Any]:
        network = self.network(socket=self.socket)
        asked = {"container_id": "c1", "container_name": "one", "network": network, "network_options": OWN, **more}
        return {"port_mappings": None, **asked}

    def ports(self) -> list[dict[str, Any]]:
        return [port for one in self.daemon.show() for port in one["ports"]]

    def netns(self, number: int) -> str:
        return f"/run/netns/{self.lab.ports[number]}"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Netavark]:
    program = tmp_path_factory.mktemp("netavark") / "ipvsw"
    run(str(ROOT / "scripts/plugin"), "netavark", str(program))
    with Lab(2) as lab:
        daemon = Daemon(switch("m0", lab.host, users=[USER]), home=lab.home, started=False)
        os.chmod(daemon.directory.name, 0o711)
        socket = f'users_socket = "{daemon.directory.name}/users.sock"'
        daemon.config.write_text(daemon.config.read_text().replace("[daemon]", f"[daemon]\n{socket}"))
        daemon.start()
        with daemon:
            yield Netavark(lab, daemon.wait(), program)


@pytest.fixture
def netavark(setting: Netavark) -> Iterator[Netavark]:
    yield setting
    for label in ("podman", "user"):
        setting.daemon.call("DELETE", f"/v1/labels/{label}")
    until(lambda: not setting.ports(), "nothing is left")


def test_a_container_from_setup_to_teardown(netavark: Netavark) -> None:
    asked = netavark.asked()
    code, answer = netavark.call("setup", netavark.netns(0), given=asked)
    assert code == 0, answer
    (port,) = netavark.ports()
    assert answer == {
        "dns_search_domains": [],
        "dns_server_ips": ["10.1.0.254"],
        "interfaces": {
            "eth0": {
                "mac_address": port["mac"],
                "subnets": [{"ipnet": "10.1.7.1/16", "gateway": WIRE4}, {"ipnet": "fd00:1::7:1/64"}],
            }
        },
    }
    assert port["label"] == "podman:c1:n1:eth0" and port["state"] == "up"
    netavark.lab.reachable(netavark.lab.wire, "10.1.7.1")
    routes = netavark.lab.ip(netavark.lab.ports[0], "route")
    assert f"default via {WIRE4}" in routes and f"198.51.100.0/24 via {WIRE4}" in routes
    assert "default" not in netavark.lab.ip(netavark.lab.ports[0], "-6", "route"), "nobody has named a gateway"
    assert netavark.call("setup", netavark.netns(1), given=asked)[0] == 0, "what a reboot has left is replaced"
    assert netavark.lab.link(netavark.lab.ports[0], "eth0") is None
    for _ in range(2):
        assert netavark.call("teardown", netavark.netns(1), given=asked) == (0, None)
    assert not netavark.ports()


def test_what_is_refused_leaves_nothing(netavark: Netavark) -> None:
    taken = {**OWN, "static_ips": ["10.1.0.1"]}
    for change, said in (
        ({"port_mappings": [{"host_port": 80}]}, "-p: a container of this network"),
        ({"network_options": taken}, "10.1.0.1: master"),
        ({"network_options": {**OWN, "static_ips": ["10.1.7.1"] * 3}}, "more than there are subnets"),
        ({"network_options": {"static_ips": []}}, "interface_name: missing"),
        ({"network_options": "none"}, "network_options: must be an object"),
    ):
        assert said in netavark.refused("setup", netavark.netns(0), given=netavark.asked(**change))
        assert not netavark.ports()
    assert "No such file" in netavark.refused("setup", "/run/netns/none", given=netavark.asked())
    for options, said in (
        ({"mode": "l4"}, "option mode: l4 is not l2, l3, l3s"),
        ({"parnet": "m0"}, "option parnet: unknown"),
        ({"mtu": "big"}, "option mtu: big is not a number"),
    ):
        given = {**NETWORK, "options": {"parent": "m0", **options}}
        assert said in netavark.refused("create", given=given)
    assert "option parent: missing" in netavark.refused("create", given={**NETWORK, "options": {}})
    assert "dhcp: not supported" in netavark.refused("create", given={**NETWORK, "ipam_options": {"driver": "dhcp"}})
    for text, said in (("{", "not JSON"), ("[]", "not an object")):
        assert said in netavark.refused("create", given=text)
    assert "usage" in netavark.refused("explode")
    assert netavark.call("info")[1]["api_version"] == "1.0.0"


def test_teardown_needs_no_daemon(netavark: Netavark) -> None:
    asked = netavark.asked()
    asked["network"]["options"]["socket"] = "/run/none.sock"
    assert netavark.call("teardown", netavark.netns(0), given=asked) == (0, None)
    assert "does ipvswd run?" in netavark.refused("setup", netavark.netns(0), given=asked)


AS_USER = """
import ctypes, json, os, sys
from ipvsw.client import ApiError, Client
os.setgid({user}); os.setuid({user})
host = os.open("/proc/self/ns/net", os.O_RDONLY)
assert not ctypes.CDLL(None).unshare(0x50000000), "a user and a network namespace"
own = os.open("/proc/self/ns/net", os.O_RDONLY)
client = Client({socket!r})
port = dict(master="m0", name="x", ifname="eth0", addresses=["10.1.7.9/16"], label="mine")
def tried(work):
    try: return work()
    except ApiError as error: return f"{{error.status}} {{error}}"
print(json.dumps([
    tried(lambda: client.add_port(**port, netns_fd=host)),
    tried(lambda: client.add_port(**port, guard="off", netns_fd=own)),
    tried(lambda: client.add_port(**port)),
    tried(lambda: client.add_port(**(port | dict(master="m1")), netns_fd=own)),
    tried(lambda: client.delete_labelled("podman")),
    tried(lambda: client.switches()),
    tried(lambda: client.add_port(**port, netns_fd=own)),
    tried(lambda: [one["label"] for switch in client.labelled("mine") for one in switch["ports"]]),
    tried(lambda: client.delete_labelled("mine")),
]))
"""


def test_a_user_may_have_what_is_theirs_alone(netavark: Netavark) -> None:
    assert netavark.call("setup", netavark.netns(0), given=netavark.asked())[0] == 0
    program = AS_USER.format(user=USER, socket=netavark.socket)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    host, guard, bare, master, others, switches, added, listed, deleted = json.loads(done.stdout)
    assert host == "403 the network namespace is user 0's, and not this user's"
    assert guard.startswith("403 guard: is root's to set")
    assert bare == "400 netns: must come as a descriptor on this socket"
    assert master.startswith("403 master: this user may not attach to m1")
    assert others == f'404 there is no port with the label "user:{USER}:podman"'
    assert switches == "404 /v1/switches: no such path"
    assert (added["state"], added["label"], added["name"]) == ("up", f"user:{USER}:mine", f"u{USER}-x")
    assert "ip-source" in added["guards"] and listed == [f"user:{USER}:mine"] and deleted is None
    assert [port["label"] for port in netavark.ports()] == ["podman:c1:n1:eth0"]
