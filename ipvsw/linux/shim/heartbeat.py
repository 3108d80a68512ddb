"""Tells the BPF programs, once a second, that the daemon is alive."""

from __future__ import annotations

import threading
from collections.abc import Callable

INTERVAL = 1.0  # seconds; PATIENCE_NS of lib/steal.h is a multiple of it


class Heartbeat:
    """Calls `beat` at once and then every second, on a thread of its own: the loop may be busy for longer than the
    programs wait."""

    def __init__(self, beat: Callable[[], object]) -> None:
        beat()
        self._beat = beat
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        while not self._stopping.wait(INTERVAL):
            self._beat()

    def stop(self) -> None:
        """No call of `beat` is under way when this returns, and none follows."""
        self._stopping.set()
        self._thread.join()
