"""`pytest -n auto`: tests on every core, in workers that cannot meet.

A worker has namespaces of its own (`worker`), so that namespaces, devices, processes and what is found in /run are a
worker's. Shared are files (tests keep to their own directories), the machine's cores and what the kernel has once.
A module is run by one worker, for its fixtures; the long ones begin, so that no worker is left alone at the end.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker")
LONG_FIRST = ("vm", "field", "e2e", "fuzz", "bench", "lab", "netns", "native", "conformance")  # all else is short


def isolate_workers(config: pytest.Config) -> None:
    """Have the workers of pytest-xdist started in namespaces. Only root can, and only root runs tests that need it."""
    if not config.getoption("tx", None) or hasattr(config, "workerinput") or os.geteuid() != 0:
        return
    done = subprocess.run([WORKER, "true"], capture_output=True, text=True)
    if done.returncode:
        raise pytest.UsageError(f"no namespaces for workers: {done.stderr.strip()}; run it with -n 0")
    interpreter = shlex.join([str(WORKER), sys.executable])
    config.option.tx = [f"{spec}//python={interpreter}" for spec in config.option.tx]


def sort_long_first(items: list[pytest.Item]) -> None:
    """By folder; within one as they were."""
    tests = Path(__file__).parents[2]

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(tests).parts[0]
        return LONG_FIRST.index(folder) if folder in LONG_FIRST else len(LONG_FIRST)

    items.sort(key=place)
