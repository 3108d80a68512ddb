"""Ports of all kinds on one master reach each other, whichever of them the kernel forwards between."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.machine import idle, machine
from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import raw, sniffing
from tests.support.topology import Lab
from tests.support.wire.frames import udp4

ADDRESS = "10.1.0.{}"
KINDS = ("tap", "veth", "veth2", "vm-tap", "vm-macvtap", "vm-stream", "vm-dgram")
KERNELS = ("veth", "veth2")  # between these the kernel forwards


class End:
    """How a port's endpoint sends a frame, and all that it has received."""

    def __init__(self, send: Callable[[bytes], object], receive: Callable[[], list[bytes]]) -> None:
        self.send = send
        self._receive = receive
        self._received: list[bytes] = []

    def has(self, payload: bytes) -> int:
        self._received += self._receive()
        return sum(payload in frame for frame in self._received)


def waiting(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 17, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def stream_end(stack: ExitStack, path: Path) -> End:
    """Each frame behind its length."""
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.connect(str(path))
    return End(lambda frame: sock.sendall(len(frame).to_bytes(4, "big") + frame), lambda: [waiting(sock)])


def dgram_end(stack: ExitStack, local: Path, remote: Path) -> End:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sock.bind(str(remote))
    sock.connect(str(local))
    return End(sock.send, lambda: [waiting(sock)])


def netns_end(stack: ExitStack, netns: str, device: str) -> End:
    sender = stack.enter_context(raw(netns, device))
    sniffer = stack.enter_context(sniffing(netns, device))
    return End(sender.send, lambda: [frame for _, frame in sniffer.frames])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(3) as made:
        yield made


def test_all_pairs(lab: Lab, tmp_path: Path) -> None:
    numbers = {name: k for k, name in enumerate(KINDS, 11)}
    own = {name: [f"{ADDRESS.format(k)}/16"] for name, k in numbers.items()}
    inside = dict(zip(("tap", "veth", "veth2"), lab.ports, strict=False))
    ports = [port(name, netns, own[name], device=name.rstrip("2")) for name, netns in inside.items()]
    stream, local, remote = (tmp_path / name for name in ("stream", "local", "remote"))
    for kind, paths in (
        ("tap", {}),
        ("macvtap", {}),
        ("stream", {"path": str(stream)}),
        ("dgram", {"local": str(local), "remote": str(remote)}),
    ):
        ports.append({"name": f"vm-{kind}", "kind": kind, "mac": "master", "addresses": own[f"vm-{kind}"], **paths})
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon, ExitStack() as stack:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm-tap", "vm-macvtap")
        ends = {name: netns_end(stack, netns, name) for name, netns in inside.items()}
        for name in ("vm-tap", "vm-macvtap"):
            guest = stack.enter_context(machine(daemon, name))
            ends[name] = End(guest.send, guest.read)
        ends["vm-stream"] = stream_end(stack, stream)
        ends["vm-dgram"] = dgram_end(stack, local, remote)
        daemon.wait()
        for source, target in itertools.permutations(KINDS, 2):
            payload = f"{source} to {target}.".encode()
            before = daemon.stats()[0]["ports"][source]
            ends[source].send(udp4(ADDRESS.format(numbers[source]), ADDRESS.format(numbers[target]), payload))
            until(lambda: ends[target].has(payload), payload.decode())  # noqa: B023
            now = daemon.stats()[0]["ports"][source]
            by_kernel = now["kernel_frames"] - before["kernel_frames"]
            assert bool(by_kernel) is ({source, target} <= set(KERNELS)), payload
            assert [name for name in KINDS if name != source and ends[name].has(payload)] == [target]
