"""Packet sockets: the master's frames, its groups, and the claim on it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvsw.linux.bpf import Shim
from ipvsw.linux.devices import packet
from tests.netns.devices.frames import HEADER, Make, Pair, frame
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace, ip


@pytest.fixture
def wire(netns: Make, veth: Pair) -> Iterator[tuple[Namespace, int, socket.socket]]:
    """A namespace with a master, the master's index, and a socket at the far end of the wire."""
    here, far = netns(), netns()
    near_end, far_end = veth(here, far)
    for namespace, end in ((here, near_end), (far, far_end)):
        until(lambda namespace=namespace, end=end: "LOWER_UP" in namespace.ip("link", "show", end))

    def open_far() -> socket.socket:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        end.bind((far_end, 0x88B5))
        end.settimeout(LIMIT)
        return end

    with far.inside(open_far) as far_socket:
        yield here, here.inside(lambda: socket.if_nametoindex(near_end)), far_socket


@contextlib.contextmanager
def master(here: Namespace, index: int, workers: int = 1, filter_fd: int = -1) -> Iterator[list[socket.socket]]:
    with contextlib.closing(Shim()) as shim:
        sockets = here.inside(lambda: packet.open_master(index, workers, filter_fd, shim.spread_fd))
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def received(sock: socket.socket) -> list[bytes]:
    """The test's own frames that are queued, with their virtio_net_hdr."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(65600):
            if data[22:24] == b"\x88\xb5":
                found.append(data)
    return found


def test_a_master_receives_with_header_and_auxdata_and_sends(wire: tuple[Namespace, int, socket.socket]) -> None:
    here, index, far = wire
    with master(here, index) as (sock,):
        assert not sock.getblocking() and not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= packet.BUFFER
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= packet.BUFFER
        assert sock.getsockname()[1] == packet.ETH_P_ALL
        far.send(frame(text=b"ping"))

        def read() -> tuple[bytes, list[tuple[int, int, bytes]]] | None:
            with contextlib.suppress(BlockingIOError):
                data, control, _, _ = sock.recvmsg(100, 100)
                return (data, control) if b"ping" in data else None
            return None

        found = until(read)
        assert found
        data, control = found
        assert data == HEADER + frame(text=b"ping")
        assert [entry[:2] for entry in control] == [(packet.SOL_PACKET, packet.PACKET_AUXDATA)]
        assert sock.send(HEADER + frame(text=b"pong")) == 70
        assert far.recv(100) == frame(text=b"pong")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_host_sends_is_not_received(wire: tuple[Namespace, int, socket.socket], workers: int) -> None:
    here, index, far = wire
    inject = here.inside(lambda: packet.open_inject(index, 7))
    with inject, master(here, index, workers) as sockets:
        inject.send(HEADER + frame(text=b"out"))
        assert b"out" in far.recv(100)
        far.send(frame(text=b"in"))
        got = until(lambda: [data for sock in sockets for data in received(sock)])
        assert got == [HEADER + frame(text=b"in")]


def test_the_injecting_socket_is_marked_and_receives_nothing(wire: tuple[Namespace, int, socket.socket]) -> None:
    here, index, far = wire
    inject = here.inside(lambda: packet.open_inject(index, 0x69707677))
    with inject, master(here, index) as (sock,):
        assert inject.getsockopt(socket.SOL_SOCKET, packet.SO_MARK) == 0x69707677
        far.send(frame())
        until(lambda: received(sock))
        assert received(inject) == []


def test_workers_share_the_frames_and_none_comes_twice(wire: tuple[Namespace, int, socket.socket]) -> None:
    here, index, far = wire
    with master(here, index, workers=3) as sockets:
        for number in range(200):
            # IPv4 with another source each, so that they are spread.
            header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 46, 0, 0, 64, 17, 0, number.to_bytes(4, "big"), bytes(4))
            far.send(frame(kind=0x0800, text=header + b"spread" + number.to_bytes(2, "big")))
        found: list[list[int]] = [[] for _ in sockets]

        def all_found() -> bool:
            for sock, numbers in zip(sockets, found, strict=True):
                with contextlib.suppress(BlockingIOError):
                    while data := sock.recv(200):
                        if b"spread" in data:
                            numbers.append(int.from_bytes(data.partition(b"spread")[2][:2], "big"))
            return sum(map(len, found)) >= 200

        until(all_found)
        assert sorted(number for numbers in found for number in numbers) == list(range(200)), list(map(len, found))
        assert all(found)


def test_the_filter_is_there_before_the_first_frame(wire: tuple[Namespace, int, socket.socket]) -> None:
    here, index, far = wire
    program = _load_filter()
    done = threading.Event()

    def flood() -> None:
        while not done.is_set():
            far.send(frame(text=b"no"))

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for _ in range(20):
            with master(here, index, workers=2, filter_fd=program) as sockets:
                far.send(frame(text=b"yes"))
                got = until(lambda: [data for sock in sockets for data in received(sock)])
                assert got == [HEADER + frame(text=b"yes")]
    finally:
        done.set()
        flooding.join()
        os.close(program)


def _load_filter() -> int:
    """A socket filter that takes frames whose 15th byte is "y"."""
    code = b"".join(
        struct.pack("=BBhi", *instruction)
        for instruction in (
            (0xBF, 0x16, 0, 0),  # r6 = r1
            (0x30, 0, 0, 14),  # r0 = frame[14]
            (0x15, 0, 2, ord("y")),  # if r0 == "y" goto take
            (0xB7, 0, 0, 0),  # r0 = 0
            (0x95, 0, 0, 0),  # exit
            (0xB7, 0, 0, -1),  # take: r0 = everything
            (0x95, 0, 0, 0),
        )
    )
    instructions, license_text = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    # union bpf_attr for BPF_PROG_LOAD: type SOCKET_FILTER, count, instructions, licence
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIQQ", 1, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_text)), 128
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall({"x86_64": 321, "aarch64": 280}[os.uname().machine], 5, attributes, 128)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def test_a_filter_that_is_refused_leaves_no_socket(wire: tuple[Namespace, int, socket.socket]) -> None:
    here, index, _ = wire
    before = len(os.listdir("/proc/self/fd"))
    with open("/dev/null") as null, pytest.raises(OSError):
        here.inside(lambda: packet.open_master(index, 2, null.fileno(), -1))
    with pytest.raises(OSError):
        here.inside(lambda: packet.open_master(999999, 1, -1, -1))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_master_listens_to_groups_and_stops(wire: tuple[Namespace, int, socket.socket]) -> None:
    here, index, _ = wire
    groups = [bytes.fromhex("01005e010203"), bytes.fromhex("3333ff000001")]

    def listed() -> list[bool]:
        known = here.inside(lambda: Path("/proc/thread-self/net/dev_mcast").read_text())
        return [group.hex() in known for group in groups]

    with master(here, index) as (sock,):
        packet.set_groups(sock, index, groups, [])
        assert listed() == [True, True]
        packet.set_groups(sock, index, [], groups[:1])
        assert listed() == [False, True]
    assert listed() == [False, False]


def test_one_process_holds_a_master(netns: Make) -> None:
    here, other = netns(), netns()
    for namespace in (here, other):
        namespace.ip("link", "add", "m7", "index", "7", "type", "veth", "peer", "name", "m8", "index", "8")

    def is_taken(namespace: Namespace, index: int) -> bool:
        try:
            namespace.inside(lambda: packet.claim_master(index)).close()
        except OSError as error:
            assert error.errno == errno.EADDRINUSE
            return True
        return False

    with here.inside(lambda: packet.claim_master(7)):
        assert is_taken(here, 7)
        assert not is_taken(here, 8) and not is_taken(other, 7)
        here.ip("link", "set", "m7", "up")
        assert is_taken(here, 7)
    assert not is_taken(here, 7)
    with pytest.raises(OSError) as absent:
        here.inside(lambda: packet.claim_master(9))
    assert absent.value.errno in (errno.ENODEV, errno.ENXIO)


def test_of_many_who_want_a_master_at_the_same_moment_no_two_get_it(netns: Make) -> None:
    here = netns()
    here.ip("link", "add", "m7", "index", "7", "type", "veth", "peer", "name", "m8")
    start, held, taken = threading.Barrier(6), [], []

    def claim() -> None:
        start.wait()
        try:
            held.append(packet.claim_master(7))
        except OSError as error:
            taken.append(error.errno)

    threads = [threading.Thread(target=here.inside, args=(claim,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sock in held:
        sock.close()
    assert len(held) <= 1 and taken == [errno.EADDRINUSE] * (6 - len(held))


def test_a_claim_goes_with_its_process(netns: Make) -> None:
    """However it ends."""
    here = netns()
    here.ip("link", "add", "m7", "index", "7", "type", "veth", "peer", "name", "m8")
    code = (
        "import time; from ipvsw.linux.devices.packet import claim_master\n"
        "claim = claim_master(7); print(flush=True); time.sleep(60)"
    )
    process = here.start(sys.executable, "-c", code)
    assert process.stdout and process.stdout.readline() == "\n"
    with pytest.raises(OSError):
        here.inside(lambda: packet.claim_master(7))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    here.inside(lambda: packet.claim_master(7)).close()


def test_a_master_that_goes_down_and_up_is_heard_again(wire: tuple[Namespace, int, socket.socket]) -> None:
    here, index, far = wire
    with master(here, index) as (sock,):
        name = here.inside(lambda: socket.if_indextoname(index))
        ip("-n", here.name, "link", "set", name, "down")
        with pytest.raises(OSError) as down:
            until(lambda: received(sock) or None)
        assert down.value.errno == errno.ENETDOWN
        ip("-n", here.name, "link", "set", name, "up")

        def heard() -> list[bytes]:
            with contextlib.suppress(OSError):  # ENETDOWN: the far end's carrier is on its way
                far.send(frame(text=b"again"))
            return received(sock)

        assert until(heard)[0] == HEADER + frame(text=b"again")
