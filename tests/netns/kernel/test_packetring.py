"""The data plane behind a real master with a ring: every kind of frame, in order, round and round the ring."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipvsw._fast import FLAGS, MODES, PACKET_RING, Datapath, uring_error
from ipvsw.linux.devices import packet
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace
from tests.support.wire.packets import DF, TCP, TCPV4, USO, Made, total, wrap

Make = Callable[..., Namespace]
Pair = Callable[..., tuple[str, str]]

MASTER, FAR = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
PORT4, FAR4 = bytes([10, 9, 0, 1]), bytes([10, 9, 0, 2])
HEADER = 10
PACKET_STATISTICS = 6  # linux/if_packet.h
SLOTS = PACKET_RING[0]
NO_IPV6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
MTU = 9000
AT_ONCE = 200  # frames, far fewer than the port's interface holds


class Wire:
    """A datapath with one port, 10.9.0.1, on a master with a ring. `port` and `far` are what frames come to and from,
    both with their virtio_net_hdr."""

    def __init__(self, open_master: Callable[[], socket.socket], far: socket.socket, io: str) -> None:
        self.open_master, self.far, self.master = open_master, far, open_master()
        inside, self.port = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inside = inside
        inside.setblocking(False)
        for end in (inside, self.port):
            end.setsockopt(socket.SOL_SOCKET, packet.SO_SNDBUFFORCE, 1 << 26)
        self.port.settimeout(LIMIT)
        self.datapath = Datapath(1, io)
        self.datapath.set_mode(MODES["l2"], FLAGS["bridge"])
        self.attach()
        self.number = self.datapath.attach_port(inside.fileno(), MTU, accepts_uso=True)
        self.datapath.set_port(self.number, up=True, mtu=MTU)
        self.datapath.bind(PORT4, self.number)
        self.datapath.commit()
        self.datapath.start()

    def attach(self) -> None:
        self.datapath.attach_master([self.master.fileno()], -1, MASTER)

    def detach(self) -> None:
        self.datapath.detach_master()
        self.datapath.commit()

    def wait_with_another(self) -> None:
        """Another socket on the same master, with a ring of its own that nobody reads yet."""
        self.detach()
        self.master.close()
        self.master = self.open_master()

    def arrived(self, number: int) -> None:
        """Until so many frames have come to that socket, or were too many for its ring."""
        seen = 0

        def enough() -> bool:
            nonlocal seen
            seen += struct.unpack("=II", self.master.getsockopt(packet.SOL_PACKET, PACKET_STATISTICS, 8))[0]
            return seen >= number

        until(enough, f"{number} frames at the master")

    def renew(self) -> None:
        self.wait_with_another()
        self.attach()
        self.datapath.commit()

    def close(self) -> None:
        self.datapath.close()
        self.master.close()
        self.port.close()
        self.inside.close()

    def received(self) -> tuple[bytes, bytes]:
        """The next frame at the port: header and frame. Errors: TimeoutError."""
        data = self.port.recv(1 << 17)
        return data[:HEADER], data[HEADER:]


@pytest.fixture(params=["epoll", "uring"])
def wire(request: pytest.FixtureRequest, netns: Make, veth: Pair) -> Iterator[Wire]:
    if request.param == "uring" and uring_error():
        pytest.skip("the kernel grants no io_uring")
    here, there = netns(), netns()
    for space in (here, there):
        space.inside(lambda: NO_IPV6.write_text("1"))  # nobody says anything by himself: a full ring is full of ours
    near, end = veth(here, there)
    for space, device in ((here, near), (there, end)):
        space.ip("link", "set", device, "mtu", str(MTU))
        until(lambda space=space, device=device: "LOWER_UP" in space.ip("link", "show", device))

    def open_far() -> socket.socket:
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        far.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
        far.setsockopt(socket.SOL_SOCKET, packet.SO_SNDBUFFORCE, 1 << 24)
        far.bind((end, 0))
        return far

    with contextlib.ExitStack() as stack:
        index = here.inside(lambda: socket.if_nametoindex(near))
        far = stack.enter_context(there.inside(open_far))
        it = Wire(
            lambda: here.inside(lambda: packet.open_master(index, 1, -1, -1, ring=PACKET_RING))[0], far, request.param
        )
        stack.callback(it.close)
        yield it


def udp(payload: bytes, tag: bytes = b"", *, checked: bool = False) -> bytes:
    made = Made(payload=payload, field=DF, source=FAR4, destination=PORT4).packet()
    check = struct.pack("!H", total(made[20:]) ^ 0xFFFF) if checked else b"\0\0"
    return MASTER + FAR + tag + b"\x08\x00" + made[:26] + check + made[28:]


def gso_frame(payload: bytes) -> tuple[bytes, bytes]:
    """The virtio_net_hdr of a TCP GSO frame, as the kernel writes it, and the frame."""
    made = Made(protocol=TCP, payload=payload, source=FAR4, destination=PORT4).packet()
    frame = wrap(made, flags=1, gso=TCPV4, hdr_len=54, size=1400, start=34, offset=16)
    return frame[:HEADER], MASTER + FAR + frame[HEADER + 12 :]


def test_every_kind_of_frame_comes_in_order_round_the_ring(wire: Wire) -> None:
    for first in range(0, 2 * SLOTS, AT_ONCE):
        sent = []
        for number in range(first, first + AT_ONCE):
            mark = number.to_bytes(4, "big")
            header, frame = bytes(HEADER), udp(mark + bytes(14))
            if number % 7 == 1:
                frame = udp(mark + bytes(14), tag=b"\x81\x00\x00\x05")
            elif number % 7 == 3:
                frame = udp(mark.ljust(1472, b"m"))
            elif number % 7 == 5:
                frame = udp(mark.ljust(MTU - 28, b"l"))
            elif number % 50 == 6:
                header, frame = gso_frame(mark.ljust(30_000, b"s"))
            sent.append((header, frame))
            wire.far.send(header + frame)
        for header, frame in sent:
            came_header, came = wire.received()
            assert came == frame
            assert came_header[1] == header[1]  # gso_type
            if header[1]:
                assert came_header == header
    counted = wire.datapath.traffic(None)
    assert counted[0] >= 2 * SLOTS  # every one was the master's


def test_a_master_can_leave_and_another_come(wire: Wire) -> None:
    for number in range(5):
        for text in (b"first %d" % number, b"second %d" % number):
            wire.far.send(bytes(HEADER) + udp(text))
            assert text in wire.received()[1]
        wire.renew()


def test_a_ring_that_is_full_loses_the_newest(wire: Wire) -> None:
    wire.wait_with_another()
    for number in range(SLOTS + 100):
        wire.far.send(bytes(HEADER) + udp(number.to_bytes(4, "big") + bytes(14)))
    wire.arrived(SLOTS + 100)
    wire.attach()
    wire.datapath.commit()
    for number in range(SLOTS):
        assert wire.received()[1][42:46] == number.to_bytes(4, "big")
    wire.far.send(bytes(HEADER) + udp(b"and the next"))
    assert b"and the next" in wire.received()[1]


def test_datagrams_that_arrived_together_go_on_together(wire: Wire) -> None:
    """Those alone, those of others and other frames keep their places."""
    wire.wait_with_another()
    flow = [udp(bytes([k]) * 100, checked=True) for k in range(10)]
    header, big = gso_frame(b"s" * 30_000)
    for frame in (*flow, udp(b"unchecked"), *flow[:3]):
        wire.far.send(bytes(HEADER) + frame)
    wire.far.send(header + big)
    wire.far.send(bytes(HEADER) + flow[4])
    wire.arrived(16)
    wire.attach()
    wire.datapath.commit()
    came = [wire.received() for _ in range(5)]
    assert [h[1] for h, _ in came] == [USO, 0, USO, 1, 0]
    assert came[0][1][42:] == b"".join(frame[42:] for frame in flow)
    assert came[1][1] == udp(b"unchecked")
    assert came[2][1][42:] == b"".join(frame[42:] for frame in flow[:3])
    assert came[3] == (header, big)
    assert came[4][1] == flow[4]
    total_length = sum(map(len, [*flow, udp(b"unchecked"), *flow[:3], big, flow[4]]))
    until(lambda: wire.datapath.traffic(wire.number)[2] >= 16, "all are counted")
    assert wire.datapath.traffic(wire.number)[2:4] == (16, total_length)
