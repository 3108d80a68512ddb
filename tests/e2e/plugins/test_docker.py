"""The Docker plugin as dockerd asks it. `tests/judges` has Docker itself."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, Daemon, switch
from tests.support.topology import WIRE4, Lab, run

NET, ENDPOINT = "n" * 64, "e1" * 32
GENERIC = "com.docker.network.generic"
POOL = {"Pool": "10.1.0.0/16", "Gateway": f"{WIRE4}/16"}


class Plugin:
    """A process, and requests as dockerd makes them."""

    def __init__(self, lab: Lab, daemon: Daemon, directory: Path) -> None:
        self.lab, self.daemon, self.directory = lab, daemon, directory
        self.program, self.listen = directory / "ipvsw-docker", directory / "ipvsw.sock"
        run(str(ROOT / "scripts/plugin"), "docker", str(self.program))
        self.start()

    def start(self) -> None:
        words = [
            "--socket",
            str(self.daemon.socket),
            "--listen",
            str(self.listen),
            "--state",
            f"{self.directory}/s/nets",
        ]
        self.process = subprocess.Popen([self.program, *words], stderr=subprocess.DEVNULL)
        until(self._serves, "the plugin serves")

    def _serves(self) -> bool:
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(str(self.listen)) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, method: str, **body: Any) -> dict[str, Any]:
        connection = http.client.HTTPConnection("plugin", timeout=LIMIT)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.listen))
        connection.request("POST", f"/{method}", json.dumps(body))
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        connection.close()
        return found | ({"status": answer.status} if answer.status != 200 else {})

    def network(self, internal: bool = False, **options: Any) -> dict[str, Any]:
        given = {GENERIC: options, "com.docker.network.internal": internal}
        return self.ask("NetworkDriver.CreateNetwork", NetworkID=NET, Options=given, IPv4Data=[POOL], IPv6Data=[])

    def endpoint(self, method: str, **more: Any) -> dict[str, Any]:
        return self.ask(f"NetworkDriver.{method}", NetworkID=NET, EndpointID=ENDPOINT, **more)

    def ports(self) -> list[dict[str, Any]]:
        return [port for one in self.daemon.show() for port in one["ports"]]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    with Lab(1) as lab, Daemon(switch("m0", lab.host), home=lab.home, keeps=True) as daemon:
        daemon.wait()
        one = Plugin(lab, daemon, tmp_path_factory.mktemp("docker"))
        yield one
        one.process.terminate()
        assert one.process.wait(LIMIT) == 0 and not one.listen.exists()
        assert not one.ports()


def test_an_endpoint_from_its_network_to_its_end(plugin: Plugin) -> None:
    assert plugin.ask("Plugin.Activate") == {"Implements": ["NetworkDriver"]}
    assert plugin.network(parent="m0", ipvlan_mode="l2") == {}
    plugin.kill()  # Docker never tells of the network again
    plugin.start()
    assert plugin.endpoint("CreateEndpoint", Interface={"Address": "10.1.7.1/16"}) == {"Interface": {}}
    joined = plugin.endpoint("Join", SandboxKey="/none", Options={})
    name = joined["InterfaceName"]["SrcName"]
    assert joined == {
        "InterfaceName": {"SrcName": name, "DstPrefix": "eth"},
        "Gateway": WIRE4,
        "DisableGatewayService": False,
    }
    assert [port["label"] for port in plugin.ports()] == [f"docker:{NET}:{ENDPOINT}"]
    plugin.lab.ip(plugin.lab.home, "link", "set", name, "netns", plugin.lab.ports[0], "name", "eth0")
    plugin.lab.ip(plugin.lab.ports[0], "link", "set", "eth0", "up")
    plugin.lab.reachable(plugin.lab.wire, "10.1.7.1")
    assert (
        "-p: a container"
        in plugin.endpoint("ProgramExternalConnectivity", Options={"com.docker.network.portmap": [{"Port": 80}]})["Err"]
    )
    for method in ("Leave", "DeleteEndpoint", "DeleteEndpoint"):
        assert plugin.endpoint(method) == {}
    assert not plugin.ports()
    assert plugin.network(internal=True, parent="m0") == {}
    plugin.endpoint("CreateEndpoint", Interface={"Address": "10.1.7.1/16"})
    joined = plugin.endpoint("Join", SandboxKey="/none", Options={})
    assert joined["DisableGatewayService"] and "Gateway" not in joined
    assert plugin.ask("NetworkDriver.DeleteNetwork", NetworkID=NET) == {}, "and what it still has"
    assert not plugin.ports()


def test_what_is_refused_says_why(plugin: Plugin) -> None:
    for options, said in (
        ({}, "option parent: missing"),
        ({"parent": "m0", "ipvlan_mode": "l4"}, "option ipvlan_mode: l4"),
        ({"parent": "m0", "parnet": "m0"}, "option parnet: unknown"),
        ({"parent": "m0", "mtu": "big"}, "option mtu: big is not a number"),
    ):
        assert said in plugin.network(**options)["Err"]
    assert "there is no network" in plugin.endpoint("CreateEndpoint")["Err"]
    assert plugin.network(parent="m9") == {}
    assert "is not known" in plugin.endpoint("Join")["Err"]
    assert plugin.endpoint("CreateEndpoint") == {"Interface": {}}
    assert "m9 does not exist" in plugin.endpoint("Join")["Err"]
    assert plugin.ask("NetworkDriver.Explode") == {"Err": "/NetworkDriver.Explode: not supported", "status": 404}
    assert "Options: must be an object" in plugin.ask("NetworkDriver.CreateNetwork", NetworkID=NET, Options=[])["Err"]
    plugin.ask("NetworkDriver.DeleteNetwork", NetworkID=NET)
