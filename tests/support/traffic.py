"""Flows between namespaces, with the kernel's own stacks at both ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import threading
import time

from tests.support.patience import LIMIT, until
from tests.support.topology import Lab, inside

UDP_SEGMENT = 103
BLOCK = bytes(n * 7 & 0xFF for n in range(1 << 16))


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(netns: str, address: str, kind: socket.SocketKind) -> socket.socket:
    """A socket bound to a free port of `address` in a namespace, with a deadline of 5 s on everything."""
    with inside(netns):
        sock = socket.socket(family(address), kind)
    sock.settimeout(LIMIT)
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen(8)
    return sock


def tcp(source: str, target: str, address: str, size: int = 400_000) -> None:
    """`size` bytes each way over one connection arrive as they were sent."""
    content = random.Random(size).randbytes(size)
    digests: list[str] = []

    def serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(LIMIT)
            received = bytearray()
            while len(received) < size and (part := peer.recv(1 << 16)):
                received += part
            digests.append(hashlib.sha256(received).hexdigest())
            peer.sendall(content[::-1])

    with listen(target, address, socket.SOCK_STREAM) as listener:
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        with inside(source):
            client = socket.socket(family(address), socket.SOCK_STREAM)
        with client:
            client.settimeout(LIMIT)
            client.connect(listener.getsockname()[:2])
            client.sendall(content)
            back = bytearray()
            while len(back) < size and (part := client.recv(1 << 16)):
                back += part
        server.join(15)
    assert digests == [hashlib.sha256(content).hexdigest()], f"TCP to {address}: what was sent did not arrive"
    assert bytes(back) == content[::-1], f"TCP from {address}: what was sent did not arrive"


def udp(source: str, target: str, address: str, sizes: tuple[int, ...], segment: int = 0) -> None:
    """One datagram of each size arrives as it was sent; with `segment`, as datagrams of that size (USO)."""
    with listen(target, address, socket.SOCK_DGRAM) as receiver:
        with inside(source):
            sender = socket.socket(family(address), socket.SOCK_DGRAM)
        with sender:
            if segment:
                sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, segment)
            for size in sizes:
                content = os.urandom(size)
                sender.sendto(content, receiver.getsockname()[:2])
                got = bytearray()
                while len(got) < size:
                    got += receiver.recv(1 << 16)
                assert got == content, f"UDP to {address}: {size} bytes did not arrive as sent"


def send_gso_frames(lab: Lab, *namespaces: str) -> None:
    """Have TCP there send GSO frames however slow the connection is: else a frame is what leaves in a millisecond."""
    for netns in namespaces:
        lab.sysctl(netns, "net/ipv4/tcp_min_tso_segs", "40")


def checksum_errors(snmp: str, snmp6: str) -> dict[str, int]:
    """Counters of /proc/net/snmp and snmp6 that say a checksum was wrong, by name, without the zeros."""
    found = {}
    rows = [line.split() for line in snmp.splitlines()]
    for names, values in zip(rows[::2], rows[1::2], strict=True):
        for name, value in zip(names[1:], values[1:], strict=True):
            if "CsumErrors" in name or name == "InHdrErrors":
                found[f"{names[0]}{name}"] = int(value)
    for name, value in (line.split() for line in snmp6.splitlines()):
        if "CsumErrors" in name or name == "Ip6InHdrErrors":
            found[name] = int(value)
    return {name: value for name, value in found.items() if value}


class Stream:
    """One TCP connection between ports, written and read all the time: every byte is compared. A context manager."""

    def __init__(self, source: str, target: str, address: str) -> None:
        self.received = 0
        self.fault = ""
        self._ending = threading.Event()
        with listen(target, address, socket.SOCK_STREAM) as listener:
            with inside(source):
                self._out = socket.socket(family(address), socket.SOCK_STREAM)
            self._out.settimeout(LIMIT)
            self._out.connect(listener.getsockname()[:2])
            self._in, _ = listener.accept()
        self._in.settimeout(0.1)
        self._out.settimeout(0.1)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()

    def _write(self) -> None:
        at = 0
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                at = (at + self._out.send(BLOCK[at : at + 3000])) % len(BLOCK)
            time.sleep(0.001)

    def _read(self) -> None:
        while not self._ending.is_set():
            try:
                part = self._in.recv(1 << 16)
            except TimeoutError:
                continue
            at = self.received % len(BLOCK)
            if part != (BLOCK + BLOCK)[at : at + len(part)]:
                self.fault = f"{len(part)} bytes from {self.received} on are not as sent"
            if self.fault or not part:
                self.fault = self.fault or "the connection ended"
                return
            self.received += len(part)

    def flows(self, limit: float = LIMIT) -> None:
        """More bytes arrive, and they are right."""
        before = self.received
        until(lambda: self.received > before + 10_000 or self.fault, "the stream goes on", limit=limit)
        assert not self.fault
