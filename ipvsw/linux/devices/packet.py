"""AF_PACKET sockets on the master and on virtual machines' TAPs. Call inside the device's namespace."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

BUFFER = 8 << 20  # bytes, each way
# A claim's protocol: below 0x0600, where an Ethernet header has a length, and of none that Linux has for its own use
# (linux/if_ether.h: up to 0x00FB).
CLAIM = 0x05D5
CLAIM_ATTEMPTS, CLAIM_PAUSE = 4, 0.03  # how often, and seconds at most between two
_BLOCK = 1 << 16  # bytes of a ring that the kernel allocates in one piece

# linux/if_packet.h, linux/if_ether.h
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_DROP_MEMBERSHIP = 1, 2
PACKET_RX_RING, PACKET_COPY_THRESH, PACKET_AUXDATA, PACKET_VERSION = 5, 7, 8, 10
PACKET_TX_RING, PACKET_VNET_HDR = 13, 15
PACKET_FANOUT, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING = 18, 20, 23
TPACKET_V2 = 1
PACKET_FANOUT_DATA = 22
PACKET_FANOUT_EBPF, PACKET_FANOUT_FLAG_UNIQUEID, PACKET_FANOUT_FLAG_IGNORE_OUTGOING = 7, 0x2000, 0x4000
PACKET_MR_MULTICAST = 0
TP_STATUS_USER = 1
ETH_P_ALL = 3

# asm-generic/socket.h
SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_MARK, SO_ATTACH_BPF = 26, 27, 32, 33, 36, 50

# struct sock_filter
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0 bytes
_RUNT = 13  # bytes: a frame that is too short for an Ethernet header is dropped, and counted
_CUT_TAGGED = (
    struct.pack("=HBBI", 0x20, 0, 0, 0xFFFFF000 + 48)  # BPF_LD | BPF_W | BPF_ABS, SKF_AD_VLAN_TAG_PRESENT
    + struct.pack("=HBBI", 0x15, 0, 1, 0)  # BPF_JMP | BPF_JEQ | BPF_K: if it is not 0, pass one over
    + struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)  # BPF_RET | BPF_K: everything
    + struct.pack("=HBBI", 0x06, 0, 0, _RUNT)
)


def open_master(
    index: int, workers: int, filter_fd: int, spread_fd: int, mark: int = 0, *, ring: tuple[int, int] | None = None
) -> list[socket.socket]:
    """Receiving and sending, one for each worker, with PACKET_VNET_HDR, PACKET_AUXDATA,
    PACKET_IGNORE_OUTGOING and the BPF program `filter_fd` as filter (-1: none); above one the program
    `spread_fd` says whose a frame is (PACKET_FANOUT_EBPF). What they send is marked. `ring`: received
    frames are in a ring of so many slots with so many bytes, if the kernel has the memory for it; what is
    too long for a slot is in the socket's queue. Non-blocking. Errors: OSError."""
    with contextlib.ExitStack() as undo:
        sockets = []
        fanout = 0
        for _ in range(workers):
            sock = undo.enter_context(_open())
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            if ring is not None:
                sock.setsockopt(SOL_PACKET, PACKET_COPY_THRESH, 1)  # queue what is cut for its slot (tpacket_rcv)
                _set_ring(sock, PACKET_RX_RING, *ring)
            # A socket can join the others only when it hears the device already: until then nothing
            # may be queued, least of all what another worker has as well.
            _set_filter(sock, _DROP_ALL)
            sock.bind((socket.if_indextoname(index), ETH_P_ALL))
            if workers > 1:
                fanout = _join(sock, fanout, spread_fd)
            sockets.append(sock)
        for sock in sockets:
            if filter_fd >= 0:
                sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, filter_fd)
            else:
                sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        undo.pop_all()
        return sockets


def adopt_master(fds: Sequence[int], name: str, spread_fd: int) -> list[socket.socket]:
    """Those that another process has made by `open_master`, in the namespace that they are in; `name` is the device's.
    Their filter stays until `set_filter`. Takes the descriptors. Errors: OSError; they are closed then."""
    with contextlib.ExitStack() as undo:
        sockets = [undo.enter_context(socket.socket(fileno=fd)) for fd in fds]
        for sock in sockets:
            sock.setblocking(False)
            if bound_to(sock) != name:
                raise OSError(errno.ENODEV, f"its sockets are not on {name}")
        if len(sockets) > 1:
            sockets[0].setsockopt(SOL_PACKET, PACKET_FANOUT_DATA, spread_fd)
        undo.pop_all()
        return sockets


def set_filter(sock: socket.socket, filter_fd: int) -> None:
    """Another BPF program in the place of the one that it has. Errors: OSError."""
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, filter_fd)


def find_start(sock: socket.socket, slots: int, size: int) -> int | None:
    """Of a receive ring whose reader was killed: the first of the slots that have a frame. None if that can't be told:
    no frame waits, or every slot has one. Errors: OSError if there is no such ring."""
    with mmap.mmap(sock.fileno(), slots * size, prot=mmap.PROT_READ) as ring:
        states = [int.from_bytes(ring[at * size : at * size + 4], sys.byteorder) for at in range(slots)]  # tp_status
    taken = [state & TP_STATUS_USER for state in states]
    first = [at for at in range(slots) if taken[at] and not taken[at - 1]]
    return first[0] if len(first) == 1 else None


