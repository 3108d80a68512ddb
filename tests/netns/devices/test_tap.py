"""TAPs and packet sockets, against the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvsw.linux.devices import tap
from ipvsw.linux.netlink import Handle, Netlink
from tests.netns.devices.frames import HEADER, Make, Pair, frame
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace
from tests.support.topology import run

# ---------------------------------------------------------------------------- TAP


@pytest.fixture
def interface() -> Iterator[tap.Tap]:
    opened = tap.open_tap()
    yield opened
    opened.close()


def move(netlink: Netlink, interface: tap.Tap, there: Namespace, name: str) -> None:
    def work(handle: Handle) -> None:
        link = handle.link(interface.name)
        assert link
        with there.opened() as fd:
            handle.set_link(link.index, netns_fd=fd, name=name)

    asyncio.run(netlink.run(None, work))


def read_frame(fd: int, wanted: bytes) -> bytes:
    """The first frame with `wanted` in it, with its virtio_net_hdr; others (IPv6's own) are passed over."""

    def read() -> bytes | None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(fd, 65600):
                if wanted in data:
                    return data
        return None

    found = until(read, "frame")
    assert found
    return found


def test_a_tap_has_every_offload_and_does_not_block(interface: tap.Tap) -> None:
    expected: tuple[str, ...] = ("csum", "tso4", "tso6")
    release = os.uname().release.split(".")
    if (int(release[0]), int(release[1])) >= (6, 2):
        expected += ("uso4", "uso6")
    assert interface.offloads == expected
    assert not os.get_inheritable(interface.fd)
    with pytest.raises(BlockingIOError):
        os.read(interface.fd, 100)
    size = fcntl.ioctl(interface.fd, 0x800454D7, bytes(4))  # TUNGETVNETHDRSZ
    assert struct.unpack("=i", size)[0] == tap.VNET_HEADER


def test_a_kernel_without_uso_grants_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.ioctl

    def older(fd: int, request: int, argument: int = 0) -> object:
        if request == tap.TUNSETOFFLOAD and argument & (tap.TUN_F_USO4 | tap.TUN_F_TSO_ECN):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, request, argument)

    monkeypatch.setattr(tap.fcntl, "ioctl", older)
    interface = tap.open_tap()
    interface.close()
    assert interface.offloads == ("csum", "tso4", "tso6")


def kernel_has_tunnels() -> bool:
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1])) >= (6, 17)


@pytest.mark.parametrize("granted", [True, False])
def test_the_long_header_comes_with_the_offload_for_tunnels(monkeypatch: pytest.MonkeyPatch, granted: bool) -> None:
    """From Linux 6.17, or never where an older kernel is played; every other offload as ever."""
    real = fcntl.ioctl

    def older(fd: int, request: int, argument: int = 0) -> object:
        if request == tap.TUNSETOFFLOAD and not granted and argument & tap.TUN_F_UDP_TUNNEL_GSO:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, request, argument)

    monkeypatch.setattr(tap.fcntl, "ioctl", older)
    expected = granted and kernel_has_tunnels()
    with contextlib.closing(tap.open_tap()) as plain, contextlib.closing(tap.open_tap(tunnels=True)) as interface:
        assert interface.offloads == plain.offloads + (("tunnel",) if expected else ())
        size = real(interface.fd, 0x800454D7, bytes(4))  # TUNGETVNETHDRSZ
        assert struct.unpack("=i", size)[0] == (tap.LONG_HEADER if expected else tap.VNET_HEADER)


@pytest.mark.parametrize("tunnels", [True, False], ids=["upgrade", "downgrade"])
def test_a_tap_of_a_daemon_with_the_other_header_is_adopted(tunnels: bool) -> None:
    """Its frames have this daemon's from then on, those too that have waited."""
    with contextlib.closing(tap.open_tap(tunnels=not tunnels)) as former:
        Path(f"/proc/sys/net/ipv6/conf/{former.name}/disable_ipv6").write_text("1")
        run("ip", "link", "set", former.name, "up")
        data = frame(text=b"one")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((former.name, 0))
            sender.send(data)
            with contextlib.closing(tap.adopt_tap([os.dup(former.fd)], tunnels=tunnels)) as adopted:
                sender.send(data)
                longer = "tunnel" in adopted.offloads
                assert longer == (tunnels and kernel_has_tunnels())
                header = bytes(tap.LONG_HEADER if longer else tap.VNET_HEADER)
                assert [os.read(adopted.fd, 1 << 16) for _ in range(2)] == [header + data] * 2


