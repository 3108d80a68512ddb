"""What is the ring's own: that it can be refused, that a flood takes nobody's turn, that it lets go of descriptors."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
import threading

import pytest

from ipvsw._fast import uring_error
from tests.native import interfaces
from tests.native.interfaces import between, frame, ipv4, lab, v4
from tests.support.patience import until

needs_ring = pytest.mark.skipif(uring_error() != 0, reason="the kernel grants no io_uring")

REFUSED = """
    import ctypes, struct, sys
    from ipvsw._fast import Datapath, uring_error

    libc = ctypes.CDLL(None, use_errno=True)
    # A seccomp filter: io_uring_setup, number 425 on every architecture, fails with the errno; the rest passes.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050000 | {number}), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    assert uring_error() == {number}
    for io in ("auto", "epoll"):
        datapath = Datapath(2, io)
        assert datapath.io == "epoll"
        datapath.start()
        datapath.close()
    try:
        Datapath(1, "uring")
    except OSError as error:
        sys.exit(error.errno != {number})
"""


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_without_a_ring_the_epoll_does_it_all(number: int) -> None:
    program = textwrap.dedent(REFUSED).format(number=number)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SHORT = """
    import glob, os, resource
    from ipvsw._fast import Datapath

    def attempt(limit):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            return Datapath(2, "auto")
        except OSError:
            return None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 3
    while (datapath := attempt(limit)) is None:
        limit += 1
    found = [datapath.io]
    for more in (1, 2):  # descriptors than it takes without rings
        datapath.close()
        datapath = attempt(limit + more)
        links = [os.readlink(file) for file in glob.glob("/proc/self/fd/*") if os.path.lexists(file)]
        found += datapath.io, sum("io_uring" in link for link in links)
    print(*found)
"""


@needs_ring
def test_every_worker_has_a_ring_or_none() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SHORT)], capture_output=True, text=True)
    assert done.stdout.split() == ["epoll", "epoll", "0", "uring", "2"], done.stderr


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="poll"):
        interfaces.Datapath(1, "poll")


@needs_ring
def test_a_flood_takes_nobodys_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One port's frames alone would fill the pool of buffers again and again."""
    monkeypatch.setattr(interfaces, "IO", "uring")
    stop = threading.Event()
    with lab(4) as it:
        nowhere = frame(interfaces.MASTER, interfaces.MASTER, ipv4(v4(0), v4(1)))
        it.datapath.set_port(1, up=False, mtu=1500)
        it.datapath.commit()

        def flood() -> None:
            while not stop.is_set():
                it.interfaces[0].send(nowhere)

        threads = [threading.Thread(target=flood) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for k in range(200):
                it.interfaces[2].send(between(2, 3, b"%8d" % k))
                assert it.interfaces[3].receive() == between(2, 3, b"%8d" % k)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@needs_ring
@pytest.mark.parametrize("workers", [1, 2])
def test_a_descriptor_is_let_go_of_when_it_is_closed(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """The kernel's own reference would keep the other end from hearing of it."""
    monkeypatch.setattr(interfaces, "IO", "uring")
    with lab(3, workers=workers) as it:
        it.interfaces[0].send(between(0, 1))
        assert it.interfaces[1].receive() == between(0, 1)
        it.datapath.detach_port(it.numbers[0])
        it.datapath.commit()
        it.interfaces[0].inside.close()
        assert it.interfaces[0].outside.recv(1) == b""
        it.datapath.close()
        it.interfaces[2].inside.close()
        assert it.interfaces[2].outside.recv(1) == b""


@needs_ring
def test_unicast_and_multicast_frames_of_a_port_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued for a port leaves before the copies of a multicast frame that came later."""
    monkeypatch.setattr(interfaces, "IO", "uring")
    with lab(2) as it:
        it.datapath.set_port(1, up=True, mtu=1500)
        it.datapath.commit()
        for k in range(300):
            sent = [between(0, 1, b"%7d%d" % (k, n)) for n in range(3)] + [interfaces.broadcast(0, b"%8d" % k)]
            for each in sent:
                it.interfaces[0].send(each)
            assert [it.interfaces[1].receive() for _ in sent] == sent
        it.settled(0, 1200)
        until(lambda: it.counted(1).tx_frames == 1200, "all are counted")


@needs_ring
@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_frames_for_addresses_of_a_large_table_arrive_where_they_belong(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Such a table is looked at ahead of a burst's frames; some of these find nobody, or are no frames."""
    monkeypatch.setattr(interfaces, "IO", "uring")
    addresses = [bytes([10, 9, k >> 8, k & 0xFF]) for k in range(20_000)]
    with lab(3, mode=mode) as it:
        for k, address in enumerate(addresses):
            it.datapath.bind(address, 1 + k % 2)
        it.datapath.commit()
        runt, nobody = b"short", frame(interfaces.MASTER, interfaces.MASTER, ipv4(v4(0), v4(99)))
        for first in range(0, 1000, 40):
            picked = [k * 7919 % len(addresses) for k in range(first, first + 40)]
            sent = [frame(interfaces.MASTER, interfaces.MASTER, ipv4(v4(0), addresses[k], b"%8d" % k)) for k in picked]
            for each in [*sent, runt, nobody]:
                it.interfaces[0].send(each)
            for number in (1, 2):
                expected = [each for k, each in zip(picked, sent, strict=True) if 1 + k % 2 == number]
                assert [it.interfaces[number].receive() for _ in expected] == expected
        assert it.settled(0, 25 * 42).outcomes["to_port"] == 1000
