"""A device that `ip link add ... type ipvsw` has made, and that only `ip link del` deletes.

It is served from when it is found until it is gone: deleted, or in another namespace, where it is found again. MAC,
MTU and carrier are the kernel module's business; the daemon keeps NOARP as the mode has it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from msgspec import Struct

from ipvsw.linux.devices.kmod_tap import LinkTap
from ipvsw.linux.errors import is_gone
from ipvsw.linux.namespaces import open_namespace
from ipvsw.linux.netlink import Handle, KmodAttrs, Link
from ipvsw.linux.tracked import Snapshot, read_device
from ipvsw.model import Kind, PortConfig
from ipvsw.ports.addressing import FollowedAddresses
from ipvsw.ports.backend import BackendPort, Gone, Settings
from ipvsw.ports.backends.device import DeviceBackend


class KmodDevice(Struct, frozen=True):
    """A device of the module's, and where it is."""

    netns: str  # as in a configuration
    nsid: int | None
    link: Link  # as it was when it was found; `link.served` is set

    @property
    def config(self) -> PortConfig:
        """Of the port that serves it. No namespace's own name makes the port's name ambiguous."""
        name = f"{self.link.name}@{self.netns or '.'}"
        return PortConfig(name=name, ifname=self.link.name, netns=self.netns, kind=Kind.LINK)


class KmodBackend(DeviceBackend):
    """`lost` is called when the device is gone: the port is then to be removed. `announced` is called with the
    attributes that a netlink message says of the device."""

    __slots__ = ("_announced", "_ended", "_found", "_lost", "_served", "_tap")

    kind = Kind.LINK
    addressing = FollowedAddresses
    leaves_with_name = True

    def __init__(
        self, port: BackendPort, found: KmodDevice, lost: Callable[[], None], announced: Callable[[KmodAttrs], None]
    ) -> None:
        super().__init__(port)
        assert found.link.served is not None
        self._found = found
        self._served = found.link.served
        self._lost = lost
        self._announced = announced
        self._ended = False
        self._tap: LinkTap | None = None

    @property
    def fd(self) -> int:
        return self._tap.fd if self._tap else -1

    @property
    def offloads(self) -> tuple[str, ...]:
        return self._tap.offloads if self._tap else ()

    # ------------------------------------------------------------------------ opening

    async def open(self, settings: Settings) -> Snapshot | None:
        if self._ended:
            raise Gone
        try:
            snapshot = await super().open(settings)
        except OSError as error:
            if is_gone(error):
                raise Gone from None
            raise
        if snapshot is None:
            raise Gone
        return snapshot

    def _create(self, handle: Handle, netns_fd: int, settings: Settings) -> int | None:
        if os.fstat(netns_fd).st_ino != self._served.netns:
            raise OSError(errno.ENODEV, f"{settings.config.name} is gone")
        self._tap = LinkTap(self._served.tap)
        return self._found.nsid

    def _install(self, handle: Handle, settings: Settings) -> Snapshot:
        index = self._found.link.index
        self._follow(index)
        handle.set_link(index, noarp=settings.noarp)
        snapshot = read_device(handle, index, groups=True)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{settings.config.name} is gone")
        return snapshot

    # ------------------------------------------------------------------------ while it is open

    def link_announced(self, link: Link) -> None:
        if link.served is not None:
            self._announced(link.served)

    def _open_device_place(self) -> int | None:
        return open_namespace(self.port.config.netns)

    def _push(self, handle: Handle, settings: Settings, had: Settings) -> None:
        if settings.noarp != had.noarp:
            handle.set_link(self._index, noarp=settings.noarp)

    def ended(self) -> None:
        self._ended = True
        self._lost()

    async def _undo(self) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            await self.port.env.runtime.run_blocking(tap.close)
