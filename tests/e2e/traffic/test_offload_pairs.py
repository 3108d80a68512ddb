"""What the wire delivers, a plain socket behind a port receives, whatever the sender and the master leave to offloads.

One daemon has a port of each kind. For each pair of offload sets, of the wire's device and of the master, every port
gets TCP, UDP, UDP that the sender has left for its device to cut, and SCTP, plain and in a tunnel, by IPv4 and by IPv6,
as the kernel's macvlan beside it does. The kernel here need not know SCTP: a raw socket receives it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from ipvsw.client import Client
from tests.reference.tunnels import crc32c, ip
from tests.support import traffic
from tests.support.patience import LIMIT, until
from tests.support.programs.guest import card, guest
from tests.support.running import Daemon, port, switch
from tests.support.topology import MASTER_MAC, WIRE4, WIRE6, WIRE_MAC, Lab, inside

SCTP, SCTP_CHECK, NEEDS_CSUM = 132, 8, 1
SOL_PACKET, PACKET_VNET_HDR = 263, 15
SIZES = (1, 512, 1400, 3000)  # of UDP datagrams
CUT = 1200  # of those that a device is to cut
BULK = 200_000  # bytes of TCP each way
FRAME = struct.Struct("!I")  # how a stream socket keeps frames apart
TUNNEL4, TUNNEL6 = "192.168.{}.{}", "fd77:{}::{}"


class End(NamedTuple):
    """Where a plain socket is: behind a port, or on a macvlan device."""

    name: str
    netns: str
    device: str
    ipv4: str
    ipv6: str


class Bench(NamedTuple):
    lab: Lab
    daemon: Daemon
    ends: list[End]


def ends_of(lab: Lab) -> list[End]:
    names = ("tap", "veth", "vm", "stream", "macvlan")
    return [
        End(name, netns, "e0", f"10.1.0.{20 + k}", f"fd00:1::20:{k}")
        for k, (name, netns) in enumerate(zip(names, lab.ports, strict=True))
    ]


def table(end: End) -> dict[str, object]:
    addresses = [f"{end.ipv4}/24", f"{end.ipv6}/64"]
    if kind := {"stream": "stream", "vm": "macvtap"}.get(end.name):
        return {"name": end.name, "kind": kind, "addresses": addresses}
    return port(end.name, end.netns, addresses, device=end.name, ifname=end.device)


@contextlib.contextmanager
def streamed(lab: Lab, daemon: Daemon, end: End) -> Iterator[None]:
    """A machine without offloads behind a stream socket: its frames stand behind their lengths."""
    about, fds = Client(str(daemon.socket)).hand_over(end.name)
    wire, device, wake = socket.socket(fileno=fds[0]), card(end.netns, end.device, header=False), os.eventfd(0)
    cable = threading.Thread(target=_carry, args=(wire, device, wake), daemon=True)
    lab.ip(end.netns, "link", "set", end.device, "address", str(about["mac"]), "mtu", str(about["mtu"]), "up")
    cable.start()
    try:
        until(lambda: daemon.port(end.name)["state"] == "up", "the socket's port is up")
        yield
    finally:
        os.eventfd_write(wake, 1)
        cable.join()
        wire.close()
        for fd in (device, wake):
            os.close(fd)


def _carry(wire: socket.socket, device: int, wake: int) -> None:
    wire.setblocking(True)
    kept = b""
    while True:
        ready, _, _ = select.select([wire, device, wake], [], [])
        if wake in ready:
            return
        if device in ready:
            frame = os.read(device, 1 << 16)
            wire.sendall(FRAME.pack(len(frame)) + frame)
        if wire in ready:
            kept += wire.recv(1 << 18)
            while len(kept) >= FRAME.size and len(kept) >= FRAME.size + FRAME.unpack_from(kept)[0]:
                length = FRAME.size + FRAME.unpack_from(kept)[0]
                with contextlib.suppress(OSError):  # it has no room
                    os.write(device, kept[FRAME.size : length])
                kept = kept[length:]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Lab(5) as lab, contextlib.ExitStack() as stack:
        ends = ends_of(lab)
        daemon = stack.enter_context(Daemon(switch("m0", lab.host, [table(one) for one in ends[:4]]), home=lab.home))
        daemon.wait(states=("up", "waiting"))
        stack.enter_context(guest(lab, daemon, "vm", ends[2].netns, ends[2].device))
        stack.enter_context(streamed(lab, daemon, ends[3]))
        lab.ip(lab.host, *f"link add link m0 name e0 netns {ends[4].netns} type macvlan mode bridge".split())
        lab.ip(ends[4].netns, "link", "set", "e0", "up")
        for k, one in enumerate(ends):
            if one.name not in ("tap", "veth"):
                lab.ip(one.netns, "addr", "add", f"{one.ipv4}/24", "dev", "e0")
                lab.ip(one.netns, "addr", "add", f"{one.ipv6}/64", "dev", "e0", "nodad")
            for address in (WIRE4, WIRE6):
                lab.reachable(one.netns, address)
            tunnel(lab, one.netns, "e0", k, (one.ipv4, WIRE4), 1)
            tunnel(lab, lab.wire, "w0", k, (WIRE4, one.ipv4), 2)
        yield Bench(lab, daemon, ends)


def tunnel(lab: Lab, netns: str, device: str, k: int, outer: tuple[str, str], number: int) -> None:
    local, remote = outer
    name = f"vx{k}"
    words = f"link add {name} type vxlan id {k + 1} local {local} remote {remote} dstport 4789 dev {device}"
    lab.ip(netns, *words.split())
    lab.ip(netns, "addr", "add", f"{TUNNEL4.format(k, number)}/24", "dev", name)
    lab.ip(netns, "addr", "add", f"{TUNNEL6.format(k, number)}/64", "dev", name, "nodad")
    lab.ip(netns, "link", "set", name, "up")


def sctp(lab: Lab, end: End, version: int, partial: bool) -> None:
    """A packet from the wire arrives with the checksum that it is to have, which its sender may leave to the device."""
    target = end.ipv4 if version == 4 else end.ipv6
    source = WIRE4 if version == 4 else WIRE6
    head = struct.pack("!HHI", 1111, 2222, 7)
    body = os.urandom(99 * 4)
    packet = head + bytes(4) + body
    done = head + struct.pack("<I", crc32c(packet)) + body
    with inside(end.netns):
        receiver = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_RAW, SCTP)
    with inside(lab.wire):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with receiver, sender:
        receiver.settimeout(LIMIT)
        sender.bind(("w0", 0))
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sent = ip(version, SCTP, packet if partial else done, 0, (ip_address(source).packed, ip_address(target).packed))
        start = 14 + len(sent) - len(packet)
        header = struct.pack("<BBHHHH", NEEDS_CSUM, 0, 0, 0, start, SCTP_CHECK) if partial else bytes(10)
        macs = bytes.fromhex((mac_of(lab, end) + WIRE_MAC).replace(":", ""))
        sender.send(header + macs + struct.pack("!H", 0x0800 if version == 4 else 0x86DD) + sent)
        got = receiver.recv(1 << 16)
    # Where the kernel alone forwards, it keeps beside the packet that the checksum is partial: a raw socket can't see.
    right = [done, packet] if partial and end.name in ("veth", "macvlan") else [done]
    assert got[20 if version == 4 else 0 :] in right, f"SCTP over IPv{version} to {end.name}"


def mac_of(lab: Lab, end: End) -> str:
    if end.name != "macvlan":
        return MASTER_MAC
    words = lab.ip(end.netns, "-br", "link", "show", "e0").split()
    return next(word for word in words if word.count(":") == 5)


SETS = {"all": ("on", "on"), "none": ("off", "off"), "no-cut": ("on", "off")}  # checksums, segmentation


def set_offloads(lab: Lab, netns: str, device: str, name: str, gro: str) -> None:
    sums, cut = SETS[name]
    for feature, state in (("tx", sums), ("sg", sums), ("tso", cut), ("gso", cut), ("tx-udp-segmentation", cut)):
        lab.execute(netns, "ethtool", "-K", device, feature, state, check=False)
    for feature in ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"):
        lab.execute(netns, "ethtool", "-K", device, feature, cut, check=False)
    lab.execute(netns, "ethtool", "-K", device, "gro", gro, check=False)


@pytest.mark.parametrize("gro", ["on", "off"])
@pytest.mark.parametrize(("sender", "master"), list(itertools.product(SETS, SETS)), ids=lambda one: one)
def test_every_port_receives_what_macvlan_does(bench: Bench, sender: str, master: str, gro: str) -> None:
    lab, before = bench.lab, bench.daemon.stats()[0]["master"]["offload_fixed"]
    set_offloads(lab, lab.wire, "w0", sender, "off")
    set_offloads(lab, lab.host, "m0", master, gro)
    for k, end in enumerate(bench.ends):
        for carried in ((end.ipv4, end.ipv6), (TUNNEL4.format(k, 1), TUNNEL6.format(k, 1))):
            for address in carried:
                traffic.tcp(lab.wire, end.netns, address, BULK)
                traffic.udp(lab.wire, end.netns, address, SIZES)
                traffic.udp(lab.wire, end.netns, address, (10 * CUT,), segment=CUT)
        for version in (4, 6):
            sctp(lab, end, version, SETS[sender][0] == "on")
        errors = traffic.checksum_errors(lab.read(end.netns, "snmp"), lab.read(end.netns, "snmp6"))
        assert not errors, f"{end.name}: {errors}"
    if sender == "all":
        assert bench.daemon.stats()[0]["master"]["offload_fixed"] > before
