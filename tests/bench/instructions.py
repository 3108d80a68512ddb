#!/usr/bin/env python3
"""Instructions of our own for each frame between its read and its write: instructions.py [--json]

A recorded batch of 64-byte unicast frames goes through parse, decide, look-up, delivery and counting, under
callgrind. Two runs of different length are subtracted from each other, so that what Python does before and after
doesn't count. No clock is involved: the figure is the same on a loaded machine, to the instruction. What it includes
besides: the C library's shell of `write`, which goes to the null device. The same with all of a port's guards on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BATCH = 256  # frames
SHORT, LONG = 2, 202  # times the batch is carried
MASTER = bytes.fromhex("020000000001")
MODES = {"l2": 0, "l3": 1}


class Unavailable(Exception):
    """What is needed is not here; says what."""


def frames(addresses: int) -> bytearray:
    """A virtio_net_hdr and 60 bytes (64 with the check sequence) each, IPv4 UDP, to a sibling's addresses by turns."""
    found = bytearray()
    for k in range(BATCH):
        to = 0x0A010000 + 1 + 2 * (k * 7919 % (addresses // 2))  # an odd one: port 1's
        packet = b"\x45\0\0\x2e" + bytes(4) + b"\x40\x11\0\0" + bytes([10, 1, 0, 0]) + to.to_bytes(4, "big")
        found += bytes(10) + MASTER * 2 + b"\x08\0" + packet + b"\0\x09\0\x09\0\x1a\0\0" + bytes(18)
    return found


def carried(mode: str, addresses: int, guarded: bool, times: int) -> int:
    """In this process: what callgrind counts. Returns the frames that arrived."""
    from ipvsw._fast import GUARDS
    from tests.native._hot import Batch

    guards = sum(GUARDS.values()) if guarded else 0
    batch = Batch(MODES[mode], 0, MASTER, 2, range(0x0A010000, 0x0A010000 + addresses), guards)
    return int(batch.carry(frames(addresses), 70, times))


def counted(mode: str, addresses: int, guarded: bool, times: int) -> int:
    """Instructions of a whole process that carries the batch `times` times."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "out")
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, "-S"]
        done = subprocess.run(
            [*tool, "-m", "tests.bench.instructions", "--carry", mode, str(addresses), str(int(guarded)), str(times)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Unavailable(f"callgrind: {done.stderr.strip()[-400:]}")
        assert int(done.stdout) == BATCH * times, "not every frame was delivered"
        total = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
        assert total is not None
        return int(total[1])


def per_frame(mode: str = "l2", addresses: int = 2, *, guarded: bool = False) -> float:
    """`guarded`: all guards of the sending port are on. Errors: Unavailable."""
    if shutil.which("valgrind") is None:
        raise Unavailable("valgrind is not installed")
    more = counted(mode, addresses, guarded, LONG) - counted(mode, addresses, guarded, SHORT)
    return more / (BATCH * (LONG - SHORT))


def main() -> int:
    if sys.argv[1:2] == ["--carry"]:
        print(carried(sys.argv[2], int(sys.argv[3]), bool(int(sys.argv[4])), int(sys.argv[5])))
        return 0
    try:
        found = {
            f"{mode}, {n} addresses{', all guards' if guarded else ''}": per_frame(mode, n, guarded=guarded)
            for guarded in (False, True)
            for mode in MODES
            for n in (2, 1000)
        }
    except Unavailable as reason:
        print(f"instructions.py: {reason}", file=sys.stderr)
        return 1
    if sys.argv[1:] == ["--json"]:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(f"{name}: {value:.1f} instructions for each frame" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
