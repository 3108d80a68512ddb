"""Tagged frames on the master, as the kernel hands them to the BPF programs: a VLAN that has a device of its own is
left to it. Which VLANs have one, netlink tells; here it is said."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from ipvsw._fast import MODES
from ipvsw.linux.bpf import Shim
from ipvsw.linux.netlink import Netlink
from tests.netns.handles import index_of, run
from tests.support.patience import until
from tests.support.sniff import raw
from tests.support.spaces import Namespace

OWN, GROUP = bytes.fromhex("020000000001"), b"\xff" * 6
OWNED, OTHER = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 9])
SO_ATTACH_BPF = 50
ETH_P_ALL, ETH_P_IP = 3, 0x0800
Q, AD = 0x8100, 0x88A8
END = bytes([10, 0, 0, 77])  # of the frame after all others

SENDER = bytes.fromhex("0200000000fe")


def sent(to: bytes, mac: bytes, tag: tuple[int, int] | None) -> bytes:
    packet = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, bytes([10, 0, 0, 200]), to) + bytes(8)
    tags = struct.pack("!HH", *tag) if tag else b""
    return mac + SENDER + tags + b"\x08\0" + packet.ljust(46, b"\0")


class Master:
    """One end of a veth, the programs on it: who gets what the other end sends."""

    def __init__(self, shim: Shim, here: Namespace, near: str, there: Namespace, far: str) -> None:
        self.stack = here.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self.daemon = here.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self.daemon.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, shim.filter_fd)
        self.stack.bind((near, ETH_P_IP))  # where the host's stack is, behind the programs
        self.daemon.bind((near, ETH_P_ALL))
        self.wire = raw(there.name, far)
        self.near = near

    def receives(self, frame: bytes) -> set[str]:
        """Who: the host's stack, and the daemon."""
        self.wire.send(frame)
        self.wire.send(sent(END, OWN, None))
        found, ended = set(), False
        self.stack.settimeout(5)
        while not ended:
            got = self.stack.recv(2000)
            ended = got[30:34] == END
            found |= set() if ended else {"host"}
        with contextlib.suppress(BlockingIOError):
            while got := self.daemon.recv(2000, socket.MSG_DONTWAIT):
                found |= {"daemon"} if got[6:12] == SENDER else set()  # not what the stack at the other end sends
        return found


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    one = Netlink()
    yield one
    one.close()


@pytest.fixture
def shim() -> Iterator[Shim]:
    one = Shim()
    one.add([OWNED])
    yield one
    one.close()


@pytest.fixture
def master(
    shim: Shim, netlink: Netlink, netns: Callable[..., Namespace], veth: Callable[..., tuple[str, str]]
) -> Iterator[Master]:
    here, there = netns(), netns()
    near, far = veth(here, there)
    here.ip("link", "set", near, "address", OWN.hex(":"))
    index = index_of(netlink, here, near)
    run(netlink, here, lambda handle: handle.attach_clsact(index, shim.ingress_fd, shim.egress_fd))
    one = Master(shim, here, near, there, far)
    until(lambda: "state UP" in here.ip("link", "show", near), "the master is up")
    yield one
    for each in (one.stack, one.daemon, one.wire):
        each.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_vlan_with_a_device_is_left_to_it(shim: Shim, master: Master, mode: str) -> None:
    shim.set_mode(MODES[mode])
    port = set() if mode == "l3s" else {"daemon"}
    alone = port or {"host"}
    for vlans in (frozenset[int](), frozenset({10, 4095, 4096 + 20}), frozenset({20, 4096 + 10}), frozenset[int]()):
        shim.set_vlans(vlans)
        assert master.receives(sent(OWNED, OWN, None)) == alone
        for kind, vid in [(Q, 10), (Q, 20), (Q, 4095), (Q, 0), (AD, 10), (AD, 20)]:
            taken = vid + (4096 if kind == AD else 0) in vlans
            assert master.receives(sent(OWNED, OWN, (kind, 0xE000 | vid))) == ({"host"} if taken else alone)
            assert master.receives(sent(OTHER, OWN, (kind, vid))) == {"host"}
            group = {"host"} if taken or mode != "l2" else {"host", "daemon"}
            assert master.receives(sent(OTHER, GROUP, (kind, vid))) == group
