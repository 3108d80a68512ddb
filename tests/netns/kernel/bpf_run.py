"""A BPF program, run on a frame without any device."""

from __future__ import annotations

import ctypes
import platform

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BPF_PROG_TEST_RUN = 10

_libc = ctypes.CDLL(None, use_errno=True)


class TestRun(ctypes.Structure):
    """`union bpf_attr` of BPF_PROG_TEST_RUN, as far as it is needed; the kernel writes to it."""

    __test__ = False
    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 8),
    )


def returned(program: int, frame: bytes) -> int:
    """What a program says of a frame. Errors: OSError."""
    data = ctypes.create_string_buffer(frame, len(frame))
    run = TestRun(prog_fd=program, data_size_in=len(data), data_in=ctypes.addressof(data))
    if _libc.syscall(_SYS_BPF, BPF_PROG_TEST_RUN, ctypes.byref(run), ctypes.sizeof(run)):
        raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
    return int(run.retval)
