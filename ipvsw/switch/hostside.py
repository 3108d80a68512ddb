"""The host's own side of a master: what it has there itself, which the ports must leave to it, and its interface to the
ports, which follows the table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_network

from ipvsw.addresses.table import Table
from ipvsw.changes import Changes
from ipvsw.linux.netlink import DeviceReader, Link, RoutesChanged
from ipvsw.linux.repair import Part
from ipvsw.linux.runtime import Runtime
from ipvsw.model import Address, Network
from ipvsw.routing.router import RouterUplink
from ipvsw.switch.exports import ExportedRoutes
from ipvsw.switch.hostport import HostPort, HostPortConfig

log = logging.getLogger("ipvsw")


class HostSide:
    """One master's. Its calls must not overlap."""

    def __init__(self, runtime: Runtime, table: Table, changes: Changes, port: HostPort, label: str) -> None:
        """`label` is the master's in the log."""
        self.port = port
        self.exports = ExportedRoutes(runtime, table, changes, label)
        self.config = HostPortConfig()
        self.problem = ""  # why there is no interface for the host
        self._runtime = runtime
        self._table = table
        self._changes = changes
        self._label = label
        self._on_link: frozenset[Network] = frozenset()
        self._gateways_stale = self._vlans_stale = True

    def mark_stale(self) -> None:
        """The master is another, or will be."""
        self._gateways_stale = self._vlans_stale = True

    def routes_changed(self, changes: Sequence[RoutesChanged]) -> None:
        """The host's routes may be others than before."""
        for change in changes:
            if change.exported is not None:
                self.exports.removed(change.exported)
                continue
            self.port.routes_changed(change)
            self._vlans_stale |= change.vlan or change.lost
            self._gateways_stale = True

    def set_networks(self, addresses: Iterable[tuple[Address, int]]) -> None:
        """The master's own addresses, with their prefix lengths."""
        on_link = frozenset(ip_network((address, prefix), strict=False) for address, prefix in addresses)
        if on_link != self._on_link:
            self._on_link, self._gateways_stale = on_link, True

    async def read_gateways(self, device: DeviceReader, link: Link) -> None:
        """Tell the table which prefixes are on-link at the master, and which addresses its routes have as gateways."""
        if not self._gateways_stale:
            return
        self._gateways_stale = False
        try:
            gateways = await self._runtime.run_blocking(lambda: device.gateways(link.index))
        except OSError as error:
            self._gateways_stale = True  # read again with the device
            log.warning("%s: cannot read the host's routes: %s", self._label, error.strerror)
            return
        self._table.set_host(self._on_link, gateways)

    async def read_vlans(self, device: DeviceReader, link: Link) -> None:
        """Leave the frames of VLANs that have a device of their own on the master to that."""
        if not self._vlans_stale:
            return
        self._vlans_stale = False
        try:
            self._changes.set_vlans(await self._runtime.run_blocking(lambda: device.vlans(link.index)))
        except OSError as error:
            self._vlans_stale = True  # read again with the device
            log.warning("%s: cannot read its VLAN devices: %s", self._label, error.strerror)

    async def update_exports(self, device: DeviceReader, link: Link) -> None:
        """See `ExportedRoutes.update`. What it can't do it does the next time."""
        try:
            await self.exports.update(device, link.index, up=link.up)
        except OSError as error:
            log.warning("%s: cannot export routes: %s", self._label, error.strerror)

    async def close(self, place: Callable[[], int | None]) -> None:
        """Nothing is left of the host's side. Idempotent."""
        await self.exports.close()
        await self.port.close(place)

    async def adapt(
        self, place: Callable[[], int | None], master: Link, uplink: RouterUplink, *, keeps_routes: bool
    ) -> dict[Part, str] | None:
        """Bring the interface up to date, see `HostPort.adapt`; the routes that could not be set, and why. None: there
        is no interface, and `problem` says why."""
        # The kernel takes no link-local address as the source of a route (ip6_route_info_create).
        six = None if uplink.ipv6 is None or uplink.ipv6.is_link_local else uplink.ipv6
        owned = self._table.owned() if self.config.forward else frozenset()
        diverted = self._table.diverted() if self.config.routes else frozenset()
        sources = {4: uplink.ipv4, 6: six}
        try:
            failed = await self.port.adapt(
                place, master, self.config, diverted, owned - diverted, sources, keeps_routes=keeps_routes
            )
        except OSError as error:
            self.problem = f"no interface for the host: {error.strerror or error}"
            return None
        self.problem = ""
        return failed
