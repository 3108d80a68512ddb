"""Ports that are unix sockets: a VMM's other end of QEMU's netdevs `stream` and `dgram`.

There is no device: whoever is connected is the virtual machine, and leaves by closing its end, which a process does
however it ends. One at a time; where the daemon listens, the next one waits until it is its turn.
"""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod

from ipvsw.linux.devices.unix import Datagrams, Listener, connect, pair
from ipvsw.linux.netlink import Link
from ipvsw.linux.peercred import group_number, user_number
from ipvsw.linux.runtime import DeviceEvent
from ipvsw.linux.tracked import RETRY, Snapshot
from ipvsw.model import HandedOver, Kind, Refused, Who
from ipvsw.ports.vm import VmPort

SOONEST, LATEST = 0.05, 1.0  # seconds until a VMM is looked for again: twice as long each time
ALIVE = 1.0  # seconds between two looks whether the peer of a socket without end is still there


class SocketPort(VmPort):
    """See `VmPort`. A kind says how both ends come together; where it names no path, by a descriptor."""

    _connection: socket.socket | None = None
    _since = 0.0  # the loop's time when it began
    _patience = SOONEST  # seconds before the next attempt

    @property
    def _fd(self) -> int:
        return self._connection.fileno() if self._connection else -1

    def _offloads(self) -> tuple[str, ...]:
        return ()

    def write(self, frame: bytes) -> None:
        if self.link is not None:
            self._table.write(self.config.name, frame)

    def _is_taken(self, link: Link) -> bool:
        return link.carrier

    async def hand_over(self) -> tuple[HandedOver, list[int]]:
        if path := self._path():
            raise Refused(f"{self.label}: its virtual machine comes by {path}")
        return await super().hand_over()

    async def _open_far_end(self) -> list[int]:
        ours, theirs = pair(self._type())
        self._take(ours)
        return [theirs.detach()]

    # ------------------------------------------------------------------------ what a kind is

    @property
    @abstractmethod
    def _framing(self) -> str:
        """How frames are told apart: of `_fast.FRAMINGS`."""

    @abstractmethod
    def _path(self) -> str | None:
        """Where both ends come together; None: by a descriptor."""

    @abstractmethod
    def _type(self) -> socket.SocketKind:
        """Of the pair whose one end is handed over."""

    @abstractmethod
    def _appear(self) -> None:
        """A VMM can find the port from now on, even if it has to wait. Errors: OSError."""

    @abstractmethod
    def _meet(self) -> float:
        """Nobody is connected: `_take` who is there. The seconds until the next look. Errors: OSError."""

    def _stay(self) -> float:
        """Somebody is connected. The seconds until the next look. Errors: OSError."""
        return self._resync()

    @abstractmethod
    def _forget(self) -> None:
        """Undo `_appear`."""

    # ------------------------------------------------------------------------ life

    async def _step(self) -> float:
        self._netns_changed = self._stale = False
        if self._gone:
            self._hang_up()
        try:
            self._appear()
            if self.link is None and not self._uplink.present:
                self._wait(f"for the master {self._uplink.name}")
                return self._resync()
            self._show()
            return self._meet() if self._connection is None else self._stay()
        except OSError as error:
            self._fail(error.strerror or str(error))
            return RETRY

    def _show(self) -> None:
        """Have the switch see what a device would look like, if that is another than before."""
        wanted = self._wanted_uplink()
        link = Link(
            index=0,
            name=self.config.ifname,
            mac=wanted.mac,
            mtu=wanted.mtu,
            up=True,
            carrier=self._connection is not None,
            all_multicast=True,
            ethernet=True,
            kind=str(self.kind),
        )
        if self.link is None:
            self._pushed, self._installed = wanted, self.config
            self._arrive(Snapshot(link, (), ()))
        elif (link, self.config) != (self.link, self._installed):
            self._pushed, self._installed = wanted, self.config
            self._see(Snapshot(link, (), ()))

    def _attach(self, mtu: int, own: bytes | None) -> None:
        self._table.attach(self.config.name, -1, mtu, own, framing=self._framing)

    def _take(self, connection: socket.socket) -> None:
        self._connection, self._since = connection, asyncio.get_running_loop().time()
        with self._table.change():
            self._table.connect(self.config.name, connection.fileno())
            self._show()

    def _hang_up(self) -> None:
        """Nothing happens if nobody is connected."""
        connection, self._connection, self._gone = self._connection, None, False
        if connection is None:
            return
        if asyncio.get_running_loop().time() - self._since > LATEST:
            self._patience = SOONEST
        with self._table.change():
            self._show()
            self._table.connect(self.config.name, -1)
        self._part(connection)

    def _part(self, connection: socket.socket) -> None:
        connection.close()

    def _expect(self) -> None:
        """What was wrong is no more: the port waits for a virtual machine."""
        assert self.link is not None
        self._tell(*self._judge(self.link))

    def _longer(self) -> float:
        """Seconds until the next attempt."""
        now, self._patience = self._patience, min(2 * self._patience, LATEST)
        return now

    async def _shut(self) -> None:
        self._hang_up()
        self._forget()
        self.link = None
        await self._table.leave(self.config.name)

    # ------------------------------------------------------------------------ what only a device has

    def _open_place(self) -> int | None:
        return None

    def _follow(self, event: DeviceEvent) -> None:
        """Nothing is announced of a port without a device."""


