"""Mutated frames of the conformance corpus through parse and decide, by the million:

    python -m tests.fuzz.storm FRAMES SEED [PROBE]

PROBE is the file of the `_decider` extension to use; the default is the tree's own. Prints how many
verdicts there were of each outcome; every frame is decided about as one from the wire, as one from the host and as
one from a port, plain and to be segmented. Modes, flags and host_access share the frames.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).parents[1]
MASTER = bytes.fromhex("020000000001")
PAIRS = [(mode, flag) for mode in range(3) for flag in range(3)]
ACCESS = 4
VERDICTS = 4  # for each frame
PROBE = "tests.native._decider"


def seeds() -> list[bytes]:
    return [bytes.fromhex(case["frame"]) for case in json.loads((TESTS / "conformance/corpus.json").read_text())]


def storm(decider: Any, frames: int, seed: int) -> Counter[int]:
    """Outcome numbers and how often each came. Raises AssertionError with the frame if a verdict makes no sense."""
    ports = [(True, 1500, False, []), (True, 100, False, []), (False, 1500, True, []), (True, 1500, False, [])]
    table = {bytes([10, 1, 0, 11 + k]): k for k in range(4)}
    host = [bytes([10, 1, 0, 1]), bytes.fromhex("fd000001" + "00" * 11 + "01")]
    table |= {bytes.fromhex("fd000001" + "00" * 11) + bytes([0x11 + k]): k for k in range(4)}
    totals: Counter[int] = Counter()
    for n, (mode, flag) in enumerate(PAIRS):
        share = frames // len(PAIRS) + (n < frames % len(PAIRS))
        counts = decider(mode, flag, MASTER, ports, table, host, n % ACCESS).storm(seeds(), share, seed + n)
        totals.update({outcome: count for outcome, count in enumerate(counts) if count})
    return totals


def probe_at(path: str) -> ModuleType:
    """The probe as another build has it."""
    spec = spec_from_file_location(PROBE, path, loader=ExtensionFileLoader(PROBE, path))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    frames, seed, *probe = sys.argv[1:]
    decider = probe_at(probe[0]) if probe else import_module(PROBE)
    for outcome, count in sorted(storm(decider.Decider, int(frames), int(seed)).items()):
        print(outcome, count)


if __name__ == "__main__":
    main()
