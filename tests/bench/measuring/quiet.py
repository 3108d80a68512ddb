"""Was the machine ours alone while something was measured? CPU time of everybody else, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
FOREIGN = 0.10  # of one CPU: with more of it used by others, a measurement is taken again
KERNEL = 2  # the pid of kthreadd: its children work for any process, the measurement first of all


@dataclass(frozen=True)
class Moment:
    """A look at the machine. All in seconds; `idle` and `stolen` are sums over its CPUs."""

    at: float
    idle: float
    stolen: float
    foreign: float


def look() -> Moment:
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return Moment(time.monotonic(), (ticks[3] + ticks[4]) / TICKS, ticks[7] / TICKS, _foreign())


def busy(before: Moment, after: Moment) -> float:
    """CPU seconds that the machine worked for us: what it could have, without idle, iowait and what others used. (User
    and system time are sampled by the tick and miss what sleeps and wakes between two.)"""
    possible = (after.at - before.at) * (os.cpu_count() or 1)
    return possible - (after.idle - before.idle) - max(0.0, after.foreign - before.foreign)


def foreign_share(before: Moment, after: Moment) -> float:
    """CPU time of others, or stolen by the hypervisor, as a share of one CPU."""
    used = (after.foreign - before.foreign) + (after.stolen - before.stolen)
    return max(0.0, used) / max(after.at - before.at, 1e-9)


def _foreign() -> float:
    """CPU seconds of the processes that are neither the kernel's nor ours, which are those that we have partial."""
    found = list(_processes())
    known = {os.getpid(), KERNEL}
    while more := {pid for pid, parent, _ in found if parent in known} - known:
        known |= more
    return sum(ticks for pid, _, ticks in found if pid not in known) / TICKS


def _processes() -> Iterator[tuple[int, int, int]]:
    """(pid, parent, ticks) of each; with the ticks of its children that have ended, so that none is lost."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(entry), int(words[1]), sum(map(int, words[11:15]))