def open_senders(index: int, workers: int, mark: int, ring: tuple[int, int]) -> list[socket.socket]:
    """Sending only, from a ring of so many slots with so many bytes; one for each worker, or none if the kernel has no
    memory for them. What they send is marked. PACKET_VNET_HDR, non-blocking. Errors: OSError."""
    with contextlib.ExitStack() as undo:
        sockets = []
        for _ in range(workers):
            sock = undo.enter_context(_open())
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            if not _set_ring(sock, PACKET_TX_RING, *ring):
                return []
            sock.bind((socket.if_indextoname(index), 0))
            sockets.append(sock)
        undo.pop_all()
        return sockets


def open_inject(index: int, mark: int) -> socket.socket:
    """Sending only, every frame marked for the shim. PACKET_VNET_HDR, non-blocking. Errors: OSError."""
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(_open())
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        sock.bind((socket.if_indextoname(index), 0))
        undo.pop_all()
        return sock


def open_far_end(index: int) -> socket.socket:
    """The netdev end of a TAP that another process has open: read() and write() take a virtio_net_hdr and a frame, as
    on the TAP's own descriptor. Of tagged frames, which read() would give without their tag, only a runt comes.
    Non-blocking. Errors: OSError."""
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(_open())
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        _set_filter(sock, _CUT_TAGGED)
        sock.bind((socket.if_indextoname(index), ETH_P_ALL))
        undo.pop_all()
        return sock


def bound_to(sock: socket.socket) -> str:
    """The name of the device that it is bound to, "" if that is gone."""
    name: str = sock.getsockname()[0]
    return name


def set_groups(sock: socket.socket, index: int, add: Iterable[bytes], drop: Iterable[bytes]) -> None:
    """Have the master listen to group MACs (PACKET_ADD_MEMBERSHIP). Counted: as many drops as adds end
    it. Errors: OSError."""
    for option, groups in ((PACKET_ADD_MEMBERSHIP, add), (PACKET_DROP_MEMBERSHIP, drop)):
        for group in groups:
            # struct packet_mreq
            sock.setsockopt(SOL_PACKET, option, struct.pack("=iHH8s", index, PACKET_MR_MULTICAST, len(group), group))


def claim_master(index: int) -> socket.socket:
    """Hold the master for this process. Errors: OSError EADDRINUSE if another one has it.

    A packet socket is the claim, bound to the device with a protocol that no frame has. The kernel lets nobody make one
    who is not root in this network namespace (CAP_NET_RAW), so that no other user can be in the way; it shows them
    all in /proc/net/packet, whatever is mounted where, so that daemons in other mount namespaces or containers see
    it; and it takes the claim away with the process, however that ends. A name that can be bound by anybody (an
    abstract unix socket) lacks the first, a locked file the second, and something kept in the device (a tc filter)
    the third.

    Nothing of this is exclusive by itself. Each binds first and looks then, so that of two at least one sees the
    other; who sees another lets go and tries again after a while of its own.
    """
    for attempt in range(CLAIM_ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(0, CLAIM_PAUSE))
        claim = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            claim.bind((socket.if_indextoname(index), CLAIM))
            if _claims(index) == {os.fstat(claim.fileno()).st_ino}:
                return claim
        except BaseException:
            claim.close()
            raise
        claim.close()
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _claims(index: int) -> set[int]:
    """The inode numbers of all claims to a device."""
    # sk, references, type, protocol, interface, running, memory, user, inode: packet_seq_show()
    rows = [line.split() for line in Path("/proc/thread-self/net/packet").read_text().splitlines()[1:]]
    return {int(row[8]) for row in rows if (int(row[3], 16), int(row[4])) == (CLAIM, index)}


def _open() -> socket.socket:
    """One that hears nothing yet: protocol 0."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _set_ring(sock: socket.socket, which: int, slots: int, slot: int) -> bool:
    """False where the kernel has no memory for it. Errors: OSError."""
    sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
    # struct tpacket_req
    request = struct.pack("=IIII", _BLOCK, slots * slot // _BLOCK, slot, slots)
    try:
        sock.setsockopt(SOL_PACKET, which, request)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return False
    return True


def _set_filter(sock: socket.socket, program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: count, padding, pointer
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))


def _join(sock: socket.socket, fanout: int, spread_fd: int) -> int:
    """Share the frames with the sockets of `fanout` (0: a new one), by flow. Returns the fanout's id."""
    # The fanout listens in place of its sockets, and does not ask them what they ignore.
    how = PACKET_FANOUT_EBPF | PACKET_FANOUT_FLAG_IGNORE_OUTGOING | (0 if fanout else PACKET_FANOUT_FLAG_UNIQUEID)
    sock.setsockopt(SOL_PACKET, PACKET_FANOUT, fanout | how << 16)
    if not fanout:
        sock.setsockopt(SOL_PACKET, PACKET_FANOUT_DATA, spread_fd)
    return sock.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
