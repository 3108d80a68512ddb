"""Host and ports talk as far as `host_access` lets them, in every mode, and the wire knows nothing of it."""

from __future__ import annotations

import errno
import json
import re
import socket
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipvsw.switch.tunneltap import PREFIX
from tests.e2e.host.hostnet import (
    EVERY_MODE,
    HOST_IFINDEX,
    MODES,
    OPENERS,
    SETTINGS,
    Net,
    host,
    know_ports,
    ours,
    port,
    time_for,
)
from tests.support import running, traffic
from tests.support.patience import LIMIT, until
from tests.support.sniff import Sniffer, sniffing
from tests.support.topology import MASTER4, MASTER6, WIRE4, WIRE6, Lab, inside, port4, port6, run

# ---------------------------------------------------------------------------- flows


def pings(lab: Lab, source: str, address: str, *, wanted: bool = True) -> bool:
    words = ("ping", "-n", "-q", "-c1", f"-W{time_for(wanted)}", address)
    return "1 received" in lab.execute(source, *words, check=False)


def exchanges(source: str, target: str, address: str, kind: socket.SocketKind, *, wanted: bool = True) -> bool:
    """A question and its answer, by TCP or UDP."""
    with traffic.listen(target, address, kind) as server, inside(source):
        client = socket.socket(traffic.family(address), kind)
        with client:
            for sock in (client, server):
                sock.settimeout(time_for(wanted))
            try:
                client.connect(server.getsockname()[:2])
                client.send(b"question")
                if kind == socket.SOCK_STREAM:
                    peer, _ = server.accept()
                    with peer:
                        peer.sendall(peer.recv(100)[::-1])
                else:
                    data, where = server.recvfrom(100)
                    server.sendto(data[::-1], where)
                return client.recv(100) == b"noitseuq"
            except TimeoutError:
                return False
            except OSError as error:
                if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
                    return False
                raise


def speaks(lab: Lab, source: str, target: str, address: str, *, wanted: bool = True) -> dict[str, bool]:
    return {
        "ping": pings(lab, source, address, wanted=wanted),
        "tcp": exchanges(source, target, address, socket.SOCK_STREAM, wanted=wanted),
        "udp": exchanges(source, target, address, socket.SOCK_DGRAM, wanted=wanted),
    }


@EVERY_MODE
@pytest.mark.parametrize("access", SETTINGS)
def test_who_may_open(net: Net, mode: str, access: str) -> None:
    """Who may gets an answer; who may not gets none, and it is counted by name where the switch is asked."""
    lab = net.lab
    addresses = lab.addresses(lab.host, "m0")
    net.set(mode, access)
    for version in (4, 6):
        for who, source, target, address in (
            ("port", lab.ports[0], lab.host, host(version)),
            ("host", lab.host, lab.ports[0], port(1, version)),
        ):
            before = net.refused(who)
            allowed = who in OPENERS[access]
            if allowed:
                lab.reachable(source, address)
            found = speaks(lab, source, target, address, wanted=allowed)
            assert set(found.values()) == {allowed}, f"{who}, IPv{version}"
            counted = net.refused(who) - before
            assert counted >= 3 if not allowed and access != "none" else counted == 0, f"{who}, IPv{version}"
        # Nothing else changed: siblings and the wire.
        for source, address in (
            (lab.ports[0], port(2, version)),
            (lab.ports[0], WIRE4 if version == 4 else WIRE6),
            (lab.wire, port(1, version)),
            (lab.host, WIRE4 if version == 4 else WIRE6),
        ):
            lab.reachable(source, address)
    if lab.link(lab.host, HOST_IFINDEX):
        shown = [one for one in lab.addresses(lab.host, HOST_IFINDEX) if one["scope"] != "link"]
        assert not shown, "the host's interface has an address"
    assert [one["local"] for one in lab.addresses(lab.host, "m0")] == [one["local"] for one in addresses]
    with inside(lab.host):
        for device in ("all", "default", "m0"):
            assert Path(f"/proc/sys/net/ipv4/conf/{device}/rp_filter").read_text() == "1\n"


@EVERY_MODE
@pytest.mark.parametrize("access", ["to-host", "from-host"])
def test_long_answers(net: Net, mode: str, access: str) -> None:
    """A short question is answered by a datagram in fragments, and by segments without number."""
    net.set(mode, access)
    lab = net.lab
    for version in (4, 6):
        source, target, address = lab.ports[0], lab.host, host(version)
        if access == "from-host":
            source, target, address = lab.host, lab.ports[0], port(1, version)
        with traffic.listen(target, address, socket.SOCK_DGRAM) as server, inside(source):
            client = socket.socket(traffic.family(address), socket.SOCK_DGRAM)
            with client:
                client.settimeout(LIMIT)
                client.sendto(b"question", server.getsockname()[:2])
                _, where = server.recvfrom(100)
                server.sendto(bytes(4000), where)
                assert len(client.recv(5000)) == 4000
        traffic.tcp(source, target, address)


