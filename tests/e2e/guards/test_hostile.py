"""The whole daemon while everything that it reads is hostile, with ports, machines and modes that come and go.

IPVSW_HOSTILE_SECONDS says how long. `make san` lasts a minute, with a daemon that is built with sanitizers.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tests.native.random_frames import random_frame, seed_from_environment
from tests.native.random_guarded import guarded_frame
from tests.support.machine import idle, machine
from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import PACKET_VNET_HDR, SOL_PACKET, raw
from tests.support.topology import MASTER4, MASTER6, WIRE4, WIRE6, Lab, port4, port6
from tests.support.wire.attacks import MASTER, Who, attacks, hidden

SECONDS = float(os.environ.get("IPVSW_HOSTILE_SECONDS", "4"))
GSO = [0, 1, 3, 4, 5, 0x81, 0x84, 7]  # the kinds that there are, with ECN, and one that there is not
REPORTS = ("AddressSanitizer", "runtime error:", "Traceback")
AROUND = (port4(1), port4(2), MASTER4, WIRE4, "10.1.0.200"), (port6(1), port6(2), MASTER6, WIRE6, "fd00:1::200")
ATTACKS = [
    b"\xff" * 6 + MASTER + b"".join(tags) + attack.ethertype.to_bytes(2, "big") + packet
    for attack in attacks(Who(*(ip_address(one).packed for family in AROUND for one in family))).values()
    for tags, packet in hidden(attack).values()
]


def hostile(rng: random.Random) -> bytes:
    """A virtio_net_hdr and a frame."""
    frame = rng.choice([random_frame, guarded_frame, lambda r: r.choice(ATTACKS)])(rng)
    frame += rng.randbytes(rng.choice([0, 0, 0, 60, 1400, 9000, 60000]))
    frame = frame[:65000]
    if rng.random() < 0.5:
        return bytes(10) + frame
    edge = rng.choice([len(frame), 64, 1500])
    lengths = (
        rng.randrange(edge + 2),
        rng.choice([0, 1, 7, 100, 1448, 65535]),
        rng.randrange(edge + 2),
        rng.choice([6, 16]),
    )
    return struct.pack("=BBHHHH", rng.choice([0, 1, 1, 2]), rng.choice(GSO), *lengths) + frame


class Senders:
    """Threads that send until the end of the body."""

    def __init__(self, seed: int) -> None:
        self.sent = 0
        self._seed = seed
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, send: Callable[[bytes], Any]) -> None:
        rng = random.Random(self._seed + len(self._threads))

        def work() -> None:
            while not self._ending.is_set():
                with contextlib.suppress(OSError):  # a device that is not there, a header that the kernel refuses
                    send(hostile(rng))
                    self.sent += 1

        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def from_device(senders: Senders, netns: str, device: str) -> Iterator[None]:
    with raw(netns, device) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        senders.add(sock.send)
        yield


def to_stream(path: Path) -> Callable[[bytes], None]:
    """As a VMM speaks that may be wrong about lengths, and is then disconnected."""
    sock = socket.socket(socket.AF_UNIX)
    lengths = random.Random(1)

    def send(frame: bytes) -> None:
        nonlocal sock
        said = len(frame) - 10 if lengths.random() < 0.99 else lengths.getrandbits(32)
        try:
            sock.sendall(said.to_bytes(4, "big") + frame[10:])
        except OSError:
            sock.close()
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(1)
            sock.connect(str(path))

    return send


def test_hostile_traffic_from_everywhere(lab: Lab, tmp_path: Path) -> None:
    """The daemon lives, says nothing of itself, and serves the honest when it is over."""
    seed = seed_from_environment()
    stream = tmp_path / "vm.sock"
    ports: list[dict[str, Any]] = [
        port("ipvl1", lab.ports[0], [f"{port4(1)}/16", f"{port6(1)}/64"], guard="strict"),
        port("ipvl2", lab.ports[1], [f"{port4(2)}/16", f"{port6(2)}/64"]),
        {"name": "vm1", "kind": "tap", "learn": True, "guard": "off"},
        {"name": "vm2", "kind": "macvtap", "addresses": ["10.1.0.60/16", "fd00:1::60/64"]},
        {"name": "vm3", "kind": "stream", "path": str(stream), "learn": True},
    ]
    with Daemon(switch("m0", lab.host, ports, host_access="both"), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1", "vm2")
        senders = Senders(seed)
        with contextlib.ExitStack() as stack:
            stack.callback(senders.end)
            for netns, device in ((lab.ports[0], "ipvl1"), (lab.ports[1], "ipvl2"), (lab.wire, "w0"), (lab.host, "m0")):
                stack.enter_context(from_device(senders, netns, device))
            stack.enter_context(from_device(senders, lab.host, "ipvsw-m0"))
            senders.add(to_stream(stream))
            turns = come_and_go(lab, daemon, random.Random(seed), time.monotonic() + SECONDS)
        print(f"{senders.sent} frames, {turns} turns")
        assert senders.sent > 1000 and turns
        status, _ = daemon.call("PATCH", "/v1/switches/lan", {"mode": "l2", "flag": "bridge"})
        assert status == 200
        for k in (0, 1):
            lab.reachable(lab.ports[k], WIRE4)
            lab.reachable(lab.wire, port6(k + 1))
        assert not [line for line in daemon.said().splitlines() if any(one in line for one in REPORTS)]


def come_and_go(lab: Lab, daemon: Daemon, rng: random.Random, end: float) -> int:
    """Ports, machines, modes and flags, until that time. Returns how often."""
    turns = 0
    while time.monotonic() < end or not turns:
        turns += 1
        change = {"mode": rng.choice(["l2", "l3", "l3s"]), "flag": rng.choice(["bridge", "private", "vepa"])}
        assert daemon.call("PATCH", "/v1/switches/lan", change)[0] == 200
        added = {"master": "m0", "name": "more", "ifname": "more", "netns": lab.ports[1], "guard": ["arp", "nd"]}
        status, answer = daemon.call("POST", "/v1/ports", added)
        assert status == 201, answer
        until(lambda: lab.link(lab.ports[1], "more"), "the port is there")
        for name in ("vm1", "vm2"):
            with machine(daemon, name) as guest:
                for _ in range(200):
                    with contextlib.suppress(OSError):
                        os.write(guest.fd, hostile(rng))
        assert daemon.call("DELETE", "/v1/ports/more")[0] in (200, 204)
    return turns
