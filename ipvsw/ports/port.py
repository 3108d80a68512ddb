"""One port's life: waiting for its namespace, up, gone, and waiting again.

What all kinds of ports have in common stands here. A kind says how its device is made, changed and undone, and which
addresses and groups are its own.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterable
from hashlib import blake2b

from msgspec import Struct

from ipvsw.addresses.ownership import Claims
from ipvsw.addresses.table import Table
from ipvsw.linux.bpf import Shim
from ipvsw.linux.devices.tap import VNET_HEADER
from ipvsw.linux.namespaces import identity, open_namespace
from ipvsw.linux.netlink import Handle, Link, LinkEvent
from ipvsw.linux.runtime import DeviceEvent, Runtime
from ipvsw.linux.tracked import RETRY, Snapshot, TrackedDevice
from ipvsw.model import Kind, MacSource, PortConfig, PortState, PortStatus


class MasterState(Struct):
    """What ports must know of their master; the switch keeps it up to date."""

    name: str
    present: bool = False
    mac: bytes = b""
    mtu: int = 0  # bytes, without the Ethernet header
    carrier: bool = False
    noarp: bool = False  # modes l3 and l3s


class Port(TrackedDevice):
    """See `TrackedDevice`. `config` may be replaced by `change` only."""

    __slots__ = (
        "_attached", "_gone", "_index", "_installed", "_nsid", "_own_mac", "_place", "_problems", "_pushed", "_shim",
        "_switch", "_table", "_uplink", "config",
    )  # fmt: skip

    kind: Kind

    def __init__(
        self, runtime: Runtime, table: Table, shim: Shim, uplink: MasterState, switch: str, config: PortConfig
    ) -> None:
        super().__init__(runtime, config.netns, f"port {switch}/{config.name}")
        self.config = config
        self._switch = switch
        self._table = table
        self._shim = shim
        self._uplink = uplink
        self._nsid: int | None = None
        self._index = 0
        self._place: tuple[int, int] | None = None  # the identity of its namespace
        self._gone = False
        self._own_mac: bytes | None = None  # that the device is given, once it is known
        self._installed = config  # what the device has of the configuration
        self._pushed = uplink  # what the device has of the uplink
        self._attached: tuple[bool, int] | None = None  # what the table knows: up, MTU
        self._problems: tuple[str, ...] = ()

    def change(self, config: PortConfig) -> None:
        """Other addresses, gateways or MTU, in place."""
        self.config = config
        self.wake()

    def gone(self) -> None:
        """The datapath found the device gone."""
        self._gone = True
        self.wake()

    def write(self, frame: bytes) -> None:
        """Give the port a frame, its virtio_net_hdr before it, unless it can't take one now."""
        if own := self._table.own_mac(self.config.name):
            frame = frame[:VNET_HEADER] + own + frame[VNET_HEADER + len(own) :]
        with contextlib.suppress(OSError):
            os.write(self._fd, frame)

    def status(self) -> PortStatus:
        link = self.link
        return PortStatus(
            name=self.config.name,
            ifname=link.name if link else self.config.ifname,
            netns=self.config.netns,
            kind=self.kind,
            state=self.state,
            reason=self.reason,
            index=self._index,
            mac=self._mac(link).hex(":") if link else "",
            mac_source=self.config.mac,
            mtu=link.mtu if link else 0,
            carrier=link.carrier if link else False,
            offloads=self._offloads(),
            addresses=self._table.statuses(self.config.name),
        )

    # ------------------------------------------------------------------------ what a kind is

    @property
    @abstractmethod
    def _fd(self) -> int:
        """What the datapath reads and writes, -1 while there is none."""

    @abstractmethod
    def _offloads(self) -> tuple[str, ...]: ...

    def _extra_fds(self) -> tuple[int, ...]:
        """What it reads and writes besides, of a device with several queues."""
        return ()

    def _accepts_uso(self) -> bool:
        """Whether the endpoint takes UDP GSO frames, whatever others do."""
        return False

    @abstractmethod
    def _mac(self, link: Link) -> bytes:
        """The endpoint's MAC address."""

    @abstractmethod
    def _claims(self, snapshot: Snapshot) -> Claims:
        """Which addresses are the port's."""

    @abstractmethod
    def _listens(self, snapshot: Snapshot) -> tuple[Iterable[bytes], bool]:
        """To which group MACs, and whether to all there are."""

    @abstractmethod
    def _judge(self, link: Link) -> tuple[PortState, str]:
        """What state the port is in, and why."""

    # ------------------------------------------------------------------------ what the switch is told

    def _arrive(self, snapshot: Snapshot) -> None:
        with self._table.change():
            own = None if self.config.mac is MacSource.MASTER else self._pushed.mac
            self._attach(snapshot.link.mtu, own)
            self._attached = None
            self._see(snapshot)

    def _attach(self, mtu: int, own: bytes | None) -> None:
        self._table.attach(
            self.config.name, self._fd, mtu, own, extra_fds=self._extra_fds(), accepts_uso=self._accepts_uso()
        )

    def _wanted_uplink(self) -> MasterState:
        """The master's attributes as this port's device should have them."""
        mtu = min(self.config.mtu or self._uplink.mtu, self._uplink.mtu)
        return MasterState(
            name=self._uplink.name,
            mac=self._uplink.mac if self.config.mac is MacSource.MASTER else self._make_own_mac(),
            mtu=mtu,
            carrier=self._uplink.carrier,
            noarp=self._uplink.noarp,
        )

    def _make_own_mac(self) -> bytes:
        """Locally administered (IEEE 802 section 8.4), the same after a restart, and nobody else's."""
        if self._own_mac is None:
            name = f"{self._switch}/{self.config.name}".encode()
            digest = blake2b(name, digest_size=6, key=self._uplink.mac, person=b"ipvsw").digest()
            self._own_mac = bytes([digest[0] & 0xFC | 2]) + digest[1:]
        return self._own_mac

    def _see(self, snapshot: Snapshot) -> None:
        with self._table.change():
            self._see_link(snapshot.link)
            self._claim(snapshot)

    def _claim(self, snapshot: Snapshot) -> None:
        """Tell the table which addresses and groups are the port's."""
        with self._table.change():
            self._table.replace(self.config.name, self._claims(snapshot))
            groups, all_multicast = self._listens(snapshot)
            self._table.set_groups(self.config.name, groups, all_multicast=all_multicast)

    def _see_link(self, link: Link) -> None:
        self.link = link
        state, reason = self._judge(link)
        attached = (state is PortState.UP, link.mtu)
        if self._attached != attached:
            self._attached = attached
            self._table.set_port(self.config.name, up=attached[0], mtu=link.mtu)
        self._tell(state, reason)


