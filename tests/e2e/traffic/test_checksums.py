"""No checksum is ever wrong: every frame that arrives is verified at the far end.

Between the ends of one machine a checksum may still be partial: then the frame's virtio_net_hdr says
so, and finishing it as a card would has to give the right sum. Where the sender's stack or the master
was told to compute checksums itself, none may be partial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support import running, traffic
from tests.support.patience import LIMIT, until
from tests.support.sniff import Sniffer, sniffing
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, WIRE4, WIRE6, Lab, port4, port6
from tests.support.wire import frames

UDP_SIZES = (1, 2, 63, 64, 512, 1399, 1452, 1472, 3000, 20000)


class Offloads(NamedTuple):
    ports: bool
    master: bool
    wire: bool


class Bench(NamedTuple):
    lab: Lab
    offloads: Offloads
    ends: dict[str, tuple[str, str, str, str]]  # name -> namespace, device, IPv4, IPv6


@pytest.fixture(
    scope="module",
    params=[
        Offloads(True, True, True),
        Offloads(False, False, False),
        Offloads(True, False, True),
        Offloads(False, True, True),
    ],
    ids=["all-on", "all-off", "master-off", "ports-off"],
)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    offloads: Offloads = request.param
    with Lab(2) as lab:
        ports = [
            running.port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"])
            for k, netns in enumerate(lab.ports, 1)
        ]
        with running.Daemon(running.switch("m0", lab.host, ports), home=lab.home) as daemon:
            daemon.wait()
            ends = {"wire": (lab.wire, "w0", WIRE4, WIRE6), "host": (lab.host, "m0", MASTER4, MASTER6)}
            for k, netns in enumerate(lab.ports, 1):
                ends[f"port{k}"] = (netns, f"ipvl{k}", port4(k), port6(k))
                lab.offloads(netns, f"ipvl{k}", offloads.ports)
            lab.offloads(lab.host, "m0", offloads.master)
            lab.offloads(lab.wire, "w0", offloads.wire)
            for source, target in (("port1", "port2"), ("port1", "wire"), ("port2", "wire")):
                for address in ends[target][2:]:
                    lab.reachable(ends[source][0], address)
            yield Bench(lab, offloads, ends)
            for name, (netns, *_) in ends.items():
                errors = traffic.checksum_errors(lab.read(netns, "snmp"), lab.read(netns, "snmp6"))
                assert not errors, f"{name}: {errors}"


def verify(sniffer: Sniffer, *, partial_allowed: bool) -> Counter[str]:
    """Every frame that was received, by protocol; fails on the first wrong checksum."""
    assert sniffer.close() == 0, "the test's own socket lost frames"
    seen: Counter[str] = Counter()
    reassembly = frames.Reassembly()
    for header, frame in sniffer.frames:
        assert partial_allowed or not header[0] & frames.NEEDS_CSUM, f"partial checksum: {frame[:64].hex()}"
        fault = frames.wrong(frames.complete(header, frame), reassembly)
        assert fault is None, f"{fault}: {header.hex()} {frame[:96].hex()}"
        seen.update(frames.payloads(frame))
    return seen


@pytest.mark.parametrize(("source", "target"), [("port1", "port2"), ("port1", "wire"), ("wire", "port2")])
def test_both_ways(bench: Bench, source: str, target: str) -> None:
    (here, device, *_), (there, far, v4, v6) = bench.ends[source], bench.ends[target]
    with sniffing(there, far) as arriving, sniffing(here, device) as returning:
        for address in (v4, v6):
            traffic.udp(here, there, address, UDP_SIZES)
            if getattr(bench.offloads, "wire" if source == "wire" else "ports"):
                traffic.udp(here, there, address, (12000,), segment=1200)
            traffic.tcp(here, there, address)
            for size in (0, 1, 56, 1400, 4000):
                assert bench.lab.execute(here, "ping", "-n", "-q", "-c2", "-i0.01", f"-W{LIMIT}", f"-s{size}", address)
        settings = bench.offloads._asdict() | {"port1": bench.offloads.ports, "port2": bench.offloads.ports}
        # From a port to the wire the master's own setting decides last.
        out: dict[str, bool] = {"wire": settings["ports"] and settings["master"]}
        seen = verify(arriving, partial_allowed=out.get(target, bool(settings.get(source))))
        back = verify(returning, partial_allowed=out.get(source, bool(settings.get(target))))
    for kind in ("udp4", "udp6", "tcp4", "tcp6", "icmp4", "icmp6"):
        assert seen[kind] >= 3, f"{kind} was not seen arriving: {seen}"
    for kind in ("tcp4", "tcp6", "icmp4", "icmp6"):
        assert back[kind] >= 3, f"{kind} was not seen returning: {back}"


def test_to_the_host(bench: Bench) -> None:
    """One way: the host's answers go to the wire, as the kernel's driver has it."""
    here, device, *_ = bench.ends["port1"]
    for address in (MASTER4, MASTER6):
        bench.lab.ip(here, "neigh", "replace", address, "lladdr", MASTER_MAC, "dev", device)
    with sniffing(bench.lab.host, "m0") as arriving:
        for address in (MASTER4, MASTER6):
            traffic.udp(here, bench.lab.host, address, UDP_SIZES)
            bench.lab.ping(here, address, 2, wait=0.1)
        until(lambda: arriving.frames, "anything arrives at the host")
        seen = verify(arriving, partial_allowed=bench.offloads.ports)
    for kind in ("udp4", "udp6", "icmp4", "icmp6"):
        assert seen[kind] >= 2, f"{kind} was not seen arriving: {seen}"
