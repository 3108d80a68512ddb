"""The real loop and interfaces with the long virtio_net_hdr, which tells a UDP tunnel's GSO frames: they stay whole."""

from __future__ import annotations

import random
import struct

import pytest

from ipvsw._fast import GUARDS
from tests.native.interfaces import FOREIGN, HEADER, LONGEST, MASTER, Interface, Lab, frame, lab, v4
from tests.reference.tunnels import PLAIN, Inner, Tunnel, ip, segments, super_frame
from tests.support.wire.packets import A4, B4, B6, TCP, UDP

pytestmark = pytest.mark.usefixtures("io")

VNET, LONG = 10, 24
LONG_HEADER = struct.Struct("<BBHHHHH8xHH")  # with num_buffers, and hash fields that are 0
GRE = next(one for one in PLAIN if one.name == "gre")
VXLAN = PLAIN[0]
VXLAN6_SUM = Tunnel("vxlan6", UDP, VXLAN.wrap, outer=6, checksum=True)
TWICE = Tunnel("twice", UDP, lambda packet, version, n: VXLAN.wrap(VXLAN.frame(packet, version, n)[14:], 4, n))
INNERS = [Inner(payload=random.Random(3).randbytes(20_000), version=version) for version in (4, 6)]


class Long(Interface):
    """Its frames have the long header."""

    def attach(self, it: Lab, *addresses: bytes) -> int:
        it.interfaces.append(self)
        number = it.datapath.attach_port(self.inside.fileno(), 1500, accepts_uso=True, long_header=True)
        it.datapath.set_port(number, up=True, mtu=1500)
        for address in addresses:
            it.datapath.bind(address, number)
        it.datapath.commit()
        return number


def wire_tap(it: Lab) -> Interface:
    """A TAP whose frames leave on the wire."""
    tap = Interface()
    it.interfaces.append(tap)
    fds = [each.inside.fileno() for each in it.master]
    it.datapath.attach_master(fds, it.host.inside.fileno(), MASTER, tunnel_fd=tap.inside.fileno())
    it.datapath.commit()
    return tap


def lengthened(told: bytes, tunnel: Tunnel, inner: Inner) -> bytes:
    """A tunnel's GSO frame with the long header, from one as a packet socket tells it."""
    flags, gso, _, size, start, offset = struct.unpack_from("<BBHHHH", told)
    flags |= 8 * tunnel.checksum
    gso |= 0x20 if tunnel.outer == 4 else 0x40
    udp = 14 + (20 if tunnel.outer == 4 else 40)
    network = start - (20 if inner.version == 4 else 40)
    head = LONG_HEADER.pack(
        flags, gso, start + (20 if inner.protocol == TCP else 8), size, start, offset, 0, udp, network
    )
    return head + told[VNET:]


def plain(number: int) -> bytes:
    return frame(MASTER, FOREIGN, ip(4, UDP, bytes([number]) * 20, 0, (A4, B4)))


def test_other_frames_have_it_in_both_directions() -> None:
    with lab(1) as it:
        port = Long()
        number = port.attach(it, B4)
        for k in range(40):
            it.master[0].send(plain(k))
        assert [port.outside.recv(LONGEST) for _ in range(40)] == [bytes(LONG) + plain(k) for k in range(40)]
        out = [frame(FOREIGN, MASTER, ip(4, UDP, bytes([k]) * 20, 0, (B4, A4))) for k in range(40)]
        for one in out:
            port.send(one, bytes([1, 0, 0, 0, 0, 0, 34, 0, 6, 0]) + bytes(LONG - VNET))
        told = bytes([1, 0, 0, 0, 0, 0, 34, 0, 6, 0])
        assert [it.master[0].outside.recv(LONGEST) for _ in range(40)] == [told + one for one in out]
        counted = it.settled(number, 40)
        assert (counted.rx_bytes, counted.tx_bytes) == (sum(map(len, out)), 40 * len(plain(0)))


def test_ports_with_and_without_it_reach_each_other() -> None:
    with lab(2) as it:
        port = Long()
        port.attach(it, B4)
        sibling = frame(MASTER, MASTER, ip(4, UDP, bytes(20), 0, (B4, v4(0))))
        back = frame(MASTER, MASTER, ip(4, UDP, bytes(20), 0, (v4(0), B4)))
        everybody = frame(b"\xff" * 6, MASTER, ip(4, UDP, bytes(20), 0, (v4(0), b"\xff" * 4)))
        port.send(sibling, bytes(LONG))
        assert it.interfaces[0].outside.recv(LONGEST) == HEADER + sibling
        it.interfaces[0].send(back)
        it.interfaces[0].send(everybody)
        assert [port.outside.recv(LONGEST) for _ in range(2)] == [bytes(LONG) + back, bytes(LONG) + everybody]
        assert it.interfaces[1].outside.recv(LONGEST) == HEADER + everybody


