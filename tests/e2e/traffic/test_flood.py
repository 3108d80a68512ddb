"""Multicast frames: they don't starve unicast, and reach exactly those who listen."""

from __future__ import annotations

import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER_MAC, Lab, inside, port4, port6
from tests.support.wire.frames import udp4


@pytest.fixture(scope="module")
def four() -> Iterator[Lab]:
    with Lab(4) as lab:
        ports = [
            port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"], broadcast="off")
            for k, netns in enumerate(lab.ports, 1)
        ]
        with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
            daemon.wait()
            lab.reachable(lab.ports[0], port4(2))
            yield lab


FLOOD = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.bind((sys.argv[1], 0))
frame = b"\\xff" * 6 + bytes.fromhex(sys.argv[2]) + b"\\x88\\xb5" + b"flood" * 10
while True:
    try:
        s.send(frame)
    except OSError:
        pass
"""


def test_a_flood_does_not_starve_unicast(four: Lab) -> None:
    flooder = four.spawn(four.ports[2], sys.executable, "-c", FLOOD, "ipvl3", MASTER_MAC.replace(":", ""))
    try:
        with sniffing(four.ports[3], "ipvl4") as bystander:
            bystander.wait(b"floodflood", 200)
        assert four.ping(four.ports[0], port4(2), 100) == 100
        assert four.ping(four.ports[1], port6(1), 100) == 100
    finally:
        flooder.kill()
        assert flooder.wait() == -9, f"the flood ended by itself: {flooder.stderr and flooder.stderr.read()}"


def multicast_frame(group: bytes, marker: bytes, source: str = MASTER_MAC) -> bytes:
    return group + bytes.fromhex(source.replace(":", "")) + b"\x88\xb5" + marker.ljust(46, b"\0")


@pytest.mark.parametrize("origin", ["port", "wire"])
def test_nobody_gets_a_group_that_it_did_not_join(four: Lab, origin: str) -> None:
    chance = random.Random(256)
    groups = [
        bytes([0x33, 0x33]) + chance.randbytes(4)
        if k % 2
        else b"\x01\x00\x5e" + bytes([chance.randrange(128)]) + chance.randbytes(2)
        for k in range(256)
    ]
    netns, device = (four.ports[2], "ipvl3") if origin == "port" else (four.wire, "w0")
    with sniffing(four.ports[0], "ipvl1") as stranger, raw(netns, device) as sender:
        for k, group in enumerate(groups):
            sender.send(multicast_frame(group, b"stray%03d." % k))
            time.sleep(0.0005)
        sender.send(multicast_frame(b"\xff" * 6, b"the last one"))
        stranger.wait(b"the last one")
        strays = [frame for _, frame in stranger.frames if b"stray" in frame]
        assert not strays, f"{len(strays)} frames of groups that nobody joined"


@pytest.mark.parametrize("origin", ["port", "wire"])
def test_who_joins_gets_its_group_and_loses_it_when_it_leaves(four: Lab, origin: str) -> None:
    netns, device = (four.ports[2], "ipvl3") if origin == "port" else (four.wire, "w0")
    group = "239.7.7.7" if origin == "port" else "239.7.7.8"
    mac = b"\x01\x00\x5e" + bytes([7, 7, int(group[-1])])
    with inside(four.ports[0]):
        member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wanted = struct.pack("4s4s", socket.inet_aton(group), socket.inet_aton(port4(1)))
    with (
        member,
        raw(netns, device) as sender,
        sniffing(four.ports[0], "ipvl1") as joined,
        sniffing(four.ports[1], "ipvl2") as stranger,
    ):
        numbers = iter(range(10**6))

        def arrives() -> bool:
            marker = b"group %06d." % next(numbers)
            sender.send(multicast_frame(mac, marker))
            time.sleep(0.02)
            return joined.count(marker) > 0

        assert not arrives()
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted)
        until(arrives, "the group's frames arrive after joining")
        member.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, wanted)
        until(lambda: not arrives(), "they stop after leaving")
        assert stranger.count(b"group ") == 0, "another port got them"


def test_one_busy_port_does_not_starve_the_others(four: Lab) -> None:
    stop = threading.Event()
    frame = udp4(port4(3), port4(4), b"x" * 1400)

    def talk() -> None:
        with raw(four.ports[2], "ipvl3") as sender:
            while not stop.is_set():
                try:
                    sender.send(frame)
                except OSError:  # ENOBUFS: its own queue is full
                    time.sleep(0.001)

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        assert four.ping(four.ports[0], port4(2), 100) == 100
    finally:
        stop.set()
        thread.join()
