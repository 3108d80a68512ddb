"""A BPF program, run on a frame without any device."""

from __future__ import annotations

import ctypes
import platform

from ipvsw.linux.shim.traced import sk_buff

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
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 6),
    )


def returned(program: int, frame: bytes, device: int = 0, gso_size: int = 0) -> int:
    """What a program says of a frame, on the device with that index in the caller's namespace. Errors: OSError."""
    data = ctypes.create_string_buffer(frame, len(frame))
    run = TestRun(prog_fd=program, data_size_in=len(data), data_in=ctypes.addressof(data))
    if device:
        content = sk_buff(device, gso_size)
        context = ctypes.create_string_buffer(content, len(content))
        run.ctx_size_in, run.ctx_in = len(context), ctypes.addressof(context)
    if _libc.syscall(_SYS_BPF, BPF_PROG_TEST_RUN, ctypes.byref(run), ctypes.sizeof(run)):
        raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
    return int(run.retval)
