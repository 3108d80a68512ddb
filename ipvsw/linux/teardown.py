"""Devices that go with their descriptors: closed, and before that, many of one namespace deleted together.

Closing a TAP waits 16 ms for the kernel's grace periods. Many can wait for them at once, half a millisecond each; of
devices that are deleted together all wait for the same. Closing is what has the last word.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial

from msgspec import Struct

from ipvsw.batch import Batcher
from ipvsw.linux.namespaces import identity
from ipvsw.linux.netlink import Handle

log = logging.getLogger("ipvsw")

MIN_GROUP_DELETE = 16  # devices: fewer are gone as soon by closing them
BATCH = 256  # devices that are deleted by one request, 60 ms


class PendingDelete(Struct, frozen=True):
    """A device, where it is, and how to close it."""

    place: tuple[int, int] | None  # the identity of its namespace, once that is known
    indices: tuple[int, ...]  # its own, and those of what goes with it
    open_place: Callable[[], int]  # an fd of the namespace that it is in now. Errors: OSError
    close: Callable[[], None]
    stays: bool = False  # something of it, if it is only closed


class Teardown:
    """`run_in_netns` and `run_blocking` are `Runtime`'s."""

    def __init__(
        self,
        run_in_netns: Callable[[Callable[[], int | None], Callable[[Handle], bool]], Awaitable[bool | None]],
        run_blocking: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        self._run_in_netns = run_in_netns
        self._run_blocking = run_blocking
        self._batcher = Batcher(self._leave_all)

    async def leave(self, device: PendingDelete) -> None:
        """Returns when nothing is left of it."""
        await self._batcher.ask(device)

    async def _leave_all(self, devices: list[PendingDelete]) -> None:
        places: dict[tuple[int, int] | None, list[PendingDelete]] = {}
        for device in devices:
            places.setdefault(device.place, []).append(device)
        await asyncio.gather(*(self._leave_place(inside) for inside in places.values()))

    async def _leave_place(self, devices: list[PendingDelete]) -> None:
        is_due = len(devices) >= MIN_GROUP_DELETE or any(device.stays for device in devices)
        deleted = is_due and await self._are_deleted(devices)
        shares = [devices] if deleted else [[device] for device in devices]
        await asyncio.gather(*(self._run_blocking(partial(_close, share)) for share in shares))

    async def _are_deleted(self, devices: list[PendingDelete]) -> bool:
        """Delete them; whether that has been done."""
        try:
            for start in range(0, len(devices), BATCH):
                part = devices[start : start + BATCH]
                if not await self._run_in_netns(partial(_open_place, part[0]), partial(_delete, part)):
                    return False
        except OSError as error:
            log.debug("%d devices are closed one by one: %s", len(devices), error)
            return False
        return True


def _open_place(device: PendingDelete) -> int | None:
    fd = device.open_place()
    if identity(fd) != device.place:  # it has been moved on
        os.close(fd)
        return None
    return fd


def _delete(devices: list[PendingDelete], handle: Handle) -> bool:
    handle.delete_links([index for device in devices for index in device.indices])
    return True


def _close(devices: list[PendingDelete]) -> None:
    for device in devices:
        device.close()
