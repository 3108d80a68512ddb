"""A data centre in namespaces: hosts in racks, each rack with a router, all of them at a core with a client behind it.

    netns pK           netns hK                     netns tR (rack R)          netns core
    ipvl0  10.64.K.*   m0 10.K.. <veth> kK          u0 <veth> tR               lo 198.51.100.1 (the client)
    (put there by      ipvswd, BIRD                 BIRD                       BIRD
    hK's daemon)

Each link is a /31 of its own, each router and each host an AS of its own. Hosts announce with contrib/routes/bird.conf.
"""

from __future__ import annotations

import os
import re
import subprocess
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, Daemon, port, switch
from tests.support.topology import Lab, batch, run

CLIENT = "198.51.100.1"
CORE_AS, RACK_AS, HOST_AS = 64600, 64700, 64800
BASE = int(ip_address("10.0.0.0"))
BIRD_CONF = ROOT / "contrib" / "routes" / "bird.conf"

ROUTER = """
router id {id};
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; interface "lo"; }}
protocol kernel {{
    scan time 60;
    ipv4 {{ import none; export filter {{ if source = RTS_BGP then {{ {more} accept; }} }}; }};
}}
"""
SESSION = """
protocol bgp {name} {{
    local {own} as {own_as}; neighbor {peer} as {peer_as}; direct; {more}
    connect delay time 1; connect retry time 1; error wait time 1, 2;
    ipv4 {{ import all; export all; next hop self; }};
}}
"""


def link(number: int) -> tuple[str, str]:
    """Both ends of a link: the upper one, and the lower one."""
    return str(ip_address(BASE + 2 * number)), str(ip_address(BASE + 2 * number + 1))


class Host:
    """`k` counts from 0, over all racks."""

    def __init__(self, fabric: Fabric, k: int, addresses: list[str]) -> None:
        self.k, self.rack = k, k // fabric.per_rack
        self.netns, self.inside = f"{fabric.lab.prefix}-h{k}", f"{fabric.lab.prefix}-p{k}"
        self.addresses = addresses
        self.fabric = fabric
        self.daemon: Daemon | None = None

    def start(self, ports: int = 1) -> None:
        """With one port, or without."""
        made = [port("ipvl0", self.inside, routes=[f"{CLIENT}/32"])][:ports]
        config = switch("m0", self.netns, made, mode="l3", export="routes")
        self.daemon = Daemon(config, home=self.netns)
        up, own = link(100 + self.k)
        text = BIRD_CONF.read_text().replace("192.0.2.10", own).replace("192.0.2.1 ", f"{up} ")
        text = text.replace("65010", str(HOST_AS + self.k)).replace("65001", str(RACK_AS + self.rack))
        text = re.sub(r"protocol bgp ipvsw_router6 \{.*?\n\}\n", "", text, flags=re.DOTALL)
        soon = "protocol bgp ipvsw_router4 {\n    connect delay time 1; connect retry time 1; error wait time 1, 2;"
        self.fabric.bird(self.netns, text.replace("protocol bgp ipvsw_router4 {", soon))

    def place(self, addresses: list[str]) -> None:
        """The endpoint has these from now on."""
        batch([f"addr add {one}/32 dev ipvl0" for one in addresses], self.inside)

    def remove(self, addresses: list[str]) -> None:
        batch([f"addr del {one}/32 dev ipvl0" for one in addresses], self.inside)


