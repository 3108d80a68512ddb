"""A TAP that a runtime moves and renames: its port goes with it, and the TAP's descriptor says where it is and what it
is called.

It begins in the daemon's own namespace, down and without addresses, so that nothing of the host uses it; or, if the
namespace came as a descriptor, there and as every other port's. A move empties a device of its addresses: what the
configuration says is put back as soon as it is up in the new namespace.
"""

from __future__ import annotations

import asyncio
import errno
import os
from ipaddress import IPv6Address, IPv6Interface

from ipvsw.linux.errors import is_gone
from ipvsw.linux.namespaces import identity
from ipvsw.linux.netlink import Handle, Link
from ipvsw.linux.tracked import Snapshot
from ipvsw.model import FOLLOW
from ipvsw.ports.backend import BackendPort, Holding, Settings
from ipvsw.ports.backends.netns import NetnsBackend
from ipvsw.ports.backends.reconfigure import Reconfiguration

TRIES = 3  # readings of a device that is moved meanwhile


class FollowingBackend(NetnsBackend):
    """`_place` and `_index` are those of the last reading."""

    __slots__ = ("_bare", "_name")

    def __init__(self, port: BackendPort) -> None:
        super().__init__(port)
        self._name = ""
        self._bare = False  # it has none of what the configuration gives it, and is not up yet

    def _is_named_elsewhere(self, place: tuple[int, int]) -> bool:
        return False

    def _install(self, handle: Handle, settings: Settings) -> Snapshot:
        if settings.config.netns != FOLLOW:
            return super()._install(handle, settings)
        self._enter(handle)
        snapshot = self._read_device(handle)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{settings.config.ifname} is gone")
        return snapshot

    # ------------------------------------------------------------------------ for a successor

    async def adopt(self, holding: Holding, settings: Settings) -> Snapshot | None:
        """Wherever it was moved in the meantime."""
        self._adopt_tap(holding, settings)
        self._place = holding.place
        netns_fd = await asyncio.to_thread(self._open_device_place)
        assert netns_fd is not None
        try:
            await self._follow_to(netns_fd)
        finally:
            os.close(netns_fd)
        return await self.read()

    # ------------------------------------------------------------------------ where it is

    async def update(self, settings: Settings, had: Settings) -> bool:
        """`read` finds out whether it still exists."""
        await self._find()
        await super().update(settings, had)
        return True

    async def read(self) -> Snapshot | None:
        for _ in range(TRIES):
            if not await self._find():
                return None
            snapshot = await super().read()
            if snapshot is not None and snapshot.link.up and self._bare:
                await self._furnish()
                snapshot = await super().read()
            if snapshot is not None:
                return snapshot
            self._index = 0  # it has come back with another one, or is about to be elsewhere
        return None

    async def _furnish(self) -> None:
        """Addresses, gateways and routes, of which a move has taken all."""
        self._bare = False
        self._rest = Reconfiguration(self.port.config, None)
        await self._finish()

    async def _find(self) -> bool:
        """Have the port follow its device to where it is now; whether it is anywhere."""
        try:
            netns_fd = await asyncio.to_thread(self._open_device_place)
        except OSError as error:
            if not is_gone(error):
                raise
            return False
        if netns_fd is None:
            return False
        try:
            if not self._index or identity(netns_fd) != self._place:
                await self._follow_to(netns_fd)
        finally:
            os.close(netns_fd)
        return True

    async def _follow_to(self, netns_fd: int) -> None:
        """Errors: OSError."""
        runtime, before = self.port.env.runtime, self._place
        runtime.leave(self._nsid, self._index, self.port)
        self._place = identity(netns_fd)
        self._nsid = await runtime.netlink.run(None, lambda handle: handle.nsid(netns_fd))
        name = await runtime.netlink.run(netns_fd, self._enter)
        added = not self.port.env.is_filed(self.port.config.name)
        self.port.namespace.follow(netns_fd, for_good=added)
        if self._place != before and name:
            self._bare = True
            self.port.moved(name)

    def _enter(self, handle: Handle) -> str:
        """In the device's namespace: have the port follow it there. Its name, "" if it has been moved on."""
        assert self._tap is not None
        name = self._tap.current_name()
        link = handle.link(name)
        if link is None:
            return ""
        self._name = name
        self._follow(link.index)
        if self.extra_fds:
            handle.set_noqueue(link.index)
        handle.set_stable_secret(name, self._secret())
        if link.up:  # it was so before it had a secret: its identifier is that of every port on the master
            handle.delete_addresses(link.index, [IPv6Interface((_made_of(link.mac), 64))])
        return name

    def link_announced(self, link: Link) -> None:
        if link.name != self._name:
            self._name = link.name
            self.port.moved(link.name)


def _made_of(mac: bytes) -> IPv6Address:
    """The link-local address of a MAC address (RFC 4291, appendix A)."""
    identifier = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)
