"""The kernel side: loads the BPF programs of kmod-shim/bpf with libbpf and keeps their maps up to date.

A map's capacity is fixed. When it is full a larger one is filled with the same addresses and replaces it, atomically
for the programs. Its memory is allocated beforehand, some 100 bytes in the kernel for each address that it has room
for: with half a million of them adding one takes half a microsecond, without preallocation a whole one.

libbpf is called through ctypes: it is loaded when a switch starts, so nothing needs its headers to be built.
The sources say what the programs do and when they run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Sequence, Set
from pathlib import Path

from ipvsw.linux.fastports import SHAPE_OF_COUNTS, FastPorts
from ipvsw.linux.shim.heartbeat import Heartbeat
from ipvsw.linux.shim.traced import PORT, STEAL, FastVerdict, TracedPrograms

MARK = 0x69707677  # SO_MARK of frames for the host's own stack; lib/maps.h has the same
WIRE_MARK = 0x69707678  # of ports' frames for the wire
_MODE, _HOST_IFINDEX, _FAST_RULES, _MASTER_IFINDEX = range(4)  # enum setting of lib/maps.h
CAPACITY = 4096  # addresses that the first map has room for; the next one has at least twice as much
KEY_SIZE, VALUE_SIZE = 20, 4  # bytes of `struct address` and of what the map says of it
DIVERTED, OWNER_SHIFT = 1, 1  # enum owned_flag of lib/maps.h
FAST_ON, FAST_HOST_ACCESS, FAST_MODE_SHIFT, FAST_FLAG_SHIFT, FAST_RESUMING = 1, 2, 2, 4, 64  # enum fast_rules
COPY_BATCH = 4096  # addresses that are copied at a time
BPF_MAP_TYPE_HASH = 1  # linux/bpf.h
_MAP_INFO = struct.Struct("=4I")  # struct bpf_map_info as far as it is asked for: type, id, sizes
_NO_OPTIONS = ctypes.c_size_t(ctypes.sizeof(ctypes.c_size_t))  # struct bpf_test_run_opts with its `sz` alone
_TRACED_MAPS = "owned", "settings", "vlans", "heartbeat", "fast_ports", "fast_counts"
_OBJECT = Path(__file__).parents[1] / "ipvsw.bpf.o"


Bytes = bytes | ctypes.Array[ctypes.c_char]


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


def _keys(addresses: Sequence[bytes]) -> bytes:
    """Each as `struct address` of lib/packet.h, IPv4 first."""
    keys = b""
    sizes = set(map(len, addresses))
    for family, size in ((4, 4), (6, 16)):
        before, after = family.to_bytes(4, sys.byteorder), bytes(16 - size)
        if size in sizes:
            some = addresses if len(sizes) == 1 else [address for address in addresses if len(address) == size]
            keys += before + (after + before).join(some) + after
    if not sizes <= {4, 16}:
        raise ValueError("an address has 4 or 16 bytes")
    return keys


def _id_of(program_fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{program_fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("prog_id:"))


class Shim:
    """One switch's BPF programs and map. Errors: OSError.

    `filter_fd` is for SO_ATTACH_BPF on the receiving sockets, `ingress_fd` and `egress_fd` for clsact on the master
    (`programs` are the kernel's ids of these), `mute_fd` for clsact ingress on virtual machines' TAPs, `port_fd` and
    `feed_fd` on the two devices of a port of kind veth, `wire_fd` on the TAP of tunnels' GSO frames, `spread_fd` for
    spreading flows over several readers: the fanout of the packet sockets, and ports' TAPs; `errors_fd` for what the
    host's TAP is read. What the programs are attached to keeps them alive, this object the access to the maps, and the
    heartbeat: without that they leave to the host what the daemon would deliver.
    """

    def __init__(self, counts: int | None = None) -> None:
        """`counts`: a descriptor of the last daemon's map of what the kernel has forwarded, which this takes: its
        programs count there until they are replaced, and these do."""
        self._addresses = -1  # the map of them, of which `_owned` has only this one
        self._capacity = 0
        self._count = 0
        self._vlans: Set[int] = frozenset()
        self._groups: Set[bytes] = frozenset()
        self._rules = self._resuming = 0  # what `_FAST_RULES` is made of
        self._heartbeat: Heartbeat | None = None
        self._traced: TracedPrograms | None = None  # from the first trace on
        self._lib = _libbpf()
        self._object = ctypes.c_void_p(self._lib.bpf_object__open_file(os.fsencode(_OBJECT), None))
        if not self._object:
            code = ctypes.get_errno()
            raise OSError(code, f"{_OBJECT}: {os.strerror(code)}")
        try:
            if counts is not None:
                self._reuse("fast_counts", counts)
            _checked(self._lib.bpf_object__load(self._object), "loading the BPF programs")
            self.filter_fd = self._program("ipvsw_filter")
            self.ingress_fd = self._program("ipvsw_steal")
            self.egress_fd = self._program("ipvsw_inject")
            self.mute_fd = self._program("ipvsw_mute")
            self.spread_fd = self._program("ipvsw_spread")
            self.errors_fd = self._program("ipvsw_errors")
            self.port_fd = self._program("ipvsw_port")
            self.feed_fd = self._program("ipvsw_feed")
            self.wire_fd = self._program("ipvsw_wire")
            self.counts_fd = self._lib.bpf_map__fd(self._map("fast_counts"))
            self.fast = FastPorts(self._lib, self._lib.bpf_map__fd(self._map("fast_ports")), self.counts_fd)
            self.programs = _id_of(self.ingress_fd), _id_of(self.egress_fd)
            self.port_program, self.feed_program = _id_of(self.port_fd), _id_of(self.feed_fd)
            self._owned = self._lib.bpf_map__fd(self._map("owned"))
            self._settings = self._lib.bpf_map__fd(self._map("settings"))
            self._vlan_words = self._lib.bpf_map__fd(self._map("vlans"))
            self._switched = self._lib.bpf_map__fd(self._map("groups"))
            self._install(CAPACITY)
            beat = self._program("ipvsw_beat")
            self._heartbeat = Heartbeat(lambda: self._lib.bpf_prog_test_run_opts(beat, ctypes.byref(_NO_OPTIONS)))
        except BaseException:
            self.close()
            raise

    def _map(self, name: str) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._lib.bpf_object__find_map_by_name(self._object, name.encode()))

    def _reuse(self, name: str, fd: int) -> None:
        """Have the programs use this map, unless another release has made it otherwise."""
        try:
            if self._shape_of(fd) == SHAPE_OF_COUNTS:
                _checked(self._lib.bpf_map__reuse_fd(self._map(name), fd), name)
        finally:
            os.close(fd)

    def _shape_of(self, fd: int) -> tuple[int, ...]:
        """What the kernel says of a map: type, bytes of a key and of a value."""
        info, size = ctypes.create_string_buffer(_MAP_INFO.size), ctypes.c_uint32(_MAP_INFO.size)
        _checked(self._lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)), "a BPF map")
        kind, _, key_size, value_size = _MAP_INFO.unpack(info.raw)
        return kind, key_size, value_size

    def _program(self, name: str) -> int:
        program = ctypes.c_void_p(self._lib.bpf_object__find_program_by_name(self._object, name.encode()))
        return _checked(self._lib.bpf_program__fd(program), name)

    def set_mode(self, mode: int) -> None:
        """What is stolen and filtered from now on; the numbers of `_fast.MODES`."""
        self._set(_MODE, mode)

    def set_host_ifindex(self, index: int) -> None:
        """The device that the host's own frames for ports are redirected to from now on, in l2; 0: none."""
        self._set(_HOST_IFINDEX, index)

    def set_master_ifindex(self, index: int) -> None:
        """The device by which the kernel forwards veth ports' frames to the wire from now on; 0: none."""
        self._set(_MASTER_IFINDEX, index)

    def set_fast_rules(self, mode: int, flag: int, host_access: bool) -> None:
        """What the kernel decides by itself from now on; the numbers of `_fast.MODES` and `FLAGS`."""
        access = FAST_HOST_ACCESS if host_access else 0
        self._set_fast(FAST_ON | access | mode << FAST_MODE_SHIFT | flag << FAST_FLAG_SHIFT)

    def stop_deciding(self) -> None:
        """The daemon has every frame from now on."""
        self._set_fast(0)

    def set_resuming(self, on: bool) -> None:
        """Whether the last daemon's programs on the master are to forward to veth ports for now: then `filter` has none
        of what is for these."""
        self._resuming = FAST_RESUMING if on else 0
        self._set_fast(self._rules)

    def _set_fast(self, rules: int) -> None:
        self._rules = rules
        self._set(_FAST_RULES, rules | self._resuming)

    def _set(self, which: int, value: int) -> None:
        packed = (number.to_bytes(4, sys.byteorder) for number in (which, value))
        _checked(self._lib.bpf_map_update_elem(self._settings, *packed, ctypes.c_uint64(0)), "a setting of the shim")

    def set_vlans(self, vlans: Set[int]) -> None:
        """Those that have a device of their own on the master, as for `Datapath.set_vlans`: their frames are left to it
        from now on."""
        for word in {vlan >> 6 for vlan in vlans ^ self._vlans}:
            bits = sum(1 << (vlan & 63) for vlan in vlans if vlan >> 6 == word)
            key, value = word.to_bytes(4, sys.byteorder), bits.to_bytes(8, sys.byteorder)
            _checked(
                self._lib.bpf_map_update_elem(self._vlan_words, key, value, ctypes.c_uint64(0)), "the BPF map of VLANs"
            )
        self._vlans = frozenset(vlans)

    def set_groups(self, groups: Set[bytes]) -> None:
        """Those (4 or 16 bytes) whose packets reach the data plane from now on in l3 and l3s."""
        for group in self._groups - groups:
            _checked(self._lib.bpf_map_delete_elem(self._switched, _keys([group])), "the BPF map of groups")
        for group in groups - self._groups:
            self._update(self._switched, _keys([group]), bytes(VALUE_SIZE), 1)
        self._groups = frozenset(groups)

    def add(self, addresses: Sequence[bytes], owner: int = 0) -> None:
        """Frames for these addresses (4 or 16 bytes, none of them there yet) are ports' from now on. `owner` as for
        `assign`. After an error some may be there: adding them again is no harm."""
        self.expect(len(addresses))
        self.assign(addresses, owner=owner, diverted=False)
        self._count += len(addresses)

    def assign(self, addresses: Sequence[bytes], *, owner: int, diverted: bool) -> None:
        """Whose these addresses, which must be there, are: the key of one of the `fast` ports, 0: another port's; and
        whether the host's own traffic to them is their port's too."""
        value = (owner << OWNER_SHIFT | (DIVERTED if diverted else 0)).to_bytes(VALUE_SIZE, sys.byteorder)
        self._update(self._addresses, _keys(addresses), value * len(addresses), len(addresses))

    def remove(self, addresses: Sequence[bytes]) -> None:
        """Frames for these addresses, which must be there, are the host's again."""
        keys, number = _keys(addresses), ctypes.c_uint32(len(addresses))
        if len(addresses) == 1 or self._lib.bpf_map_delete_batch(self._addresses, keys, ctypes.byref(number), None):
            for at in range(0, len(keys), KEY_SIZE):
                result = self._lib.bpf_map_delete_elem(self._addresses, keys[at : at + KEY_SIZE])
                if result != -errno.ENOENT:
                    _checked(result, "removing an address from the BPF map")
        self._count -= len(addresses)

    def _update(self, fd: int, keys: Bytes, values: Bytes, count: int) -> None:
        """Put so many keys with their values into a map."""
        if count == 1:
            result = self._lib.bpf_map_update_elem(fd, keys, values, ctypes.c_uint64(0))
        else:
            number = ctypes.c_uint32(count)
            result = self._lib.bpf_map_update_batch(fd, keys, values, ctypes.byref(number), None)
        _checked(result, "adding addresses to the BPF map")

    def expect(self, more: int) -> None:
        """So many addresses may be added: have room for them at once rather than bit by bit."""
        capacity = self._capacity
        while capacity < self._count + more:
            capacity *= 2
        if capacity > self._capacity:
            self._install(capacity)

    def _install(self, capacity: int) -> None:
        """Put a map of that capacity, with the same addresses, in the place of the one there is."""
        fd = _checked(
            self._lib.bpf_map_create(BPF_MAP_TYPE_HASH, b"addresses", KEY_SIZE, VALUE_SIZE, capacity, None),
            "creating a BPF map",
        )
        try:
            if self._count:
                self._copy(self._addresses, fd)
            first, value = (number.to_bytes(4, sys.byteorder) for number in (0, fd))
            _checked(self._lib.bpf_map_update_elem(self._owned, first, value, ctypes.c_uint64(0)), "the BPF maps")
        except BaseException:
            os.close(fd)
            raise
        old, self._addresses, self._capacity = self._addresses, fd, capacity
        if old >= 0:
            os.close(old)

    def _copy(self, source: int, into: int) -> None:
        """Every address from one map to another."""
        keys, values = (ctypes.create_string_buffer(COPY_BATCH * size) for size in (KEY_SIZE, VALUE_SIZE))
        place, number = ctypes.c_uint32(), ctypes.c_uint32()
        partial = False
        while True:
            number.value = COPY_BATCH
            result = self._lib.bpf_map_lookup_batch(
                source,
                ctypes.byref(place) if partial else None,
                ctypes.byref(place),
                keys,
                values,
                ctypes.byref(number),
                None,
            )
            if result != -errno.ENOENT:
                _checked(result, "reading the BPF map")
            if number.value:
                self._update(into, keys, values, number.value)
            if result:
                return
            partial = True

    def trace(self, frame: bytes, ifindex: int, gso_size: int, *, from_master: bool) -> FastVerdict | None:
        """What the kernel would do with a frame that came from this device of the thread's namespace, the master or a
        host end; None if it can't be asked, see `TracedPrograms.run`. Changes nothing. From one thread at a time."""
        if self._traced is None:
            maps = {name: self._lib.bpf_map__fd(self._map(name)) for name in _TRACED_MAPS}
            self._traced = TracedPrograms(self._lib, _OBJECT, maps)
        return self._traced.run(STEAL if from_master else PORT, frame, ifindex, gso_size)

    def close(self) -> None:
        """Give up this process's hold; what is still attached has no heartbeat any more. Idempotent."""
        if self._traced is not None:
            self._traced.close()
            self._traced = None
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self._addresses >= 0:
            os.close(self._addresses)
            self._addresses = -1
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = ctypes.c_void_p(None)
