"""The data plane's way onto a real wire: short frames by a ring, others past it, in order, each counted."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ipvsw._fast import FLAGS, MODES, OUTCOMES, SEND_RING, Datapath, uring_error
from ipvsw.linux.devices import packet
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace

Make = Callable[..., Namespace]
Pair = Callable[..., tuple[str, str]]

MASTER, FAR = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
PORT4, FAR4 = bytes([10, 9, 0, 1]), bytes([10, 9, 0, 2])
PLAIN = bytes(10)
SLOTS, _ = SEND_RING
MTU = 1500
AT_ONCE = 200  # frames, fewer than the port's interface holds
MARK = 7


@dataclass
class Wire:
    """A datapath with one port, 10.9.0.1, on the master `near` in `here`. `port` is who sends, `far` who hears it, both
    with a virtio_net_hdr."""

    here: Namespace
    near: str
    far: socket.socket
    datapath: Datapath
    port: socket.socket
    number: int
    sockets: list[socket.socket]

    def attach(self) -> None:
        """On new sockets, in place of the earlier ones."""
        old = self.sockets
        index = self.here.inside(lambda: socket.if_nametoindex(self.near))
        frames = self.here.inside(lambda: packet.open_master(index, 1, -1, -1, MARK))
        senders = self.here.inside(lambda: packet.open_senders(index, 1, MARK, SEND_RING))
        assert len(senders) == 1
        self.sockets = [*frames, *senders]
        send_fds = [each.fileno() for each in senders]
        self.datapath.attach_master([frames[0].fileno()], -1, MASTER, send_fds=send_fds)
        self.datapath.commit()
        for each in old:
            each.close()

    def close(self) -> None:
        self.datapath.close()
        for each in self.sockets:
            each.close()

    def send(self, *frames: tuple[bytes, bytes]) -> None:
        for header, frame in frames:
            self.port.send(header + frame)

    def received(self) -> tuple[bytes, bytes]:
        """The next of the port's frames on the wire: header and frame. Errors: TimeoutError."""
        while True:
            data = self.far.recv(1 << 17)
            if data[22:24] != b"\x86\xdd":  # the namespace's own
                return data[:10], data[10:]

    def slow_down(self, rate: str, limit: str) -> None:
        """The master's device keeps frames, up to a limit in bytes."""
        words = ("rate", rate, "burst", "4kb", "limit", limit)
        self.here.run("tc", "qdisc", "add", "dev", self.near, "root", "tbf", *words)

    def ended(self, number: int) -> dict[str, int]:
        """How so many frames of the port's ended."""

        def outcomes() -> dict[str, int]:
            found = {name: n for name, n in zip(OUTCOMES, self.datapath.traffic(self.number)[-1], strict=True) if n}
            return found if sum(found.values()) >= number else {}

        return until(outcomes, f"{number} frames of the port")


@pytest.fixture(params=["epoll", "uring"])
def wire(request: pytest.FixtureRequest, netns: Make, veth: Pair) -> Iterator[Wire]:
    if request.param == "uring" and uring_error():
        pytest.skip("the kernel grants no io_uring")
    here, there = netns(), netns()
    near, end = veth(here, there)
    for space, device in ((here, near), (there, end)):
        space.ip("link", "set", device, "addrgenmode", "none")
        until(lambda space=space, device=device: "LOWER_UP" in space.ip("link", "show", device))

    def open_far() -> socket.socket:
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        far.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
        far.setsockopt(socket.SOL_SOCKET, packet.SO_RCVBUFFORCE, 1 << 26)
        far.bind((end, packet.ETH_P_ALL))
        far.settimeout(LIMIT)
        return far

    with contextlib.ExitStack() as stack:
        far = stack.enter_context(there.inside(open_far))
        inside, port = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        inside.setblocking(False)
        port.setsockopt(socket.SOL_SOCKET, packet.SO_SNDBUFFORCE, 1 << 26)
        datapath = Datapath(1, request.param)
        it = Wire(here, near, far, datapath, port, 0, [])
        stack.callback(it.close)
        datapath.set_mode(MODES["l2"], FLAGS["bridge"])
        it.number = datapath.attach_port(inside.fileno(), MTU)
        datapath.set_port(it.number, up=True, mtu=MTU)
        it.attach()
        datapath.start()
        yield it


def udp(number: int, payload: int, tag: bytes = b"") -> bytes:
    """A frame of the port's whose payload, so many bytes, begins with its number."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + payload, 0, 0x4000, 64, 17, 0) + PORT4 + FAR4
    body = struct.pack("!HHHH", 5, 9, 8 + payload, 0) + number.to_bytes(4, "big").ljust(payload, b"u")
    return FAR + MASTER + tag + b"\x08\x00" + head + body


def gso_frame(number: int, payload: int) -> tuple[bytes, bytes]:
    """A TCP GSO frame and its virtio_net_hdr: NEEDS_CSUM, TSO for IPv4."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40 + payload, 0, 0, 64, 6, 0) + PORT4 + FAR4
    tcp = struct.pack("!HHIIBBHHH", 5, 9, 0, 0, 5 << 4, 0x10, 1000, 0, 0)
    body = number.to_bytes(4, "big").ljust(payload, b"s")
    return struct.pack("<BBHHHH", 1, 1, 54, 1400, 34, 16), FAR + MASTER + b"\x08\x00" + head + tcp + body


