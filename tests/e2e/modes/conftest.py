"""A lab with a daemon in mode l3, for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import running
from tests.support.routed import Routed, routed


@pytest.fixture(scope="module")
def net() -> Iterator[tuple[Routed, running.Daemon]]:
    with routed("l3") as made:
        yield made


@pytest.fixture
def lab(net: tuple[Routed, running.Daemon]) -> Iterator[Routed]:
    yield net[0]
    net[0].restore()


@pytest.fixture
def daemon(net: tuple[Routed, running.Daemon]) -> running.Daemon:
    return net[1]
