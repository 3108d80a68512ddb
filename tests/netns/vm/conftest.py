"""A daemon with virtual machines' ports that wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.netns.daemons import Daemon
from tests.netns.vm.machines import idle, lan
from tests.support.spaces import Namespace


@pytest.fixture
def running(home: Namespace, daemon: Callable[[str], Daemon]) -> Callable[..., Daemon]:
    def start(*ports: str) -> Daemon:
        started = daemon(lan(home, *ports)).start()
        idle(started, "vm1")
        return started

    return start
