"""Mode l3s: what ports say and hear passes the host's netfilter, and nothing else is forwarded."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path

import pytest

from tests.support import traffic
from tests.support.patience import LIMIT
from tests.support.routed import FAR, FAR4, FAR6, HOST4, HOST6, ROUTER_MAC, Routed, change, inner, routed
from tests.support.running import Daemon
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER_MAC, exec_in, inside, run
from tests.support.wire import frames

MODE = "l3s"

FAMILIES = pytest.mark.parametrize("version", [4, 6])
FLOWS = [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)]
QUIET = 0.2  # seconds in which what must not come would have come
NOWHERE = {4: "10.2.0.99", 6: "fd02::99"}  # of the ports' network, and nobody's


def far(version: int) -> str:
    return FAR4 if version == 4 else FAR6


def rules(lab: Routed, text: str) -> None:
    """nft(8)'s words, in the host."""
    run(*exec_in(lab.host, "nft", "-f", "-"), text=text)


def counted(lab: Routed, name: str) -> int:
    """Packets of a named counter in the host."""
    shown = json.loads(lab.execute(lab.host, "nft", "-j", "list", "counter", "inet", "t", name))
    packets: int = shown["nftables"][1]["counter"]["packets"]
    return packets


def talks(source: str, target: str, address: str, kind: socket.SocketKind, *, wanted: bool) -> bool:
    """Whether a question gets its answer."""
    time_for = LIMIT if wanted else QUIET
    with traffic.listen(target, address, kind) as server:
        server.settimeout(time_for)
        with inside(source):
            client = socket.socket(traffic.family(address), kind)
        with client, contextlib.suppress(TimeoutError):
            client.settimeout(time_for)
            client.connect(server.getsockname()[:2])
            client.send(b"question")
            if kind == socket.SOCK_STREAM:
                peer, _ = server.accept()
                with peer:
                    peer.send(peer.recv(100)[::-1])
            else:
                data, where = server.recvfrom(100)
                server.sendto(data[::-1], where)
            return client.recv(100) == b"noitseuq"
    return False


@FAMILIES
def test_everything_is_reached(lab: Routed, version: int) -> None:
    for source, target, address in (
        (lab.ports[0], lab.far, far(version)),
        (lab.far, lab.ports[0], inner(1, version)),
        (lab.ports[0], lab.ports[1], inner(2, version)),
    ):
        lab.reachable(source, address)
        assert lab.ping(source, address, 5) == 5
        traffic.tcp(source, target, address)
        traffic.udp(source, target, address, (1, 1400, 1473, 9000))
    for netns in (lab.ports[0], lab.far):
        assert not traffic.checksum_errors(lab.read(netns, "snmp"), lab.read(netns, "snmp6"))


STATEFUL = """
table inet t {{
    counter established {{ }}
    counter fresh {{ }}
    counter dropped {{ }}
    chain f {{
        type filter hook forward priority 0; policy accept;
        ct state established,related counter name established accept
        iifname "m0" ct state new counter name {inward}
    }}
    chain o {{
        type filter hook output priority 0; policy accept;
        oifname "m0" ct state new meta nfproto ipv4 ip saddr 10.2.0.0/24 counter name {outward}
        oifname "m0" ct state new meta nfproto ipv6 ip6 saddr fd02::/64 counter name {outward}
    }}
}}
"""


@FAMILIES
@pytest.mark.parametrize("closed", ["inward", "outward"])
def test_new_connections_are_dropped_in_one_direction(lab: Routed, version: int, closed: str) -> None:
    """And what was partial in the other goes on both ways."""
    verdicts = {"inward": "fresh accept", "outward": "fresh accept"} | {closed: "dropped drop"}
    rules(lab, STATEFUL.format(**verdicts))
    ways = {
        "inward": (lab.far, lab.ports[0], inner(1, version)),
        "outward": (lab.ports[0], lab.far, far(version)),
    }
    for direction, (source, target, address) in ways.items():
        before = counted(lab, "dropped"), counted(lab, "fresh")
        for name, kind in FLOWS:
            wanted = direction != closed
            assert talks(source, target, address, kind, wanted=wanted) is wanted, f"{name} {direction}"
        dropped, fresh = counted(lab, "dropped") - before[0], counted(lab, "fresh") - before[1]
        assert (dropped >= 2, fresh >= 2) == (direction == closed, direction != closed)
    assert counted(lab, "established") >= 3


@FAMILIES
def test_the_flow_is_tracked(lab: Routed, version: int) -> None:
    """From its first packet to its end, with both directions seen."""
    rules(lab, "table inet t { chain o { type filter hook output priority 0; ct state new accept; }; }")
    with traffic.listen(lab.far, far(version), socket.SOCK_STREAM) as server:
        with inside(lab.ports[0]):
            client = socket.socket(traffic.family(far(version)), socket.SOCK_STREAM)
        with client:
            client.settimeout(LIMIT)
            client.connect(server.getsockname()[:2])
            peer, _ = server.accept()
            with peer:
                number = client.getsockname()[1]
                entries = [
                    line for line in lab.read(lab.host, "nf_conntrack").splitlines() if f"sport={number} " in line
                ]
                assert len(entries) == 1, entries
                assert "ESTABLISHED" in entries[0] and "UNREPLIED" not in entries[0]


@FAMILIES
@pytest.mark.parametrize("mode", ["l3s", "l3"])
def test_masquerade(net: tuple[Routed, Daemon], mode: str, version: int) -> None:
    """A port's packets leave by the host's address, and the answers find their way back."""
    if mode == "l3s":
        lab, _ = net
        check_masquerade(lab, version)
        lab.restore()
    else:
        with routed("l3", l3_output="host") as (other, _):
            check_masquerade(other, version, wants_answers=False)


