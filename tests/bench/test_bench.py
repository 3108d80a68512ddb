"""The benchmark runs, measures in every way that it knows and cleans up; what it measures is judged by who reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bench.commands import finished

ROWS = "T1-9000 T8 P2 M3 C-flat G2 G-p99 G-p99-bursts L1 L-ping W1 W2 W4 H2-out F16 S2-1000-cpu S3-delete A1 O1".split()  # noqa: SIM905
PEERS = ["T3-9000", "T4-vde"]  # that need not be installed


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, veth, TAP, BPF")
def test_rows_are_measured(tmp_path: Path) -> None:
    said = finished("run", "--rounds=1", "--seconds=0.2", f"--out={tmp_path}", *ROWS, *PEERS)
    found = json.loads((tmp_path / "bench.json").read_text())
    missing = {one["id"]: one["reason"] for one in found["missing"]}
    assert all(name in PEERS and "is not installed" in reason for name, reason in missing.items()), missing
    measured = {row["id"]: row["median"] for row in found["rows"]}
    assert set(measured) | set(missing) == {*ROWS, *PEERS}
    assert all(value > 0 for name, value in measured.items() if name not in ("W2", "W4", "H2-out")), measured
    assert all(f"| {name} |" in said for name in measured)
