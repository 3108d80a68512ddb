"""What many ask for at the same moment, done for all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def until_tick(now: float, period: float) -> float:
    """Seconds to wait for what is done every `period`, one half of it to three: at the moments that are multiples of
    it. So an idle process wakes once for all that it does every second, not once for each."""
    delay = period - now % period
    return delay if delay >= period / 2 else delay + period


class Batcher(Generic[T]):
    """Of one loop. `work` is given all that was asked for within one turn of the loop, in that order."""

    def __init__(self, work: Callable[[list[T]], Awaitable[None]]) -> None:
        self._work = work
        self._asked: list[T] = []
        self._task: asyncio.Task[None] | None = None  # that will have it done, until it begins

    async def ask(self, item: T) -> None:
        """Returns when it is done. Errors: those of `work`, for everybody who has asked with us."""
        if self._task is None:
            self._task = asyncio.create_task(self._do())
        self._asked.append(item)
        await asyncio.shield(self._task)

    async def _do(self) -> None:
        asked, self._asked, self._task = self._asked, [], None
        await self._work(asked)
