"""Command lines with the daemon whose manager is made up."""

from __future__ import annotations

import pytest

from ipvsw import cli
from tests.unit.cli.lines import Run
from tests.unit.daemon.fake_manager import Daemon


@pytest.fixture
def run(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(line: str) -> tuple[int, str, str]:
        code = cli.main(["--socket", str(daemon.path), *line.split()])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
