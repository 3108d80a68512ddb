"""A TAP in a namespace: the endpoint is the namespace's own stack.

The TAP is made in the daemon's namespace and moved, which leaves the daemon its fd and no hold on the
namespace. The fd is the only thing that keeps the device alive: closing it undoes everything.

What the configuration says of the device stays so: an address, gateway or route that the namespace removes, or that the
kernel removes as the device goes down, is put back while the device is up, and so is an MTU that it changes.
"""

from __future__ import annotations

import errno
from functools import partial
from hashlib import blake2b
from typing import Any

import msgspec

from ipvsw.linux.devices.tap import QUEUE, Tap, adopt_tap, open_tap
from ipvsw.linux.netlink import Handle
from ipvsw.linux.repair import Part
from ipvsw.linux.teardown import PendingDelete
from ipvsw.linux.tracked import Snapshot
from ipvsw.model import Address, Interface, Kind, MacSource, Network, Route
from ipvsw.ports.addressing import FollowedAddresses
from ipvsw.ports.backend import BackendPort, Holding, Settings
from ipvsw.ports.backends.device import DeviceBackend
from ipvsw.ports.backends.reconfigure import Reconfiguration
from ipvsw.status import Subject

# By the MAC address, which all ports share. That the namespace makes its own identifiers, or none, is its business.
EUI64 = 0  # IN6_ADDR_GEN_MODE_EUI64 of linux/if_link.h
IDENTIFIERS = Part(Subject.ADDR_GEN_MODE, "", "IPv6 identifiers that are not made of the MAC address")
DEFAULT_METRIC6 = 1024  # IP6_RT_PRIO_USER of linux/ipv6_route.h
SECRET_SIZE = 16  # bytes; stable_secret in Documentation/networking/ip-sysctl.rst


