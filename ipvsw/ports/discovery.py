"""Finds the devices that the optional kernel module has made, in every namespace that has a name.

A device is heard of when it appears, in a namespace that has an id in ours; named namespaces are given one as soon as
the module is loaded, and are looked through when they appear. Other namespaces are heard if they have an id (one does
if a device was ever moved there from ours) and found if a process is in them. Without the module nothing is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

from ipvsw.linux.namespaces import NAMED, find_namespace, open_namespace, path_of
from ipvsw.linux.netlink import Handle, KmodAttrs, Link, LinkEvent
from ipvsw.linux.runtime import DeviceEvent, Runtime
from ipvsw.ports.kmodlink import KmodDevice

log = logging.getLogger("ipvsw")

MODULE = "/sys/module/ipvsw"
POLL = 1.0  # seconds

Key = tuple[int | None, int]  # nsid, index


class Discovery:
    """`place` is given what was found and is `wanted`, and again from time to time until it says that it is served."""

    def __init__(
        self, runtime: Runtime, wanted: Callable[[KmodAttrs], bool], place: Callable[[KmodDevice], bool]
    ) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._place = place
        self._homeless: dict[Key, Link] = {}
        self._seen: dict[str, int] = {}  # names that were looked through ("": our own), and what had them then
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._runtime.await_device(self)
        self._task = asyncio.create_task(self._live(), name="discovery")

    async def stop(self) -> None:
        self._runtime.found_device(self)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def forget(self, found: KmodDevice) -> None:
        """Nobody serves it any more: if it is still there, it is to be found again."""
        self._seen.pop(found.netns, None)
        self._wake.set()

    # ------------------------------------------------------------------------ news

    def handle_event(self, event: DeviceEvent) -> None:
        if isinstance(event, LinkEvent) and event.link.served is not None and not event.gone:
            self._homeless[event.nsid, event.link.index] = event.link
            self._wake.set()

    def mark_stale(self) -> None:
        self._seen.clear()
        self._wake.set()

    def netns_changed(self) -> None:
        self.mark_stale()

    # ------------------------------------------------------------------------ life

    async def _live(self) -> None:
        while True:
            self._wake.clear()
            try:
                if os.path.isdir(MODULE):
                    await self._look()
                    self._place_homeless()
                else:
                    self._homeless, self._seen = {}, {}
            except Exception:  # of one round: what it missed the next one finds
                log.exception("cannot look for links")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._wake.wait()

    async def _look(self) -> None:
        """Look through the namespaces that are new."""
        names = {""}
        with contextlib.suppress(FileNotFoundError):
            names.update(os.listdir(NAMED))
        for name in self._seen.keys() - names:
            del self._seen[name]
        for name in names:
            with contextlib.suppress(OSError):
                inode = os.stat(path_of(name)).st_ino
                if self._seen.get(name) != inode and await self._look_in(name):
                    self._seen[name] = inode

    async def _look_in(self, name: str) -> bool:
        fd = open_namespace(name)
        if fd is None:  # a name whose namespace is about to come
            return False
        try:
            nsid = await self._runtime.netlink.run(None, lambda handle: handle.nsid(fd))
            links = await self._runtime.netlink.run(fd, Handle.kmod_links)
        finally:
            os.close(fd)
        for link in links:
            if not self._runtime.is_followed(nsid, link.index):
                self._homeless[nsid, link.index] = link
        return True

    def _place_homeless(self) -> None:
        for key, link in list(self._homeless.items()):
            if link.served is None or not self._wanted(link.served):
                continue
            netns = "" if key[0] is None else find_namespace(link.served.netns)
            if netns is None or self._place(KmodDevice(netns, key[0], link)):
                del self._homeless[key]
