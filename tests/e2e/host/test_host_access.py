"""Host and ports talk as far as `host_access` lets them, in every mode, and the wire knows nothing of it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import http.server
import json
import re
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.support import running, traffic
from tests.support.patience import LIMIT, until
from tests.support.sniff import Sniffer, sniffing
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, WIRE4, WIRE6, Lab, inside, port4, port6, run

MODES, SETTINGS = ("l2", "l3", "l3s"), ("none", "to-host", "from-host", "both")
OPENERS = {"none": (), "to-host": ("port",), "from-host": ("host",), "both": ("port", "host")}
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
HOST_IFINDEX = "ipvsw-m0"
OURS = 118  # protocol number of our routes and rules
QUIET = 0.15  # seconds in which an answer would have come


def host(version: int) -> str:
    return MASTER4 if version == 4 else MASTER6


def port(k: int, version: int) -> str:
    return port4(k) if version == 4 else port6(k)


class Net:
    """The lab and its daemon, whose file is changed and read again for each case."""

    def __init__(self, lab: Lab, daemon: running.Daemon, ports: list[dict[str, object]]) -> None:
        self.lab, self.daemon, self.ports = lab, daemon, ports

    def set(self, mode: str, access: str, flag: str = "bridge", *, by_signal: bool = False) -> None:
        table = running.switch("m0", self.lab.host, self.ports, mode=mode, host_access=access, flag=flag)
        self.daemon.config.write_text(running.toml(self.daemon.socket, [table]))
        if by_signal:
            self.daemon.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        else:
            status, answer = self.daemon.call("POST", "/v1/reload")
            assert status == 200, answer
        until(lambda: self.is_set(mode, access, flag), f"the switch is {mode}, {access}, {flag}")
        for netns in (self.lab.host, *self.lab.ports):
            run("ip", "-n", netns, "neigh", "flush", "all", check=False)

    def is_set(self, mode: str, access: str, flag: str) -> bool:
        shown = self.daemon.show()[0]
        links = [self.lab.link(netns, f"ipvl{k}") for k, netns in enumerate(self.lab.ports[:2], 1)]
        interface = self.lab.link(self.lab.host, HOST_IFINDEX)
        routed = mode == "l3s" or (mode == "l3" and access != "none")
        return (
            (shown["mode"], shown["host_access"], shown["flag"]) == (mode, access, flag)
            and all(link is not None and ("NOARP" in link["flags"]) is (mode != "l2") for link in links)
            and (interface is not None) is (access != "none" or mode == "l3s")
            and len(ours(self.lab, "route", "show", "table", "all")) == routed * 4
        )

    def refused(self, who: str) -> int:
        stats = self.daemon.stats()[0]
        interface = stats["host"] if who == "host" else stats["ports"]["ipvl1"]
        count: int = interface["outcomes"]["drop_host_access"]
        return count


@pytest.fixture(scope="module")
def shared() -> Iterator[Net]:
    """Two ports with addresses, and a third that gets one by DHCP."""
    with Lab(3) as lab:
        for device in ("all", "default", "m0"):
            lab.sysctl(lab.host, f"net/ipv4/conf/{device}/rp_filter", "1")
        ports = [
            running.port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"])
            for k, netns in enumerate(lab.ports[:2], 1)
        ]
        ports.append(running.port("ipvl3", lab.ports[2]))
        know_ports(lab)
        with running.Daemon(running.switch("m0", lab.host, ports), home=lab.home) as daemon:
            yield Net(lab, daemon.wait(), ports)


@pytest.fixture
def net(shared: Net) -> Iterator[Net]:
    yield shared
    shared.set("l2", "none")


def know_ports(lab: Lab) -> None:
    """In the routed modes ports answer no question for their addresses."""
    for k in (1, 2):
        for version in (4, 6):
            lab.ip(lab.wire, "neigh", "replace", port(k, version), "lladdr", MASTER_MAC, "dev", "w0")


def ours(lab: Lab, *words: str) -> list[str]:
    """Lines of `ip`, for both IP versions, that are of our protocol."""
    shown = [run("ip", version, "-n", lab.host, *words, check=False) for version in ("-4", "-6")]
    return [line for text in shown for line in text.splitlines() if f"proto {OURS}" in line]


# ---------------------------------------------------------------------------- flows


def time_for(wanted: bool) -> float:
    """Seconds in which an answer has to come, or would have come."""
    return LIMIT if wanted else QUIET


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


# ---------------------------------------------------------------------------- services


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode() * 10_000)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web(netns: str, address: str) -> Iterator[int]:
    class Server(http.server.ThreadingHTTPServer):
        address_family = traffic.family(address)

    with inside(netns):
        server = Server((address, 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@EVERY_MODE
def test_web(net: Net, mode: str) -> None:
    net.set(mode, "both")
    lab = net.lab
    for version in (4, 6):
        for source, target, address in (
            (lab.ports[0], lab.host, host(version)),
            (lab.host, lab.ports[0], port(1, version)),
        ):
            with web(target, address) as number, inside(source):
                client = http.client.HTTPConnection(address, number, timeout=LIMIT)
                with contextlib.closing(client):
                    client.request("GET", "/page")
                    assert client.getresponse().read() == b"/page" * 10_000


@pytest.fixture
def dnsmasq(shared: Net, tmp_path: Path) -> Callable[..., None]:
    lab = shared.lab

    def start(*where: str) -> None:
        lab.spawn(
            lab.host,
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            f"--pid-file={tmp_path}/pid",
            f"--dhcp-leasefile={tmp_path}/leases",
            "--bind-interfaces",
            *where,
            "--no-ping",
            "--no-resolv",
            "--no-hosts",
            "--dhcp-authoritative",
            "--dhcp-range=10.1.9.1,10.1.9.99,255.255.0.0,1h",
            "--host-record=printer.test,192.0.2.9",
        )
        until(lambda: (tmp_path / "pid").exists(), "dnsmasq runs")

    return start


@pytest.fixture
def end_children(shared: Net) -> Iterator[None]:
    yield
    for child in shared.lab.children:
        child.kill()
        child.wait()
    shared.lab.children.clear()


@pytest.mark.usefixtures("end_children")
@pytest.mark.parametrize("broadcast", [True, False], ids=["broadcast", "unicast"])
def test_dhcp(net: Net, dnsmasq: Callable[..., None], tmp_path: Path, broadcast: bool) -> None:
    """A server on the host serves a port, whether its answers go to everybody or to one MAC and address."""
    net.set("l2", "both")
    dnsmasq("--interface=m0", "--except-interface=lo")
    lab, client = net.lab, net.lab.ports[2]
    script = tmp_path / "bound"
    script.write_text('#!/bin/sh\n[ "$1" != bound ] || ip addr add "$ip/$mask" dev "$interface"\n')
    script.chmod(0o755)
    words = ["busybox", "udhcpc", "-f", "-n", "-q", "-t60", "-T1", "-i", "ipvl3", "-s", str(script)]
    words += ["-x", f"0x3d:00{'aa' if broadcast else 'bb'}"] + (["-B"] if broadcast else [])
    try:
        with sniffing(lab.wire, "w0") as wire:
            lab.execute(client, *words, timeout=LIMIT)
            found = [one["local"] for one in lab.addresses(client, "ipvl3") if one["family"] == "inet"]
            assert len(found) == 1 and found[0].startswith("10.1.9.")
            until(lambda: net.daemon.port("ipvl3")["addresses"], "the switch knows the address")
            lab.reachable(client, MASTER4)
            lab.reachable(lab.host, found[0])
            asked = [frame for _, frame in wire.frames if frame[12:14] == b"\x08\x00" and frame[36:38] == b"\0\x43"]
            unicast = [frame for _, frame in wire.frames if frame[36:38] == b"\0\x44" and not frame[0] & 1]
            assert len(asked) >= 2, "the port's own questions leave on the wire as well"
            assert not unicast, "the server's answers to one client are not the wire's"
    finally:
        lab.ip(client, "-4", "addr", "flush", "dev", "ipvl3")


@pytest.mark.usefixtures("end_children")
@EVERY_MODE
def test_names(net: Net, dnsmasq: Callable[..., None], mode: str) -> None:
    """The host's resolver answers ports. It is bound to addresses: in the routed modes ports come by another device."""
    net.set(mode, "to-host")
    dnsmasq(f"--listen-address={MASTER4},{MASTER6}")
    lab = net.lab
    question = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\7printer\4test\0\0\1\0\1"
    for address in (MASTER4, MASTER6):
        with inside(lab.ports[1]):
            client = socket.socket(traffic.family(address), socket.SOCK_DGRAM)
        with client:
            client.settimeout(LIMIT)
            client.sendto(question, (address, 53))
            assert client.recv(500).endswith(ip_address("192.0.2.9").packed)


