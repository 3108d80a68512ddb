"""A host with ports of every mode, which the tests of its access share."""

from __future__ import annotations

import signal

import pytest

from tests.support import running
from tests.support.patience import LIMIT, until
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, Lab, port4, port6, run

MODES, SETTINGS = ("l2", "l3", "l3s"), ("none", "to-host", "from-host", "both")
OPENERS = {"none": (), "to-host": ("port",), "from-host": ("host",), "both": ("port", "host")}
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
HOST_IFINDEX = "ipvsw-m0"
OURS = 118  # protocol number of our routes and rules
QUIET = 0.15  # seconds in which an answer would have come


def host(version: int) -> str:
    return MASTER4 if version == 4 else MASTER6


def port(k: int, version: int) -> str:
    return port4(k) if version == 4 else port6(k)


class Net:
    """The lab and its daemon, whose file is changed and read again for each case."""

    def __init__(self, lab: Lab, daemon: running.Daemon, ports: list[dict[str, object]]) -> None:
        self.lab, self.daemon, self.ports = lab, daemon, ports

    def set(self, mode: str, access: str, flag: str = "bridge", *, by_signal: bool = False) -> None:
        table = running.switch("m0", self.lab.host, self.ports, mode=mode, host_access=access, flag=flag)
        self.daemon.config.write_text(running.toml(self.daemon.socket, [table]))
        if by_signal:
            self.daemon.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        else:
            status, answer = self.daemon.call("POST", "/v1/reload")
            assert status == 200, answer
        until(lambda: self.is_set(mode, access, flag), f"the switch is {mode}, {access}, {flag}")
        for netns in (self.lab.host, *self.lab.ports):
            run("ip", "-n", netns, "neigh", "flush", "all", check=False)

    def is_set(self, mode: str, access: str, flag: str) -> bool:
        shown = self.daemon.show()[0]
        links = [self.lab.link(netns, f"ipvl{k}") for k, netns in enumerate(self.lab.ports[:2], 1)]
        interface = self.lab.link(self.lab.host, HOST_IFINDEX)
        routed = mode == "l3s" or (mode == "l3" and access != "none")
        return (
            (shown["mode"], shown["host_access"], shown["flag"]) == (mode, access, flag)
            and all(link is not None and ("NOARP" in link["flags"]) is (mode != "l2") for link in links)
            and (interface is not None) is (access != "none" or mode == "l3s")
            and len(ours(self.lab, "route", "show", "table", "all")) == routed * 4
        )

    def refused(self, who: str) -> int:
        stats = self.daemon.stats()[0]
        interface = stats["host"] if who == "host" else stats["ports"]["ipvl1"]
        count: int = interface["outcomes"]["drop_host_access"]
        return count


def know_ports(lab: Lab) -> None:
    """In the routed modes ports answer no question for their addresses."""
    for k in (1, 2):
        for version in (4, 6):
            lab.ip(lab.wire, "neigh", "replace", port(k, version), "lladdr", MASTER_MAC, "dev", "w0")


def ours(lab: Lab, *words: str) -> list[str]:
    """Lines of `ip`, for both IP versions, that are of our protocol."""
    shown = [run("ip", version, "-n", lab.host, *words, check=False) for version in ("-4", "-6")]
    return [line for text in shown for line in text.splitlines() if f"proto {OURS}" in line]


def time_for(wanted: bool) -> float:
    """Seconds in which an answer has to come, or would have come."""
    return LIMIT if wanted else QUIET
