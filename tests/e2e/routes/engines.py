"""Routing daemons: those that announce what a host exports, with the configurations of contrib/routes, and the router
that hears them, always a BIRD, which puts every route that it is told into its kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from tests.e2e.routes.exported import kernel_routes
from tests.support.patience import until
from tests.support.running import ROOT
from tests.support.topology import MASTER4, MASTER6, WIRE4, WIRE6, Lab, run

CONTRIB = ROOT / "contrib" / "routes"

ROUTER = """
router id {router4};
protocol device {{ }}
protocol kernel {{ ipv4 {{ import none; export all; }}; }}
protocol kernel {{ ipv6 {{ import none; export all; }}; }}
template bgp host {{ passive; error wait time 1, 2; }}
protocol bgp host4 from host {{
    local {router4} as 65001; neighbor {host4} as 65010;
    ipv4 {{ import all; export none; }};
}}
protocol bgp host6 from host {{
    local {router6} as 65001; neighbor {host6} as 65010;
    ipv6 {{ import all; export none; }};
}}
"""


def for_lab(text: str) -> str:
    """A configuration of contrib with the lab's addresses."""
    theirs = {
        "192.0.2.10": MASTER4,
        "192.0.2.1": WIRE4,
        "2001:db8::10": MASTER6,
        "2001:db8::1": WIRE6,
    }
    return re.sub("|".join(rf"{re.escape(one)}(?![\w.:])" for one in theirs), lambda found: theirs[found[0]], text)


class Engine(ABC):
    """One that announces routes in a namespace, with its files in `directory`."""

    program = ""  # without which its tests are skipped
    families: tuple[int, ...] = (4, 6)  # IP versions that it announces

    def __init__(self, netns: str, directory: Path) -> None:
        self.netns, self.directory = netns, directory
        self.processes: list[subprocess.Popen[bytes]] = []
        directory.mkdir()
        self.need()

    @classmethod
    def need(cls) -> None:
        if shutil.which(cls.program) is None:
            pytest.skip(f"{cls.program} is not installed")

    @abstractmethod
    def start(self) -> None: ...

    def spawn(self, *words: str) -> None:
        with (self.directory / "said").open("ab") as said:
            command = ["nsenter", f"--net=/run/netns/{self.netns}", *words]
            self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said))

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait()
        self.processes.clear()


class Bird(Engine):
    program = "bird"

    def __init__(self, netns: str, directory: Path, text: str = "") -> None:
        super().__init__(netns, directory)
        self.text = text or for_lab((CONTRIB / "bird.conf").read_text())

    def start(self) -> None:
        config, control = self.directory / "bird.conf", self.directory / "bird.ctl"
        config.write_text(self.text)
        self.spawn("bird", "-f", "-c", str(config), "-s", str(control), "-P", str(self.directory / "pid"))

    def ask(self, *words: str) -> str:
        return run("birdc", "-s", str(self.directory / "bird.ctl"), *words)


class Frr(Engine):
    program = "/usr/lib/frr/bgpd"
    families = (4,)

    def start(self) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="ivf")  # its user reads it, and sockets have short names there
        place = Path(self.place.name)
        shutil.chown(place, "frr", "frr")
        config = place / "frr.conf"
        config.write_text(for_lab((CONTRIB / "frr.conf").read_text()).replace("eth0", "m0"))
        for daemon in ("zebra", "bgpd"):
            files = ["-f", str(config), "-i", str(place / f"{daemon}.pid"), "-z", str(place / "zserv")]
            self.spawn(f"/usr/lib/frr/{daemon}", *files, "--vty_socket", str(place), "-u", "frr", "-g", "frr")
            until((place / "zserv").exists, "zebra listens")

    def stop(self) -> None:
        super().stop()
        self.place.cleanup()


class GoBgp(Engine):
    program = "gobgpd"

    def start(self) -> None:
        config = self.directory / "gobgpd.toml"
        config.write_text(for_lab((CONTRIB / "gobgpd.toml").read_text()))
        self.spawn("gobgpd", "-f", str(config))
        words = ["nsenter", f"--net=/run/netns/{self.netns}", "gobgp", "global", "rib"]
        until(lambda: not subprocess.run(words, capture_output=True).returncode, "gobgpd listens", every=0.1)
        self.spawn(sys.executable, str(CONTRIB / "ipvsw-gobgp"))


class Router:
    """The BIRD in the lab's wire namespace."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.netns = lab.wire
        text = ROUTER.format(router4=WIRE4, router6=WIRE6, host4=MASTER4, host6=MASTER6)
        self.bird = Bird(lab.wire, directory, text)
        self.bird.start()

    def heard(self) -> set[str]:
        """The destinations that it forwards because it was told to."""
        return {one["dst"] for one in kernel_routes(self.netns, "main") if one["protocol"] == "12"}

    def until_heard(self, wanted: set[str]) -> None:
        missing: list[set[str]] = [set()]

        def as_wanted() -> bool:
            missing[0] = self.heard() ^ wanted
            return not missing[0]

        until(as_wanted, "the router knows every address, and no other", every=0.05)

    def stop(self) -> None:
        self.bird.stop()