# ---------------------------------------------------------------------------- groups


def hears(lab: Lab, source: str, target: str, device: str, to: str, content: bytes, *, wanted: bool) -> int:
    """How many copies of a datagram to a group arrive."""
    index = int(run("ip", "-n", source, "-j", "link", "show", device).split('"ifindex":')[1].split(",")[0])
    where = "ipvl1" if device == "m0" else "m0"
    listening = int(run("ip", "-n", target, "-j", "link", "show", where).split('"ifindex":')[1].split(",")[0])
    with contextlib.ExitStack() as stack:
        with inside(target):
            receiver = stack.enter_context(socket.socket(traffic.family(to), socket.SOCK_DGRAM))
        with inside(source):
            sender = stack.enter_context(socket.socket(traffic.family(to), socket.SOCK_DGRAM))
        receiver.bind(("", 0))
        if traffic.family(to) == socket.AF_INET6:
            member = socket.inet_pton(socket.AF_INET6, to) + struct.pack("i", listening)
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        elif ip_address(to).is_multicast:
            member = socket.inet_aton(to) + struct.pack("=4si", bytes(4), listening)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            chosen = struct.pack("=4s4si", bytes(4), bytes(4), index)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, chosen)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        until(lambda: group_mac(to) in known_groups(lab), f"the switch knows that {to} is listened to")
        sender.sendto(content, (to, receiver.getsockname()[1]))
        count = 0
        with contextlib.suppress(TimeoutError):
            while True:
                receiver.settimeout(time_for(wanted and not count))
                count += receiver.recv(100) == content
        return count


