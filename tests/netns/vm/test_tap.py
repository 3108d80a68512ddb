"""Virtual machines' ports without a virtual machine: this process opens the device as a VMM would."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from ipvsw.client import ApiError
from tests.netns.daemons import MASTER_MAC, ROOT, Daemon
from tests.netns.vm import machines
from tests.netns.vm.machines import CLI, GUEST, KINDS, WIRE, Machine, arp, idle, ipv4, machine, total, vm
from tests.support.patience import LIMIT
from tests.support.spaces import Namespace

MAC = bytes.fromhex(MASTER_MAC.replace(":", ""))


@KINDS
@pytest.mark.parametrize("mac", ["own", "master"])
def test_a_machine_talks_to_the_wire(running: Callable[..., Daemon], home: Namespace, kind: str, mac: str) -> None:
    lan = running(vm(kind, f'mac = "{mac}"'))
    assert lan.port("vm1")["kind"] == kind and "virtual machine" in lan.port("vm1")["reason"]
    assert [one["state"] for one in lan.port("vm1")["addresses"]] == ["down"]
    with machine(lan) as one:
        lan.until_owned("vm1", GUEST)
        assert lan.port("vm1")["addresses"][0]["source"] == "config"
        assert (one.mac == MAC) == (mac == "master")
        one.ping(WIRE)
        port = lan.port("vm1")
        assert (port["mac_source"], port["mac"]) == (mac, one.mac.hex(":"))
        if mac == "own":
            one.mac = bytes.fromhex("525400000012")
            one.ping(WIRE)
            assert lan.port("vm1")["mac"] == "52:54:00:00:00:12"
    idle(lan, "vm1")


@KINDS
def test_a_second_machine_waits_for_the_first_one_to_go(running: Callable[..., Daemon], kind: str) -> None:
    lan = running(vm(kind))
    for _ in range(3):
        with machine(lan) as one:
            with pytest.raises(ApiError, match="has it already") as refused:
                lan.client.hand_over("lan/vm1")
            assert refused.value.status == 409
            one.ping(WIRE)
        idle(lan, "vm1")


@KINDS
def test_a_machine_that_is_killed_leaves_the_port_to_the_next(running: Callable[..., Daemon], kind: str) -> None:
    lan = running(vm(kind))
    VMM = subprocess.Popen(
        [sys.executable, "-c", CLI, "--socket", str(lan.socket), "exec", "vm1", "--", "sleep", "1{fd}"],
        cwd=ROOT,
    )
    try:
        lan.until("up", "vm1")
    finally:
        VMM.send_signal(signal.SIGKILL)
        VMM.wait()
    idle(lan, "vm1")
    with machine(lan) as one:
        one.ping(WIRE)


@KINDS
def test_offloads_survive(
    running: Callable[..., Daemon], home: Namespace, netns: Callable[..., Namespace], kind: str
) -> None:
    """A TCP GSO frame with a partial checksum, to a sibling's stack and to the wire's."""
    box = netns()
    lan = running(vm(kind), f'name = "ipvl0"\nnetns = "{box.name}"\naddresses = ["10.7.0.2/24"]')
    lan.until("up", "ipvl0")
    with machine(lan) as one:
        lan.until_owned("vm1", GUEST)
        to = one.resolve("10.7.0.2")
        assert to == MAC
        frames: list[tuple[bytes, bytes]] = []

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
            sock.bind(("ipvl0", 3))
            sock.settimeout(LIMIT)
            return sock

        with box.inside(listen) as sniffer:
            body = os.urandom(8000)
            tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 0, 5 << 4, 0x10, 1000, 0, 0) + body
            addresses = socket.inet_aton(GUEST) + socket.inet_aton("10.7.0.2")
            partial = total(addresses + struct.pack("!HH", 6, len(tcp)))
            tcp = tcp[:16] + struct.pack("!H", partial) + tcp[18:]
            header = struct.pack("=BBHHHH", 1, 1, 54, 1448, 34, 16)
            packet = b"\x08\x00" + ipv4(GUEST, "10.7.0.2", 6, tcp)
            one.send(to + one.mac + packet, header)
            while not frames:
                data = sniffer.recv(1 << 17)
                if body in data:
                    frames.append((data[:10], data[10:]))
        assert frames == [(header, to + MAC + packet)]
        # And back: the sibling's own stack sends what is longer than the MTU.
        sender = box.start(
            sys.executable,
            "-c",
            "import socket, sys, time; s = socket.create_server(('10.7.0.2', 7)); c, _ = s.accept();"
            "c.sendall(b'x' * 20000); time.sleep(3600)",
        )
        syn = connect(one, to, 4242)
        header, _ = one.receive(lambda frame: len(frame) > 1600)
        assert header[0] == 1 and header[1] == 1 and struct.unpack_from("=H", header, 4)[0] <= 1460
        sender.kill()
        del syn


def connect(one: Machine, to: bytes, port: int) -> int:
    """A handshake by hand with port 7 of 10.7.0.2, which listens soon; the sequence number."""
    deadline = time.monotonic() + LIMIT
    while True:
        one.send(to + one.mac + b"\x08\x00" + segment(port, 100, 0, 0x02, b"\x02\x04\x05\xb4"))
        got = one.receive(lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 6)[1]
        if got[47] & 0x12 == 0x12:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    theirs = struct.unpack_from("!I", got, 38)[0]
    one.send(to + one.mac + b"\x08\x00" + segment(port, 101, theirs + 1, 0x10))
    return theirs


def segment(port: int, sequence: int, acknowledged: int, flags: int, options: bytes = b"") -> bytes:
    words = (20 + len(options)) // 4 << 4
    tcp = struct.pack("!HHIIBBHHH", port, 7, sequence, acknowledged, words, flags, 65000, 0, 0) + options
    pseudo = socket.inet_aton(GUEST) + socket.inet_aton("10.7.0.2") + struct.pack("!HH", 6, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", 0xFFFF & ~total(pseudo + tcp)) + tcp[18:]
    return ipv4(GUEST, "10.7.0.2", 6, tcp)


def test_the_host_sees_nothing_of_a_machine(running: Callable[..., Daemon], home: Namespace) -> None:
    """Neither kind has an address or answers; a macvtap isn't even there."""
    lan = running(vm("macvtap"))
    assert "vm1" not in home.ip("-br", "link") and "sw-" not in home.ip("-br", "link")
    lan.reload(machines.lan(home, vm("tap")))
    idle(lan, "vm1")
    home.ip("address", "add", "10.99.0.1/24", "dev", "lo")
    with machine(lan) as one:
        before = received(home, "vm1")
        one.send(arp(1, GUEST, socket.inet_aton("10.99.0.1"), b"\xff" * 6, one.mac))
        one.ping(WIRE)
        with pytest.raises(pytest.fail.Exception):
            one.receive(lambda frame: frame[12:14] == b"\x08\x06" and frame[28:32] == bytes([10, 99, 0, 1]), limit=0.3)
        assert received(home, "vm1") == before
    assert "inet6" not in home.ip("address", "show", "dev", "vm1")


def received(home: Namespace, device: str) -> int:
    """IPv4 packets that the stack has seen, of any device."""
    rows = [line.split() for line in home.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Ip:")]
    return int(rows[1][rows[0].index("InReceives")])


def test_tagged_frames_of_a_tap_are_dropped_and_counted(running: Callable[..., Daemon]) -> None:
    lan = running(vm("tap"))
    with machine(lan) as one:
        before = lan.client.stats()[0]["ports"]["vm1"]["rx_frames"]
        long = bytes.fromhex("4500") + bytes(1400)
        one.send(b"\xff" * 6 + one.mac + b"\x81\x00\x00\x05\x08\x06" + bytes(46))
        one.send(b"\xff" * 6 + one.mac + b"\x88\xa8\x00\x05\x08\x00" + long, struct.pack("=BBHHHH", 1, 0, 0, 0, 38, 6))
        one.ping(WIRE)
        port = lan.client.stats()[0]["ports"]["vm1"]
        assert port["rx_frames"] == before + 4 and port["outcomes"]["drop_runt"] == 2