@EVERY_MODE
def test_streams(net: Net, mode: str) -> None:
    """50 MB each way and less the other way round; no checksum is wrong, and the wire sees none of it."""
    net.set(mode, "both")
    lab = net.lab
    before = wire_bytes(lab)
    for version, size in ((4, 50_000_000), (6, 5_000_000)):
        lab.reachable(lab.ports[0], host(version))
        traffic.tcp(lab.ports[0], lab.host, host(version), size)
        traffic.tcp(lab.host, lab.ports[0], port(1, version), 5_000_000)
        traffic.udp(lab.host, lab.ports[0], port(1, version), (1, 1400, 20000))
        traffic.udp(lab.ports[0], lab.host, host(version), (1, 1400, 20000))
    assert wire_bytes(lab) - before < 10_000
    for netns in (lab.host, lab.ports[0]):
        assert not traffic.checksum_errors(lab.read(netns, "snmp"), lab.read(netns, "snmp6"))


def wire_bytes(lab: Lab) -> int:
    """Received by the wire's end."""
    line = next(line for line in lab.read(lab.wire, "dev").splitlines() if line.strip().startswith("w0:"))
    return int(line.split(":")[1].split()[0])


# ---------------------------------------------------------------------------- the wire


def asked_for(wire: Sniffer, *addresses: str) -> int:
    """ARP requests and solicitations on the wire for any of these."""
    found = 0
    for _, frame in list(wire.frames):
        for address in map(ip_address, addresses):
            arp = address.version == 4 and frame[12:14] == b"\x08\x06" and frame[38:42] == address.packed
            nd = address.version == 6 and frame[12:14] == b"\x86\xdd" and frame[54] == 135 if len(frame) > 54 else False
            found += arp or (nd and frame[62:78] == address.packed)
    return found


@EVERY_MODE
def test_the_wire_knows_nothing(net: Net, mode: str) -> None:
    """Of what host and ports tell each other; in l2 it hears each question for a neighbour once."""
    net.set(mode, "both")
    lab = net.lab
    with sniffing(lab.wire, "w0") as wire:
        for version in (4, 6):
            for source, target, address in (
                (lab.ports[0], lab.host, host(version)),
                (lab.host, lab.ports[1], port(2, version)),
            ):
                lab.reachable(source, address)
                assert lab.ping(source, address, 20) == 20
                assert all(speaks(lab, source, target, address).values())
    kinds: Counter[str] = Counter()
    mine = {ip_address(one).packed for k in (1, 2) for one in (port4(k), port6(k))}
    hosts = {ip_address(one).packed for one in (MASTER4, MASTER6)}
    for _, frame in wire.frames:
        if frame[12:14] == b"\x08\x00":
            ends = frame[26:30], frame[30:34]
        elif frame[12:14] == b"\x86\xdd":
            ends = frame[22:38], frame[38:54]
        else:
            continue
        kinds["between"] += (ends[0] in hosts and ends[1] in mine) or (ends[1] in hosts and ends[0] in mine)
    assert not kinds["between"], "a packet between host and ports on the wire"
    limit = 6 if mode == "l2" else 0
    assert asked_for(wire, port4(2), port6(2), MASTER4, MASTER6) <= limit


@EVERY_MODE
@pytest.mark.parametrize("flag", ["private", "vepa"])
def test_flags(net: Net, mode: str, flag: str) -> None:
    """They are about ports among themselves: the host speaks with each."""
    net.set(mode, "both", flag)
    lab = net.lab
    for version in (4, 6):
        for source, target, address in (
            (lab.ports[0], lab.host, host(version)),
            (lab.host, lab.ports[1], port(2, version)),
        ):
            lab.reachable(source, address)
            assert all(speaks(lab, source, target, address).values()), f"IPv{version}"
        assert not pings(lab, lab.ports[0], port(2, version), wanted=False)


# ---------------------------------------------------------------------------- nothing is left


def left(lab: Lab) -> dict[str, object]:
    """What of the host's could be another than before."""
    seen: dict[str, object] = {
        "links": sorted(link["ifname"] for link in lab.links(lab.host)),
        "ours": ours(lab, "route", "show", "table", "all"),
    }
    for version in ("-4", "-6"):
        seen[f"rules {version}"] = sorted(run("ip", version, "-n", lab.host, "rule").splitlines())
        routes = json.loads(run("ip", version, "-j", "-n", lab.host, "route", "show", "table", "all") or "[]")
        seen[f"routes {version}"] = sorted(str((one["dst"], one.get("dev"), one.get("table"))) for one in routes)
    with inside(lab.host):
        for path in Path("/proc/sys/net").glob("ipv?/conf/*/*forwarding"):
            seen[str(path)] = path.read_text()
    return seen


