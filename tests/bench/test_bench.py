"""The benchmark runs, measures in every way that it knows and cleans up; what it measures is judged by who reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROWS = "T1-9000 T8 P2 M3 C-flat L1 L-ping W1 W2 H2-out F16 S2-1000-cpu S3-delete O1".split()  # noqa: SIM905
PEERS = ["T3-9000", "T4-vde"]  # that need not be installed
MARK = "IPVSW_BENCH_TEST"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, veth, TAP, BPF")
def test_rows_are_measured(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, str(HERE / "run.py"), "--rounds=1", "--seconds=0.2", f"--out={tmp_path}", *ROWS, *PEERS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark},
    )
    try:
        said, complaints = process.communicate(timeout=240)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 0, complaints
    found = json.loads((tmp_path / "bench.json").read_text())
    missing = {one["id"]: one["reason"] for one in found["missing"]}
    assert all(name in PEERS and "is not installed" in reason for name, reason in missing.items()), missing
    measured = {row["id"]: row["median"] for row in found["rows"]}
    assert set(measured) | set(missing) == {*ROWS, *PEERS}
    assert all(value > 0 for name, value in measured.items() if name not in ("W2", "H2-out")), measured
    assert all(f"| {name} |" in said for name in measured)
    left = [name for name in os.listdir("/run/netns") if name.startswith(f"ivt{process.pid}")]
    assert left == [], "namespaces are left"
    assert children(mark) == [], "processes are left"


def children(mark: str) -> list[str]:
    """Whoever has inherited the mark."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in environment.read_bytes():
                found.append((environment.parent / "cmdline").read_text())
        except OSError:
            continue
    return found
