"""What the commands of this directory can all be told."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser(description: str, rounds: int, rounds_of: str, what: str) -> argparse.ArgumentParser:
    """`rounds` is how many there are unless somebody says otherwise; `what` is what `--keep` puts into a document."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--rounds", type=number_of_rounds, default=rounds, help=f"{rounds_of} (default: {rounds})")
    found.add_argument("--seconds", type=length_in_seconds, default=1.0, help="length of each measurement (default: 1)")
    found.add_argument("--keep", type=Path, metavar="FILE", help=f"put {what} into this document too")
    return found


def number_of_rounds(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least one")
    return number


def length_in_seconds(text: str) -> float:
    if (length := float(text)) < 0.1:
        raise argparse.ArgumentTypeError("at least a tenth of a second")
    return length
