"""The extensions under test are those of this tree, and not of another that is installed."""

from __future__ import annotations

from pathlib import Path

from ipvsw import _fast
from tests.native import _probe

ROOT = Path(__file__).parents[2]


def test_both_extensions_are_this_trees() -> None:
    assert Path(_fast.__file__).parents[1] == ROOT
    assert Path(_probe.__file__).parents[2] == ROOT
