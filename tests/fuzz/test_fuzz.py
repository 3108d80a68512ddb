"""A million mutated frames through parse and decide, plain and under sanitizers, and a short guided run."""

from __future__ import annotations

import random
import subprocess

import pytest

from tests.fuzz.fuzzing import NAMES, guided, storm
from tests.fuzz.storm import VERDICTS

FRAMES = 1_000_000
# No mutated corpus frame reaches the interfaces or the host's routing, where these come from.
AFTER_DECIDE = {"drop_backlog", "drop_no_master", "drop_full", "drop_bad_header", "drop_error"}
AFTER_DECIDE |= {"to_stack", "to_slowpath", "drop_macnat", "answered"}
# Before a verdict, or after it: tests/native/rules.
GUARDED_OR_LIMITED = {name for name in NAMES if name.startswith(("guard_", "limit_"))}
DECIDED = set(NAMES) - AFTER_DECIDE - GUARDED_OR_LIMITED


@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
def test_a_million_frames_end_in_exactly_one_counter(sanitize: bool) -> None:
    seed = random.SystemRandom().getrandbits(31)
    print(f"IPVSW_SEED={seed}")
    try:
        totals = storm(FRAMES, seed, sanitize=sanitize)
    except subprocess.CalledProcessError as e:
        pytest.fail(e.stderr)
    assert totals.total() == FRAMES * VERDICTS
    assert set(totals) <= DECIDED
    assert set(totals) >= DECIDED - {"drop_pause"}, "the mutations should come by every rule"


def test_guided_fuzzing_finds_nothing() -> None:
    try:
        closing = guided(3, 1)
    except subprocess.CalledProcessError as e:
        pytest.fail(e.stderr)
    if not closing:
        pytest.skip("this clang has no libFuzzer")
    assert "Done" in closing
