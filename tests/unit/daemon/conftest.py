"""The API of a daemon without a switch."""

from __future__ import annotations

import pytest

from ipvsw import client
from tests.unit.daemon.fake_manager import Daemon


@pytest.fixture
def api_client(daemon: Daemon) -> client.Client:
    return client.Client(str(daemon.path), timeout=10)