UNCHECKED = struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 6)  # of a UDP datagram: NEEDS_CSUM


def mixed(number: int) -> tuple[bytes, bytes]:
    """A frame of any kind, most of them short ones."""
    if number % 7 == 1:
        return UNCHECKED, udp(number, 18)
    if number % 7 == 3:
        return PLAIN, udp(number, 40 + number % 3)  # two of them for the ring, one a byte too long
    if number % 50 == 5:
        return PLAIN, udp(number, MTU - 28)
    if number % 50 == 6:
        return gso_frame(number, 30_000)
    if number % 50 == 7:
        return PLAIN, udp(number, 18, tag=b"\x81\x00\x00\x05")
    return PLAIN, udp(number, 18)


def test_every_kind_of_frame_leaves_in_order_round_the_ring(wire: Wire) -> None:
    total = 0
    for first in range(0, 3 * SLOTS, AT_ONCE):
        sent = [mixed(number) for number in range(first, first + AT_ONCE)]
        wire.send(*sent)
        for header, frame in sent:
            came_header, came = wire.received()
            assert came == (frame[:12] + frame[16:] if frame[12:14] == b"\x81\x00" else frame)
            assert came_header[:2] == header[:2]  # flags, gso_type
            if header[1]:
                assert came_header == header
            elif header[0]:
                assert came_header[6:] == header[6:]  # where the checksum is to be
            total += len(frame)
    count = -(-3 * SLOTS // AT_ONCE) * AT_ONCE
    assert wire.ended(count) == {"to_master": count}
    assert wire.datapath.traffic(None)[2:5] == (count, total, 0)


def test_a_frame_that_is_refused_is_counted_and_costs_no_other(wire: Wire) -> None:
    """By the kernel for its header, again and again, while the ring goes round."""
    for first in range(0, 2 * SLOTS, AT_ONCE):
        sent = [(PLAIN, udp(number, 18)) for number in range(first, first + AT_ONCE)]
        wrong = struct.pack("<BBHHHH", 1, 0, 0, 0, 60, 6), udp(0, 18)
        wire.send(*sent[:50], wrong, *sent[50:51], wrong, wrong, *sent[51:])
        assert [wire.received()[1] for _ in sent] == [frame for _, frame in sent]
    rounds = -(-2 * SLOTS // AT_ONCE)
    assert wire.ended(rounds * (AT_ONCE + 3)) == {"to_master": rounds * AT_ONCE, "drop_bad_header": rounds * 3}


def test_a_device_that_is_down_takes_nothing(wire: Wire) -> None:
    wire.here.ip("link", "set", wire.near, "down")
    wire.send(*[(PLAIN, udp(number, 18)) for number in range(AT_ONCE)])
    assert wire.ended(AT_ONCE) == {"drop_no_master": AT_ONCE}
    wire.here.ip("link", "set", wire.near, "up")
    until(lambda: "LOWER_UP" in wire.here.ip("link", "show", wire.near))
    wire.send((PLAIN, udp(1, 18)))
    assert wire.received()[1] == udp(1, 18)


def test_a_device_that_keeps_what_it_gets(wire: Wire) -> None:
    """More short frames than the ring has slots wait in the device's queue: the others go past the ring."""
    wire.slow_down(rate="4mbit", limit="10mb")
    sent = [(PLAIN, udp(number, 18)) for number in range(2 * SLOTS + AT_ONCE)]
    wire.send(*sent)
    assert [wire.received()[1] for _ in sent] == [frame for _, frame in sent]
    assert wire.ended(len(sent)) == {"to_master": len(sent)}


def test_what_the_device_has_no_room_for_is_counted(wire: Wire) -> None:
    wire.slow_down(rate="2mbit", limit="6kb")
    sent = [udp(number, 18) for number in range(1000)]
    wire.send(*[(PLAIN, frame) for frame in sent])
    ended = wire.ended(len(sent))
    assert set(ended) == {"to_master", "drop_full"}
    came = [wire.received()[1] for _ in range(ended["to_master"])]
    places = [sent.index(frame) for frame in came]
    assert places == sorted(set(places))
    wire.here.run("tc", "qdisc", "del", "dev", wire.near, "root")
    wire.send((PLAIN, udp(5000, 18)))
    assert wire.received()[1] == udp(5000, 18)  # and nothing that was dropped comes late


def test_a_master_can_leave_and_another_come(wire: Wire) -> None:
    for number in range(5):
        sent = [(PLAIN, udp(10 * number + k, 18)) for k in range(10)]
        wire.send(*sent)
        assert [wire.received()[1] for _ in sent] == [frame for _, frame in sent]
        wire.attach()