class NetnsBackend(DeviceBackend):
    """The namespace may have addresses besides those of the configuration."""

    __slots__ = ("_failed", "_rest", "_tap", "path")

    kind = Kind.NETNS
    addressing = FollowedAddresses

    def __init__(self, port: BackendPort, path: str = "") -> None:
        super().__init__(port)
        self.path = path
        self._tap: Tap | None = None
        self._failed = False  # `problems` are those of the last reconfiguration
        self._rest: Reconfiguration | None = None  # of addresses and gateways, what is still to be done

    @property
    def fd(self) -> int:
        return self._tap.fd if self._tap else -1

    @property
    def extra_fds(self) -> tuple[int, ...]:
        return self._tap.extra_fds if self._tap else ()

    @property
    def offloads(self) -> tuple[str, ...]:
        return self._tap.offloads if self._tap else ()

    @property
    def accepts_uso(self) -> bool:
        return "uso4" in self.offloads  # a kernel that sends UDP GSO frames takes them

    @property
    def long_header(self) -> bool:
        return "tunnel" in self.offloads

    # ------------------------------------------------------------------------ opening

    async def open(self, settings: Settings) -> Snapshot | None:
        snapshot = await super().open(settings)
        if snapshot is None or self._rest is None:
            return snapshot
        await self._finish()
        return None if self.port.stopping else await self.read()

    def _open_tap(self, handle: Handle, settings: Settings) -> int:
        """Make the TAP, in the daemon's own namespace yet. Its index."""
        self._tap = open_tap(self._queues(settings), tunnels=True)
        self._spread(self._tap)
        return handle.index(self._tap.name)

    def _queues(self, settings: Settings) -> int:
        return min(settings.config.queues, self.port.env.table.readers)

    def _spread(self, tap: Tap) -> None:
        if tap.extra_fds:
            tap.spread(self.port.env.shim.spread_fd)

    def _create(self, handle: Handle, netns_fd: int, settings: Settings) -> int | None:
        """Make the TAP and move it."""
        index = self._open_tap(handle, settings)
        if not settings.carrier:
            self._set_carrier(False)
        handle.set_link(
            index,
            mac=settings.mac,
            mtu=settings.mtu,
            queue=QUEUE,
            alias=self._alias(),
            noarp=settings.noarp,
            name=settings.config.ifname,
            netns_fd=netns_fd,
            new_index=settings.config.index,
        )
        return super()._create(handle, netns_fd, settings)

    def _install(self, handle: Handle, settings: Settings) -> Snapshot:
        """Set the device up and give it its addresses."""
        name = settings.config.ifname
        self._follow(handle.index(name))  # before the first address can be announced
        if self.extra_fds:
            handle.set_noqueue(self._index)
        handle.set_stable_secret(name, self._secret())
        handle.set_link(self._index, up=True, **self._unset(settings))
        self._reconfigure(handle, Reconfiguration(settings.config, None))
        snapshot = self._read_device(handle)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{name} is gone")
        return snapshot

    def _unset(self, settings: Settings) -> dict[str, Any]:
        """What of the device is to be set as it is set up: words of `Handle.set_link`."""
        return {}

    def _secret(self) -> bytes:
        """Makes link-local and SLAAC identifiers unique per port though all share one MAC, and the same
        after a restart."""
        name = f"{self.port.env.switch}/{self.port.config.name}"
        return blake2b(name.encode(), digest_size=SECRET_SIZE, person=b"ipvsw").digest()

    # ------------------------------------------------------------------------ for a successor

    @property
    def holding(self) -> Holding | None:
        if self._tap is None:
            return None
        fds = (self._tap.fd, *self._tap.extra_fds)
        return Holding({str(queue): fd for queue, fd in enumerate(fds)}, self._index, self._place)

    async def adopt(self, holding: Holding, settings: Settings) -> Snapshot | None:
        """Nothing of the device changes: neither its carrier nor what the namespace has set."""
        tap = self._adopt_tap(holding, settings)
        snapshot = await self._adopt_device(holding)
        if snapshot is not None and snapshot.link.name != tap.name:
            raise OSError(errno.ESTALE, f"its device is not {tap.name}")
        return snapshot

    def _adopt_tap(self, holding: Holding, settings: Settings) -> Tap:
        """That of the last daemon, with all its queues. Errors: OSError."""
        fds = [fd for _, fd in sorted(holding.fds.items(), key=lambda item: int(item[0]))]
        self._tap = adopt_tap(fds, tunnels=True)
        if len(holding.fds) != self._queues(settings):
            raise OSError(errno.EINVAL, f"it has {len(holding.fds)} queues")
        self._spread(self._tap)
        return self._tap

    # ------------------------------------------------------------------------ while it is open

    async def update(self, settings: Settings, had: Settings) -> bool:
        if not await super().update(settings, had):
            return False
        try:
            await self._finish()
        except OSError as error:
            self.problems = (*self.problems, error.strerror or str(error))
        return True

    def _open_device_place(self) -> int | None:
        return self._tap.open_namespace() if self._tap else None

    def _read_device(self, handle: Handle) -> Snapshot | None:
        snapshot = super()._read_device(handle)
        if snapshot is None or not snapshot.link.up:
            return snapshot
        parts: dict[Part, object] = {IDENTIFIERS: snapshot.link.addr_gen_mode != EUI64}
        if self.port.config.gateway:
            parts |= {_gateway(one): True for one in handle.default_gateways(self._index)}
        if self.port.config.routes:
            there = handle.routes(self._index)
            parts |= {_route(one): True for one in self.port.config.routes if _written(one) in there}
        return msgspec.structs.replace(snapshot, parts=parts)

    def _wanted(self, settings: Settings) -> dict[Part, object]:
        config = settings.config
        return dict.fromkeys([IDENTIFIERS, *map(_gateway, config.gateway), *map(_route, config.routes)], True)

    def wrong(self, settings: Settings, snapshot: Snapshot) -> list[Part]:
        if self._failed:  # from here on what is missing says what is wrong
            self._failed, self.problems = False, ()
        present = {address for address, _ in snapshot.addresses}
        other_mac = settings.config.mac is MacSource.MASTER and snapshot.link.mac != settings.mac
        other_mtu = settings.config.mtu is not None and snapshot.link.mtu != settings.mtu
        return [
            *([Part(Subject.MAC, settings.mac, "MAC address")] if other_mac else []),
            *([Part(Subject.MTU, settings.mtu, f"MTU {settings.mtu}")] if other_mtu else []),
            *(_address(one) for one in settings.config.addresses if one.ip not in present),
            *super().wrong(settings, snapshot),
        ]

    def mend(self, handle: Handle, part: Part) -> None:
        if part.subject is Subject.ADDRESSES:
            for error in handle.add_addresses(self._index, [part.key]):
                raise error
        elif part.subject is Subject.GATEWAYS:
            handle.add_default_route(self._index, part.key, self.port.config.metric)
        elif part.subject is Subject.ROUTES:
            handle.add_route(self._index, part.key)
        elif part.subject is Subject.MAC:
            handle.set_link(self._index, mac=part.key)
        elif part.subject is Subject.MTU:
            handle.set_link(self._index, mtu=part.key)
        elif self.port.link is not None:
            handle.set_stable_secret(self.port.link.name, self._secret())

    def _push(self, handle: Handle, settings: Settings, had: Settings) -> None:
        if settings.carrier != had.carrier:
            self._set_carrier(settings.carrier)
        handle.set_link(
            self._index,
            mac=settings.mac if settings.config.mac is MacSource.MASTER else None,
            # Where the configuration has none the namespace may set another, which stays until the master's changes.
            mtu=settings.mtu if settings.mtu != had.mtu else None,
            noarp=settings.noarp if settings.noarp != had.noarp else None,
        )
        if settings.config != had.config:
            self._reconfigure(handle, Reconfiguration(settings.config, had.config))

    def _set_carrier(self, on: bool) -> None:
        assert self._tap is not None
        self._tap.set_carrier(on)

    def _reconfigure(self, handle: Handle, change: Reconfiguration) -> None:
        """A step of it."""
        change.step(handle, self._index)
        self.problems = tuple(change.problems)
        self._failed = bool(change.problems)
        self._rest = None if change.done else change

    async def _finish(self) -> None:
        """The steps that are left; others have their turn between them."""
        rest, self._rest = self._rest, None
        while rest is not None and not self.port.stopping:
            await self.port.env.runtime.run_in_netns(self.open_place, partial(self._reconfigure, change=rest))
            rest, self._rest = self._rest, None

    async def _undo(self) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            delete = PendingDelete(self._place, (self._index,), tap.open_namespace, tap.close)
            await self.port.env.runtime.leaving.leave(delete)


def _address(address: Interface) -> Part:
    return Part(Subject.ADDRESSES, address, str(address))


def _gateway(gateway: Address) -> Part:
    return Part(Subject.GATEWAYS, gateway, f"gateway {gateway}")


def _route(route: Route) -> Part:
    return Part(Subject.ROUTES, route, f"route {route}")


def _written(route: Route) -> tuple[Network, Address | None, int]:
    """As the kernel has it: a route has a metric."""
    otherwise = DEFAULT_METRIC6 if route.destination.version == 6 else 0
    return route.destination, route.gateway, otherwise if route.metric is None else route.metric