def group_mac(to: str) -> str:
    address = ip_address(to)
    if address.version == 6:
        return "3333" + address.packed[12:].hex()
    return "01005e" + bytes([address.packed[1] & 127, *address.packed[2:]]).hex() if address.is_multicast else ""


def known_groups(lab: Lab) -> list[str]:
    """That the master's device listens to, and so the switch's ports or the host; "" is for broadcast."""
    rows = [line.split() for line in lab.read(lab.host, "dev_mcast").splitlines()]
    return ["", *(row[4] for row in rows if row[1] == "m0")]


@pytest.mark.parametrize("access", SETTINGS)
@pytest.mark.parametrize("to", ["10.1.255.255", "239.7.7.7", "ff15::77"])
def test_groups(net: Net, access: str, to: str) -> None:
    """In l2: heard once by those whom the setting lets hear it, and by the wire once in any case."""
    net.set("l2", access)
    lab = net.lab
    for who, source, target, device in (
        ("host", lab.host, lab.ports[0], "m0"),
        ("port", lab.ports[0], lab.host, "ipvl1"),
    ):
        content = f"{who} {access} {to}".encode()
        with sniffing(lab.wire, "w0") as wire:
            copies = hears(lab, source, target, device, to, content, wanted=who in OPENERS[access])
            until(lambda wire=wire, content=content: wire.count(content), "the wire gets it")  # type: ignore[misc]
            assert wire.count(content) == 1, f"{who} to {to}: on the wire"
        assert copies == (who in OPENERS[access]), f"{who} to {to}"


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_groups_of_routed_modes(net: Net, mode: str) -> None:
    """Ports' are for the host alone, if it listens to ports at all; its own go to the wire alone."""
    lab = net.lab
    for access in ("both", "from-host"):
        net.set(mode, access)
        with sniffing(lab.wire, "w0") as wire:
            wanted = access == "both"
            assert hears(lab, lab.ports[0], lab.host, "ipvl1", "ff15::77", b"of a port", wanted=wanted) == wanted
            assert hears(lab, lab.host, lab.ports[0], "m0", "ff15::77", b"of the host", wanted=False) == 0
            wire.wait(b"of the host")
            assert not wire.count(b"of a port")
            assert wire.count(b"of the host") == 1


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
            until(lambda: left(lab) == before, "a daemon of another mode cleans up")


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
