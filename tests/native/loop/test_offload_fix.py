"""The real loop and frames that their virtio_net_hdr does not describe: whatever reads them can, one way or another."""

from __future__ import annotations

import random
import struct

import pytest

from tests.native._probe import offloaded
from tests.native.interfaces import HEADER, LONGEST, MASTER, Interface, Lab, frame, lab
from tests.reference.tunnels import PLAIN, SCTP, Inner, Tunnel, crc32c, ip, segments, super_frame
from tests.support.patience import until
from tests.support.wire.packets import A4, B4, B6, TCP, UDP

pytestmark = pytest.mark.usefixtures("io")

VNET = 10
GRE = next(one for one in PLAIN if one.name == "gre")
VXLAN = PLAIN[0]
VXLAN6_SUM = Tunnel("vxlan6", UDP, VXLAN.wrap, outer=6, checksum=True)
INNER = Inner(payload=random.Random(3).randbytes(20_000))
TOP = struct.Struct("<BBHHHH")


def owner(it: Lab, *, own: bytes | None = None, uso: bool = False) -> Interface:
    """A port that the tunnels end in."""
    port = Interface()
    it.interfaces.append(port)
    number = it.datapath.attach_port(port.inside.fileno(), 1500, macnat=own, accepts_uso=uso)
    it.datapath.set_port(number, up=True, mtu=1500)
    it.datapath.bind(B4, number)
    it.datapath.bind(B6, number)
    it.datapath.commit()
    return port


def arrived(port: Interface, count: int) -> list[bytes]:
    """So many frames, with their virtio_net_hdr."""
    return [port.outside.recv(LONGEST) for _ in range(count)]


@pytest.mark.parametrize("tunnel", [VXLAN, VXLAN6_SUM, GRE], ids=lambda one: one.name)
def test_a_device_gets_the_segments(tunnel: Tunnel) -> None:
    wanted = segments(tunnel, INNER)
    with lab(1) as it:
        port = owner(it)
        it.master[0].outside.send(super_frame(tunnel, INNER))
        assert arrived(port, len(wanted)) == [HEADER + one for one in wanted]
        counted = it.settled(None, len(wanted))
        assert counted.outcomes == {"to_port": len(wanted)}
        assert counted.rx_bytes == sum(map(len, wanted))
        assert counted.offload_fixed == 1


@pytest.mark.parametrize("length", [20_000, 3000, 2001, 1000, 60_000])
@pytest.mark.parametrize("tunnel", [VXLAN, VXLAN6_SUM], ids=lambda one: one.name)
def test_a_port_that_takes_udp_gso_frames_gets_the_datagrams_as_such(tunnel: Tunnel, length: int) -> None:
    """Each of them is what the segments were, but that all have an outer checksum."""
    inner = Inner(payload=random.Random(length).randbytes(length))
    wanted = segments(tunnel, inner, checksum=True)
    alone = segments(tunnel, inner)  # one that is left over is no GSO frame, and stays as the sender made it
    with lab(1) as it:
        port = owner(it, uso=True)
        it.master[0].outside.send(super_frame(tunnel, inner))
        found: list[bytes] = []
        reads = 0
        while len(found) < len(wanted):
            data = port.outside.recv(LONGEST)
            flags, gso, hdr_len, size, start, offset = TOP.unpack_from(data)
            reads += 1
            if gso:
                assert (flags, gso, offset, start + 8) == (1, 5, 6, hdr_len)
                assert size == len(wanted[0]) - hdr_len
            cut = offloaded(data)
            assert cut is not None and (gso or cut == [alone[len(found)]])
            found += cut if gso else [wanted[len(found)]]
        assert found == wanted
        assert reads <= 1 + len(wanted) * 1100 // 65000
        assert it.settled(None, len(wanted)).outcomes == {"to_port": len(wanted)}


def test_many_segments_are_many_gso_frames() -> None:
    inner = Inner(payload=bytes(40_000), size=200)
    wanted = segments(VXLAN, inner, checksum=True)
    with lab(1) as it:
        port = owner(it, uso=True)
        it.master[0].outside.send(super_frame(VXLAN, inner))
        found: list[bytes] = []
        while len(found) < len(wanted):
            cut = offloaded(port.outside.recv(LONGEST))
            assert cut is not None and len(cut) <= 64
            found += cut
        assert found == wanted


