"""What holds for every test."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.parallel import isolate_workers, sort_long_first

# How long an example takes says how busy the machine is.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    isolate_workers(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sort_long_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.parallel.scheduler import ByModule

    return ByModule(config, log)