class Fabric:
    """A context manager."""

    def __init__(self, directory: Path, racks: int, per_rack: int, addresses: int) -> None:
        self.directory, self.racks, self.per_rack = directory, racks, per_rack
        self.lab = Lab(0)
        self.core = f"{self.lab.prefix}-core"
        self.birds: dict[str, subprocess.Popen[bytes]] = {}
        self.changes = directory / "changes"  # of the core's routes, with the time of each
        self.monitor: subprocess.Popen[bytes] | None = None
        each = addresses // (racks * per_rack)
        self.hosts = [
            Host(self, k, [f"10.{64 + k}.{n // 250}.{1 + n % 250}" for n in range(each)])
            for k in range(racks * per_rack)
        ]

    def rack(self, r: int) -> str:
        return f"{self.lab.prefix}-t{r}"

    def __enter__(self) -> Fabric:
        racks = range(self.racks)
        self.lab.add(self.core, *map(self.rack, racks))
        for host in self.hosts:
            self.lab.add(host.netns, host.inside)
        run("ip", "-n", self.core, "addr", "add", f"{CLIENT}/32", "dev", "lo")
        core = ROUTER.format(id="10.255.0.1", more=f"krt_prefsrc = {CLIENT};")
        for r in racks:
            up, down = link(r)
            self._join(self.core, f"t{r}", up, self.rack(r), "u0", down)
            core += SESSION.format(
                name=f"rack{r}", own=up, own_as=CORE_AS, peer=down, peer_as=RACK_AS + r, more="passive;"
            )
            text = ROUTER.format(id=f"10.255.1.{r}", more="") + SESSION.format(
                name="core", own=down, own_as=RACK_AS + r, peer=up, peer_as=CORE_AS, more=""
            )
            for host in self.hosts[r * self.per_rack : (r + 1) * self.per_rack]:
                up, down = link(100 + host.k)
                self._join(self.rack(r), f"h{host.k}", up, host.netns, "m0", down)
                run("ip", "-n", host.netns, "route", "add", "default", "via", up)
                text += SESSION.format(
                    name=f"host{host.k}",
                    own=up,
                    own_as=RACK_AS + r,
                    peer=down,
                    peer_as=HOST_AS + host.k,
                    more="passive;",
                )
            self.bird(self.rack(r), text)
        with self.changes.open("wb") as file:
            words = ["nsenter", f"--net=/run/netns/{self.core}", "stdbuf", "-oL", "ip", "-ts", "monitor", "route"]
            self.monitor = subprocess.Popen(words, stdout=file)
        self.bird(self.core, core)
        return self

    def __exit__(self, *_: object) -> None:
        for bird in self.birds.values():
            bird.terminate()
        if self.monitor is not None:
            self.monitor.kill()
            self.monitor.wait()
        for host in self.hosts:
            if host.daemon is not None:
                host.daemon.close()
        for bird in self.birds.values():
            bird.wait()
        self.lab.close()

    def _join(self, above: str, upper: str, up: str, below: str, lower: str, down: str) -> None:
        run("ip", "-n", above, "link", "add", upper, "type", "veth", "peer", "name", lower, "netns", below)
        for netns, device, address in ((above, upper, up), (below, lower, down)):
            batch([f"addr add {address}/31 dev {device}", f"link set {device} up"], netns)
            self.lab.sysctl(netns, "net/ipv4/ip_forward", "1")
            self.lab.sysctl(netns, f"net/ipv4/conf/{device}/rp_filter", "0")

    def bird(self, netns: str, text: str) -> None:
        config = self.directory / f"{netns}.conf"
        config.write_text(text)
        words = ["bird", "-f", "-c", config, "-s", config.with_suffix(".ctl"), "-P", config.with_suffix(".pid")]
        with config.with_suffix(".log").open("wb") as said:
            command = ["nsenter", f"--net=/run/netns/{netns}", *map(str, words)]
            self.birds[netns] = subprocess.Popen(command, stdout=said, stderr=said)

    def until_there(self, wanted: dict[str, int], limit: float = LIMIT) -> None:
        """The core reaches these addresses by these racks, and no others."""
        until(lambda: self.where() == wanted, "the core knows where every address is", every=0.02, limit=limit)

    def last_change(self) -> datetime:
        """When a route of the core has changed, last."""
        with self.changes.open("rb") as file:
            file.seek(-min(4096, self.changes.stat().st_size), os.SEEK_END)
            times = re.findall(rb"^\[(\S+)\] ", file.read(), re.MULTILINE)
        return datetime.fromisoformat(times[-1].decode())

    def where(self) -> dict[str, int]:
        """The rack by which the core reaches each address."""
        found = {}
        for line in run("ip", "-n", self.core, "route", "show", "proto", "bird").splitlines():
            words = line.split()
            if words[0].startswith("10.") and "dev" in words and words[words.index("dev") + 1].startswith("t"):
                found[words[0]] = int(words[words.index("dev") + 1][1:])
        return found
