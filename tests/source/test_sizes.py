"""A file has one subject, and a folder is taken in at a glance."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
LINES = {".py": 400, ".pyx": 500, ".pxd": 500}  # fewer than these
MOST = 14  # files of a folder's own


@pytest.mark.parametrize("suffix", LINES)
def test_no_file_is_long(suffix: str) -> None:
    lengths = {path: (ROOT / path).read_text().count("\n") for path in FILES if path.endswith(suffix)}
    assert {path: length for path, length in lengths.items() if length >= LINES[suffix]} == {}


def test_no_folder_is_full() -> None:
    folders = Counter(str(Path(path).parent) for path in FILES)
    assert {folder: count for folder, count in folders.items() if count > MOST} == {}
