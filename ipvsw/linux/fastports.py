"""Ports whose unicast the kernel forwards by itself, as the BPF programs know them, and what they have counted.

The maps are those of lib/maps.h in kmod-shim/bpf; `bpf` loads them.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct

from msgspec import Struct
from msgspec.structs import astuple

THE_MASTER = 0  # its key in the map of counters

_KEY = struct.Struct("=I")
_PORT = struct.Struct("=III")  # struct fast_port: the other device, MTU, flags
_COUNTS = struct.Struct("=5Q")  # struct fast_counts, of one CPU
BATCH = 512  # ports whose counters are read at a time: more than are in one bucket of the map
SHAPE_OF_COUNTS = 5, _KEY.size, _COUNTS.size  # of their map: BPF_MAP_TYPE_PERCPU_HASH, bytes of a key and of a value


class FastFlag(enum.IntFlag):
    """enum fast_flag of lib/maps.h."""

    UP = 1
    SENDS = 2  # the kernel may decide about what it sends
    RECEIVES = 4  # and about what it receives
    SAME_NETNS = 8  # its endpoint is in the master's namespace


class FastDevice(Struct, frozen=True):
    """The two devices of such a port beside the master, by their indices: the host end of its veth, which is its key in
    the maps, and the TAP that the daemon reads."""

    end: int
    tap: int
    same_netns: bool


class FastCounts(Struct, frozen=True):
    """Frames that the kernel has forwarded, as the switch sees them. All from a port ended at another or, so many of
    them, at the master."""

    rx_frames: int = 0
    rx_bytes: int = 0
    to_master: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0

    def __add__(self, other: FastCounts) -> FastCounts:
        return FastCounts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def _sum(counts: bytes | memoryview) -> FastCounts:
    """Of all CPUs."""
    return FastCounts(*map(sum, zip(*_COUNTS.iter_unpack(counts), strict=True)))


class FastPorts:
    """One switch's. Errors: OSError."""

    def __init__(self, lib: ctypes.CDLL, ports: int, counts: int) -> None:
        """`lib` is libbpf, the others are descriptors of maps, which the caller keeps open."""
        self._lib = lib
        self._ports = ports
        self._counts = counts
        self._cpus = self._checked(lib.libbpf_num_possible_cpus())
        self.goes_on = self.is_counted(THE_MASTER)
        """Whether the map of counters is the last daemon's."""
        if not self.goes_on:
            self._count_from_zero(THE_MASTER)

    def is_counted(self, end: int) -> bool:
        """Whether there are counters of the port with this host end, or THE_MASTER's."""
        return not self._lib.bpf_map_lookup_elem(self._counts, _KEY.pack(end), self._buffer())

    def put(self, device: FastDevice, mtu: int, flags: FastFlag) -> None:
        """A port is there, or has changed. `flags` without SAME_NETNS, which the device says."""
        if not self.is_counted(device.end):
            self._count_from_zero(device.end)
        flags |= FastFlag.SAME_NETNS if device.same_netns else FastFlag(0)
        for key, other in ((device.end, device.tap), (device.tap, device.end)):
            self._update(self._ports, _KEY.pack(key), _PORT.pack(other, mtu, flags))

    def remove(self, device: FastDevice) -> None:
        """It is gone, and what it has counted. No address may have it as its owner any more."""
        for index, key in ((self._ports, device.end), (self._ports, device.tap), (self._counts, device.end)):
            result = self._lib.bpf_map_delete_elem(index, _KEY.pack(key))
            if result != -errno.ENOENT:
                self._checked(result)

    def counts(self, end: int) -> FastCounts:
        """Since the first `put`, of the port with this host end, or THE_MASTER's: earlier daemons' as well."""
        buffer = self._buffer()
        if self._lib.bpf_map_lookup_elem(self._counts, _KEY.pack(end), buffer):
            return FastCounts()
        return _sum(buffer.raw)

    def all_counts(self) -> dict[int, FastCounts]:
        """Those of every port by its host end, and THE_MASTER's, as far as they have counted anything: with a few
        system calls for all."""
        size = self._cpus * _COUNTS.size
        nothing = bytes(size)
        keys, values = (ctypes.create_string_buffer(BATCH * each) for each in (_KEY.size, size))
        place, number = ctypes.c_uint32(), ctypes.c_uint32()
        found: dict[int, FastCounts] = {}
        begun, result = False, 0
        while not result:
            number.value = BATCH
            start = ctypes.byref(place) if begun else None
            result = self._lib.bpf_map_lookup_batch(
                self._counts, start, ctypes.byref(place), keys, values, ctypes.byref(number), None
            )
            if result != -errno.ENOENT:  # these were the last ones
                self._checked(result)
            begun = True
            content = memoryview(values)
            for at, (key,) in enumerate(_KEY.iter_unpack(keys.raw[: number.value * _KEY.size])):
                one = content[at * size : (at + 1) * size]
                if one != nothing:
                    found[key] = _sum(one)
        return found

    def _count_from_zero(self, key: int) -> None:
        self._update(self._counts, _KEY.pack(key), self._buffer().raw)

    def _buffer(self) -> ctypes.Array[ctypes.c_char]:
        return ctypes.create_string_buffer(self._cpus * _COUNTS.size)

    def _update(self, fd: int, key: bytes, value: bytes) -> None:
        self._checked(self._lib.bpf_map_update_elem(fd, key, value, ctypes.c_uint64(0)))

    def _checked(self, result: int) -> int:
        if result < 0:
            raise OSError(-result, f"the BPF maps of ports: {os.strerror(-result)}")
        return result
