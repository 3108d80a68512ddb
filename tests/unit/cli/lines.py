"""What a command line gives: its exit code, what it prints, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ipvsw import cli

ROOT = Path(cli.__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]
