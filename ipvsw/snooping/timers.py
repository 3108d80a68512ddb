"""Timers by purpose: of each purpose one runs at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """The part of an event loop that is used."""

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[[], None]) -> Cancellable: ...


class Timers:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[str, Cancellable] = {}

    def after(self, what: str, seconds: float, do: Callable[[], None]) -> None:
        """Call `do` then, unless a timer for `what` is running already."""
        if what not in self._running:

            def run() -> None:
                del self._running[what]
                do()

            self._running[what] = self._clock.call_later(seconds, run)

    def at(self, what: str, end: float | None, do: Callable[[], None]) -> None:
        """Call `do` at `end`, and not when it was due before; None: never."""
        self.cancel(what)
        if end is not None:
            self.after(what, max(end - self._clock.time(), 0), do)

    def cancel(self, what: str) -> None:
        if (timer := self._running.pop(what, None)) is not None:
            timer.cancel()

    def stop(self) -> None:
        for what in list(self._running):
            self.cancel(what)