@pytest.mark.parametrize("inner", INNERS, ids=lambda one: f"inner{one.version}")
@pytest.mark.parametrize("tunnel", [VXLAN, VXLAN6_SUM], ids=lambda one: one.name)
def test_a_tunnel_from_the_wire_stays_whole(tunnel: Tunnel, inner: Inner) -> None:
    with lab(1) as it:
        port = Long()
        port.attach(it, B4, B6)
        told = super_frame(tunnel, inner)
        it.master[0].outside.send(told)
        assert port.outside.recv(LONGEST) == lengthened(told, tunnel, inner)
        counted = it.settled(None, 1)
        assert (counted.outcomes, counted.offload_fixed) == ({"to_port": 1}, 1)


@pytest.mark.parametrize("inner", INNERS, ids=lambda one: f"inner{one.version}")
@pytest.mark.parametrize("tunnel", [VXLAN, VXLAN6_SUM], ids=lambda one: one.name)
def test_a_tunnel_to_the_wire_stays_whole(tunnel: Tunnel, inner: Inner) -> None:
    with lab(1) as it:
        port, tap = Long(), wire_tap(it)
        number = port.attach(it)
        told = lengthened(super_frame(tunnel, inner), tunnel, inner)
        port.outside.send(told)
        assert tap.outside.recv(LONGEST) == told
        counted = it.settled(number, 1)
        assert (counted.outcomes, counted.offload_fixed) == ({"to_master": 1}, 0)


@pytest.mark.parametrize("long", [True, False], ids=["long", "short"])
def test_a_tunnel_to_a_sibling(long: bool) -> None:
    """Whole to one that has the long header too, in segments to another."""
    told = super_frame(VXLAN, INNERS[0])
    told = told[:VNET] + MASTER + MASTER + told[VNET + 12 :]
    with lab(1) as it:
        port, other = Long(), Long()
        number = port.attach(it)
        if long:
            other.attach(it, B4)
        else:
            it.datapath.bind(B4, it.numbers[0])
            it.datapath.commit()
        port.outside.send(lengthened(told, VXLAN, INNERS[0]))
        if long:
            assert other.outside.recv(LONGEST) == lengthened(told, VXLAN, INNERS[0])
            assert it.settled(number, 1).offload_fixed == 0
        else:
            wanted = [HEADER + MASTER + MASTER + one[12:] for one in segments(VXLAN, INNERS[0])]
            assert [it.interfaces[0].outside.recv(LONGEST) for _ in wanted] == wanted
            assert it.settled(number, len(wanted)).offload_fixed == 1


@pytest.mark.parametrize("tunnel", [GRE, TWICE], ids=lambda one: one.name)
def test_what_it_can_not_tell_is_segmented(tunnel: Tunnel) -> None:
    with lab(1) as it:
        port = Long()
        port.attach(it, B4)
        told = super_frame(tunnel, INNERS[0])
        assert len(told) > VNET
        it.master[0].outside.send(told)
        total = len(segments(tunnel, INNERS[0]))
        assert it.settled(None, total).outcomes == {"to_port": total}


@pytest.mark.parametrize("broken", ["none", "closed", "guarded"])
def test_in_segments_to_the_wire(broken: str) -> None:
    """Where there is no TAP, where somebody has taken it away, and where each frame has to be looked at."""
    wanted = [HEADER + one for one in segments(VXLAN, INNERS[0])]
    with lab(1) as it:
        port = Long()
        if broken != "none":
            tap = wire_tap(it)
        number = port.attach(it)
        if broken == "closed":
            tap.outside.close()
        if broken == "guarded":
            it.datapath.set_guards(number, GUARDS["host"])
            it.datapath.commit()
        port.outside.send(lengthened(super_frame(VXLAN, INNERS[0]), VXLAN, INNERS[0]))
        assert [it.master[0].outside.recv(LONGEST) for _ in wanted] == wanted
        counted = it.settled(number, len(wanted))
        assert (counted.outcomes, counted.offload_fixed) == ({"to_master": len(wanted)}, 1)


def test_a_routed_tunnel_stays_whole() -> None:
    """By a next hop that is cached, if the packets fit the path's MTU."""
    told = lengthened(super_frame(VXLAN, INNERS[0]), VXLAN, INNERS[0])
    with lab(1, mode="l3") as it:
        port, tap = Long(), wire_tap(it)
        number = port.attach(it)
        it.datapath.set_route(B4, mac=FOREIGN, stack=False, mtu=1500)
        it.datapath.commit()
        port.outside.send(told)
        assert tap.outside.recv(LONGEST) == told[:LONG] + FOREIGN + MASTER + told[LONG + 12 :]
        assert it.settled(number, 1).outcomes == {"to_master": 1}
        it.datapath.set_route(B4, mac=FOREIGN, stack=False, mtu=1000)
        it.datapath.commit()
        port.outside.send(told)
        assert it.settled(number, 2).outcomes["to_slowpath"] > 0


def test_order_is_kept_among_other_frames() -> None:
    with lab(1) as it:
        port = Long()
        port.attach(it, B4)
        port.room(1 << 22)
        wanted = []
        told = super_frame(VXLAN, INNERS[0])
        for k in range(40):
            it.master[0].send(plain(k))
            wanted.append(bytes(LONG) + plain(k))
            if k % 8 == 3:
                it.master[0].outside.send(told)
                wanted.append(lengthened(told, VXLAN, INNERS[0]))
        assert [port.outside.recv(LONGEST) for _ in wanted] == wanted
