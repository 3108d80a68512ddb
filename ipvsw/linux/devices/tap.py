"""TAP devices: the port's fd stays here, the netdev goes into a namespace.

A TAP that is opened inside a namespace keeps that namespace alive for as long as the fd is open; one
that is made here and moved there does not, and its fd says EBADFD and EPOLLERR when the namespace dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from pytun import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TunTapDevice

VNET_HEADER = 10  # bytes: struct virtio_net_hdr, without num_buffers
LONG_HEADER = 24  # bytes: struct virtio_net_hdr_v1_hash_tunnel

# How many frames wait in each queue of a TAP that we read: those of two seconds, at 2,000 a second, in which one daemon
# follows another. The kernel's own 1,000 are those of half a second. A place for a frame takes 8 bytes.
QUEUE = 4096

MAX_MTU = 65535 - 14  # bytes without the Ethernet header: what a TAP can have (tun_net_init in drivers/net/tun.c)

# linux/if_tun.h
TUNSETOWNER, TUNSETGROUP = 0x400454CC, 0x400454CE
TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETCARRIER, TUNGETDEVNETNS = 0x400454D0, 0x400454D8, 0x400454E2, 0x54E3
TUNSETSTEERINGEBPF, TUNSETFILTEREBPF, TUNGETIFF = 0x800454E0, 0x800454E1, 0x800454D2
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
TUN_F_UDP_TUNNEL_GSO, TUN_F_UDP_TUNNEL_GSO_CSUM = 0x80, 0x100  # from 6.17, with the long header alone

IFF_MULTI_QUEUE = 0x0100
_FLAGS = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR

_NAMES = {
    TUN_F_CSUM: "csum",
    TUN_F_TSO4: "tso4",
    TUN_F_TSO6: "tso6",
    TUN_F_USO4: "uso4",
    TUN_F_USO6: "uso6",
    TUN_F_UDP_TUNNEL_GSO: "tunnel",
}

# From all to nothing. A kernel refuses the whole set for one that it doesn't know (set_offload in
# tun.c), takes USO for both families or for none (from 6.2), and segmentation with checksums only.
_OFFLOADS = (
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6,
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN,
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6,
    TUN_F_CSUM,
    0,
)


class Tap:
    """A TAP with a virtio_net_hdr and every offload that the kernel grants.

    The header has LONG_HEADER bytes with the offload "tunnel", which is asked for only with `tunnels`; else 10.
    `fd` is non-blocking, and so are `extra_fds`, those of its other queues; `name` is the one the device was made with;
    `offloads` are those of "csum", "tso4", "tso6", "uso4", "uso6", "tunnel" that frames may come with on the fds.
    """

    __slots__ = ("extra_fds", "fd", "name", "offloads")

    fd: int
    extra_fds: tuple[int, ...]
    name: str
    offloads: tuple[str, ...]

    def __init__(self, name: str, fds: Sequence[int], *, tunnels: bool = False) -> None:
        """Takes the descriptors. Errors: OSError; they are closed then."""
        self.fd, *others = fds
        self.extra_fds = tuple(others)
        self.name = name
        try:
            for fd in fds:
                os.set_inheritable(fd, False)
                os.set_blocking(fd, False)
            self.offloads = prepare(self.fd, tunnels=tunnels)
        except OSError:
            self.close()
            raise

    def spread(self, program_fd: int) -> None:
        """A BPF program says which queue a frame is for, modulo how many there are. Errors: OSError."""
        fcntl.ioctl(self.fd, TUNSETSTEERINGEBPF, struct.pack("=i", program_fd))

    def filter(self, program_fd: int) -> None:
        """A BPF program says how much of each frame is read, 0: it is dropped; -1: none. Errors: OSError."""
        fcntl.ioctl(self.fd, TUNSETFILTEREBPF, struct.pack("=i", program_fd))

    def set_carrier(self, on: bool) -> None:
        """Errors: OSError EBADFD if the device's namespace is gone."""
        fcntl.ioctl(self.fd, TUNSETCARRIER, struct.pack("=i", on))

    def open_namespace(self) -> int:
        """An fd of the namespace that the device is in now (TUNGETDEVNETNS). The caller closes it.
        Errors: OSError EBADFD if that namespace is gone."""
        return fcntl.ioctl(self.fd, TUNGETDEVNETNS)

    def current_name(self) -> str:
        """That of the device now (TUNGETIFF). Errors: OSError EBADFD if its namespace is gone."""
        return _name_and_flags(self.fd)[0]

    def close(self) -> None:
        """The device goes with it, which takes the kernel some 16 ms. Idempotent."""
        fds, self.fd, self.extra_fds = (self.fd, *self.extra_fds), -1, ()
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def open_tap(queues: int = 1, *, tunnels: bool = False) -> Tap:
    """Create one in the caller's namespace under a name of the kernel's choosing. Errors: OSError."""
    name, fds = "", []
    with contextlib.ExitStack() as undo:
        for _ in range(queues):
            with contextlib.closing(_open_shared(name, queues)) as device:
                name = device.name
                fds.append(os.dup(device.fileno()))
            undo.callback(os.close, fds[-1])
        undo.pop_all()
    return Tap(name, fds, tunnels=tunnels)


