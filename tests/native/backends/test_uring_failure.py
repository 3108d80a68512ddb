"""An io_uring that the kernel fails while it is in use: the worker goes on with the epoll."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ipvsw._fast import uring_error
from tests.native import interfaces
from tests.native.interfaces import Interface, Lab, between, lab
from tests.support.patience import until

ROOT = Path(__file__).parents[3]
SYS_IO_URING_SETUP = 425
OVERFLOW = 80 + 4 * 4  # in struct io_uring_params: offset of cq_off.overflow

pytestmark = [
    pytest.mark.skipif(uring_error() != 0, reason="the kernel grants no io_uring"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="seccomp's number is that of another architecture"),
]


def goes_on_with_the_epoll(it: Lab, *, lost: bool) -> None:
    """The ring of `it` fails: each frame is counted, also those that are `lost` in the queue, and nothing that follows
    needs a ring."""
    sent = received = 0

    def given_up() -> bool:
        nonlocal sent, received
        for _ in range(100):
            it.interfaces[0].send(between(0, 1))
        sent += 100
        ends = it.settled(0, sent).outcomes
        received += len(it.interfaces[1].waiting())
        assert received == ends.get("to_port", 0) == it.counted(1).tx_frames
        return it.datapath.io == "epoll"

    until(given_up, "the ring is given up")
    ends = it.counted(0).outcomes
    assert set(ends) <= {"to_port", "drop_error"}
    assert "drop_error" in ends or not lost
    it.interfaces[1].send(between(1, 0))
    assert it.interfaces[0].receive() == between(1, 0)
    arrival = interfaces.frame(
        interfaces.MASTER, interfaces.FOREIGN, interfaces.ipv4(interfaces.v4(50), interfaces.v4(1))
    )
    it.master[0].send(arrival)
    assert it.interfaces[1].receive() == arrival
    it.datapath.detach_port(it.numbers[0])
    it.interfaces.append(Interface())
    it.numbers.append(it.add(it.interfaces[-1], 5))
    it.datapath.commit()
    it.interfaces[-1].send(between(5, 1))
    assert it.interfaces[1].receive() == between(5, 1)


def rings() -> list[int]:
    """Where the rings of this process are mapped."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    found = [line.split() for line in maps if line.endswith("anon_inode:[io_uring]")]
    return [int(place.split("-")[0], 16) for place, _, offset, *_ in found if int(offset, 16) == 0]


def overflow_offset() -> int:
    """Where a ring counts lost completions, the same in all."""
    parameters = ctypes.create_string_buffer(120)
    fd = ctypes.CDLL(None).syscall(SYS_IO_URING_SETUP, 1, parameters)
    assert fd >= 0
    os.close(fd)
    return int.from_bytes(parameters[OVERFLOW : OVERFLOW + 4], sys.byteorder)


def test_a_lost_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has no memory for one: which, and whether it was a write's or a read's, is unknown."""
    monkeypatch.setattr(interfaces, "IO", "uring")
    with lab(2) as it:
        it.interfaces[0].send(between(0, 1))
        assert it.interfaces[1].receive() == between(0, 1)
        until(lambda: it.counted(1).tx_frames == 1, "it is counted")
        for base in rings():
            ctypes.c_uint32.from_address(base + overflow_offset()).value += 1
        it.interfaces[0].send(between(0, 1))
        until(lambda: it.datapath.io == "epoll", "the ring is given up")
        assert it.interfaces[1].receive() == between(0, 1)


FAILING = """
    import ctypes, struct
    from tests.native import interfaces
    from tests.native.backends.test_uring_failure import goes_on_with_the_epoll

    def fail(number, least):
        # A seccomp filter for all threads: io_uring_enter, number 426 on every architecture, fails with the errno if it
        # is to submit `least` requests or more.
        libc = ctypes.CDLL(None, use_errno=True)
        steps = [(0x20, 0, 0, 0), (0x15, 0, 3, 426), (0x20, 0, 0, 24), (0x35, 0, 1, least)]
        steps += [(0x06, 0, 0, 0x00050000 | number), (0x06, 0, 0, 0x7FFF0000)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
        program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.syscall(317, 1, 1, program) == 0  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC

    interfaces.IO = "uring"
    with interfaces.lab(2) as it:
        assert it.datapath.io == "uring"
        fail({number}, {least})
        {first}
        goes_on_with_the_epoll(it, lost={least} > 0)
"""


def run(number: int, *, least: int = 0, first: str = "pass") -> None:
    program = textwrap.dedent(FAILING).format(number=number, least=least, first=first)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [errno.EPERM, errno.EBADR, errno.ENOMEM])
def test_a_call_that_fails_for_good(number: int) -> None:
    run(number)


def test_writes_that_are_not_submitted() -> None:
    """Reads and polls that are started anew are fewer."""
    run(errno.EPERM, least=8)


def test_a_commit_that_waits_for_the_ring() -> None:
    run(errno.EPERM, first="it.datapath.set_port(0, up=True, mtu=9000); it.datapath.commit()")
