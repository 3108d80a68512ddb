#!/usr/bin/env python3
"""For how long changes of the address table hold a worker up: pauses.py [ADDRESSES]

A worker without a thread makes the edits of a commit round by round, as it does between two bursts of frames, and each
round's CPU time is taken. All is done a few times from the beginning, and of each round the shortest time counts: what
the table has to do it does every time, an interrupt comes when it likes. Says the longest rounds, as JSON, in us.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from array import array
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIRST = 0x0A400000  # 10.64.0.0, and upwards
COMMIT_SIZE = 8192  # addresses in one commit: COMMIT_SIZE in ipvsw/changes.py
SINGLES = 5000
TURNS = 3
MASTER = bytes.fromhex("020000000001")


def longest(turns: list[array[int]]) -> float:
    """us of the longest round."""
    return max(min(times) for times in zip(*turns, strict=True)) / 1000


def measured(addresses: int) -> dict[str, float]:
    """In this process."""
    from tests.native._hot import Batch

    everything = array("I", range(FIRST, FIRST + addresses))
    some = array("I", random.Random(addresses).sample(everything, min(SINGLES, addresses)))
    loading, adding, deleting = [], [], []
    for _ in range(TURNS):
        batch = Batch(0, 0, MASTER, 2, ())
        loading.append(batch.edit(everything, COMMIT_SIZE, True))
        deleting.append(batch.edit(some, 1, False))
        adding.append(batch.edit(some, 1, True))
    return {"load_us": longest(loading), "single_us": max(longest(adding), longest(deleting))}


def pauses(addresses: int) -> dict[str, float]:
    """In a process of its own."""
    words = [sys.executable, "-m", "tests.bench.pauses", str(addresses)]
    found: dict[str, float] = json.loads(
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    )
    return found


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)))
