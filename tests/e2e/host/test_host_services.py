"""What the host and its ports use each other for: web, DHCP, names, groups."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.e2e.host.hostnet import EVERY_MODE, OPENERS, SETTINGS, Net, host, port, time_for
from tests.support import traffic
from tests.support.patience import LIMIT, until
from tests.support.sniff import sniffing
from tests.support.topology import MASTER4, MASTER6, Lab, inside, run


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
