"""What a frame costs in instructions can't be disturbed by anybody, so it can be asserted."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.bench import instructions

GUARDS = 60  # more, for all guards and an honest frame
LIMIT = 250  # for parse, decide, look-up, delivery and counting of a 64-byte unicast frame
# glibc's shell of `write` is counted too; since 2.41 it takes 28 instructions instead of 7.
if [int(number) for number in os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")] >= [2, 41]:
    LIMIT += 21


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_a_unicast_frame_costs_few_instructions(mode: str) -> None:
    assert instructions.per_frame(mode, 2) <= LIMIT


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_guards_cost_few_instructions_more(mode: str) -> None:
    assert instructions.per_frame(mode, guarded=True) - instructions.per_frame(mode) <= GUARDS
