"""Finds the devices that the optional kernel module has made, in every namespace that has a name.

Netlink announces a device when it appears, in a namespace that has an id in the daemon's. Discovery gives an id to
named namespaces as soon as the module is loaded, and lists the devices of those that appear. Of other namespaces it
gets the events if they have an id (one does if a device was ever moved there from the daemon's), and it finds them if
a process is in them. Without the module nothing is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence

from ipvsw.batch import until_tick
from ipvsw.linux.namespaces import NAMED, find_namespace, open_namespace, path_of
from ipvsw.linux.netlink import Handle, KmodAttrs, Link, LinkEvent
from ipvsw.linux.runtime import DeviceEvent, Runtime
from ipvsw.ports.backends.kmod import KmodDevice

log = logging.getLogger("ipvsw")

MODULE = "/sys/module/ipvsw"
POLL = 1.0  # seconds

Key = tuple[int | None, int]  # nsid, index


class Discovery:
    """`place` is called with a device that was found and is `wanted`, and again from time to time until it returns
    that the device is served."""

    def __init__(
        self, runtime: Runtime, wanted: Callable[[KmodAttrs], bool], place: Callable[[KmodDevice], bool]
    ) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._place = place
        self._unserved: dict[Key, Link] = {}
        self._listed: dict[str, int] = {}  # names of namespaces ("": the daemon's) -> inode when devices were listed
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

    def forget(self, netns: str) -> None:
        """A device there is served no longer: if it still exists, it is to be found again."""
        self._listed.pop(netns, None)
        self._wake.set()

    # ------------------------------------------------------------------------ events

    def handle_events(self, events: Sequence[DeviceEvent]) -> None:
        for event in events:
            if isinstance(event, LinkEvent) and event.link.served is not None and not event.gone:
                self._unserved[event.nsid, event.link.index] = event.link
                self._wake.set()

    def mark_stale(self) -> None:
        self._listed.clear()
        self._wake.set()

    def netns_changed(self) -> None:
        self.mark_stale()

    # ------------------------------------------------------------------------ life

    async def _live(self) -> None:
        while True:
            self._wake.clear()
            try:
                if os.path.isdir(MODULE):
                    await self._list_new()
                    self._place_unserved()
                else:
                    self._unserved, self._listed = {}, {}
            except Exception:  # the next round finds what this one has missed
                log.exception("cannot look for the kernel module's devices")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_tick(asyncio.get_running_loop().time(), POLL)):
                    await self._wake.wait()

    async def _list_new(self) -> None:
        """List the devices of the namespaces that are new."""
        names = {""}
        with contextlib.suppress(FileNotFoundError):
            names.update(os.listdir(NAMED))
        for name in self._listed.keys() - names:
            del self._listed[name]
        for name in names:
            with contextlib.suppress(OSError):
                inode = os.stat(path_of(name)).st_ino
                if self._listed.get(name) != inode and await self._list_in(name):
                    self._listed[name] = inode

    async def _list_in(self, name: str) -> bool:
        fd = open_namespace(name)
        if fd is None:  # the name exists, its namespace doesn't yet
            return False
        try:
            nsid = await self._runtime.netlink.run(None, lambda handle: handle.nsid(fd))
            links = await self._runtime.netlink.run(fd, Handle.kmod_links)
        finally:
            os.close(fd)
        for link in links:
            if not self._runtime.is_followed(nsid, link.index):
                self._unserved[nsid, link.index] = link
        return True

    def _place_unserved(self) -> None:
        for key, link in list(self._unserved.items()):
            if link.served is None or not self._wanted(link.served):
                continue
            netns = "" if key[0] is None else find_namespace(link.served.netns)
            if netns is None or self._place(KmodDevice(netns, key[0], link)):
                del self._unserved[key]
