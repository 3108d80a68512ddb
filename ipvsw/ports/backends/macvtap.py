"""A macvtap in passthru mode on a TAP of the daemon's: two descriptors back to back, offloads and all.

A VMM has the macvtap's character device, the daemon the TAP's descriptor. Without `netns` both devices are in a
namespace that only the daemon has.
"""

from __future__ import annotations

import asyncio
import errno
from hashlib import blake2b

from ipvsw.linux.devices.macvtap import Node, free_index, open_node
from ipvsw.linux.devices.tap import QUEUE, Tap, adopt_tap, open_tap
from ipvsw.linux.netlink import Handle, Link
from ipvsw.linux.tracked import Snapshot, read_device
from ipvsw.model import Kind
from ipvsw.ports.addressing import GuestAddresses
from ipvsw.ports.backend import BackendPort, Holding, Settings
from ipvsw.ports.backends.device import DeviceBackend


class MacvtapBackend(DeviceBackend):
    """That a VMM has the device is seen at the character device, whichever process gave it the descriptors."""

    __slots__ = ("_lower", "_node", "_tap")

    kind = Kind.MACVTAP
    addressing = GuestAddresses
    serves_vm = True
    offers_tap = True

    def __init__(self, port: BackendPort) -> None:
        super().__init__(port)
        self._tap: Tap | None = None
        self._node: Node | None = None
        self._lower = 0  # the TAP's index

    @property
    def fd(self) -> int:
        return self._tap.fd if self._tap else -1

    @property
    def offloads(self) -> tuple[str, ...]:
        return self._tap.offloads if self._tap else ()

    # ------------------------------------------------------------------------ opening

    def _find_place(self) -> int | None:
        return self.port.namespace.open() if self.port.config.netns else self.port.env.runtime.open_hidden()

    async def open(self, settings: Settings) -> Snapshot | None:
        snapshot = await super().open(settings)
        self._watch_node()
        return snapshot

    def _watch_node(self) -> None:
        if self._node is not None:
            asyncio.get_running_loop().add_reader(self._node.fileno(), self.poll)

    def _create(self, handle: Handle, netns_fd: int, settings: Settings) -> int | None:
        """Make the TAP and move it."""
        self._tap = open_tap()
        link = handle.link(self._tap.name)
        if link is None:
            raise OSError(errno.ENODEV, f"{self._tap.name} is gone")
        handle.set_link(
            link.index,
            mtu=settings.mtu,
            queue=QUEUE,
            alias=self._alias(),
            name=self._lower_name(),
            netns_fd=netns_fd,
        )
        return super()._create(handle, netns_fd, settings)

    def _lower_name(self) -> str:
        """As good as unique: sw- and 12 digits."""
        name = f"{self.port.env.switch}/{self.port.config.name}"
        return "sw-" + blake2b(name.encode(), digest_size=6).hexdigest()

    def _install(self, handle: Handle, settings: Settings) -> Snapshot:
        lower, name = handle.link(self._lower_name()), settings.config.ifname
        if lower is None:
            raise OSError(errno.ENODEV, f"{self._lower_name()} is gone")
        self._lower = lower.index
        index = free_index()
        handle.add_macvtap(name, lower.index, index)
        for device in (lower.name, name):
            handle.disable_ipv6(device)
        self._follow(index)
        self._node = open_node(index)
        handle.set_link(lower.index, up=True)
        handle.set_link(index, up=True, allmulti=True, alias=self._alias())
        snapshot = read_device(handle, index, groups=False)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{name} is gone")
        return snapshot

    # ------------------------------------------------------------------------ for a successor

    @property
    def holding(self) -> Holding | None:
        if self._tap is None or self._node is None:
            return None
        return Holding({"0": self._tap.fd, "node": self._node.fd}, self._index, self._place)

    async def adopt(self, holding: Holding, settings: Settings) -> Snapshot | None:
        """A VMM that has the device goes on with it."""
        self._node = Node(holding.fds["node"])
        self._tap = adopt_tap([holding.fds["0"]])
        snapshot = await self._adopt_device(holding)
        lower = await self._find_lower()
        if lower is None:
            raise OSError(errno.ENODEV, f"{self._lower_name()} is gone")
        self._lower = lower.index
        self._watch_node()
        return snapshot

    async def _find_lower(self) -> Link | None:
        return await self.port.env.runtime.run_in_netns(
            self._open_device_place, lambda handle: handle.link(self._lower_name())
        )

    # ------------------------------------------------------------------------ while it is open

    def poll(self) -> float | None:
        if self._node is not None and self.port.link is not None:
            self._node.read_events()
            self.port.endpoint_changed(self.port.link)
        return None

    def is_taken(self, link: Link) -> bool:
        return self._node is not None and self._node.taken

    async def hand_over(self) -> list[int]:
        assert self._node is not None and self.port.link is not None
        fds = self._node.open(self.port.config.queues)
        self.port.endpoint_changed(self.port.link)
        return fds

    def _open_device_place(self) -> int | None:
        return self._tap.open_namespace() if self._tap else None

    def _push(self, handle: Handle, settings: Settings, had: Settings) -> None:
        if settings.mtu != had.mtu:
            handle.set_link(self._lower, mtu=settings.mtu)
            handle.set_link(self._index, mtu=settings.mtu)

    async def _undo(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            asyncio.get_running_loop().remove_reader(node.fileno())
            node.close()
        tap, self._tap, self._lower = self._tap, None, 0
        if tap is not None:
            await self.port.env.runtime.run_blocking(tap.close)  # the kernel deletes the macvtap with it
