"""The unit under a real systemd: `service` is what it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import patient
from tests.support.programs.systemd import control_groups
from tests.support.running import ROOT

RATE = 150  # datagrams a second: those of several seconds have room, however long the machine takes


def test_the_service_outlives_what_systemd_does_with_it() -> None:
    if not Path("/lib/systemd/systemd").exists() or not os.access(control_groups() or "/nowhere", os.W_OK):
        pytest.skip("no systemd, or no control groups")
    command = ["scripts/systemd", sys.executable, "-m", "tests.e2e.restart.service", "--rate", str(RATE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patient(300), check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
