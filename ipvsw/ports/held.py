"""Copies of a port's descriptors, which a holder has for a successor."""

from __future__ import annotations

import asyncio

from ipvsw.linux.lasting.fdstore import FdStore
from ipvsw.ports.backend import Holding, Left, held_name


class HeldDescriptors:
    """One port's: those of the last daemon, and this one's for the next."""

    __slots__ = ("_held", "_port", "_store", "_switch")

    def __init__(self, store: FdStore, switch: str, port: str, left: Left | None) -> None:
        self._store = store
        self._switch = switch
        self._port = port
        self._held = tuple(self._names(left.holding)) if left else ()

    def hold(self, holding: Holding | None) -> None:
        """Have a successor find these, and no others."""
        names = self._names(holding) if holding is not None else {}
        for name in self._held:
            if name not in names:
                self._store.forget(name)
        self._held = tuple(names)
        for name, fd in names.items():
            if self._store.held.get(name) != fd:
                self._store.put(name, fd)

    async def release(self) -> None:
        """No successor finds any: a device goes with the last copy of its descriptors. Idempotent."""
        held, self._held = self._held, ()
        await asyncio.gather(*(self._store.drop(name) for name in held))

    def _names(self, holding: Holding) -> dict[str, int]:
        return {held_name(self._switch, self._port, word): fd for word, fd in holding.fds.items()}
