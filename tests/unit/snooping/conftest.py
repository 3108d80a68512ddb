"""A learner in a world of its own for each test."""

from __future__ import annotations

import pytest

from tests.unit.snooping.runtime import Runtime


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()