class StreamPort(SocketPort):
    """A stream on which each frame stands behind its length; the daemon listens, or the VMM does."""

    kind = Kind.STREAM
    _listener: Listener | None = None

    @property
    def _framing(self) -> str:
        return "stream"

    def _path(self) -> str | None:
        return self.config.path or self.config.connect

    def _type(self) -> socket.SocketKind:
        return socket.SOCK_STREAM

    def _appear(self) -> None:
        if self.config.path and self._listener is None:
            self._listener = Listener(self.config.path, *_owners(self.config.owner, self.config.group))

    def _meet(self) -> float:
        if self._listener is not None:
            found = self._listener.accept()
        elif self.config.connect:
            found = connect(self.config.connect)
        else:
            return self._resync()
        if found is not None:
            self._take(found)
            return self._stay()
        self._expect()
        if self._listener is None:
            return self._longer()
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._hear_knock)
        return self._resync()

    def _hear_knock(self) -> None:
        """The next one stays where it is while somebody is connected."""
        assert self._listener is not None
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self.wake()

    def _forget(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()


class DgramPort(SocketPort):
    """A pair of sockets that keep frames apart, or two paths. By these nobody hears that the other has left: it is
    looked for all the time."""

    kind = Kind.DGRAM
    _datagrams: Datagrams | None = None

    @property
    def _framing(self) -> str:
        return "datagrams" if self.config.local else "packets"

    def _path(self) -> str | None:
        return self.config.local

    def _type(self) -> socket.SocketKind:
        return socket.SOCK_SEQPACKET

    def _appear(self) -> None:
        local, remote = self.config.local, self.config.remote
        if local and remote and self._datagrams is None:
            self._datagrams = Datagrams(local, remote, *_owners(self.config.owner, self.config.group))

    def _meet(self) -> float:
        if self._datagrams is None:
            return self._resync()
        if not self._datagrams.find():
            self._expect()
            return self._longer()
        self._take(self._datagrams.socket)
        return self._stay()

    def _stay(self) -> float:
        if self._datagrams is None:
            return self._resync()
        if self._datagrams.find():
            return ALIVE
        self._hang_up()
        return self._longer()

    def _part(self, connection: socket.socket) -> None:
        """The one with a path is kept for the next VMM."""
        if self._datagrams is None:
            connection.close()

    def _forget(self) -> None:
        datagrams, self._datagrams = self._datagrams, None
        if datagrams is not None:
            datagrams.close()


def _owners(owner: Who | None, group: Who | None) -> tuple[int | None, int | None]:
    """By number. Errors: OSError if there is no such user or group."""
    return None if owner is None else user_number(owner), None if group is None else group_number(group)
