"""Command lines with the daemon whose manager is made up; what one asks of it is forgotten after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipvsw import cli
from tests.unit.cli.lines import Run
from tests.unit.daemon.fake_manager import Daemon


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("cli") / "api.sock")
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    shared.manager.calls.clear()
    shared.manager.error = None
    return shared


@pytest.fixture
def run(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(line: str) -> tuple[int, str, str]:
        code = cli.main(["--socket", str(daemon.path), *line.split()])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
