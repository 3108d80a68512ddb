"""A datapath whose interfaces are socket pairs: they keep frames apart and are read and written as a TAP is."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipvsw._fast import FLAGS, MODES, OUTCOMES, Datapath
from tests.support.patience import LIMIT, until

HEADER = bytes(10)
GSO_HEADER = bytes([0, 1]) + bytes(8)
MASTER = bytes.fromhex("020000000001")
FOREIGN = bytes.fromhex("0200000000fe")
BROADCAST = b"\xff" * 6
MDNS = bytes.fromhex("01005e0000fb")
FAR4, FAR6 = bytes([192, 0, 2, 1]), bytes.fromhex("20010db8" + "00" * 11 + "01")
SO_SNDBUFFORCE = 32
LONGEST = 70_000  # header and frame
IO = "auto"  # of every lab; see conftest.py


class Interface:
    """`inside` is the datapath's, `outside` is the device's other end."""

    def __init__(self) -> None:
        self.inside, self.outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inside.setblocking(False)
        self.outside.settimeout(LIMIT)

    def send(self, frame: bytes, header: bytes = HEADER) -> None:
        self.outside.send(header + frame)

    def receive(self) -> bytes:
        """The next frame that comes out. Errors: TimeoutError."""
        return self.outside.recv(LONGEST)[len(HEADER) :]

    def waiting(self) -> list[bytes]:
        """What has come out by now. (A socket with a timeout is non-blocking underneath.)"""
        found = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.outside.fileno(), LONGEST):
                found.append(data[len(HEADER) :])
        return found

    def room(self, size: int) -> None:
        for end in (self.inside, self.outside):
            end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size)

    def close(self) -> None:
        self.inside.close()
        self.outside.close()


@dataclass(frozen=True)
class Counted:
    """`Datapath.traffic` with names."""

    rx_frames: int
    rx_bytes: int
    tx_frames: int
    tx_bytes: int
    tx_errors: int
    offload_fixed: int
    outcomes: dict[str, int]  # those that happened


class Lab:
    """Port k owns 10.0.0.(k+1) and fd00::(k+1), is up, and hears broadcast alone."""

    def __init__(
        self, ports: int = 3, *, workers: int = 1, mode: str = "l2", flag: str = "bridge", master: bool = True
    ) -> None:
        self.datapath = Datapath(workers, IO)
        self.interfaces = [Interface() for _ in range(ports)]
        self.master = [Interface() for _ in range(workers)]
        self.host = Interface()
        self.datapath.set_mode(MODES[mode], FLAGS[flag])
        if master:
            self.datapath.attach_master([d.inside.fileno() for d in self.master], self.host.inside.fileno(), MASTER)
        self.numbers = [self.add(interface, k) for k, interface in enumerate(self.interfaces)]
        self.datapath.commit()

    def add(self, interface: Interface, k: int, *, own: bytes | None = None) -> int:
        number = self.datapath.attach_port(interface.inside.fileno(), 1500, macnat=own)
        self.datapath.set_port(number, up=True, mtu=1500)
        self.datapath.bind(v4(k), number)
        self.datapath.bind(v6(k), number)
        return number

    def counted(self, port: int | str | None) -> Counted:
        *numbers, outcomes = self.datapath.traffic(port)
        return Counted(*numbers, {name: n for name, n in zip(OUTCOMES, outcomes, strict=True) if n})

    def settled(self, port: int | str | None, frames: int) -> Counted:
        """The counters of an interface once it has read so many frames and each has ended."""

        def done() -> bool:
            now = self.counted(port)
            return now.rx_frames >= frames and sum(now.outcomes.values()) == now.rx_frames

        until(done, f"{frames} frames of interface {port}, now {self.counted(port)}")
        return self.counted(port)

    def close(self) -> None:
        self.datapath.close()
        for interface in [*self.interfaces, *self.master, self.host]:
            interface.close()


@contextlib.contextmanager
def lab(
    ports: int = 3,
    *,
    workers: int = 1,
    mode: str = "l2",
    flag: str = "bridge",
    master: bool = True,
    start: bool = True,
) -> Iterator[Lab]:
    it = Lab(ports, workers=workers, mode=mode, flag=flag, master=master)
    try:
        if start:
            it.datapath.start()
        yield it
    finally:
        it.close()


def v4(k: int) -> bytes:
    return bytes([10, 0, k >> 8, (k & 255) + 1])


def v6(k: int) -> bytes:
    return bytes.fromhex("fd00" + "00" * 12) + (k + 1).to_bytes(2, "big")


def ipv4(source: bytes, destination: bytes, payload: bytes = b"payload.", protocol: int = 17) -> bytes:
    total = (20 + len(payload)).to_bytes(2, "big")
    return b"\x45\0" + total + bytes(4) + bytes([64, protocol, 0, 0]) + source + destination + payload


def ipv6(source: bytes, destination: bytes, payload: bytes = b"payload.") -> bytes:
    return b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + b"\x11\x40" + source + destination + payload


def frame(
    destination: bytes, source: bytes, packet: bytes, ethertype: int = 0x0800, tags: Sequence[bytes] = ()
) -> bytes:
    return destination + source + b"".join(tags) + ethertype.to_bytes(2, "big") + packet


def between(a: int, b: int, payload: bytes = b"payload.") -> bytes:
    """What port a sends to its sibling b."""
    return frame(MASTER, MASTER, ipv4(v4(a), v4(b), payload))


def broadcast(a: int, payload: bytes = b"to all..") -> bytes:
    return frame(BROADCAST, MASTER, ipv4(v4(a), b"\xff" * 4, payload))
