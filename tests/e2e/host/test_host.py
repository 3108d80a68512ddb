"""The host keeps its own traffic, gets what is meant for it, and takes no notice of the ports' frames."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import traffic
from tests.support.running import Daemon, port, switch
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, WIRE4, WIRE6, Lab, inside, port4, port6
from tests.support.wire import frames

MOVED = 50_000_000  # bytes each way


@pytest.fixture(params=["elsewhere", "at home"])
def lan(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """The master in another namespace than the daemon's, and in its own (no `netns` in the configuration)."""
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"]) for k, netns in enumerate(lab.ports, 1)]
    table = switch("m0", lab.host, ports)
    if request.param == "at home":
        del table["netns"]
    with Daemon(table, home=lab.home if request.param == "elsewhere" else lab.host) as daemon:
        daemon.wait()
        for k, netns in enumerate(lab.ports, 1):
            lab.reachable(lab.wire, port4(k))
            lab.reachable(netns, WIRE6)
        yield daemon


def test_a_forwarding_host_leaves_the_ports_alone(lab: Lab, lan: Daemon) -> None:
    lab.sysctl(lab.host, "net/ipv4/ip_forward", "1")
    lab.sysctl(lab.host, "net/ipv6/conf/all/forwarding", "1")
    lab.sysctl(lab.host, "net/ipv4/conf/all/send_redirects", "1")
    lab.sysctl(lab.host, "net/ipv4/conf/m0/send_redirects", "1")
    with sniffing(lab.wire, "w0") as wire, sniffing(lab.ports[0], "ipvl1") as inside:
        assert lab.ping(lab.wire, port4(1), 20) == 20
        assert lab.ping(lab.wire, port6(1), 20) == 20
        content = b"once and only once"
        with socket_in(lab.wire) as sender:
            sender.sendto(content, (port4(1), 9))
        inside.wait(content)
        time.sleep(0.3)  # for what must not come
        assert inside.count(content) == 1, "a duplicate in the port"
        forwarded = [frame for _, frame in wire.frames if content in frame and frame[23] == frames.UDP]
        assert not forwarded, "the host forwarded the port's frame"
        icmp4 = [frame for _, frame in wire.frames if frame[12:14] == b"\x08\x00" and frame[23] == frames.ICMP]
        icmp6 = [frame for _, frame in wire.frames if frame[12:14] == b"\x86\xdd" and frame[20] == frames.ICMP6]
        assert sum(frame[34] == 0 for frame in icmp4) == 20, "echo replies"
        assert sum(frame[54] == 129 for frame in icmp6) == 20, "echo replies"
        assert not [frame for frame in icmp4 if frame[34] == 5], "an ICMP redirect"
        assert not [frame for frame in icmp6 if frame[54] == 137], "an ICMPv6 redirect"
        host4 = bytes(map(int, MASTER4.split(".")))
        asked = [frame for _, frame in wire.frames if frame[12:14] == b"\x08\x06" and frame[28:32] == host4]
        wanted = bytes(map(int, port4(1).split(".")))
        assert not [frame for frame in asked if frame[38:42] == wanted], "the host asks for a port's address"


def socket_in(netns: str) -> socket.socket:
    with inside(netns):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def test_host_sees_nothing_of_what_is_for_a_port(lab: Lab, lan: Daemon) -> None:
    before = ip_received(lab)
    assert lab.ping(lab.wire, port4(1), 50, interval=0.005) == 50
    assert ip_received(lab) - before < 5


def ip_received(lab: Lab) -> int:
    names, values = (line.split() for line in lab.read(lab.host, "snmp").splitlines() if line.startswith("Ip:"))
    return int(values[names.index("InReceives")])


@pytest.mark.parametrize("address", [MASTER4, MASTER6])
def test_a_port_reaches_the_host_stack(lab: Lab, lan: Daemon, address: str) -> None:
    lab.ip(lab.ports[0], "neigh", "replace", address, "lladdr", MASTER_MAC, "dev", "ipvl1")
    traffic.udp(lab.ports[0], lab.host, address, (1, 500, 1400, 3000))


def test_a_frame_for_the_host_stays_off_the_wire(lab: Lab, lan: Daemon) -> None:
    with (
        sniffing(lab.wire, "w0") as wire,
        traffic.listen(lab.host, MASTER4, socket.SOCK_DGRAM) as receiver,
        raw(lab.ports[0], "ipvl1") as sender,
    ):
        content = b"made by hand"
        sender.send(frames.udp4(port4(1), MASTER4, content, ports=(7, receiver.getsockname()[1])))
        assert receiver.recv(100) == content
        sender.send(b"\xff" * 6 + frames.mac(MASTER_MAC) + b"\x88\xb5" + b"the last one".ljust(46, b"\0"))
        wire.wait(b"the last one")
        assert wire.count(content) == 0


def test_host_and_wire_talk_as_before(lab: Lab, lan: Daemon) -> None:
    for address in (WIRE4, WIRE6):
        assert lab.ping(lab.host, address, 20) == 20
        traffic.tcp(lab.host, lab.wire, address)
    for address in (MASTER4, MASTER6):
        traffic.tcp(lab.wire, lab.host, address)


def test_the_hosts_traffic_does_not_wake_the_daemon(lab: Lab, lan: Daemon) -> None:
    # What the daemon does by itself, with nothing on the move.
    start, woken = time.monotonic(), lan.switches()
    time.sleep(1)
    idle = (lan.switches() - woken) / (time.monotonic() - start)
    read = master_rx(lan)
    start, woken, busy = time.monotonic(), lan.switches(), lan.cpu_ns()
    traffic.tcp(lab.host, lab.wire, WIRE4, MOVED)
    woken = lan.switches() - woken - round(idle * (time.monotonic() - start))
    assert woken < 100, f"the daemon was woken {woken} times by the host's own traffic"
    assert lan.cpu_ns() - busy < 50_000_000, "the daemon worked for the host's own traffic"
    assert master_rx(lan) - read < 20_000, "the daemon read the host's own traffic"


def master_rx(lan: Daemon) -> int:
    """Bytes that the switch read from the master."""
    return sum(int(one["master"]["rx_bytes"]) for one in lan.stats())
