#!/usr/bin/env python3
"""Compare what `rig.py replay` saw with what the kernel's ipvlan did: compare.py EXPECTED SEEN

A case agrees when the same places saw the same frames, byte for byte, with the same packet type.
A sender's own error (the kernel refuses some frames at once; a TAP cannot) counts as no sighting.
Prints each case that differs and a closing line; exits 1 if any differs.
"""

import json
import sys
from pathlib import Path


def sightings(case, drop_errors=True):
    return sorted((s["at"], s["type"], s["frame"]) for s in case if not (drop_errors and s["type"] == "error"))


def improved(expected):
    """With what the switch does better than the driver, on purpose: see improvements.json. A case's frame is seen at
    further places."""
    better = json.loads(Path(__file__).with_name("improvements.json").read_text())
    cases = {case: list(seen) for case, seen in expected.items()}
    for case, improvement in better.items():
        seen = next((s for s in cases.get(case, []) if s["at"] == improvement["as_at"]), None)
        if seen is not None:
            cases[case] += [seen | {"at": place} for place in improvement["also_at"]]
    return cases


def where(rows):
    return " ".join(f"{at}:{kind}" for at, kind, _ in rows) or "nobody"


def main():
    expected, seen = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    if Path(sys.argv[1]).name.startswith("l2-"):
        expected = improved(expected)
    differing = 0
    for case, wanted in expected.items():
        want, got = sightings(wanted), sightings(seen.get(case, []))
        if want == got:
            continue
        differing += 1
        same_places = [r[:2] for r in want] == [r[:2] for r in got]
        print(f"{case}: expected {where(want)}, seen {where(got)}" + (" (frames differ)" if same_places else ""))
    print(f"{len(expected) - differing} of {len(expected)} cases agree")
    return differing > 0


if __name__ == "__main__":
    sys.exit(main())