def without_tunnel_tap(seen: dict[str, object]) -> dict[str, object]:
    """It is there while a daemon runs, in every mode."""
    links = seen["links"]
    assert isinstance(links, list)
    others = {"links": [name for name in links if not name.startswith(PREFIX)]}
    return {key: value for key, value in seen.items() if f"/{PREFIX}" not in key} | others


@EVERY_MODE
def test_nothing_is_left_by_a_change(net: Net, mode: str) -> None:
    net.set(mode if mode != "l3s" else "l3", "none")
    before = left(net.lab)
    for number, access in enumerate(("both", "to-host", "from-host")):
        net.set(mode, access, by_signal=bool(number % 2))
        assert left(net.lab) != before
        lab = net.lab
        wanted = access != "from-host"
        assert pings(lab, lab.ports[0], MASTER4, wanted=wanted) is wanted
        net.set(mode if mode != "l3s" else "l3", "none")
        assert left(net.lab) == before


def test_modes_follow_each_other(net: Net) -> None:
    """Each change leaves exactly what the mode has, whatever was before."""
    wanted = {}
    for mode in MODES:
        net.set("l2", "none")
        net.set(mode, "both")
        wanted[mode] = left(net.lab)
    for mode in ("l2", "l3s", "l3", "l2", "l3", "l3s", "l2"):
        net.set(mode, "both")
        until(lambda mode=mode: left(net.lab) == wanted[mode], f"everything is as {mode} has it")  # type: ignore[misc]
        for source, address in ((net.lab.ports[0], MASTER6), (net.lab.host, port4(1))):
            net.lab.reachable(source, address)


@pytest.mark.parametrize("forwards", ["0", "1"])
def test_killed(forwards: str) -> None:
    """Rules and settings that a dead daemon left are known again by the next one, which ends clean."""
    with Lab(1) as lab:
        for key in ("net/ipv4/conf/m0/forwarding", "net/ipv6/conf/all/forwarding"):
            lab.sysctl(lab.host, key, forwards)
        know_ports(lab)
        before = left(lab)
        table = running.switch(
            "m0", lab.host, [running.port("ipvl1", lab.ports[0], [f"{port4(1)}/16"])], mode="l3s", host_access="both"
        )
        with running.Daemon(table, home=lab.home) as daemon:
            daemon.wait()
            lab.reachable(lab.wire, port4(1))
            there = left(lab)
            assert there != before
            daemon.kill()
            daemon.start()
            daemon.wait()
            lab.reachable(lab.wire, port4(1))
            lab.reachable(lab.host, port4(1))
            assert left(lab) == there
            daemon.stop()
            assert left(lab) == before
            daemon.start()
            daemon.wait()
            daemon.kill()
            table |= {"mode": "l2", "host_access": "none"}
            daemon.config.write_text(running.toml(daemon.socket, [table]))
            daemon.start()
            daemon.wait()
            until(lambda: without_tunnel_tap(left(lab)) == before, "a daemon of another mode cleans up")


def test_master_comes_back(net: Net) -> None:
    """A deleted master takes the interface with it; it is there again with the next one."""
    lab = net.lab
    net.set("l3", "both")
    lab.ip(lab.host, "link", "del", "m0")
    until(lambda: lab.link(lab.host, HOST_IFINDEX) is None, "the interface goes")
    until(lambda: not ours(lab, "rule"), "the rules go")
    lab.make_master()
    know_ports(lab)
    lab.sysctl(lab.host, "net/ipv4/conf/m0/rp_filter", "1")
    until(lambda: net.is_set("l3", "both", "bridge"), "the interface is back")
    lab.reachable(lab.host, port4(1))
    lab.reachable(lab.ports[0], MASTER6)
    assert re.search(r"^118:", lab.ip(lab.host, "rule"), re.MULTILINE)


def test_long_names() -> None:
    """Masters whose names begin alike have interfaces of their own."""
    with Lab(2) as lab:
        tables = []
        for k, netns in enumerate(lab.ports, 1):
            master = f"m0.longer.name{k}"
            lab.ip(lab.host, "link", "add", master, "type", "veth", "peer", "name", f"w{k}", "netns", lab.wire)
            lab.ip(lab.wire, "link", "set", f"w{k}", "up")
            lab.ip(lab.host, "link", "set", master, "up")
            lab.ip(lab.host, "addr", "add", f"10.{k}0.0.1/24", "dev", master)
            ports = [running.port(f"ipvl{k}", netns, [f"10.{k}0.0.2/24"])]
            tables.append(running.switch(master, lab.host, ports, mode="l3", host_access="both") | {"name": master})
        with running.Daemon(*tables, home=lab.home) as daemon:
            daemon.wait()
            for k, netns in enumerate(lab.ports, 1):
                lab.reachable(netns, f"10.{k}0.0.1")
                lab.reachable(lab.host, f"10.{k}0.0.2")
            interfaces = [link["ifname"] for link in lab.links(lab.host) if link["ifname"].startswith("ipvsw-")]
            assert len(interfaces) == 2
