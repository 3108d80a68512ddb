"""Flows over several readers: what the shim's program says of frames, and what a TAP's queues make of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.linux.bpf import Shim
from ipvsw.linux.devices import tap
from ipvsw.linux.netlink import Handle, Netlink
from tests.netns.kernel.bpf_run import returned
from tests.support.patience import until
from tests.support.spaces import Namespace

TCP, UDP = 6, 17
MF = 0x2000
PORTS = st.binary(min_size=4, max_size=4)


@pytest.fixture(scope="module")
def spread() -> Iterator[int]:
    one = Shim()
    yield one.spread_fd
    one.close()


def packet4(
    source: bytes, target: bytes, ports: bytes, protocol: int, *, field: int = 0, options: int = 0, rest: bytes = b""
) -> bytes:
    """A frame; `field` is that of fragments, `rest` what may differ in a flow: it is behind and changes the head."""
    mark = sum(rest) & 0xFF
    total = 20 + 4 * options + 20 + len(rest)
    head = struct.pack("!BBHHHBBH", 0x45 + options, mark, total, mark, field, mark, protocol, mark)
    return bytes(12) + b"\x08\0" + head + source + target + bytes(4 * options) + ports + bytes(16) + rest


def packet6(source: bytes, target: bytes, ports: bytes, protocol: int, *, rest: bytes = b"") -> bytes:
    mark = sum(rest) & 0xFF
    head = struct.pack("!IHBB", 6 << 28 | mark, 20 + len(rest), protocol, mark)
    return bytes(12) + b"\x86\xdd" + head + source + target + ports + bytes(16) + rest


@given(st.data(), PORTS, PORTS, st.integers(0, 10), st.binary(max_size=40))
def test_a_flow_of_ipv4_has_one_reader_whatever_else_is_in_its_frames(
    spread: int, data: st.DataObject, ports: bytes, others: bytes, options: int, rest: bytes
) -> None:
    source, target = (data.draw(PORTS) for _ in range(2))
    tcp, udp = (returned(spread, packet4(source, target, ports, protocol)) for protocol in (TCP, UDP))
    assert returned(spread, packet4(source, target, ports, TCP, options=options, rest=rest)) == tcp
    for field in (0, MF, 185, MF | 185):
        assert returned(spread, packet4(source, target, others, UDP, field=field, rest=rest)) == udp


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), PORTS, PORTS, st.binary(max_size=40))
def test_a_flow_of_ipv6_has_one_reader_too(
    spread: int, source: bytes, target: bytes, ports: bytes, others: bytes, rest: bytes
) -> None:
    tcp, udp = (returned(spread, packet6(source, target, ports, protocol)) for protocol in (TCP, UDP))
    assert returned(spread, packet6(source, target, ports, TCP, rest=rest)) == tcp
    assert returned(spread, packet6(source, target, others, UDP, rest=rest)) == udp


@pytest.mark.parametrize("readers", [2, 3, 8])
@pytest.mark.parametrize("what", ["ports", "addresses"])
@pytest.mark.parametrize("make", [packet4, packet6])
def test_many_flows_are_shared_evenly(spread: int, make: Callable[..., bytes], what: str, readers: int) -> None:
    """Ports or addresses that follow each other, as clients have them."""
    flows = 512
    size = 16 if make is packet6 else 4
    found: Counter[int] = Counter()
    for number in range(flows):
        at_port, at_address = (number, 0) if what == "ports" else (0, number)
        source, target = ((0x0A000000 + one).to_bytes(size, "big") for one in (at_address, 1 << 9))
        found[returned(spread, make(source, target, struct.pack("!HH", 40000 + at_port, 443), TCP)) % readers] += 1
    assert min(found[k] for k in range(readers)) > flows / readers / 2, found


def test_what_is_no_ip_has_one_reader_and_what_is_cut_off_some(spread: int) -> None:
    whole = packet4(b"abcd", b"efgh", b"1234", TCP)
    assert len({returned(spread, whole[:length]) for length in range(34, len(whole))}) > 1
    for kind in (b"\x08\x06", b"\x88\xb5", b"\x81\0"):
        assert returned(spread, bytes(12) + kind + whole) == returned(spread, bytes(12) + kind + bytes(46))


# ---------------------------------------------------------------------------- TAP


QUEUES, FLOWS, EACH = 3, 60, 5
OWN = "10.9.0.1"


def other(flow: int) -> str:
    return f"10.9.0.{flow + 3}"


def answer(flow: int) -> bytes:
    """A datagram in a frame of its own, from who got that flow."""
    addresses = socket.inet_aton(other(flow)) + socket.inet_aton(OWN)
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, UDP, 0) + addresses + struct.pack("!HHHH", 9, 40000, 8, 0)
    return bytes(tap.VNET_HEADER) + b"\xff" * 6 + b"\2\0\0\0\0\2\x08\0" + packet


def test_a_taps_queues_have_each_some_flows_and_a_flow_stays_with_one(netns: Callable[..., Namespace]) -> None:
    """By whatever queue its answers come: left to itself the kernel has a flow follow them."""
    there = netns()
    with contextlib.closing(Shim()) as shim, contextlib.closing(tap.open_tap(QUEUES)) as interface:
        interface.spread(shim.spread_fd)
        fds = (interface.fd, *interface.extra_fds)
        assert len(fds) == QUEUES and not any(map(os.get_inheritable, fds)) and not any(map(os.get_blocking, fds))
        set_up(there, interface)
        assert "noqueue" in there.run("tc", "qdisc", "show", "dev", "port0")
        with there.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.bind((OWN, 40000))
            for number in range(EACH):
                for flow in range(FLOWS):
                    sock.sendto(b"flow%d-%d." % (flow, number), (other(flow), 9))
                    os.write(fds[(number + flow) % QUEUES], answer(flow))
        found = [texts(fd) for fd in fds]
        assert all(found), [len(one) for one in found]
        for flow in range(FLOWS):
            sent = [b"flow%d-%d" % (flow, number) for number in range(EACH)]
            having = [[text for text in one if text in sent] for one in found]
            assert [one for one in having if one] == [sent]
    until(lambda: "port0" not in there.ip("link", "show"), "the device's end")


def set_up(there: Namespace, interface: tap.Tap) -> None:
    def move(handle: Handle) -> None:
        link = handle.link(interface.name)
        assert link
        with there.opened() as fd:
            handle.set_link(link.index, netns_fd=fd, name="port0")

    def start(handle: Handle) -> None:
        link = handle.link("port0")
        assert link
        handle.set_noqueue(link.index)
        handle.set_link(link.index, up=True)
        assert not handle.add_addresses(link.index, [ip_interface(f"{OWN}/24")])

    with contextlib.closing(Netlink()) as netlink:
        asyncio.run(netlink.run(None, move))
        with there.opened() as fd:
            asyncio.run(netlink.run(fd, start))
    for flow in range(FLOWS):
        there.ip("neigh", "add", other(flow), "lladdr", "02:00:00:00:00:02", "dev", "port0")


def texts(fd: int) -> list[bytes]:
    """What the test sent, of all that a queue has."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 2000):
            if b"flow" in data:
                found.append(data[data.index(b"flow") :].partition(b".")[0])
    return found
