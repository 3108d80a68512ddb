"""A port whose endpoint is a namespace's own stack.

The TAP is made in the daemon's namespace and moved, which leaves us its fd and no hold on the
namespace. The fd is the only thing that keeps the device alive: closing it undoes everything.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from ipvsw.addresses.ownership import Claims
from ipvsw.linux.devices.tap import Tap, open_tap
from ipvsw.linux.netlink import AddressEvent, Handle, Link
from ipvsw.linux.runtime import DeviceEvent
from ipvsw.linux.teardown import PendingDelete
from ipvsw.linux.tracked import Snapshot, read_device
from ipvsw.model import AddressSource, Kind, MacSource, PortConfig, PortState
from ipvsw.ports.port import DevicePort, MasterState

SECRET_SIZE = 16  # bytes; stable_secret in Documentation/networking/ip-sysctl.rst


class NetnsPort(DevicePort):
    """See `Port`. The namespace may have addresses of its own, and is followed."""

    kind = Kind.NETNS
    _tap: Tap | None = None

    @property
    def _fd(self) -> int:
        return self._tap.fd if self._tap else -1

    def _offloads(self) -> tuple[str, ...]:
        return self._tap.offloads if self._tap else ()

    def _extra_fds(self) -> tuple[int, ...]:
        return self._tap.extra_fds if self._tap else ()

    def _accepts_uso(self) -> bool:
        return "uso4" in self._offloads()  # the kernel's own stack: one that sends them takes them

    def _mac(self, link: Link) -> bytes:
        return link.mac

    # ------------------------------------------------------------------------ opening

    def _create(self, handle: Handle, netns_fd: int) -> int | None:
        """Make the TAP and move it."""
        self._tap = open_tap(min(self._installed.queues, self._table.readers))
        if self._tap.extra_fds:
            self._tap.spread(self._shim.spread_fd)
        link = handle.link(self._tap.name)
        if link is None:
            raise OSError(errno.ENODEV, f"{self._tap.name} is gone")
        if not self._pushed.carrier:
            self._tap.set_carrier(False)
        handle.set_link(
            link.index,
            mac=self._pushed.mac,
            mtu=self._pushed.mtu,
            alias=f"ipvsw {self._switch}/{self.config.name}",
            noarp=self._pushed.noarp,
            name=self._installed.ifname,
            netns_fd=netns_fd,
        )
        return super()._create(handle, netns_fd)

    def _install(self, handle: Handle) -> Snapshot:
        """Set the device up and give it its addresses."""
        name = self._installed.ifname
        link = handle.link(name)
        if link is None:
            raise OSError(errno.ENODEV, f"{name} is gone")
        self._enter(link.index)  # before the first address can be announced
        if self._extra_fds():
            handle.set_noqueue(link.index)
        handle.set_stable_secret(name, self._secret())
        handle.set_link(link.index, up=True)
        self._problems = self._add_addresses(handle, self._installed, None)
        snapshot = read_device(handle, link.index, groups=True)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{name} is gone")
        return snapshot

    def _secret(self) -> bytes:
        """Makes link-local and SLAAC identifiers unique per port though all share one MAC, and the same
        after a restart."""
        name = f"{self._switch}/{self.config.name}"
        return blake2b(name.encode(), digest_size=SECRET_SIZE, person=b"ipvsw").digest()

    def _add_addresses(self, handle: Handle, config: PortConfig, had: PortConfig | None) -> tuple[str, ...]:
        """Add what `config` has and `had` hadn't; what could not be done, as text."""
        problems: list[str] = []
        for address in config.addresses:
            if had is None or address not in had.addresses:
                with _noted(problems):
                    handle.add_address(self._index, address)
        for gateway in config.gateway:
            if had is None or gateway not in had.gateway:
                with _noted(problems):
                    handle.add_default_route(self._index, gateway)
        return tuple(problems)

    # ------------------------------------------------------------------------ while it is up

    def _open_device_place(self) -> int | None:
        return self._tap.open_namespace() if self._tap else None

    def _push(
        self, handle: Handle, wanted: MasterState, had: MasterState, config: PortConfig, installed: PortConfig
    ) -> None:
        assert self._tap is not None
        if wanted.carrier != had.carrier:
            self._tap.set_carrier(wanted.carrier)
        handle.set_link(
            self._index,
            mac=wanted.mac if config.mac is MacSource.MASTER else None,
            # The namespace may set another MTU, which stays until the master's changes.
            mtu=wanted.mtu if wanted.mtu != had.mtu else None,
            noarp=wanted.noarp if wanted.noarp != had.noarp else None,
        )
        if installed != config:
            self._problems = self._reconfigure(handle, config, installed)

    def _reconfigure(self, handle: Handle, config: PortConfig, installed: PortConfig) -> tuple[str, ...]:
        problems: list[str] = []
        for gateway in installed.gateway:
            if gateway not in config.gateway:
                with _noted(problems):
                    handle.delete_default_route(self._index, gateway)
        for address in installed.addresses:
            if address not in config.addresses:
                with _noted(problems):
                    handle.delete_address(self._index, address)
        return (*problems, *self._add_addresses(handle, config, installed))

    def _claims(self, snapshot: Snapshot) -> Claims:
        return {claim: self._source(*claim) for claim in snapshot.addresses}

    def _listens(self, snapshot: Snapshot) -> tuple[Iterable[bytes], bool]:
        return snapshot.groups, snapshot.link.all_multicast

    def _judge(self, link: Link) -> tuple[PortState, str]:
        return PortState.UP if link.up else PortState.DOWN, "; ".join(self._problems)

    def _follow(self, event: DeviceEvent) -> None:
        super()._follow(event)
        if self._tap is None or self.link is None or not isinstance(event, AddressEvent):
            return
        if event.gone:
            self._table.release(self.config.name, event.address, event.prefix)
        else:
            source = self._source(event.address, event.prefix)
            self._table.claim(self.config.name, event.address, event.prefix, source)

    def _source(self, address: object, prefix: int) -> AddressSource:
        configured = any((one.ip, one.network.prefixlen) == (address, prefix) for one in self.config.addresses)
        return AddressSource.CONFIG if configured else AddressSource.NETLINK

    # ------------------------------------------------------------------------ the end

    async def _undo(self) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            await self._runtime.leaving.leave(PendingDelete(self._place, self._index, tap.open_namespace, tap.close))


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problems.append(error.strerror or str(error))
