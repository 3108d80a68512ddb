"""What backends have in common whose endpoint is a device in a namespace."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from typing import ClassVar

from ipvsw.linux.errors import is_gone
from ipvsw.linux.namespaces import identity
from ipvsw.linux.netlink import Handle
from ipvsw.linux.repair import Part, differences
from ipvsw.linux.tracked import Snapshot, read_device, read_in_netns
from ipvsw.ports.backend import Backend, BackendPort, Holding, Settings


class DeviceBackend(Backend):
    """A kind says how the device is made, changed and undone."""

    __slots__ = ("_index", "_nsid", "_place")

    leaves_with_name: ClassVar[bool] = False  # closed as soon as its namespace has lost its name

    def __init__(self, port: BackendPort) -> None:
        super().__init__(port)
        self._nsid: int | None = None
        self._index = 0
        self._place: tuple[int, int] | None = None  # the identity of its namespace

    # ------------------------------------------------------------------------ what a kind is

    def _find_place(self) -> int | None:
        """An fd of the namespace that the device belongs to, None while there is none. Errors: OSError."""
        return self.port.namespace.open()

    def _create(self, handle: Handle, netns_fd: int, settings: Settings) -> int | None:
        """In the daemon's namespace: make what must be made there. The target's nsid. Errors: OSError."""
        return handle.nsid(netns_fd)

    async def _connect(self, netns_fd: int, settings: Settings) -> None:
        """After that: make what must be made in other namespaces. Errors: OSError."""

    @abstractmethod
    def _install(self, handle: Handle, settings: Settings) -> Snapshot:
        """In the port's namespace: have the device up, and `_follow` it. Errors: OSError."""

    @abstractmethod
    def _open_device_place(self) -> int | None:
        """An fd of the namespace that the device is in, wherever that is. Errors: OSError if it is gone."""

    @abstractmethod
    def _push(self, handle: Handle, settings: Settings, had: Settings) -> None:
        """In the port's namespace: what has changed. Errors: OSError."""

    def _wanted(self, settings: Settings) -> dict[Part, object]:
        """What `_read_device` is to find in the snapshot's `parts`."""
        return {}

    @abstractmethod
    async def _undo(self) -> None:
        """Nothing is left of the device, nor of an attempt to make it. Idempotent."""

    # ------------------------------------------------------------------------ the contract

    async def open(self, settings: Settings) -> Snapshot | None:
        fd = self._find_place()
        if fd is None:
            return None
        netlink = self.port.env.runtime.netlink
        try:
            self._place = identity(fd)
            self._nsid = await netlink.run(None, lambda handle: self._create(handle, fd, settings))
            await self._connect(fd, settings)
            return await netlink.run(fd, lambda handle: self._install(handle, settings))
        finally:
            os.close(fd)

    async def _adopt_device(self, holding: Holding) -> Snapshot | None:
        """`fd` is open: have the port follow the device, if that is what the last daemon says of it."""
        fd = self._open_device_place()
        if fd is None:
            raise OSError(errno.ESTALE, "its namespace is gone")
        runtime = self.port.env.runtime
        try:
            if identity(fd) != holding.place or self._is_named_elsewhere(holding.place):
                raise OSError(errno.ESTALE, "its device is not in its namespace any more")
            self._place = holding.place
            self._nsid = await runtime.netlink.run(None, lambda handle: handle.nsid(fd))

            def read(handle: Handle) -> Snapshot | None:
                self._follow(holding.index)
                return self._read_device(handle)

            return await runtime.netlink.run(fd, read)
        finally:
            os.close(fd)

    async def update(self, settings: Settings, had: Settings) -> bool:
        def push(handle: Handle) -> bool:
            self._push(handle, settings, had)
            return True

        try:
            return await self.port.env.runtime.run_in_netns(self.open_place, push) is not None
        except OSError as error:
            self.problems = (error.strerror or str(error),)
            return True

    async def read(self) -> Snapshot | None:
        return await read_in_netns(self.port.env.runtime, self.open_place, self._read_device)

    def _read_device(self, handle: Handle) -> Snapshot | None:
        return read_device(handle, self._index, groups=self.addressing.reads_groups)

    def wrong(self, settings: Settings, snapshot: Snapshot) -> list[Part]:
        return differences(self._wanted(settings), snapshot.parts)

    def has_moved(self) -> bool:
        return self._place is not None and self._is_named_elsewhere(self._place)

    def _is_named_elsewhere(self, place: tuple[int, int]) -> bool:
        """Whether another namespace than this one has the name now. While none has it most devices stay."""
        try:
            fd = self._find_place()
        except OSError:  # it is there, and can't be opened for now: `open_namespace`
            return False
        if fd is None:
            return self.leaves_with_name
        try:
            return identity(fd) != place
        finally:
            os.close(fd)

    async def close(self) -> None:
        if self._index:
            self.port.env.runtime.leave(self._nsid, self._index, self.port)
        await self._undo()
        self._nsid, self._index, self._place, self.problems = None, 0, None, ()

    # ------------------------------------------------------------------------ for the kinds

    def _follow(self, index: int) -> None:
        """From now on the port receives the device's netlink events."""
        self._index = index
        self.port.env.runtime.enter(self._nsid, index, self.port)

    def open_place(self) -> int | None:
        """An fd of the namespace that the device is in, None if that is not the one where it belongs. From any
        thread."""
        try:
            fd = self._open_device_place() if self.fd >= 0 else None
        except OSError as error:
            if not is_gone(error):
                raise
            return None  # the device is gone, or its namespace is about to be
        if fd is not None and identity(fd) != self._place:  # it has been moved
            os.close(fd)
            return None
        return fd

    def _alias(self) -> str:
        return f"ipvsw {self.port.env.switch}/{self.port.config.name}"
