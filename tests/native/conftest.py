"""Every test of the loop runs over both of its back ends."""

from __future__ import annotations

from collections.abc import Iterator

import doors
import pytest

from ipvsw._fast import uring_error

LOOPS = ("test_datapath", "test_load", "test_routed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in LOOPS:
        metafunc.fixturenames.append("io")
        metafunc.parametrize("io", ["epoll", "uring"], indirect=True)


@pytest.fixture
def io(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The back end that `doors.lab` asks for."""
    if request.param == "uring" and uring_error():
        pytest.skip("the kernel grants no io_uring")
    monkeypatch.setattr(doors, "IO", request.param)
    yield request.param
