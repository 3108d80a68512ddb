"""The far end of a virtual machine's port, and a DHCP server on the wire: as much of each as a test says by hand."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ipvsw.client import Client
from tests.support.patience import LIMIT, until
from tests.support.running import Daemon
from tests.support.sniff import sniffing
from tests.support.topology import MASTER_MAC, WIRE4, WIRE_MAC, Lab, inside
from tests.support.wire.dhcp import bootp, checksummed, in_frame, ones, said6

BROADCAST = b"\xff" * 6
MAC = bytes.fromhex(MASTER_MAC.replace(":", ""))
SERVER_MAC = bytes.fromhex(WIRE_MAC.replace(":", ""))


def arp(sender: str, target: str, operation: int = 1, mac: bytes = MAC) -> bytes:
    packet = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + IPv4Address(sender).packed
    return BROADCAST + mac + b"\x08\x06" + packet + bytes(6) + IPv4Address(target).packed


def solicitation(source: str, target: str) -> bytes:
    """A neighbour solicitation; from :: it asks whether the address is free, and else says who wants an answer."""
    packed = IPv6Address(target).packed
    to = IPv6Address("ff02::1:ff00:0").packed[:13] + packed[13:]
    body = b"\x87\0\0\0" + bytes(4) + packed + (b"" if source == "::" else b"\1\1" + MAC)
    pseudo = IPv6Address(source).packed + to + struct.pack("!II", len(body), 58)
    body = body[:2] + (~ones(pseudo + body) & 0xFFFF).to_bytes(2, "big") + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + pseudo[:32]
    return b"\x33\x33" + to[12:] + MAC + b"\x86\xdd" + head + body


def udp(source: str, to: str, to_port: int, payload: bytes) -> bytes:
    """Between the ports of DHCP, to everybody's MAC address."""
    return checksummed(in_frame(payload, to_port=to_port, source=source, to=to))[10:]


def udp6(source: str, to: str, to_port: int, payload: bytes, macs: bytes) -> bytes:
    udp = struct.pack("!HHHH", 1093 - to_port, to_port, 8 + len(payload), 0) + payload
    pseudo = IPv6Address(source).packed + IPv6Address(to).packed + struct.pack("!II", len(udp), 17)
    udp = udp[:6] + ((~ones(pseudo + udp) & 0xFFFF) or 0xFFFF).to_bytes(2, "big") + udp[8:]
    return macs + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + pseudo[:32] + udp


class Machine:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.frames: list[bytes] = []
        os.set_blocking(fd, False)

    def send(self, frame: bytes) -> None:
        os.write(self.fd, bytes(10) + frame)

    def receive(self, wanted: Callable[[bytes], Any]) -> bytes:
        """The next frame that is wanted."""
        deadline = time.monotonic() + LIMIT
        while (left := deadline - time.monotonic()) > 0:
            select.select([self.fd], [], [], left)
            if frame := next((one for one in self.read() if wanted(one)), None):
                return frame
        raise AssertionError(f"no such frame within {LIMIT:g} s")

    def read(self) -> list[bytes]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, 1 << 17):
                found.append(data[10:])
        return found

    def ask(self, kind: int, **more: Any) -> None:
        """A DHCP message of this kind; the rest is `bootp`'s."""
        self.send(in_frame(bootp(1, kind=kind, **more))[10:])


class Server:
    """What it has heard, and what it answers."""

    def __init__(self, lab: Lab, wire: Any) -> None:
        with inside(lab.wire):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.bind(("w0", 0))
        self._wire = wire

    def hears(self, *needles: bytes) -> bytes:
        """The first frame that has them all."""
        until(lambda: self._wire.count(*needles), f"the server hears {needles!r}")
        found: bytes = next(frame for _, frame in self._wire.frames if all(one in frame for one in needles))
        return found

    def is_asked(self, xid: int, chaddr: bytes = b"") -> bytes:
        """The first frame with a client's DHCP message of that number, and from that client."""
        return self.hears(b"\1\1\6\0" + xid.to_bytes(4, "big"), chaddr)

    def says(self, kind: int, **more: Any) -> None:
        frame = in_frame(bootp(2, kind=kind, server=WIRE4, **more), to_port=68, source=WIRE4)[10:]
        self._sock.send(BROADCAST + SERVER_MAC + frame[12:])

    def send(self, frame: bytes) -> None:
        self._sock.send(frame)

    def says6(self, to: str, kind: int, **more: Any) -> None:
        self._sock.send(udp6("fe80::fe", to, 546, said6(kind, server=b"\0\1server", **more), MAC + SERVER_MAC))

    def close(self) -> None:
        self._sock.close()


@contextlib.contextmanager
def serving(lab: Lab) -> Iterator[Server]:
    with sniffing(lab.wire, "w0") as wire:
        server = Server(lab, wire)
        try:
            yield server
        finally:
            server.close()


@contextlib.contextmanager
def machine(lan: Daemon, port: str = "vm1") -> Iterator[Machine]:
    """Has the port until the end of the body."""
    _, fds = Client(str(lan.socket)).hand_over(port)
    try:
        until(lambda: lan.port(port)["state"] == "up", f"{port} is up")
        yield Machine(fds[0])
    finally:
        for fd in fds:
            os.close(fd)
    until(lambda: lan.port(port)["state"] == "waiting", f"{port} waits")


def idle(lan: Daemon, *ports: str) -> None:
    """Wait until the ports wait for a machine."""
    for port in ports:
        until(lambda: lan.port(port)["reason"] == "for a virtual machine", f"{port} waits")  # noqa: B023


def addresses(lan: Daemon, port: str, state: str = "owned") -> dict[str, str]:
    """Address -> how it was learned, of those that are the port's, or in another state."""
    return {one["address"]: one["source"] for one in lan.port(port)["addresses"] if one["state"] == state}