class DevicePort(Port):
    """One whose end is a device in a namespace. A kind says how it is made, changed and undone."""

    def _find_place(self) -> int | None:
        """An fd of the namespace that the device belongs to, None while there is none. Errors: OSError."""
        return open_namespace(self.config.netns)

    def _create(self, handle: Handle, netns_fd: int) -> int | None:
        """In the daemon's namespace: make what must be made there. The target's nsid. Errors: OSError."""
        return handle.nsid(netns_fd)

    @abstractmethod
    def _install(self, handle: Handle) -> Snapshot:
        """In the port's namespace: have the device up, and `_enter` it. Errors: OSError."""

    @abstractmethod
    def _open_device_place(self) -> int | None:
        """As `_open_place`, wherever that is. Errors: OSError if it is gone."""

    @abstractmethod
    def _push(
        self, handle: Handle, wanted: MasterState, had: MasterState, config: PortConfig, installed: PortConfig
    ) -> None:
        """In the port's namespace: what has changed. Errors: OSError."""

    @abstractmethod
    async def _undo(self) -> None:
        """Nothing is left of the device, nor of an attempt to make it. Nothing happens if there is none."""

    # ------------------------------------------------------------------------ life

    async def _step(self) -> float:
        if self._fd >= 0:
            await self._keep()
        if self._fd < 0:
            return await self._open()
        return self._resync()

    async def _keep(self) -> None:
        """See to it that the device is what it should be, and close it if it is gone."""
        if self._netns_changed:
            self._netns_changed = False
            self._gone = self._gone or self._has_moved()
        if not self._gone:
            await self._adapt()
        if self._stale and not self._gone:
            self._gone = not await self._read(self._index, groups=True)
        if self._gone:
            await self._shut()

    def _has_moved(self) -> bool:
        """Whether another namespace has the name now. While none has it the port stays where it is."""
        try:
            fd = self._find_place()
        except OSError:
            fd = None
        if fd is None:
            return False
        try:
            return identity(fd) != self._place
        finally:
            os.close(fd)

    # ------------------------------------------------------------------------ opening

    async def _open(self) -> float:
        self._netns_changed = False
        if not self._uplink.present:
            self._wait(f"for the master {self._uplink.name}")
            return self._resync()
        async with self._runtime.openings:
            if self._stopping:
                return 0
            try:
                return await self._open_in_namespace()
            except OSError as error:
                await self._shut()
                self._fail(error.strerror or str(error))
                return RETRY
            except Exception:
                await self._shut()
                raise

    async def _open_in_namespace(self) -> float:
        fd = self._find_place()
        if fd is None:
            self._wait(f"for the namespace {self.config.netns}")
            return self._resync()
        try:
            self._stale, self._buffered_events, self._place = False, [], identity(fd)
            self._installed, self._pushed = self.config, self._wanted_uplink()
            self._nsid = await self._runtime.netlink.run(None, lambda handle: self._create(handle, fd))
            snapshot = await self._runtime.netlink.run(fd, self._install)
        finally:
            os.close(fd)
            buffered, self._buffered_events = self._buffered_events or [], None
        self._arrive(snapshot)
        for event in buffered:
            self._follow(event)
        return self._resync()

    def _enter(self, index: int) -> None:
        """From now on news of the device are ours."""
        self._index = index
        self._runtime.enter(self._nsid, index, self)

    # ------------------------------------------------------------------------ while it is up

    async def _adapt(self) -> None:
        """Bring the device up to date with the master and with the configuration."""
        wanted, had, installed = self._wanted_uplink(), self._pushed, self._installed
        foreign_mac = (
            self.link is not None and self.config.mac is MacSource.MASTER and self._mac(self.link) != wanted.mac
        )
        if wanted == had and installed == self.config and not foreign_mac:
            return
        self._pushed, self._installed = wanted, self.config

        def push(handle: Handle) -> bool:
            self._push(handle, wanted, had, self._installed, installed)
            return True

        try:
            done = await self._runtime.run_in_netns(self._open_place, push)
        except OSError as error:
            self._problems = (error.strerror or str(error),)
            done = True
        self._gone = self._gone or done is None
        self._stale = True

    def _open_place(self) -> int | None:
        try:
            fd = self._open_device_place() if self._fd >= 0 else None
        except OSError:  # the device is gone, or the namespace that it was in is about to be
            return None
        if fd is not None and identity(fd) != self._place:  # somebody moved it on
            os.close(fd)
            return None
        return fd

    def _follow(self, event: DeviceEvent) -> None:
        if self._fd >= 0 and self.link is not None and isinstance(event, LinkEvent) and not event.gone:
            self._see_link(event.link)

    # ------------------------------------------------------------------------ the end

    async def _shut(self) -> None:
        self.link = None
        await self._table.leave(self.config.name)
        self._gone = False
        if self._index:
            self._runtime.leave(self._nsid, self._index, self)
        await self._undo()
        self._nsid, self._index, self._place, self._problems = None, 0, None, ()
