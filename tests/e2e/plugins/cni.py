"""The CNI plugin as runtimes start it, and what it must refuse."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.patience import LIMIT
from tests.support.running import ROOT, Daemon
from tests.support.topology import WIRE4, WIRE6, Lab, run

REAL = Path("/usr/lib/cni")  # Debian: containernetworking-plugins
VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
SUBNET4, SUBNET6 = "10.1.0.0/16", "fd00:1::/64"


class Cni:
    """A network with the plugin `ipvsw`, installed under that name beside the reference plugins."""

    def __init__(self, lab: Lab, daemon: Daemon, directory: Path) -> None:
        self.lab, self.daemon, self.directory = lab, daemon, directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        run(str(ROOT / "scripts/plugin"), "cni", str(self.bin / "ipvsw"))
        self.netns = f"/run/netns/{lab.ports[0]}"

    def config(self, **more: Any) -> dict[str, Any]:
        ours = {"socket": str(self.daemon.socket)} | more.pop("ipvsw", {})
        config = {"cniVersion": "1.0.0", "name": "net", "type": "ipvsw", "master": "m0", "ipvsw": ours, **more}
        return {key: value for key, value in config.items() if value is not None}

    def host_local(self, **more: Any) -> dict[str, Any]:
        """An IPAM configuration of both families, with default routes."""
        four = {"subnet": SUBNET4, "rangeStart": "10.1.3.10", "rangeEnd": "10.1.3.250", "gateway": WIRE4}
        six = {"subnet": SUBNET6, "rangeStart": "fd00:1::3:10", "rangeEnd": "fd00:1::3:ff", "gateway": WIRE6}
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        data = str(self.directory / "leases")
        return {"type": "host-local", "ranges": [[four], [six]], "routes": routes, "dataDir": data, **more}

    def leased(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "leases").glob("net/*") if path.name[0] in "1f")

    def call(self, command: str, config: Any, plugin: str = "ipvsw", **environment: str | None) -> tuple[int, Any]:
        """Exit code, and what was said on stdout, decoded."""
        variables: dict[str, str | None] = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{self.bin}:{REAL}",
            "PATH": os.environ["PATH"],
            **environment,
        }
        done = subprocess.run(
            [next(path for path in (self.bin / plugin, REAL / plugin) if path.exists())],
            input=config if isinstance(config, str) else json.dumps(config),
            env={key: value for key, value in variables.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert not done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def done(self, command: str, config: Any, **environment: str | None) -> Any:
        code, answer = self.call(command, config, **environment)
        assert code == 0, answer
        return answer

    def failed(self, command: str, config: Any, **environment: str | None) -> int:
        """The error's code."""
        code, answer = self.call(command, config, **environment)
        assert code == 1, answer
        assert isinstance(answer["msg"], str) and answer["msg"] and answer["cniVersion"]
        return int(answer["code"])

    def ports(self) -> list[dict[str, Any]]:
        return [port for one in self.daemon.show() for port in one["ports"]]

    def link(self, netns: int = 0, name: str = "eth0") -> dict[str, Any] | None:
        return self.lab.link(self.lab.ports[netns], name)


