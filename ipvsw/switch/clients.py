"""DHCP clients that the daemon runs, one for each port with `dhcp`.

A client's messages leave as frames of its port's, and the snooper hands over what servers answer. What was leased is
set in the port's namespace, where a client of the namespace's own would set it; from there the port has the address as
any other.
"""

from __future__ import annotations

import asyncio
import logging
import random
from functools import partial
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import msgspec

from ipvsw.addresses.table import Table
from ipvsw.linux.netlink import Handle
from ipvsw.model import Kind, PortConfig, Route
from ipvsw.packets.craft import BROADCAST, Words, udp_frame
from ipvsw.ports.backend import Backend, BackendPort
from ipvsw.ports.backends.reconfigure import Reconfiguration
from ipvsw.snooping.dhcp4 import CLIENT, HEADER, SERVER
from ipvsw.snooping.dhcpclient import RETRIES, DhcpClient, Leased, Outgoing
from ipvsw.snooping.saved import Snooped
from ipvsw.snooping.snooper import Snooper
from ipvsw.snooping.timers import Clock, Timers
from ipvsw.status import LeaseStatus

log = logging.getLogger("ipvsw")


class Clients:
    """One switch's. Made and stopped on the loop."""

    def __init__(self, switch: str, table: Table, snooper: Snooper, clock: Clock) -> None:
        self._switch, self._table, self._snooper, self._clock = switch, table, snooper, clock
        self._timers = Timers(clock)
        self._ports: dict[str, _LeasingPort] = {}
        self._known: dict[str, Leased] = {}  # of the last daemon
        snooper.answered = self._answered

    def stop(self) -> None:
        """The leases stay the ports': the next daemon asks for them again."""
        self._timers.stop()
        self._ports.clear()

    async def remove(self, port: str) -> None:
        """The port goes: its address is given back first, while it can send."""
        if (one := self._ports.pop(port, None)) is not None:
            self._timers.cancel(port)
            self._send(one, one.client.release())
            await one.settled()

    def save(self, snooped: Snooped) -> Snooped:
        leases = {name: one.client.lease for name, one in self._ports.items() if one.client.lease is not None}
        return msgspec.structs.replace(snooped, clients=self._known | leases)

    def restore(self, port: str, snooped: Snooped) -> None:
        """The last daemon's lease, which the port has still."""
        if (lease := snooped.clients.get(port)) is not None:
            self._known[port] = lease

    def describe(self, lease: LeaseStatus) -> LeaseStatus:
        """With what the daemon's own client knows of it, as soon as all of it is set."""
        one = self._ports.get(lease.port)
        known = None if one is None or one.is_setting else one.client.lease
        if known is None or str(known.ip) != lease.address:
            return lease
        return msgspec.structs.replace(
            lease,
            prefix=IPv4Interface(known.address).network.prefixlen,
            gateway=known.gateway,
            routes=known.routes,
            dns=known.dns,
            domain=known.domain,
        )

    # ------------------------------------------------------------------------ events

    def port_changed(self, port: BackendPort, backend: Backend) -> None:
        """Its endpoint has come, up or down: a client begins where it is up, perhaps on another network."""
        name = port.config.name
        if not port.config.dhcp or backend.kind is not Kind.NETNS or port.link is None:
            return
        one = self._ports.get(name)
        if one is None or one.port is not port:
            one = self._ports[name] = _LeasingPort(port, backend, self._client(port, port.link.mac))
            one.client.lease = one.given = self._known.pop(name, None)
        self._timers.cancel(name)
        if port.link.up:
            self._timers.after(name, 0, partial(self._begin, one))

    def _client(self, port: BackendPort, mac: bytes) -> DhcpClient:
        """The identifier is the same after a restart, and another host's is another."""
        named = (port.config.label or f"{self._switch}/{port.config.name}").encode()
        digest = blake2b(named, digest_size=12, key=port.env.master.mac, person=b"ipvsw").digest()
        hostname = port.config.name if port.config.name.replace("-", "").isalnum() else ""
        return DhcpClient(b"\0" + digest, mac, hostname, partial(random.getrandbits, 32))

    def _begin(self, one: _LeasingPort) -> None:
        one.restart()
        self._go_on(one, one.client.begin(self._clock.time()))

    def _tick(self, one: _LeasingPort) -> None:
        if one.port.link is None:  # it begins again when the endpoint is there
            return
        had = one.client.lease
        message = one.client.tick(self._clock.time())
        if had is not None and one.client.lease is None:
            log.warning("%s: its lease of %s has ended", one.label, had.address)
        if one.client.attempts == RETRIES:
            log.warning("%s: no DHCP server answers", one.label)
        self._go_on(one, message)

    def _answered(self, name: str, payload: bytes) -> bool:
        """See `Snooper.answered`."""
        one = self._ports.get(name)
        if one is None:
            return False
        had, now = one.client.lease, self._clock.time()
        message = one.client.take(payload, now)
        lease = one.client.lease
        if lease is not None and (had is None or had.ip != lease.ip):
            if objection := self._table.objection(name, lease.ip):
                log.warning("%s: %s is declined: %s", one.label, lease.address, objection)
                message = one.client.decline(now)
            else:
                log.info("%s: has leased %s of %s", one.label, lease.address, lease.server)
        elif had is not None and lease is None:
            log.warning("%s: %s has taken back %s", one.label, had.server, had.address)
        self._go_on(one, message)
        return True

    def _go_on(self, one: _LeasingPort, message: Outgoing | None) -> None:
        self._send(one, message)
        one.give()
        self._timers.at(one.port.config.name, one.client.due, partial(self._tick, one))

    def _send(self, one: _LeasingPort, message: Outgoing | None) -> None:
        if message is not None:
            words = Words(
                kind="udp",
                source=message.source,
                destination=message.destination,
                source_port=CLIENT,
                destination_port=SERVER,
                source_mac=one.port.env.master.mac,
                destination_mac=BROADCAST,  # the daemon resolves nothing in a port's name
            )
            self._snooper.send(one.port.config.name, bytes(HEADER) + udp_frame(words, message.payload))