def test_a_port_with_a_mac_of_its_own_gets_segments_with_it() -> None:
    own = bytes.fromhex("0a0000000099")
    with lab(1) as it:
        port = owner(it, own=own, uso=True)
        it.master[0].outside.send(super_frame(VXLAN, INNER))
        wanted = [own + one[6:] for one in segments(VXLAN, INNER)]
        assert arrived(port, len(wanted)) == [HEADER + one for one in wanted]


def test_a_multicast_tunnel_reaches_those_that_listen() -> None:
    group = bytes.fromhex("01005e010203")
    with lab(2) as it:
        it.datapath.set_groups(it.numbers[0], [group])
        it.datapath.commit()
        told = super_frame(VXLAN, INNER)
        it.master[0].outside.send(told[:VNET] + group + told[VNET + 6 :])
        wanted = [HEADER + group + one[6:] for one in segments(VXLAN, INNER)]
        assert arrived(it.interfaces[0], len(wanted)) == wanted


@pytest.mark.parametrize("tunnel", [VXLAN, GRE], ids=lambda one: one.name)
def test_from_a_port_too(tunnel: Tunnel) -> None:
    """A packet socket on a device reads such frames as one on the master does."""
    with lab(1) as it:
        it.interfaces[0].outside.send(super_frame(tunnel, INNER))
        wanted = [HEADER + one for one in segments(tunnel, INNER)]
        assert arrived(it.master[0], len(wanted)) == wanted
        counted = it.settled(0, len(wanted))
        assert counted.outcomes == {"to_master": len(wanted)} and counted.offload_fixed == 1


def test_order_is_kept_among_other_frames() -> None:
    with lab(1) as it:
        port = owner(it)
        port.room(1 << 22)
        plain = [frame(MASTER, b"\2" * 6, ip(4, UDP, bytes([k]) * 20, 0, (A4, B4))) for k in range(40)]
        wanted = []
        for k, one in enumerate(plain):
            it.master[0].send(one)
            wanted.append(HEADER + one)
            if k % 8 == 3:
                it.master[0].outside.send(super_frame(VXLAN, INNER))
                wanted += [HEADER + one for one in segments(VXLAN, INNER)]
        assert arrived(port, len(wanted)) == wanted


@pytest.mark.parametrize("inner", [Inner(4, TCP, bytes(3000)), Inner(6, UDP, bytes(3000))], ids=lambda one: one.version)
def test_what_cannot_be_segmented_is_counted(inner: Inner) -> None:
    unknown = Tunnel("unknown", UDP, lambda packet, _version, _number: b"\xff" * 12 + packet)
    with lab(1) as it:
        port = owner(it)
        for source in (it.master[0], it.interfaces[0]):
            source.outside.send(super_frame(unknown, inner))
        for number in (None, 0):
            counted = it.settled(number, 1)
            assert counted.outcomes == {"drop_bad_header": 1} and counted.offload_fixed == 0
        assert port.waiting() == [] and it.master[0].waiting() == []


def test_sctp_is_completed() -> None:
    header, chunk = struct.pack("!HHI", 1, 2, 3), bytes(range(99))
    sent = frame(MASTER, b"\2" * 6, ip(4, SCTP, header + bytes(4) + chunk, 0, (A4, B4)))
    with lab(1) as it:
        port = owner(it)
        it.master[0].send(sent, TOP.pack(1, 0, 0, 0, 34, 8))
        wanted = header + struct.pack("<I", crc32c(header + bytes(4) + chunk)) + chunk
        assert port.outside.recv(LONGEST) == HEADER + sent[:34] + wanted
        assert it.settled(None, 1).offload_fixed == 1


def test_frames_with_true_headers_are_not_touched() -> None:
    with lab(1) as it:
        port = owner(it)
        sent = frame(MASTER, b"\2" * 6, ip(4, TCP, bytes(3000), 0, (A4, B4)))
        headers = [TOP.pack(1, 1, 54, 1000, 34, 16), TOP.pack(1, 0, 0, 0, 34, 16), TOP.pack(2, 0, 0, 0, 0, 0)]
        for header in headers:
            it.master[0].send(sent, header)
        assert arrived(port, 3) == [header + sent for header in headers]
        until(lambda: it.counted(None).rx_frames == 3, "all are counted")
        assert it.counted(None).offload_fixed == 0
