"""Tests of the loop that use the fixture `io` run over both of its back ends."""

from __future__ import annotations

import pytest

from ipvsw._fast import uring_error
from tests.native import interfaces


@pytest.fixture(params=["epoll", "uring"])
def io(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The back end of every `interfaces.lab`."""
    if request.param == "uring" and uring_error():
        pytest.skip("the kernel grants no io_uring")
    monkeypatch.setattr(interfaces, "IO", request.param)
    return str(request.param)