class _LeasingPort:
    """A port, its client, and what of the lease the namespace has."""

    def __init__(self, port: BackendPort, backend: Backend, client: DhcpClient) -> None:
        self.port, self.client = port, client
        self.label = f"port {port.env.switch}/{port.config.name}"
        self.given: Leased | None = None
        self._backend = backend
        self._index = port.link.index if port.link else 0
        self._task: asyncio.Task[None] | None = None

    def restart(self) -> None:
        """The device may be another one, or in another namespace; or the kernel has removed the routes as it went down.
        What is there is no error."""
        self._index, self.given = self.port.link.index if self.port.link else 0, None

    def give(self) -> None:
        """See to it that the namespace has what was leased."""
        if self._task is None and self._differs():
            self._task = asyncio.ensure_future(self._give())

    @property
    def is_setting(self) -> bool:
        """Whether the namespace has not yet got all of it."""
        return self._task is not None

    async def settled(self) -> None:
        if self._task is not None:
            await self._task

    def _differs(self) -> bool:
        return self._settings(self.given) != self._settings(self.client.lease)

    async def _give(self) -> None:
        try:
            while self._differs():
                lease, had = self.client.lease, self.given
                self.given = lease
                change = Reconfiguration(self._settings(lease), self._settings(had))
                work = partial(_step, index=self._index, change=change)
                await self.port.env.runtime.run_in_netns(self._backend.open_place, work)
                for problem in change.problems:
                    log.warning("%s: %s", self.label, problem)
        except OSError as error:  # its namespace is gone, or goes
            log.info("%s: what was leased is not set: %s", self.label, error.strerror or error)
        finally:
            self._task = None
        self.port.env.runtime.note_change()

    def _settings(self, lease: Leased | None) -> PortConfig:
        """What the namespace is to have of a lease. The configuration's gateway comes before the server's."""
        config = msgspec.structs.replace(self.port.config, addresses=(), gateway=(), routes=())
        if lease is None:
            return config
        own = any(one.version == 4 for one in self.port.config.gateway) or not lease.gateway
        return msgspec.structs.replace(
            config,
            addresses=(IPv4Interface(lease.address),),
            gateway=() if own else (IPv4Address(lease.gateway),),
            routes=tuple(map(_route, lease.routes)),
        )


def _route(text: str) -> Route:
    destination, _, gateway = text.partition(" via ")
    return Route(destination=IPv4Network(destination), gateway=IPv4Address(gateway) if gateway else None)


def _step(handle: Handle, index: int, change: Reconfiguration) -> None:
    while not change.done:
        change.step(handle, index)
