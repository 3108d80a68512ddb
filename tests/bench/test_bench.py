"""The benchmark runs, measures every row and cleans up; what it measures is judged by who reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, veth, TAP, BPF")
def test_every_row_is_measured(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(HERE / "run.py"), "--rounds", "1", "--seconds", "1", "--json", str(result)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    found = json.loads(result.read_text())
    assert found["missing"] == []
    assert len(found["rows"]) == 8  # six of l2, two of l3
    assert all(row["ratio"] > 0 for row in found["rows"])
    assert all(row["name"] in said for row in found["rows"])
    left = [name for name in os.listdir("/run/netns") if name.startswith(f"ivt{process.pid}")]
    assert left == [], "namespaces are left"
