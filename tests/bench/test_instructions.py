"""What a frame costs in instructions can't be disturbed by anybody, so it can be asserted."""

from __future__ import annotations

import shutil

import pytest

from tests.bench import instructions

LIMIT = 250  # for parse, decide, look-up, delivery and counting of a 64-byte unicast frame


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_a_unicast_frame_costs_few_instructions(mode: str) -> None:
    assert instructions.per_frame(mode, 2) <= LIMIT
