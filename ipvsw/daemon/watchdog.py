"""systemd's watchdog, fed with the heartbeat of the data plane (sd_watchdog_enabled(3))."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

FEEDS = 3  # in the time after which systemd ends the daemon


def interval(environment: Mapping[str, str]) -> float | None:
    """Seconds between two feeds; None: nobody waits for any."""
    of_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    timeout = environment.get("WATCHDOG_USEC", "")
    return int(timeout) / 1e6 / FEEDS if of_us and timeout.isdigit() and int(timeout) else None


async def feed(beat: Callable[[], None], notify: Callable[[str], None], every: float) -> None:
    """For ever. `beat` returns when every thread of the data plane has answered: if one hangs, so do we, and systemd
    hears nothing more."""
    while True:
        beat()
        notify("WATCHDOG=1")
        await asyncio.sleep(every)
