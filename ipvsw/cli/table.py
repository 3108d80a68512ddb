"""Columns of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they must be. One that is empty in all rows is left out, an empty cell is a dash."""
    rows = list(rows)
    kept = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    cells = [[titles[at] for at in kept], *([row[at] or "-" for at in kept] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(kept))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
