"""The kernel-side part: loads kmod-shim/bpf/ipvsw.bpf.c with libbpf and feeds its address map.

libbpf is called through ctypes: it is loaded when a switch starts, so nothing needs its headers to be built.
What the three programs do and when they run is told in their source.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

MARK = 0x69707677  # SO_MARK of frames for the host's own stack; the BPF source has the same
WIRE_MARK = 0x69707678  # of ports' frames for the wire
_MODE, _DOOR = 0, 1  # enum setting of the BPF source
CAPACITY = 65536  # addresses of one switch
_OBJECT = Path(__file__).with_name("ipvsw.bpf.o")


def _libbpf() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise OSError(errno.ENOENT, "libbpf.so.1 is not installed (Debian: libbpf1)") from None
    for name in ("bpf_object__open_file", "bpf_object__find_program_by_name", "bpf_object__find_map_by_name"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.libbpf_set_print.restype = ctypes.c_void_p
    lib.libbpf_set_print(None)  # it would write to stderr; errno says enough
    return lib


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def _key(address: bytes) -> bytes:
    """`struct address` of the BPF source."""
    if len(address) not in (4, 16):
        raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
    return (4 if len(address) == 4 else 6).to_bytes(4, sys.byteorder) + address.ljust(16, b"\0")


class Shim:
    """One switch's BPF programs and map. Errors: OSError.

    `filter_fd` is for SO_ATTACH_BPF on the receiving sockets, `ingress_fd` and `egress_fd` for clsact on the master,
    `mute_fd` for clsact ingress on virtual machines' TAPs;
    what they are attached to keeps the programs alive, this object only the way to the map.
    """

    def __init__(self) -> None:
        self._lib = _libbpf()
        self._object = ctypes.c_void_p(self._lib.bpf_object__open_file(os.fsencode(_OBJECT), None))
        if not self._object:
            code = ctypes.get_errno()
            raise OSError(code, f"{_OBJECT}: {os.strerror(code)}")
        try:
            self._lib.bpf_map__set_max_entries(self._map("owned"), CAPACITY)
            _checked(self._lib.bpf_object__load(self._object), "loading the BPF programs")
            self.filter_fd = self._program("ipvsw_filter")
            self.ingress_fd = self._program("ipvsw_steal")
            self.egress_fd = self._program("ipvsw_inject")
            self.mute_fd = self._program("ipvsw_mute")
            self._owned = self._lib.bpf_map__fd(self._map("owned"))
            self._settings = self._lib.bpf_map__fd(self._map("settings"))
        except BaseException:
            self.close()
            raise

    def _map(self, name: str) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._lib.bpf_object__find_map_by_name(self._object, name.encode()))

    def _program(self, name: str) -> int:
        program = ctypes.c_void_p(self._lib.bpf_object__find_program_by_name(self._object, name.encode()))
        return _checked(self._lib.bpf_program__fd(program), name)

    def set_mode(self, mode: int) -> None:
        """What is stolen and filtered from now on; the numbers of `_fast.MODES`."""
        self._set(_MODE, mode)

    def set_door(self, index: int) -> None:
        """Where the host's own frames for ports go from now on, in l2: a device by its index; 0: nowhere."""
        self._set(_DOOR, index)

    def _set(self, which: int, value: int) -> None:
        packed = (number.to_bytes(4, sys.byteorder) for number in (which, value))
        _checked(self._lib.bpf_map_update_elem(self._settings, *packed, ctypes.c_uint64(0)), "a setting of the shim")

    def add(self, address: bytes) -> None:
        """Frames for `address` (4 or 16 bytes) are a port's from now on."""
        _checked(
            self._lib.bpf_map_update_elem(self._owned, _key(address), bytes(4), ctypes.c_uint64(0)),
            "adding an address to the BPF map",
        )

    def remove(self, address: bytes) -> None:
        """Frames for `address` are the host's again. An address that is not there is no error."""
        result = self._lib.bpf_map_delete_elem(self._owned, _key(address))
        if result != -errno.ENOENT:
            _checked(result, "removing an address from the BPF map")

    def close(self) -> None:
        """Give up this process's hold; what is still attached goes on. Idempotent."""
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = ctypes.c_void_p(None)
