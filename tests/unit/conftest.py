"""A daemon without a switch, for all tests of a module; what one asks of it is forgotten after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.daemon.fake_manager import Daemon


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("api") / "api.sock")
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    shared.manager.calls.clear()
    shared.manager.error = None
    return shared
