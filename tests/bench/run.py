#!/usr/bin/env python3
"""Throughput and cost for each frame of `ipvswd` beside what the same machine gives without it: run.py [--rounds N]

Prints a Markdown table. Every figure is a ratio of two measurements taken in the same run, turn by
turn, with everything alive at once; the median over the rounds and the lowest and highest. README.md
says what is measured and how. Needs root, iproute2, iperf3 and a C compiler; what can't be had is
left out with its reason. `--json FILE` writes the single measurements as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

import l3  # noqa: E402
from lab import MASTER_MAC, WIRE4, Lab, exec_in, inside, port4, run, until  # noqa: E402
from running import Daemon, cpu_ns, port, switch  # noqa: E402

KERNEL4 = {1: "10.1.9.1", 2: "10.1.9.2"}
LOOP4 = {1: "10.9.0.1", 2: "10.9.0.2"}
PACED = 100_000  # frames per second


class Unavailable(Exception):
    """Something to compare with can't be had here; says why."""


class Row(NamedTuple):
    name: str
    unit: str
    limit: str
    ours: Callable[[], float]
    reference: Callable[[], float]
    against: str


class Result(NamedTuple):
    row: Row
    ours: list[float]
    reference: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.reference, strict=True)]


# ---------------------------------------------------------------------------- what is alive


class Peers:
    """The lab: two ports of ipvswd (p1, p2), two of macvlan (k1, k2) on the same master, the C loop (l1, l2)."""

    def __init__(self, stack: contextlib.ExitStack, seconds: int) -> None:
        self.seconds = seconds
        self.lab = stack.enter_context(Lab(2))
        self.kernel = {k: f"{self.lab.prefix}-k{k}" for k in (1, 2)}
        self.loops = {k: f"{self.lab.prefix}-l{k}" for k in (1, 2)}
        self.lab.add(*self.kernel.values(), *self.loops.values())
        ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(self.lab.ports, 1)]
        self.daemon = stack.enter_context(Daemon(switch("m0", self.lab.host, ports), home=self.lab.home))
        self.daemon.wait()
        self.lab.reachable(self.lab.ports[0], port4(2))
        self.lab.reachable(self.lab.ports[0], WIRE4)
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ivt")))
        self.loop: subprocess.Popen[str] | None = None
        self.sinks = stack.enter_context(contextlib.ExitStack())

    def start_macvlan(self) -> None:
        for k, netns in self.kernel.items():
            try:
                self.lab.ip(
                    self.lab.host,
                    "link",
                    "add",
                    "link",
                    "m0",
                    "name",
                    f"mv{k}",
                    "netns",
                    netns,
                    "type",
                    "macvlan",
                    "mode",
                    "bridge",
                )
            except AssertionError as error:
                raise Unavailable(f"no macvlan on the master: {error}") from None
            self.lab.ip(netns, "addr", "add", f"{KERNEL4[k]}/16", "dev", f"mv{k}")
            self.lab.ip(netns, "link", "set", f"mv{k}", "up")
        self.lab.reachable(self.kernel[1], KERNEL4[2])
        self.lab.reachable(self.kernel[1], WIRE4)

    def start_iperf(self) -> None:
        if shutil.which("iperf3") is None:
            raise Unavailable("iperf3 is not installed")
        for netns in (self.lab.wire, *self.lab.ports, *self.kernel.values()):
            self.lab.spawn(netns, "iperf3", "-s", "--logfile", "/dev/null")
            until(
                lambda netns=netns: ":1451 " in self.lab.read(netns, "tcp") + self.lab.read(netns, "tcp6"),
                5,
                "iperf3 listens",
            )

    def compile(self, name: str) -> Path:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise Unavailable("there is no C compiler")
        target = self.directory / name
        run(compiler, "-O2", "-o", str(target), str(HERE / f"{name}.c"))
        return target

    def start_loop(self) -> None:
        names = {k: f"loop{k}" for k in (1, 2)}
        self.loop = self.lab.spawn(self.lab.home, str(self.compile("loop")), *names.values())
        assert self.loop.stdout is not None
        if self.loop.stdout.readline() != "ready\n":
            raise Unavailable(f"no TAPs for the C loop: {self.loop.stderr and self.loop.stderr.read()}")
        for k, netns in self.loops.items():
            self.lab.ip(self.lab.home, "link", "set", names[k], "netns", netns)
            self.lab.ip(netns, "addr", "add", f"{LOOP4[k]}/24", "dev", names[k])
            self.lab.ip(netns, "link", "set", names[k], "up")
        self.lab.reachable(self.loops[1], LOOP4[2])

    def start_frames(self) -> None:
        self.generator = self.compile("generate")
        for netns in (self.lab.ports[1], self.loops[2]):
            with inside(netns):
                sink = self.sinks.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # never read: what comes is counted by the device
            sink.bind(("", 9))

    # ------------------------------------------------------------------------ what is measured

    def tcp(self, source: str, address: str) -> float:
        """One iperf3 stream: Gbit/s that arrived."""
        out = run(*exec_in(source, "iperf3", "-c", address, "-t", str(self.seconds), "-J"), timeout=60)
        return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9

    def received(self, netns: str, device: str) -> int:
        line = next(line for line in self.lab.read(netns, "dev").splitlines() if line.strip().startswith(f"{device}:"))
        return int(line.split(":")[1].split()[1])

    def frames(
        self,
        ends: tuple[str, str],
        devices: tuple[str, str],
        mac: str,
        addresses: tuple[str, str],
        pid: int,
        rate: float,
    ) -> tuple[float, float]:
        """64-byte frames from the one to the other: (CPU ns of the process for each, thousands a second)."""
        before, busy = self.received(ends[1], devices[1]), cpu_ns(pid)
        run(
            *exec_in(ends[0], str(self.generator), devices[0], mac, *addresses, f"{rate:g}", str(self.seconds)),
            timeout=60,
        )
        arrived, busy = self.received(ends[1], devices[1]) - before, cpu_ns(pid) - busy
        assert arrived > 1000, f"only {arrived} frames arrived"
        return busy / arrived, arrived / self.seconds / 1000

    def ours(self, rate: float) -> tuple[float, float]:
        return self.frames(
            (self.lab.ports[0], self.lab.ports[1]),
            ("ipvl1", "ipvl2"),
            MASTER_MAC,
            (port4(1), port4(2)),
            self.daemon.pid,
            rate,
        )

    def theirs(self, rate: float) -> tuple[float, float]:
        assert self.loop is not None
        link = self.lab.link(self.loops[2], "loop2")
        assert link is not None
        return self.frames(
            (self.loops[1], self.loops[2]),
            ("loop1", "loop2"),
            link["address"],
            (LOOP4[1], LOOP4[2]),
            self.loop.pid,
            rate,
        )


