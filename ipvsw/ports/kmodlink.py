"""One port of kind `link`: a device that `ip link add ... type ipvsw` has made, and that only `ip` deletes.

It is served from when it is found until it is gone: deleted, or in another namespace, where it is found again. MAC,
MTU and carrier are the kernel's business; the daemon keeps NOARP as the mode has it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from msgspec import Struct

from ipvsw.addresses.table import Table
from ipvsw.linux.devices.kmod_tap import LinkTap
from ipvsw.linux.namespaces import identity, open_namespace
from ipvsw.linux.netlink import AddressEvent, Handle, KmodAttrs, Link, LinkEvent
from ipvsw.linux.runtime import DeviceEvent, Runtime
from ipvsw.linux.tracked import RETRY, Snapshot, TrackedDevice, read_device
from ipvsw.model import AddressSource, Kind, PortState, PortStatus
from ipvsw.ports.port import MasterState


class KmodDevice(Struct, frozen=True):
    """A device of that kind, and where it is."""

    netns: str  # as in a configuration
    nsid: int | None
    link: Link  # as it was when it was found; `link.served` is there

    @property
    def name(self) -> str:
        """The port's name, which no namespace's own name can make ambiguous."""
        return f"{self.link.name}@{self.netns or '.'}"


class KmodPort(TrackedDevice):
    """See `TrackedDevice`. `lost` is called, once, when the device is gone: the port is then to be stopped. `heard`
    is given
    what the device is announced to say of itself."""

    def __init__(
        self,
        runtime: Runtime,
        table: Table,
        uplink: MasterState,
        switch: str,
        found: KmodDevice,
        lost: Callable[[KmodPort], None],
        heard: Callable[[KmodAttrs], None],
    ) -> None:
        super().__init__(runtime, found.netns, f"port {switch}/{found.name}")
        assert found.link.served is not None
        self.found = found
        self.name = found.name
        self._served = found.link.served
        self._table = table
        self._uplink = uplink
        self._lost = lost
        self._heard = heard
        self._tap: LinkTap | None = None
        self._place: tuple[int, int] | None = None  # the identity of its namespace
        self._gone = False
        self._noarp: bool | None = None  # what the device has of the uplink

    def gone(self) -> None:
        """The datapath found the device gone."""
        self._gone = True
        self.wake()

    def write(self, frame: bytes) -> None:
        """Give the port a frame, its virtio_net_hdr before it, unless it can't take one now."""
        if self._tap is not None:
            with contextlib.suppress(OSError):
                os.write(self._tap.fd, frame)

    def status(self) -> PortStatus:
        link = self.link or self.found.link
        return PortStatus(
            name=self.name,
            ifname=link.name,
            netns=self.found.netns,
            kind=Kind.LINK,
            state=self.state,
            reason=self.reason,
            index=link.index,
            mac=link.mac.hex(":"),
            mtu=link.mtu,
            carrier=link.carrier,
            offloads=self._tap.offloads if self._tap else (),
            addresses=self._table.statuses(self.name),
        )

    # ------------------------------------------------------------------------ life

    async def _step(self) -> float:
        try:
            if self._tap is None and not self._gone:
                await self._open()
            elif self._tap is not None:
                await self._keep()
        except OSError as error:
            await self._shut()
            self._fail(error.strerror or str(error))
            return RETRY
        if self._gone:
            await self._shut()
            self._lost(self)
        return self._resync()

    async def _open(self) -> None:
        fd = open_namespace(self._spec)
        if fd is None or os.fstat(fd).st_ino != self._served.netns:
            self._gone = True
            if fd is not None:
                os.close(fd)
            return
        try:
            self._stale, self._buffered_events, self._place = False, [], identity(fd)
            self._tap = LinkTap(self._served.tap)
            snapshot = await self._runtime.netlink.run(fd, self._install)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT, errno.ENXIO):
                raise
            self._gone = True
            return
        finally:
            os.close(fd)
            buffered, self._buffered_events = self._buffered_events or [], None
        with self._table.change():
            self._table.attach(self.name, self._tap.fd, snapshot.link.mtu)
            self._see(snapshot)
        for event in buffered:
            self._follow(event)

    def _install(self, handle: Handle) -> Snapshot:
        """In the device's namespace."""
        index = self.found.link.index
        self._runtime.enter(self.found.nsid, index, self)
        self._noarp = self._uplink.noarp
        handle.set_link(index, noarp=self._noarp)
        snapshot = read_device(handle, index, groups=True)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{self.name} is gone")
        return snapshot

    async def _keep(self) -> None:
        if self._netns_changed:
            self._netns_changed, self._stale = False, True
        if self._stale and not self._gone:
            self._gone = not await self._read(self.found.link.index, groups=True)
        if self._noarp != self._uplink.noarp and not self._gone:
            self._noarp = noarp = self._uplink.noarp
            await self._runtime.run_in_netns(
                self._open_place, lambda handle: handle.set_link(self.found.link.index, noarp=noarp)
            )

    def _open_place(self) -> int | None:
        fd = open_namespace(self._spec)
        if fd is not None and identity(fd) != self._place:
            os.close(fd)
            return None
        return fd

    # ------------------------------------------------------------------------ news

    def _see(self, snapshot: Snapshot) -> None:
        with self._table.change():
            self._see_link(snapshot.link)
            self._table.replace(self.name, dict.fromkeys(snapshot.addresses, AddressSource.NETLINK))
            self._table.set_groups(self.name, snapshot.groups, all_multicast=snapshot.link.all_multicast)

    def _see_link(self, link: Link) -> None:
        old, self.link = self.link, link
        if old is None or (old.up, old.mtu) != (link.up, link.mtu):
            self._table.set_port(self.name, up=link.up, mtu=link.mtu)
        self._tell(PortState.UP if link.up else PortState.DOWN)

    def _follow(self, event: DeviceEvent) -> None:
        if self._tap is None or self.link is None:
            return
        if isinstance(event, AddressEvent):
            if event.gone:
                self._table.release(self.name, event.address, event.prefix)
            else:
                self._table.claim(self.name, event.address, event.prefix, AddressSource.NETLINK)
        elif isinstance(event, LinkEvent) and not event.gone:
            self._see_link(event.link)
            if event.link.served is not None:
                self._heard(event.link.served)

    async def _shut(self) -> None:
        tap, self._tap, self.link = self._tap, None, None
        await self._table.leave(self.name)
        self._runtime.leave(self.found.nsid, self.found.link.index, self)
        if tap is not None:
            await self._runtime.run_blocking(tap.close)
