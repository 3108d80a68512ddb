"""Sockets that keep frames apart: a pair of SOCK_SEQPACKET, or two paths of SOCK_DGRAM.

With two paths the kernel doesn't report that the other end is gone: the daemon keeps checking.
"""

from __future__ import annotations

import socket

from ipvsw.linux.devices.unix import Datagrams
from ipvsw.linux.tracked import Snapshot
from ipvsw.model import Kind
from ipvsw.ports.backend import BackendPort, Holding, Settings
from ipvsw.ports.backends.unixsocket import UnixSocketBackend, owners

PEER_CHECK = 1.0  # seconds between two checks whether the peer behind a path is still there


class DgramBackend(UnixSocketBackend):
    """Without paths in the configuration the VMM is handed one end of a socket pair."""

    __slots__ = ("_datagrams",)

    kind = Kind.DGRAM

    def __init__(self, port: BackendPort) -> None:
        super().__init__(port)
        self._datagrams: Datagrams | None = None

    @property
    def framing(self) -> str:
        return "datagrams" if self.port.config.local else "packets"

    @property
    def vmm_path(self) -> str | None:
        return self.port.config.local

    @property
    def _type(self) -> socket.SocketKind:
        return socket.SOCK_SEQPACKET

    @property
    def holding(self) -> Holding:
        if self._datagrams is not None:
            return Holding({"path": self._datagrams.socket.fileno()})
        return Holding({"connection": self._connection.fileno()} if self._connection else {})

    async def adopt(self, holding: Holding, settings: Settings) -> Snapshot | None:
        if self._datagrams is not None and self._datagrams.find():
            self._kept = self._datagrams.socket
            self._settings = settings
            return await self.read()
        return await super().adopt(holding, settings)

    def prepare(self) -> None:
        config = self.port.config
        if config.local and config.remote and self._datagrams is None:
            kept = self.inherit("path")
            if kept is None:
                self._datagrams = Datagrams(config.local, config.remote, *owners(config))
            else:
                self._datagrams = Datagrams.adopt(kept, config.remote)

    def _find_peer(self) -> float | None:
        if self._datagrams is None:
            return None
        if not self._datagrams.find():
            return self._next_retry()
        self._connect(self._datagrams.socket)
        return PEER_CHECK

    def _check_peer(self) -> float | None:
        if self._datagrams is None:
            return None
        if self._datagrams.find():
            return PEER_CHECK
        self._disconnect()
        return self._next_retry()

    def _end_connection(self, connection: socket.socket) -> None:
        """The socket with a path is kept for the next VMM."""
        if self._datagrams is None:
            connection.close()

    def _remove_paths(self) -> None:
        datagrams, self._datagrams = self._datagrams, None
        if datagrams is not None:
            datagrams.close()
