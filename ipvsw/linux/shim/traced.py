"""What the BPF programs would do with a frame: a second copy of them is run on it, where no traffic passes.

The copy is traced.bpf.c of kmod-shim/bpf. It reads the maps of the programs that frames meet and writes to none of
them: it counts nothing, and what it decides it says in a map of its own. BPF_PROG_TEST_RUN makes a packet, runs the
program on it and frees it; a redirection is returned, and nothing is sent.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

PORT, STEAL = "ipvsw_traced_port", "ipvsw_traced_steal"  # what decides on host ends, and on the master
_PROGRAMS = (PORT, STEAL)
_SAID = struct.Struct("=II")  # struct traced of lib/explain.h
_FIRST = bytes(4)  # the key of an array's only entry

# struct __sk_buff of linux/bpf.h: its bytes, and where in it the index of the device and the size of segments stand.
_CONTEXT, _IFINDEX, _GSO_SIZE = 192, 40, 176


def sk_buff(ifindex: int, gso_size: int) -> bytes:
    """The struct __sk_buff of a packet that has come by the device with this index, in segments of so many bytes."""
    context = bytearray(_CONTEXT)
    struct.pack_into("=I", context, _IFINDEX, ifindex)
    struct.pack_into("=I", context, _GSO_SIZE, gso_size)
    return bytes(context)


class FastReason(enum.IntEnum):
    """enum fast_reason of lib/explain.h: forwarded, or why not."""

    FORWARDED = 0
    UNDECIDED = 1
    RESTRICTED = 2
    NOT_IP = 3
    MAYBE_DHCP = 4
    TO_GROUP = 5
    MAYBE_TO_HOST = 6
    NO_MASTER = 7
    TOO_LONG = 8
    KEPT_APART = 9
    OTHER_MAC = 10
    NO_OWNER = 11
    NO_RECEIVER = 12


class FastVerdict(Struct, frozen=True):
    reason: FastReason
    to: int  # of one that is forwarded: the host end of the port that gets it, or THE_MASTER


class _Options(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class TracedPrograms:
    """The copy. Errors: OSError."""

    def __init__(self, lib: ctypes.CDLL, path: Path, maps: Mapping[str, int]) -> None:
        """`lib` is libbpf, `path` that of the object, `maps` are the descriptors of those that are shared."""
        self._lib = lib
        self._object = ctypes.c_void_p(lib.bpf_object__open_file(os.fsencode(path), None))
        if not self._object:
            raise OSError(ctypes.get_errno(), "opening the BPF programs again")
        try:
            self._choose()
            for name, fd in maps.items():
                self._checked(lib.bpf_map__reuse_fd(self._map(name.encode()), fd))
            self._checked(lib.bpf_object__load(self._object))
            self._fds = {name: lib.bpf_program__fd(self._program(name)) for name in _PROGRAMS}
            self._said = lib.bpf_map__fd(self._map(b"traced"))
        except BaseException:
            self.close()
            raise

    def run(self, program: str, frame: bytes, ifindex: int, gso_size: int) -> FastVerdict | None:
        """As if it came from that device in the thread's namespace; `gso_size` of what isn't segmented is 0. None if
        the kernel takes no such frame for a test: longer than some 3,500 bytes, or one that ends in its IP header."""
        context = sk_buff(ifindex, gso_size)
        options = _Options(
            size=ctypes.sizeof(_Options),
            data_in=frame,
            data_size_in=len(frame),
            ctx_in=context,
            ctx_size_in=len(context),
        )
        result = self._lib.bpf_prog_test_run_opts(self._fds[program], ctypes.byref(options))
        if result == -errno.EINVAL:
            return None
        self._checked(result)
        said = ctypes.create_string_buffer(_SAID.size)
        self._checked(self._lib.bpf_map_lookup_elem(self._said, _FIRST, said))
        reason, to = _SAID.unpack(said.raw)
        return FastVerdict(FastReason(reason), to)

    def close(self) -> None:
        """Idempotent."""
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = ctypes.c_void_p(None)

    def _choose(self) -> None:
        """Load these programs, and none of the others."""
        self._lib.bpf_object__next_program.restype = ctypes.c_void_p
        wanted = {self._program(name).value for name in _PROGRAMS}
        one = self._lib.bpf_object__next_program(self._object, None)
        while one:
            self._checked(self._lib.bpf_program__set_autoload(ctypes.c_void_p(one), one in wanted))
            one = self._lib.bpf_object__next_program(self._object, ctypes.c_void_p(one))

    def _program(self, name: str) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._lib.bpf_object__find_program_by_name(self._object, name.encode()))

    def _map(self, name: bytes) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._lib.bpf_object__find_map_by_name(self._object, name))

    def _checked(self, result: int) -> None:
        if result < 0:
            raise OSError(-result, f"running the BPF programs on a frame: {os.strerror(-result)}")
