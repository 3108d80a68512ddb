"""A thousand ports in a thousand namespaces on one master come up, talk, and go."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import leftovers
from tests.support.patience import LIMIT, patient, until
from tests.support.running import Daemon, port, switch
from tests.support.topology import WIRE4, Lab, inside, port4
from tests.support.wire.frames import checksum

PORTS = 1000
LONG = patient(300)  # s, for all of them


def answers(netns: str, address: str, tries: int = 3) -> bool:
    """One ICMP echo by a ping socket; no process is started."""
    with inside(netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(LIMIT)
        for attempt in range(tries):
            request = struct.pack("!BBHHH", 8, 0, 0, 0, attempt) + b"a thousand ports"
            request = request[:2] + checksum(request).to_bytes(2, "big") + request[4:]
            try:
                sock.sendto(request, (address, 0))
                sock.recv(1500)
                return True
            except OSError:
                continue
    return False


@pytest.fixture
def room_for_neighbours() -> Iterator[bool]:
    """One table for all namespaces holds every neighbour: 1024 of them unless it is told otherwise, which can only be
    done in the machine's first network namespace. Whether there is room for all."""
    files = [Path(f"/proc/sys/net/ipv{family}/neigh/default/gc_thresh{k}") for family in (4, 6) for k in (3, 2, 1)]
    saved = [(file, file.read_text()) for file in files if file.exists()]
    for file, _ in saved:
        file.write_text("16384")
    yield bool(saved)
    for file, text in saved:
        file.write_text(text)


def test_a_thousand_ports(room_for_neighbours: bool) -> None:
    with Lab(PORTS) as lab:
        empty = lab.read(lab.ports[0], "dev").count(":")
        before = sorted(link["ifname"] for netns in (lab.home, lab.host) for link in lab.links(netns))
        ports = [
            port("ipvl0", netns, [f"{port4(k)}/16"]) | {"name": f"p{k}", "ifname": "ipvl0"}
            for k, netns in enumerate(lab.ports, 1)
        ]
        start = time.monotonic()
        with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
            daemon.wait(limit=LONG)
            print(f"{PORTS} ports up in {time.monotonic() - start:.1f} s, {daemon.rss() >> 20} MB resident")
            programs, maps = daemon.bpf()
            silent = []
            for k, netns in enumerate(lab.ports, 1):
                if not answers(netns, port4(k % PORTS + 1)):
                    silent.append(k)
                if not room_for_neighbours:
                    lab.ip(netns, "neigh", "flush", "dev", "ipvl0")
            assert not silent, f"{len(silent)} ports don't reach their neighbour: {silent[:10]}"
            far = [k for k in range(1, PORTS + 1, 50) if not answers(lab.ports[k - 1], WIRE4)]
            assert not far, f"the wire is not reached from {far}"
            start = time.monotonic()
            daemon.stop(limit=LONG)
            print(f"down in {time.monotonic() - start:.1f} s")
        until(
            lambda: before == sorted(link["ifname"] for netns in (lab.home, lab.host) for link in lab.links(netns)),
            "no device is left",
        )
        left = [netns for netns in lab.ports if lab.read(netns, "dev").count(":") != empty]
        assert not left, f"devices are left in {left[:5]}"
        leftovers.gone(programs, maps)
