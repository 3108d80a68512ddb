"""Figures of mode l3, fast: a stream beside macvlan's, and ten thousand destinations beside one.

One port in a subnet behind the master, one macvlan device on the same master, and the far end of the master's veth
pair as the gateway to everything else. The destinations are what the route cache holds.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from lab import MASTER4, MASTER_MAC, WIRE4, Lab, exec_in, run, until
from running import Daemon, cpu_ns, port, switch

INNER4, GATEWAY4, KERNEL4 = "10.2.0.11", "10.2.0.1", "10.1.9.1"
FIRST, DESTINATIONS = "10.64.0.1", 10_000
RATE = 100_000  # frames per second
LEARNING_RATE = 2_000  # frames per second, while each asks the kernel

Figure = tuple[str, str, str, Callable[[], float], Callable[[], float], str]
"""A row: name, unit, limit, what is measured, what it is held against, and what that is."""


class Routed:
    """What is alive: the daemon in mode l3, a macvlan device, iperf3 at the far end."""

    def __init__(self, stack: contextlib.ExitStack, generator: Path, seconds: int) -> None:
        self.seconds, self.generator = seconds, generator
        self.lab = stack.enter_context(Lab(1))
        self.kernel = f"{self.lab.prefix}-k1"
        self.lab.add(self.kernel)
        self.lab.ip(self.lab.wire, "route", "add", "10.2.0.0/24", "via", MASTER4)
        self.lab.ip(self.lab.wire, "route", "add", "blackhole", "10.64.0.0/16")
        self.lab.ip(self.lab.host, "route", "add", "10.64.0.0/16", "via", WIRE4)
        ports = [port("ipvl1", self.lab.ports[0], [f"{INNER4}/24"], gateway=[GATEWAY4])]
        self.daemon = stack.enter_context(Daemon(switch("m0", self.lab.host, ports, mode="l3"), home=self.lab.home))
        self.daemon.wait()
        self.lab.reachable(self.lab.ports[0], WIRE4)

    def start_macvlan(self) -> None:
        """Errors: AssertionError where the kernel has none."""
        self.lab.ip(self.lab.host, *f"link add link m0 name mv1 netns {self.kernel} type macvlan mode bridge".split())
        self.lab.ip(self.kernel, "addr", "add", f"{KERNEL4}/16", "dev", "mv1")
        self.lab.ip(self.kernel, "link", "set", "mv1", "up")
        self.lab.reachable(self.kernel, WIRE4)
        self.lab.spawn(self.lab.wire, "iperf3", "-s", "--logfile", "/dev/null")
        until(lambda: ":1451 " in self.lab.read(self.lab.wire, "tcp6"), 5, "iperf3 listens")

    def tcp(self, source: str) -> float:
        """One iperf3 stream to the wire: Gbit/s that arrived."""
        out = run(*exec_in(source, "iperf3", "-c", WIRE4, "-t", str(self.seconds), "-J"), timeout=60)
        return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9

    def send(self, destinations: int, rate: int, seconds: int) -> None:
        words = (str(self.generator), "ipvl1", MASTER_MAC, INNER4, FIRST, str(rate), str(seconds))
        run(*exec_in(self.lab.ports[0], *words, str(destinations)), timeout=60)

    def outcomes(self) -> dict[str, int]:
        counted: dict[str, int] = self.daemon.stats()[0]["ports"]["ipvl1"]["outcomes"]
        return counted

    def learn(self) -> None:
        """Until the cache has every destination."""
        for _ in range(20):
            before = self.outcomes()["to_slowpath"]
            self.send(DESTINATIONS, LEARNING_RATE, DESTINATIONS // LEARNING_RATE + 1)
            if self.outcomes()["to_slowpath"] == before:
                return
        raise AssertionError("the cache doesn't get to know every destination")

    def cost(self, destinations: int) -> float:
        """CPU ns of the daemon for each frame that the wire got."""
        before, busy = self.outcomes(), cpu_ns(self.daemon.pid)
        self.send(destinations, RATE, self.seconds)
        busy, after = cpu_ns(self.daemon.pid) - busy, self.outcomes()
        sent = after["to_master"] - before["to_master"]
        assert sent > 1000, f"only {sent} frames went out"
        return busy / sent


def figures(stack: contextlib.ExitStack, generator: Path, seconds: int) -> Iterator[Figure | tuple[str, str]]:
    """What to measure; for what can't be measured its name and the reason. Lives as long as `stack`."""
    routed = Routed(stack, generator, seconds)
    name = "l3 fast: TCP, one stream, port to wire"
    try:
        routed.start_macvlan()
        mine, other = routed.lab.ports[0], routed.kernel
        yield name, "Gbit/s", ">= 0.60", lambda: routed.tcp(mine), lambda: routed.tcp(other), "macvlan bridge"
    except (AssertionError, FileNotFoundError, subprocess.SubprocessError) as reason:
        yield name, str(reason)
    routed.learn()
    yield (
        f"l3 fast: {DESTINATIONS} destinations, {RATE // 1000} kpps: CPU per frame",
        "ns",
        "<= 1.20",
        lambda: routed.cost(DESTINATIONS),
        lambda: routed.cost(1),
        "one destination",
    )
