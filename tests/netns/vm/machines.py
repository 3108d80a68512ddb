"""A machine behind a port of kind tap or macvtap, and what the tests say to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.netns.daemons import Daemon
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace

WIRE = "10.7.0.254"
GUEST = "10.7.0.9"
TUNSETOFFLOAD, TUNSETIFF, TUNGETIFF = 0x400454D0, 0x400454CA, 0x800454D2
EVERY_OFFLOAD = 0x01 | 0x02 | 0x04  # csum, tso4, tso6
CLI = "import sys; from ipvsw.cli import main; sys.exit(main())"
KINDS = pytest.mark.parametrize("kind", ["macvtap", "tap"])


def lan(home: Namespace, *ports: str) -> str:
    head = f'[[switch]]\nname = "lan"\nmaster = "m0"\nnetns = "{home.name}"\n'
    return head + "".join(f"[[switch.port]]\n{port}\n" for port in ports)


def vm(kind: str, *more: str, name: str = "vm1") -> str:
    return "\n".join([f'name = "{name}"', f'kind = "{kind}"', f'addresses = ["{GUEST}/24"]', *more])


def ipv4(source: str, to: str, protocol: int, body: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, *map(socket.inet_aton, (source, to))
    )
    return head[:10] + struct.pack("!H", 0xFFFF & ~total(head)) + head[12:] + body


def total(data: bytes) -> int:
    found = sum(
        struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2) if len(data) % 2 == 0 else data[:-1])
    )
    if len(data) % 2:
        found += data[-1] << 8
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return found


class Machine:
    """The far end of a port, and as much of a guest as a test needs."""

    def __init__(self, fd: int, mac: bytes) -> None:
        self.fd = fd
        self.mac = mac
        os.set_blocking(fd, False)
        fcntl.ioctl(fd, TUNSETOFFLOAD, EVERY_OFFLOAD)

    def send(self, frame: bytes, header: bytes = bytes(10)) -> None:
        os.write(self.fd, header + frame)

    def receive(self, wanted: Callable[[bytes], bool], *, limit: float = LIMIT) -> tuple[bytes, bytes]:
        """virtio_net_hdr and frame of the first one that is wanted; ARP requests are answered meanwhile."""
        deadline = time.monotonic() + limit
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.fd], [], [], left)[0]:
                break
            data = os.read(self.fd, 1 << 17)
            header, frame = data[:10], data[10:]
            if wanted(frame):
                return header, frame
            self.answer(frame)
        pytest.fail("no such frame came")

    def answer(self, frame: bytes) -> None:
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == socket.inet_aton(GUEST):
            self.send(arp(2, GUEST, frame[28:32], frame[6:12], self.mac))

    def resolve(self, address: str) -> bytes:
        packed = socket.inet_aton(address)
        self.send(arp(1, GUEST, packed, b"\xff" * 6, self.mac))
        return self.receive(lambda frame: frame[12:14] == b"\x08\x06" and frame[28:32] == packed)[1][22:28]

    def ping(self, address: str) -> None:
        to = self.resolve(address)
        echo = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1) + b"hello"
        echo = echo[:2] + struct.pack("!H", 0xFFFF & ~total(echo)) + echo[4:]
        self.send(to + self.mac + b"\x08\x00" + ipv4(GUEST, address, 1, echo))
        self.receive(lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34] == 0)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def arp(operation: int, source: str, target: bytes, to: bytes, mac: bytes) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return to + mac + b"\x08\x06" + head + mac + socket.inet_aton(source) + to + target


@contextlib.contextmanager
def machine(running: Daemon, port: str = "vm1") -> Iterator[Machine]:
    handed, fds = running.client.hand_over(port)
    assert len(fds) == 1
    one = Machine(fds[0], bytes.fromhex(handed["mac"].replace(":", "")))
    try:
        running.until("up", port.rpartition("/")[2])
        yield one
    finally:
        one.close()


def idle(running: Daemon, *names: str) -> None:
    """Wait until the ports wait for a machine."""
    for name in names:
        until(lambda: running.port(name)["reason"] == "for a virtual machine", f"{name} waits")  # noqa: B023