def rows(peers: Peers) -> Iterator[Row | tuple[str, str]]:
    """What to measure; for what can't be measured its name and the reason."""
    p1, k1 = peers.lab.ports[0], peers.kernel[1]
    streams = {
        "port to port": ((p1, port4(2)), (k1, KERNEL4[2])),
        "port to wire": ((p1, WIRE4), (k1, WIRE4)),
        "wire to port": ((peers.lab.wire, port4(1)), (peers.lab.wire, KERNEL4[1])),
    }
    try:
        peers.start_iperf()
        peers.start_macvlan()
        for name, (mine, other) in streams.items():
            yield Row(
                f"TCP, one stream, {name}",
                "Gbit/s",
                ">= 0.60",
                lambda mine=mine: peers.tcp(*mine),
                lambda other=other: peers.tcp(*other),
                "macvlan bridge",
            )
    except Unavailable as reason:
        yield "TCP", str(reason)
    try:
        peers.start_frames()
        peers.start_loop()
        yield Row(
            f"64-byte frames, {PACED // 1000} kpps: CPU per frame",
            "ns",
            "<= 1.25",
            lambda: peers.ours(PACED)[0],
            lambda: peers.theirs(PACED)[0],
            "C read+write loop",
        )
        yield Row(
            "64-byte frames, saturated: CPU per frame",
            "ns",
            "<= 1.25",
            lambda: peers.ours(0)[0],
            lambda: peers.theirs(0)[0],
            "C read+write loop",
        )
        yield Row(
            "64-byte frames, saturated: arriving",
            "kpps",
            "",
            lambda: peers.ours(0)[1],
            lambda: peers.theirs(0)[1],
            "C read+write loop",
        )
    except Unavailable as reason:
        yield "64-byte frames", str(reason)
    try:
        for figure in l3.figures(peers.sinks, peers.compile("generate"), peers.seconds):
            yield Row(*figure) if len(figure) == len(Row._fields) else figure
    except Unavailable as reason:
        yield "l3 fast", str(reason)


def measure(wanted: list[Row], rounds: int) -> list[Result]:
    """Every row once a round, in an order of its own; the two sides of a row directly after each other."""
    results = [Result(row, [], []) for row in wanted]
    for number in range(rounds):
        for result in random.sample(results, len(results)):
            sides = [(result.ours, result.row.ours), (result.reference, result.row.reference)]
            for values, side in sides if number % 2 else reversed(sides):
                values.append(side())
            print(f"round {number + 1} of {rounds}: {result.row.name}: {result.ratios[-1]:.2f}", file=sys.stderr)
    return results


# ---------------------------------------------------------------------------- what is printed


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=HERE, capture_output=True, text=True
    )
    return (
        f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load before {os.getloadavg()[0]:.2f}, commit {commit.stdout.strip() or 'unknown'}"
    )


def spread(values: list[float], form: str) -> str:
    return f"{median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"


def table(results: list[Result], missing: list[tuple[str, str]]) -> str:
    lines = ["| | ipvsw | reference | is | ratio | wanted |", "|---|--:|--:|---|--:|---|"]
    for result in results:
        row, form = result.row, ".2f" if result.row.unit == "Gbit/s" else ".0f"
        lines.append(
            f"| {row.name} | {spread(result.ours, form)} {row.unit} | {spread(result.reference, form)} "
            f"{row.unit} | {row.against} | **{spread(result.ratios, '.2f')}** | {row.limit} |"
        )
    lines += [f"| {name} | not measured: {reason} | | | | |" for name, reason in missing]
    return "\n".join(lines)


def document(results: list[Result], missing: list[tuple[str, str]], where: str) -> dict[str, Any]:
    return {
        "machine": where,
        "rows": [
            {
                "name": r.row.name,
                "unit": r.row.unit,
                "against": r.row.against,
                "ipvsw": r.ours,
                "reference": r.reference,
                "ratio": median(r.ratios),
            }
            for r in results
        ],
        "missing": [{"name": name, "reason": reason} for name, reason in missing],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Throughput and cost for each frame, beside the kernel's own.")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each figure (default: 3)")
    parser.add_argument("--seconds", type=int, default=3, help="length of each measurement (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("at least one round of one second")
    where = machine()
    with contextlib.ExitStack() as stack:
        found = list(rows(Peers(stack, arguments.seconds)))
        missing = [one for one in found if not isinstance(one, Row)]
        results = measure([one for one in found if isinstance(one, Row)], arguments.rounds)
    print(f"{where}; {arguments.rounds} rounds of {arguments.seconds} s\n\n{table(results, missing)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(document(results, missing, where), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
