"""A command of this directory, run as its user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "IPVSW_BENCH_TEST"
PATIENCE = 240  # seconds


def finished(script: str, *words: str) -> str:
    """What it has printed, once it has ended well and nothing is left of it."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.bench.{script}", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark},
    )
    try:
        said, complaints = process.communicate(timeout=PATIENCE)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 0, complaints
    left = [name for name in os.listdir("/run/netns") if name.startswith(f"ivt{process.pid}")]
    assert left == [], "namespaces are left"
    assert children(mark) == [], "processes are left"
    return said


def children(mark: str) -> list[str]:
    """Every process that has inherited the mark."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in environment.read_bytes():
                found.append((environment.parent / "cmdline").read_text())
        except OSError:
            continue
    return found
