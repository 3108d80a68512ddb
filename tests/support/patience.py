"""How long tests wait: for an event, up to a limit that only what is broken reaches.

IPVSW_TEST_PATIENCE stretches every limit by a factor (1 unless it is set), for a machine that is slow or busy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FACTOR = float(os.environ.get("IPVSW_TEST_PATIENCE", "1"))


def patient(seconds: float) -> float:
    """A limit for this machine, in seconds."""
    return seconds * FACTOR


LIMIT = patient(60)  # for what takes moments on an idle machine


def until(condition: Callable[[], T], what: str = "it", *, limit: float = LIMIT, every: float = 0.005) -> T:
    """Poll until `condition()` is true and return its value. Errors: AssertionError says `what` did not come."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {limit:g} s"
        time.sleep(every)
    return value