def adopt_tap(fds: Sequence[int], *, tunnels: bool = False) -> Tap:
    """One that another process has made, of which these are all the queues. Takes the descriptors. Errors: OSError if
    they aren't of one such TAP; they are closed then."""
    try:
        found = {_name_and_flags(fd) for fd in fds}
        several = IFF_MULTI_QUEUE if len(fds) > 1 else 0
        (name, flags), *others = found
        if others or flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE) != _FLAGS | several:
            raise OSError(errno.EINVAL, "the descriptors are not those of one TAP")
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return Tap(name, fds, tunnels=tunnels)


def _name_and_flags(fd: int) -> tuple[str, int]:
    # struct ifreq: the name, then here its flags
    name, flags = struct.unpack_from("=16sH", fcntl.ioctl(fd, TUNGETIFF, bytes(40)))
    return os.fsdecode(name.rstrip(b"\0")), flags


def create_persistent_tap(name: str, *, owner: int | None, group: int | None, queues: int) -> None:
    """A TAP in the caller's namespace for another process to open, which stays when none has it open. An existing one
    must have the same number of queues. Errors: OSError, EBUSY if a process has it open."""
    with contextlib.closing(_open_shared(name, queues)) as device:
        for request, wanted in ((TUNSETOWNER, owner), (TUNSETGROUP, group)):
            if wanted is not None:
                fcntl.ioctl(device.fileno(), request, *struct.unpack("=i", struct.pack("=I", wanted)))
        device.persist(True)


def open_persistent_tap(name: str, queues: int) -> list[int]:
    """Blocking descriptors of such a TAP, one for each queue. The caller, inside its namespace, closes them.
    Errors: OSError, EBUSY if a process has it open."""
    with contextlib.ExitStack() as undo:
        fds = []
        for _ in range(queues):
            with contextlib.closing(_open_shared(name, queues)) as device:
                fds.append(os.dup(device.fileno()))
            undo.callback(os.close, fds[-1])
        undo.pop_all()
        return fds


def _open_shared(name: str, queues: int) -> TunTapDevice:
    several = IFF_MULTI_QUEUE if queues > 1 else 0
    try:
        return TunTapDevice(name=name, flags=_FLAGS | several)
    except OSError:
        raise
    except Exception as error:  # pytun's own, with errno and text as its arguments
        raise OSError(*error.args) from error


def prepare(fd: int, *, tunnels: bool = False) -> tuple[str, ...]:
    """Have a TAP speak with a virtio_net_hdr, and with all offloads that it grants: their names, see `Tap`.
    Errors: OSError."""
    if tunnels:
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", LONG_HEADER))
        offloads = _OFFLOADS[0] | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
            return _named(offloads)
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER))
    for offloads in _OFFLOADS:
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
            return _named(offloads)
    raise OSError(errno.EINVAL, "the kernel takes no set of TAP offloads, not even none")


def _named(offloads: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _NAMES.items() if offloads & bit)
