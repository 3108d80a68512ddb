"""What backends have in common that are unix sockets: a VMM's other end of QEMU's netdevs `stream` and `dgram`.

There is no device: the process that is connected is the virtual machine, and leaves by closing its end, which the
kernel does for it however it ends. One at a time; where the daemon listens, the next one waits for its turn.
"""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod

from ipvsw.linux.devices.unix import pair
from ipvsw.linux.netlink import Link
from ipvsw.linux.peercred import group_number, user_number
from ipvsw.linux.tracked import Snapshot
from ipvsw.model import PortConfig
from ipvsw.ports.addressing import GuestAddresses
from ipvsw.ports.backend import Backend, BackendPort, Holding, Settings

MIN_RETRY, MAX_RETRY = 0.05, 1.0  # seconds until the next attempt to reach a VMM: twice as long each time


class UnixSocketBackend(Backend):
    """A kind says how both ends come together; where it has no `vmm_path`, by a descriptor that is handed over."""

    __slots__ = ("_connected_at", "_connection", "_kept", "_retry", "_settings")

    addressing = GuestAddresses
    serves_vm = True

    def __init__(self, port: BackendPort) -> None:
        super().__init__(port)
        self._connection: socket.socket | None = None
        self._kept: socket.socket | None = None  # the last daemon's connection, until `poll` connects it
        self._connected_at = 0.0  # the loop's time
        self._retry = MIN_RETRY  # seconds before the next attempt
        self._settings: Settings | None = None

    @property
    def fd(self) -> int:
        return self._connection.fileno() if self._connection else -1

    def write(self, frame: bytes) -> None:
        self.port.env.table.write(self.port.config.name, frame)

    # ------------------------------------------------------------------------ what a kind is

    @property
    @abstractmethod
    def _type(self) -> socket.SocketKind:
        """Of the pair whose one end is handed over."""

    @abstractmethod
    def _find_peer(self) -> float | None:
        """No VMM is connected: `_connect` the one that is there. As `poll`. Errors: OSError."""

    def _check_peer(self) -> float | None:
        """A VMM is connected: `_disconnect` it if it is gone. As `poll`. Errors: OSError."""
        return None

    def _end_connection(self, connection: socket.socket) -> None:
        connection.close()

    @abstractmethod
    def _remove_paths(self) -> None:
        """Undo `prepare`."""

    # ------------------------------------------------------------------------ life

    async def open(self, settings: Settings) -> Snapshot | None:
        self._settings = settings
        return await self.read()

    async def adopt(self, holding: Holding, settings: Settings) -> Snapshot | None:
        """A connection that keeps frames apart goes on."""
        self._settings = settings
        fd = holding.fds.get("connection")
        self._kept = None if fd is None else socket.socket(fileno=fd)
        return await self.read()

    async def update(self, settings: Settings, had: Settings) -> bool:
        self._settings = settings
        return True

    async def read(self) -> Snapshot | None:
        return Snapshot(self._link(), (), ())

    def _link(self) -> Link:
        """The attributes that a device would have in the place of the socket."""
        assert self._settings is not None
        return Link(
            index=0,
            name=self.port.config.ifname,
            mac=self._settings.mac,
            mtu=self._settings.mtu,
            up=True,
            carrier=self._connection is not None or self._kept is not None,
            all_multicast=True,
            ethernet=True,
            kind=str(self.kind),
        )

    def poll(self) -> float | None:
        kept, self._kept = self._kept, None
        if kept is not None:
            self._connect(kept)
        return self._find_peer() if self._connection is None else self._check_peer()

    def hung_up(self) -> bool:
        self._disconnect()
        return False

    async def close(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()
        self._disconnect()
        self._remove_paths()

    # ------------------------------------------------------------------------ the VMM

    def is_taken(self, link: Link) -> bool:
        return link.carrier

    async def hand_over(self) -> list[int]:
        ours, theirs = pair(self._type)
        self._connect(ours)
        return [theirs.detach()]

    def _connect(self, connection: socket.socket) -> None:
        self._connection, self._connected_at = connection, asyncio.get_running_loop().time()
        table = self.port.env.table
        with table.change():
            table.connect(self.port.config.name, connection.fileno())
            self.port.endpoint_changed(self._link())
        self.port.hold()

    def _disconnect(self) -> None:
        """Idempotent."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if asyncio.get_running_loop().time() - self._connected_at > MAX_RETRY:
            self._retry = MIN_RETRY
        if self.port.link is not None:
            table = self.port.env.table
            with table.change():
                self.port.endpoint_changed(self._link())
                table.connect(self.port.config.name, -1)
            self.port.hold()
        self._end_connection(connection)

    def _next_retry(self) -> float:
        """Seconds until the next attempt."""
        now, self._retry = self._retry, min(2 * self._retry, MAX_RETRY)
        return now


def owners(config: PortConfig) -> tuple[int | None, int | None]:
    """User and group of the port's files, by number. Errors: OSError if there is no such user or group."""
    owner, group = config.owner, config.group
    return None if owner is None else user_number(owner), None if group is None else group_number(group)