def test_a_tap_is_closed_once_and_its_device_goes(interface: tap.Tap) -> None:
    fd = interface.fd
    assert Path(f"/sys/class/net/{interface.name}").exists()
    interface.close()
    assert not Path(f"/sys/class/net/{interface.name}").exists()
    with open(os.devnull) as other:
        os.dup2(other.fileno(), fd)  # the number is somebody else's now
    interface.close()
    os.close(fd)


def test_a_tap_that_is_moved_and_renamed_goes_on_working(interface: tap.Tap, netlink: Netlink, netns: Make) -> None:
    there = netns()
    move(netlink, interface, there, "port0")
    fd = interface.open_namespace()
    with there.opened() as expected:
        assert os.path.samestat(os.fstat(fd), os.fstat(expected))
    os.close(fd)
    there.ip("link", "set", "port0", "up")

    def hear() -> socket.socket:
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        ear.bind(("port0", 0x88B5))
        ear.settimeout(LIMIT)
        return ear

    with there.inside(hear) as ear:
        assert os.write(interface.fd, HEADER + frame(text=b"to the namespace")) == 70
        assert b"to the namespace" in ear.recv(100)
        ear.send(frame(text=b"from the namespace"))
        assert read_frame(interface.fd, b"from the namespace") == HEADER + frame(text=b"from the namespace")


def test_a_gso_frame_comes_whole_with_its_header(interface: tap.Tap, netlink: Netlink, netns: Make) -> None:
    there = netns()
    move(netlink, interface, there, "port0")
    there.ip("addr", "add", "10.77.0.1/24", "dev", "port0")
    there.ip("link", "set", "port0", "up")
    there.ip("neigh", "add", "10.77.0.2", "lladdr", "02:00:00:00:00:09", "dev", "port0")

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
            sender.sendto(b"whole" * 800, ("10.77.0.2", 9))

    there.inside(send)
    data = read_frame(interface.fd, b"wholewhole")
    flags, kind, _, segment, start, offset = struct.unpack_from("=BBHHHH", data)
    assert len(data) == 10 + 14 + 20 + 8 + 4000
    assert (flags & 1, kind, segment, start, offset) == (1, 5, 1000, 34, 6)  # NEEDS_CSUM, UDP_L4


def test_the_namespaces_death_is_seen_at_the_fd_and_not_hindered(
    interface: tap.Tap, netlink: Netlink, netns: Make, veth: Pair
) -> None:
    there = netns()
    near, _ = veth(None, there)
    move(netlink, interface, there, "port0")
    there.ip("link", "set", "port0", "up")
    poll = select.poll()
    poll.register(interface.fd, select.POLLIN)  # POLLERR comes unasked, but the kernel wakes whoever waits for frames

    def events() -> int:
        return sum(event for _, event in poll.poll(1000 * LIMIT))

    assert not any(event & select.POLLERR for _, event in poll.poll(0))
    there.delete()
    until(lambda: events() & select.POLLERR, "the end at the fd")
    until(lambda: not Path(f"/sys/class/net/{near}").exists(), "death of the namespace")
    for use in (
        lambda: os.write(interface.fd, HEADER + frame()),
        interface.open_namespace,
        lambda: interface.set_carrier(True),
    ):
        with pytest.raises(OSError) as refusal:
            use()
        assert refusal.value.errno == errno.EBADFD


def test_the_carrier_is_set_from_here(interface: tap.Tap, netlink: Netlink, netns: Make) -> None:
    there = netns()
    move(netlink, interface, there, "port0")
    there.ip("link", "set", "port0", "up")
    for on in (False, True):
        interface.set_carrier(on)
        assert ("NO-CARRIER" not in there.ip("link", "show", "port0")) is on