def check_masquerade(lab: Routed, version: int, *, wants_answers: bool = True) -> None:
    mine = HOST4 if version == 4 else HOST6
    rules(
        lab,
        "table inet n { chain p { type nat hook postrouting priority srcnat; oifname m0 "
        "ip saddr 10.2.0.0/24 masquerade; oifname m0 ip6 saddr fd02::/64 masquerade; }; }",
    )
    try:
        with traffic.listen(lab.far, far(version), socket.SOCK_DGRAM) as server:
            with inside(lab.ports[0]):
                client = socket.socket(traffic.family(mine), socket.SOCK_DGRAM)
            with client:
                client.settimeout(LIMIT)
                client.sendto(b"question", server.getsockname()[:2])
                data, where = server.recvfrom(100)
                assert (data, where[0]) == (b"question", mine)
                if wants_answers:
                    server.sendto(b"answer", where)
                    assert client.recv(100) == b"answer"
        if wants_answers:
            traffic.tcp(lab.ports[0], lab.far, far(version))
            assert lab.ping(lab.ports[0], far(version), 3) == 3
    finally:
        rules(lab, "flush ruleset")


# ---------------------------------------------------------------------------- nothing else is forwarded


@FAMILIES
def test_the_host_forwards_nothing_else(lab: Routed, version: int) -> None:
    """What the wire sends it for others stays there, and nobody is told of a better way or of none."""
    addresses = [far(version), NOWHERE[version], "10.3.0.2" if version == 4 else "fd03::2"]
    source = "10.1.0.200" if version == 4 else "fd01::200"
    change(
        lab.host,
        f"neigh replace {addresses[1]} lladdr {ROUTER_MAC[2]} dev m0",
        f"neigh replace {source} lladdr {ROUTER_MAC[1]} dev m0",
    )
    make = frames.udp4 if version == 4 else frames.udp6
    with (
        sniffing(lab.wire, "w0") as wire,
        sniffing(lab.routers[2], "x0") as side,
        sniffing(lab.ports[0], "ipvl1") as port,
        raw(lab.wire, "w0") as sock,
    ):
        for address in addresses:
            sock.send(make(source, address, b"for another", by=ROUTER_MAC[1]))
        sock.send(make(source, inner(1, version), b"for the port", by=ROUTER_MAC[1]))
        port.wait(b"for the port")
        time.sleep(QUIET)
        assert not wire.count(b"for another") and not side.count(b"for another") and not port.count(b"for another")
        errors = [
            frame
            for _, frame in wire.frames
            if (frame[12:14] == b"\x08\x00" and frame[23] == frames.ICMP and frame[34] in (3, 5, 11))
            or (frame[12:14] == b"\x86\xdd" and frame[20] == frames.ICMP6 and (frame[54] < 128 or frame[54] == 137))
        ]
        assert not [frame for frame in errors if b"for the port" not in frame]  # which nobody there waits for


@FAMILIES
def test_one_hop(lab: Routed, version: int) -> None:
    """The host forwards to ports: one less arrives, and of what ends there nobody is told. Outwards nothing is less."""
    with sniffing(lab.ports[0], "ipvl1") as port, sniffing(lab.wire, "w0") as wire:
        assert lab.ping(lab.far, inner(1, version)) == 1
        hops = [hop(frame) for _, frame in port.frames if is_request(frame)]
        assert hops and set(hops) == {62}, "64, a router, and the host"
        out = lab.execute(lab.far, "ping", "-n", "-c1", "-W0.3", "-t2", inner(1, version), check=False)
        assert "exceeded" not in out and " 0 received" in out
        lab.ping(lab.ports[0], far(version))
        hops = [hop(frame) for _, frame in wire.frames if is_request(frame) and frame[6:12] == frames.mac(MASTER_MAC)]
        assert hops and set(hops) == {64}


def is_request(frame: bytes) -> bool:
    if frame[12:14] == b"\x08\x00":
        return frame[23] == frames.ICMP and frame[34] == 8
    return frame[12:14] == b"\x86\xdd" and frame[20] == frames.ICMP6 and frame[54] == 128


def hop(frame: bytes) -> int:
    return frame[22] if frame[12:14] == b"\x08\x00" else frame[21]


def test_a_host_that_forwards_goes_on_doing_so() -> None:
    """With IPv6 alone, it does for IPv6 and not for IPv4; afterwards all is as before."""
    lab = Routed(2)
    with lab:
        lab.sysctl(lab.host, "net/ipv6/conf/all/forwarding", "1")
        with Daemon(lab.configured("l3s"), home=lab.home) as daemon:
            daemon.wait()
            for address in FAR:
                lab.reachable(lab.ports[0], address)
            with sniffing(lab.routers[2], "x0") as side, raw(lab.wire, "w0") as sock:
                for count in range(1, 4):
                    sock.send(frames.udp6("fd01::200", "fd03::2", b"six", by=ROUTER_MAC[1]))
                    sock.send(frames.udp4("10.1.0.200", "10.3.0.2", b"four", by=ROUTER_MAC[1]))
                    side.wait(b"six", count)
                assert not side.count(b"four")
        with inside(lab.host):
            shown = {
                name: Path(f"/proc/sys/net/{name}/forwarding").read_text().strip()
                for name in ("ipv4/conf/m0", "ipv4/conf/all", "ipv6/conf/all")
            }
        assert shown == {"ipv4/conf/m0": "0", "ipv4/conf/all": "0", "ipv6/conf/all": "1"}
