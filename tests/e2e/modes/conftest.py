"""A lab with a daemon in the module's MODE, l3 unless it says another, for all its tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import running
from tests.support.routed import Routed, routed
from tests.support.topology import exec_in, run


@pytest.fixture(scope="module")
def net(request: pytest.FixtureRequest) -> Iterator[tuple[Routed, running.Daemon]]:
    with routed(getattr(request.module, "MODE", "l3")) as made:
        yield made


@pytest.fixture
def lab(net: tuple[Routed, running.Daemon]) -> Iterator[Routed]:
    yield net[0]
    run(*exec_in(net[0].host, "nft", "flush", "ruleset"))
    net[0].restore()


@pytest.fixture
def daemon(net: tuple[Routed, running.Daemon]) -> running.Daemon:
    return net[1]
