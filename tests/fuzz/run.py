#!/usr/bin/env python3
"""Fuzz parse and decide: run.py [--frames N] [--seconds S] [--seed X]

A storm of N mutated corpus frames (tests/fuzz/storm.py) through a plain build and through one with ASan and UBSan,
then S seconds of coverage-guided fuzzing (tests/fuzz/guided.pyx) where clang has libFuzzer. Exit code 1 if anything
was found.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

from tests.fuzz.fuzzing import guided, storm
from tests.fuzz.storm import VERDICTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("IPVSW_SEED") or random.getrandbits(31)))
    arguments = parser.parse_args()
    print(f"IPVSW_SEED={arguments.seed}")
    try:
        for sanitize in (False, True):
            start = time.monotonic()
            totals = storm(arguments.frames, arguments.seed, sanitize=sanitize)
            took = f"{time.monotonic() - start:.1f} s{', sanitized' if sanitize else ''}"
            print(f"{arguments.frames} frames, {VERDICTS} verdicts each, {took}: every one in a counter")
        for outcome, count in totals.items():
            print(f"  {outcome:16}{count:>10}")
        print("guided:", guided(arguments.seconds, arguments.seed) or "this clang has no libFuzzer (libclang-rt-dev)")
    except subprocess.CalledProcessError as e:
        print(e.stderr or e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
