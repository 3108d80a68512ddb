"""Places with many addresses: a `Datapath` alone (table_process.py) between two TAPs, without the daemon around it.

How the daemon comes to know an address is left out: what is measured is the table that frames meet.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path as File

from tests.bench.measuring.measures import Figures, frames, generate, received, settle, unread
from tests.bench.places.ground import Ground, Path, Unavailable
from tests.bench.places.table_process import FIRST4, MASTER, PAIR4
from tests.support.topology import inside, run

UDP_SLOTS = 128  # the fewest that there may be
PACED = 100_000  # frames a second, while addresses come and go


def table(ground: Ground, addresses: int, family: int = 4) -> Mapping[str, Path]:
    """The first TAP sends to the addresses of the second, which takes them all as its own."""
    name = f"table{addresses}" if family == 4 else f"table6-{addresses}"
    home = ground.netns(f"{name}h")
    where = with_few_slots(ground, home, f"{name}a"), with_few_slots(ground, home, f"{name}b")
    child = ground.spawn(home, sys.executable, "-m", "tests.bench.places.table_process", str(family), str(addresses))
    said = ask(child)
    ends = []
    for k, (netns, tap) in enumerate(zip(where, said["names"], strict=True), 1):
        ground.lab.ip(home, "link", "set", tap, "netns", netns)
        ground.lab.ip(netns, "link", "set", tap, "address", MASTER)
        ends.append(ground.end(netns, tap, PAIR4[k]))
        ground.up(ends[-1])
    ground.lab.ip(where[1], "route", "add", "local", "10.64.0.0/10", "dev", "lo")
    ground.lab.reachable(where[0], PAIR4[2])
    paths = Path(ends[0], ends[1], (child.pid,), ask=lambda: ask(child, "edit"), facts=said["facts"])
    return {name: paths}


def with_few_slots(ground: Ground, home: str, name: str) -> str:
    """A namespace whose kernel looks for UDP sockets in a small table of its own. In that of the machine a million
    destinations miss the cache a second time, on the receiver's account and not on that of who carries the frames.
    Before Linux 6.2 there is no such thing, and the machine's serves."""
    with inside(home), contextlib.suppress(FileNotFoundError):
        File("/proc/sys/net/ipv4/udp_child_hash_entries").write_text(str(UDP_SLOTS))
    with inside(home):  # new namespaces go by it
        return ground.netns(name)


def ask(child: subprocess.Popen[str], command: str | None = None) -> dict[str, dict[str, float]]:
    """A line to the process, or none, and what it answers. Errors: Unavailable."""
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    if command is not None:
        print(command, file=child.stdin, flush=True)
    line = child.stdout.readline()
    if not line:
        raise Unavailable(f"the table's process ended: {child.stderr.read()[-300:]}")
    answer: dict[str, dict[str, float]] = json.loads(line)
    return answer


def many(path: Path) -> Path:
    """The same, to all of its addresses."""
    first = ".".join(str(byte) for byte in FIRST4.to_bytes(4, "big"))
    return replace(path, sink=replace(path.sink, address=first))


def scattered(ground: Ground, path: Path, destinations: int) -> Figures:
    """60-byte frames flat out, each to another address than the one before."""
    return frames(ground, many(path), destinations=destinations)


def edits(ground: Ground, path: Path, destinations: int) -> Figures:
    """One address comes and goes while frames for the others pass at a steady pace: ms of each change, frames lost."""
    assert path.ask is not None
    with unread(path), ThreadPoolExecutor(1) as other:
        before = received(path)
        words = generate(ground, many(path), 60, PACED, destinations)
        sending = other.submit(run, *words, timeout=60)
        found: Figures = dict(path.ask()["edits"])
        sent = int(sending.result())
        settle(lambda: received(path))
        return found | {"lost": max(0, sent - (received(path) - before))}
