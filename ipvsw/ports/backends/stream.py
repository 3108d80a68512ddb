"""A stream socket on which each frame stands behind its length; the daemon listens, or the VMM does."""

from __future__ import annotations

import asyncio
import socket

from ipvsw.linux.devices.unix import Listener, connect
from ipvsw.model import Kind
from ipvsw.ports.backend import BackendPort, Holding
from ipvsw.ports.backends.unixsocket import UnixSocketBackend, owners


class StreamBackend(UnixSocketBackend):
    """Without a path in the configuration the VMM is handed one end of a socket pair."""

    __slots__ = ("_listener",)

    kind = Kind.STREAM

    def __init__(self, port: BackendPort) -> None:
        super().__init__(port)
        self._listener: Listener | None = None

    @property
    def framing(self) -> str:
        return "stream"

    @property
    def vmm_path(self) -> str | None:
        return self.port.config.path or self.port.config.connect

    @property
    def _type(self) -> socket.SocketKind:
        return socket.SOCK_STREAM

    @property
    def holding(self) -> Holding:
        """No connection: where in a frame its reader was killed can't be known. The VMM makes another one."""
        return Holding({"listener": self._listener.fileno()} if self._listener else {})

    def prepare(self) -> None:
        config = self.port.config
        if config.path and self._listener is None:
            kept = self.inherit("listener")
            self._listener = Listener(config.path, *owners(config)) if kept is None else Listener.adopt(kept)

    def _find_peer(self) -> float | None:
        if self._listener is not None:
            found = self._listener.accept()
        elif self.port.config.connect:
            found = connect(self.port.config.connect)
        else:
            return None
        if found is not None:
            self._connect(found)
            return None
        if self._listener is None:
            return self._next_retry()
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept_soon)
        return None

    def _accept_soon(self) -> None:
        """A VMM is in the backlog. It stays there while another is connected: stop polling the listener until then."""
        assert self._listener is not None
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self.port.wake()

    def _remove_paths(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
