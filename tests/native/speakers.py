"""Speakers for ports that are sockets: the far end of each, with its own framing."""

from __future__ import annotations

import socket

from ipvsw._fast import FRAMINGS
from tests.native.interfaces import Lab, v4, v6
from tests.support.patience import LIMIT

KINDS = {
    "stream": socket.SOCK_STREAM,
    "packets": socket.SOCK_SEQPACKET,
    "datagrams": socket.SOCK_DGRAM,
}


class Speaker:
    """The port `number`, and who is connected to it."""

    def __init__(self, it: Lab, framing: str, k: int, *, connect: bool = True) -> None:
        self.it, self.framing = it, framing
        self.number = it.datapath.attach_port(-1, 1500, framing=FRAMINGS[framing])
        it.datapath.set_port(self.number, up=True, mtu=1500)
        it.datapath.bind(v4(k), self.number)
        it.datapath.bind(v6(k), self.number)
        it.datapath.commit()
        self.inside: socket.socket | None = None
        self.outside: socket.socket | None = None
        self.kept = b""
        if connect:
            self.connect()

    def connect(self, room: int | None = None) -> None:
        self.inside, self.outside = socket.socketpair(socket.AF_UNIX, KINDS[self.framing])
        if room is not None:
            self.inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        self.inside.setblocking(False)
        self.outside.settimeout(LIMIT)
        self.kept = b""
        self.it.datapath.connect_port(self.number, self.inside.fileno())
        self.it.datapath.commit()

    def disconnect(self) -> None:
        self.it.datapath.connect_port(self.number, -1)
        self.it.datapath.commit()
        for end in (self.inside, self.outside):
            if end is not None:
                end.close()
        self.inside = self.outside = None

    def leave(self) -> None:
        """The far end closes, and nobody has noticed yet."""
        assert self.outside is not None
        self.outside.close()

    def write(self, data: bytes) -> None:
        assert self.outside is not None
        self.outside.sendall(data)

    def send(self, *frames: bytes) -> None:
        if self.framing == "stream":
            self.write(b"".join(len(one).to_bytes(4, "big") + one for one in frames))
        else:
            for one in frames:
                self.write(one)

    def receive(self) -> bytes:
        """The next frame that comes out. Errors: TimeoutError."""
        assert self.outside is not None
        if self.framing != "stream":
            return self.outside.recv(1 << 17)
        while len(self.kept) < 4 or len(self.kept) < 4 + int.from_bytes(self.kept[:4], "big"):
            data = self.outside.recv(1 << 17)
            assert data, "the end"
            self.kept += data
        length = int.from_bytes(self.kept[:4], "big")
        frame, self.kept = self.kept[4 : 4 + length], self.kept[4 + length :]
        return frame

    def ended(self) -> bool:
        """Whether the datapath has given the connection up: only once it is closed there does this end see that."""
        return self.number in dict(self.it.datapath.events())