# What is to fail: verb, changes of the configuration or its text, changes of the environment, code.
Change = dict[str, Any]
FAILS: dict[str, tuple[str, Change | str, Change, int]] = {
    # versions
    "a version that is not supported": ("ADD", {"cniVersion": "0.2.0"}, {}, 1),
    "a version to come": ("ADD", {"cniVersion": "2.0.0"}, {}, 1),
    "no version means 0.1.0": ("ADD", {"cniVersion": None}, {}, 1),
    "CHECK before it was there": ("CHECK", {"cniVersion": "0.3.1"}, {}, 1),
    "STATUS before it was there": ("STATUS", {"cniVersion": "1.0.0"}, {}, 1),
    "GC before it was there": ("GC", {"cniVersion": "1.0.0"}, {}, 1),
    # fields
    "a master in the container": ("ADD", {"linkInContainer": True}, {}, 2),
    "addresses by DHCP of another plugin": ("ADD", {"ipam": {"type": "dhcp"}}, {}, 2),
    # the container
    "a namespace that does not exist": ("ADD", {}, {"CNI_NETNS": "/run/netns/none"}, 3),
    "CHECK of a namespace that is gone": ("CHECK", {"prevResult": {}}, {"CNI_NETNS": "/run/netns/none"}, 3),
    "CHECK of what was never added": ("CHECK", {"prevResult": {"interfaces": []}}, {}, 3),
    # the environment
    "no verb": ("", {}, {}, 4),
    "an unknown verb": ("EXPLODE", {}, {}, 4),
    "ADD without a container": ("ADD", {}, {"CNI_CONTAINERID": None}, 4),
    "ADD with an empty container": ("ADD", {}, {"CNI_CONTAINERID": ""}, 4),
    "a container that begins with a dot": ("ADD", {}, {"CNI_CONTAINERID": ".c1"}, 4),
    "a container with a slash": ("ADD", {}, {"CNI_CONTAINERID": "a/b"}, 4),
    "ADD without a namespace": ("ADD", {}, {"CNI_NETNS": None}, 4),
    "ADD without an interface": ("ADD", {}, {"CNI_IFNAME": None}, 4),
    "an interface that is too long": ("ADD", {}, {"CNI_IFNAME": "sixteen-bytes-xx"}, 4),
    "an interface with a slash": ("ADD", {}, {"CNI_IFNAME": "a/b"}, 4),
    "an interface with a colon": ("ADD", {}, {"CNI_IFNAME": "a:b"}, 4),
    "an interface with a space": ("ADD", {}, {"CNI_IFNAME": "a b"}, 4),
    "an interface of two dots": ("ADD", {}, {"CNI_IFNAME": ".."}, 4),
    "ADD without a path": ("ADD", {}, {"CNI_PATH": None}, 4),
    "DEL without a container": ("DEL", {}, {"CNI_CONTAINERID": None}, 4),
    "DEL without an interface": ("DEL", {}, {"CNI_IFNAME": None}, 4),
    "CHECK without a container": ("CHECK", {}, {"CNI_CONTAINERID": None}, 4),
    "CHECK without a namespace": ("CHECK", {}, {"CNI_NETNS": ""}, 4),
    "STATUS without a path": ("STATUS", {"cniVersion": "1.1.0"}, {"CNI_PATH": ""}, 4),
    "GC without a path": ("GC", {"cniVersion": "1.1.0"}, {"CNI_PATH": None}, 4),
    # JSON
    "no configuration": ("ADD", "", {}, 6),
    "what is not JSON": ("ADD", "{", {}, 6),
    "what is not an object": ("ADD", "[]", {}, 6),
    "a version request that is not JSON": ("VERSION", "{", {}, 6),
    # the configuration
    "no name": ("ADD", {"name": None}, {}, 7),
    "a name with a slash": ("ADD", {"name": "a/b"}, {}, 7),
    "a name that begins with a dash": ("ADD", {"name": "-a"}, {}, 7),
    "IPAM that is no object": ("ADD", {"ipam": "host-local"}, {}, 7),
    "an IPAM plugin that is not there": ("ADD", {"ipam": {"type": "none"}}, {}, 7),
    "an IPAM plugin that is a path": ("ADD", {"ipam": {"type": "../bin/true"}}, {}, 7),
    "a key of ours that is unknown": ("ADD", {"ipvsw": {"flags": "private"}}, {}, 7),
    "a mode that is no word": ("ADD", {"mode": 2}, {}, 7),
    "a name that is a list": ("ADD", {"name": ["net"]}, {}, 7),
    "a version that is a number": ("ADD", {"cniVersion": 1.0}, {}, 7),
    "a version request with a list for one": ("VERSION", {"cniVersion": []}, {}, 7),
    "an MTU that is a word": ("ADD", {"mtu": "1500"}, {}, 7),
    "addresses that are numbers": ("ADD", {"runtimeConfig": {"ips": [1]}}, {}, 7),
    "a rate that is a word": ("ADD", {"runtimeConfig": {"bandwidth": {"egressRate": "1"}}}, {}, 7),
    "a result with an address that is none": ("ADD", {"prevResult": {"ips": [{"gateway": "10.1.0.254"}]}}, {}, 7),
    "a result with a route to nowhere": ("ADD", {"prevResult": {"routes": [{}]}}, {}, 7),
    "a result with an interface that is a word": ("CHECK", {"prevResult": {"interfaces": ["eth0"]}}, {}, 7),
    "a socket that is a number": ("ADD", {"ipvsw": {"socket": 1}}, {}, 7),
    "GC with what is no attachment": ("GC", {"cniVersion": "1.1.0", "cni.dev/valid-attachments": ["c1"]}, {}, 7),
    "an interface with an unprintable character": ("ADD", {}, {"CNI_IFNAME": "a\x01b"}, 4),
    "CHECK without what ADD said": ("CHECK", {}, {}, 7),
    "GC without what is valid": ("GC", {"cniVersion": "1.1.0"}, {}, 7),
    # the daemon
    "no daemon": ("ADD", {"ipvsw": {"socket": "/run/none.sock"}}, {}, 11),
    "DEL in a namespace that is there, and no daemon": ("DEL", {"ipvsw": {"socket": "/run/none.sock"}}, {}, 11),
    "STATUS without the master": ("STATUS", {"cniVersion": "1.1.0", "master": "none0"}, {}, 50),
    "STATUS without a daemon": ("STATUS", {"cniVersion": "1.1.0", "ipvsw": {"socket": "/run/none.sock"}}, {}, 51),
    "a mode that the daemon does not know": ("ADD", {"mode": "l4"}, {}, 100),
    "a MAC address that is none": ("ADD", {"runtimeConfig": {"mac": "03:00:00:00:00:01"}}, {}, 100),
}
