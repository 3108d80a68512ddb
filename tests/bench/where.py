#!/usr/bin/env python3
"""Where the time goes: where.py [--seconds S] [--rounds N] [--keep FILE] [CASE...]

What a frame costs the daemon, by what it is spent on, with system calls, context switches and copies; and what a frame
costs the whole machine, with what it takes to wake somebody. Prints two tables in Markdown. Needs root; the first one
needs perf (Debian: linux-perf) too, on a kernel that shows its symbols, and is left out with the reason otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from statistics import median

from tests.bench import options
from tests.bench.measuring import measures, quiet, report, samples
from tests.bench.places.ground import FIRST, SECOND, Ground, Path, Unavailable
from tests.bench.places.places import PLACES
from tests.support.patience import LIMIT
from tests.support.topology import run

MARKS = report.Marks("where")
RATE, BURST = 100_000, 32  # frames a second, and how many the generator sends at once
LATENCY = File("/dev/cpu_dma_latency")  # held open with 0 in it, idle CPUs don't halt (Documentation/power/pm_qos)
LEAST = 0.005  # of the time: what is less is not shown
TRIES = 3  # so often a case is looked at at most, for others to use little of a CPU meanwhile


@dataclass(frozen=True)
class Case:
    """Something that the daemon carries."""

    name: str
    path: str
    load: Callable[[Ground, Path], object]


@dataclass(frozen=True)
class Found:
    """Of one case; each for a frame that the daemon has read."""

    name: str
    ns: float  # of the daemon's CPU
    size: float  # bytes
    copies: float  # bytes that went into the daemon or out of it, for each that it was sent
    calls: dict[str, float]  # system calls by name, all of them as ""
    switches: float
    groups: Counter[str]  # samples


@dataclass(frozen=True)
class Shares:
    """CPU time of the machine for a frame, in us: all of it, the sender's, the daemon's."""

    machine: float
    sender: float
    daemon: float


@dataclass
class Machine:
    """What a frame costs all of it, a value for each round, under some condition."""

    condition: str
    ours: list[Shares] = field(default_factory=list)
    bridge: list[Shares] = field(default_factory=list)
    wakes: list[float] = field(default_factory=list)  # us to wake a thread on another CPU once


def small(ground: Ground, path: Path, rate: float = 0) -> object:
    return measures.frames(ground, path, 60, rate)


CASES = (
    Case("port to port, 60 bytes", "ipvsw", small),
    Case("the same, 100,000/s", "ipvsw", lambda ground, path: small(ground, path, RATE)),
    Case("the same, epoll, flat out", "epoll", small),
    Case("port to wire, 60 bytes", "ipvsw out", small),
    Case("wire to port, 60 bytes", "ipvsw in", small),
    Case("port to port, TCP", "ipvsw", measures.tcp),
    Case("port to wire, TCP", "ipvsw out", measures.tcp),
    Case("wire to port, TCP", "ipvsw in", measures.tcp),
)


# ---------------------------------------------------------------------------- measuring


def traffic(path: Path) -> tuple[int, int, int]:
    """Frames and bytes that the daemon has read so far, and bytes that it has written."""
    assert path.daemon is not None
    interfaces = [
        interface
        for switch in path.daemon.stats()
        for interface in (switch["master"], switch["host"], *switch["ports"].values())
    ]
    frames, read, written = (
        sum(interface[name] for interface in interfaces) for name in ("rx_frames", "rx_bytes", "tx_bytes")
    )
    return frames, read, written


def undisturbed(ground: Ground, case: Case) -> Found:
    """The look during which others did least. Errors: Unavailable."""
    best: tuple[float, Found] | None = None
    for _ in range(TRIES):
        before = quiet.look()
        found = look(ground, case)
        foreign = quiet.foreign_share(before, quiet.look())
        if best is None or foreign < best[0]:
            best = foreign, found
        if foreign <= quiet.FOREIGN:
            break
    assert best is not None
    return best[1]


def look(ground: Ground, case: Case) -> Found:
    """The same load three times: by itself, counted, and sampled. Errors: Unavailable."""
    path = ground.path(case.path)

    def carried() -> tuple[int, int, int]:
        before = traffic(path)
        case.load(ground, path)
        frames, read, written = (now - was for now, was in zip(traffic(path), before, strict=True))
        if frames < measures.ENOUGH:
            raise Unavailable(f"{case.name}: the daemon has read only {frames} frames")
        return frames, read, written

    used = measures.cpu(path)
    frames, read, written = carried()
    used = measures.cpu(path) - used
    with samples.counted(path.pids) as counts:
        number = carried()[0]
    with samples.profiled(path.pids, ground.directory) as groups:
        carried()
    return Found(
        name=case.name,
        ns=used / frames,
        size=read / frames,
        copies=(read + written) / read,
        calls={name: count / number for name, count in counts.calls.items()},
        switches=counts.switches / number,
        groups=groups,
    )


def share(ground: Ground, path: Path) -> Shares:
    """Frames at a pace, in bursts, as C1 has them. The sender's CPU time is its process's, from beginning to end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = measures.frames(ground, path, 60, RATE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    sent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    arrived = found["kpps"] * 1000 * ground.seconds
    return Shares(found["system_us"], sent / arrived * 1e6, found["daemon_ns"] / 1000)


def waking(ground: Ground) -> float:
    """CPU time of the machine, in us, to wake a thread on another CPU once, which goes to sleep again."""

    def busy(other: int) -> float:
        words = (str(FIRST[0]), str(other), str(RATE // BURST), f"{ground.seconds:g}")
        before = quiet.look()
        times = int(run(ground.tool("wake"), *words, timeout=LIMIT))
        return quiet.busy(before, quiet.look()) / times * 1e6

    return busy(SECOND[0]) - busy(-1)


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Idle CPUs wait without halting meanwhile. Errors: OSError."""
    with LATENCY.open("wb", buffering=0) as file:
        file.write(struct.pack("i", 0))
        yield


def machine(ground: Ground, rounds: int) -> list[Machine]:
    """ipvsw and the kernel's bridge by turns; with CPUs as they are, and with such as don't halt."""
    ways: list[tuple[Machine, Callable[[], contextlib.AbstractContextManager[None]]]]
    ways = [(Machine("as it is"), contextlib.nullcontext)]
    if os.access(LATENCY, os.W_OK):
        ways.append((Machine("CPUs that don't halt"), awake))
    for _ in range(rounds):
        for found, way in ways:
            with way():
                found.ours.append(share(ground, ground.path("ipvsw")))
                found.bridge.append(share(ground, ground.path("bridge")))
                found.wakes.append(waking(ground))
    return [found for found, _ in ways]


# ---------------------------------------------------------------------------- written down


def costs(found: Sequence[Found]) -> str:
    """A column for each case, a row for each group."""

    def row(name: str, values: Sequence[str]) -> str:
        return f"| {name} | {' | '.join(values)} |"

    lines = [row("", [one.name for one in found]), "|---|" + "--:|" * len(found)]
    for group in samples.GROUPS:
        parts = [one.groups[group] / one.groups.total() for one in found]
        if max(parts) >= LEAST:
            lines.append(row(group, [f"{one.ns * part:.0f}" for one, part in zip(found, parts, strict=True)]))
    lines.append(row("**the daemon's CPU, ns**", [f"**{one.ns:.0f}**" for one in found]))
    lines.append(row("system calls", [report.number(one.calls[""]) for one in found]))
    for name in samples.CALLS:
        if any(one.calls.get(name, 0) >= LEAST for one in found):
            lines.append(row(f"- `{name}`", [often(one.calls.get(name, 0)) for one in found]))
    lines.append(row("times that it left its CPU", [often(one.switches) for one in found]))
    lines.append(row("bytes of a frame", [report.number(one.size) for one in found]))
    lines.append(row("copies of each byte", [report.number(one.copies) for one in found]))
    return "\n".join(lines)


def often(value: float) -> str:
    return report.number(value) if value >= 0.001 else "0"


def shares(found: Sequence[Machine]) -> str:
    lines = [
        "| | the machine, us | beside | sender | daemon | the rest | waking a CPU once, us | for each frame, us |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        wake = median(one.wakes)
        ratio = median(a.machine / b.machine for a, b in zip(one.ours, one.bridge, strict=True))
        more = (f"**{ratio:.2f}**", "1"), ((report.number(wake), report.number(wake / BURST)), ("", ""))
        for name, values, beside, woken in zip(("ipvsw", "veth + bridge"), (one.ours, one.bridge), *more, strict=True):
            parts = [(each.sender, each.daemon, each.machine - each.sender - each.daemon) for each in values]
            cells = [report.number(median(each.machine for each in values)), beside]
            cells += [report.number(median(column)) for column in zip(*parts, strict=True)]
            lines.append(f"| {name}, {one.condition} | {' | '.join([*cells, *woken])} |")
    return "\n".join(lines)


def document(
    found: Sequence[Found],
    reasons: Sequence[str],
    whole: Sequence[Machine],
    seconds: float,
) -> str:
    parts = [f"{report.machine()}; commit {report.commit()}; {seconds:g} s for each measurement."]
    if found:
        number = sum(one.groups.total() for one in found)
        words = "For each frame that the daemon reads: ns of its CPU by what they are spent on"
        parts += [f"{words} ({number} samples), and how often what happens.", costs(found)]
    parts += [f"Left out: {reason}." for reason in reasons]
    words = f"CPU of the machine for each 60-byte frame, {RATE:,} a second in bursts of {BURST}, port to port"
    return "\n\n".join([*parts, f"{words}:", shares(whole)])


def arguments_given() -> argparse.Namespace:
    description = "What a frame costs, by what it is spent on."
    parser = options.parser(description, 5, "measurements of the machine's cost", "the tables")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="words of its name: epoll, TCP (default: all cases)")
    arguments = parser.parse_args()
    words = arguments.cases or [""]
    arguments.cases = [case for case in CASES if any(word in case.name for word in words)]
    if not arguments.cases:
        parser.error(f"there is no such case; there are: {'; '.join(case.name for case in CASES)}")
    return arguments


def main() -> int:
    arguments = arguments_given()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is taken down
    found, reasons = [], []
    with Ground(PLACES, arguments.seconds) as ground:
        for case in arguments.cases:
            try:
                found.append(undisturbed(ground, case))
            except Unavailable as reason:
                reasons.append(f"{case.name}: {reason}")
        whole = machine(ground, arguments.rounds)
    text = document(found, reasons, whole, arguments.seconds)
    print(text)
    if arguments.keep:
        MARKS.fill(arguments.keep, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
