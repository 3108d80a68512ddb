"""The event socket, and the one thread that enters namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ipvsw.linux.netlink.device import RTPROT_STATIC
from ipvsw.linux.netlink.handle import Handle
from ipvsw.linux.netlink.messages import (
    RTM_DELNSID,
    RTM_DELQDISC,
    RTM_DELROUTE,
    RTM_DELTFILTER,
    RTM_NEWMULTICAST,
    RTM_NEWROUTE,
    Event,
    Overrun,
    read_events,
)

T = TypeVar("T")

DISCARDED = 1 << 18  # events at most: more than the socket has room for

CLONE_NEWNET = 0x40000000
SO_RCVBUFFORCE = 33
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_LISTEN_ALL_NSID = 1, 8

# linux/rtnetlink.h, enum rtnetlink_groups
RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_NSID = 1, 5, 9, 28
RTNLGRP_TC, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE = 4, 7, 11
RTNLGRP_IPV4_MCADDR, RTNLGRP_IPV6_MCADDR = 37, 38
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
NLMSG_HDRLEN = 16  # linux/netlink.h
LOAD_BYTE, IF_EQUAL, IF_GREATER, IF_AT_LEAST, RETURN = 0x30, 0x15, 0x25, 0x35, 0x06  # linux/bpf_common.h

EVENT_BUFFER = 16 << 20  # bytes: some ten thousand messages, which wait while the loop is busy
GC_INTERVAL = 128  # works with pyroute2 between two collections of the garbage that it leaves
DATAGRAM = 64 << 10  # bytes, far above a link with all its attributes

_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespace(fd: int) -> None:
    """Move the calling thread into a network namespace. Errors: OSError."""
    if _libc.setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter the network namespace: {os.strerror(code)}")


class Netlink:
    """The daemon's rtnetlink: one event socket and one thread that enters namespaces.

    Made in the daemon's own namespace. The event socket is non-blocking; the caller watches `fileno()`.
    """

    def __init__(self) -> None:
        self._events = _open_events()
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._stay = contextlib.ExitStack()  # what stays open in the own namespace
        self._at_home: Handle | None = None
        self._closing = False
        self._works = 0
        self._thread = ThreadPoolExecutor(1, "netlink")

    def fileno(self) -> int:
        return self._events.fileno()

    def events(self) -> Iterator[Event]:
        """What has happened since the last call, until the socket is empty."""
        while True:
            try:
                data, control, _, _ = self._events.recvmsg(DATAGRAM, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._discard_events()
                yield Overrun()
                continue
            yield from read_events(data, _nsid(control))

    def _discard_events(self) -> None:
        """After an overrun, when all is read anew anyway: the kernel tells of no other one, and drops what comes, until
        the socket is empty (NETLINK_S_CONGESTED in net/netlink/af_netlink.c)."""
        for _ in range(DISCARDED):
            try:
                self._events.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # one more
                    raise

    async def run(self, netns_fd: int | None, work: Callable[[Handle], T]) -> T:
        """Call `work` in the namespace `netns_fd` (None: the daemon's own), on the thread.

        Works are done one at a time, in the order in which they were asked for. `netns_fd` may be
        closed as soon as this coroutine waits; it has a copy. A work that is cancelled before its
        turn is never started. Errors: OSError, and what `work` raises.
        """
        if netns_fd is None or self._is_home(netns_fd):
            return await asyncio.wrap_future(self._thread.submit(self._work_at_home, work))
        fd = os.dup(netns_fd)
        try:
            future = self._thread.submit(self._work_within, fd, work)
        except RuntimeError:
            os.close(fd)
            raise
        future.add_done_callback(lambda done: _close_if_cancelled(done, fd))
        return await asyncio.wrap_future(future)

    def _is_home(self, netns_fd: int) -> bool:
        """Masters mostly are: nothing has to be opened there for each work."""
        return os.path.samestat(os.fstat(netns_fd), os.fstat(self._home))

    def _work_at_home(self, work: Callable[[Handle], T]) -> T:
        """The daemon's own namespace lives as long as we do, so a handle may stay there."""
        self._refuse_when_closing()
        if self._at_home is None:
            self._at_home = self._stay.enter_context(Handle.opened())
        try:
            return work(self._at_home)
        finally:
            self._clean_up(self._at_home)

    def _work_within(self, fd: int, work: Callable[[Handle], T]) -> T:
        try:
            self._refuse_when_closing()
            enter_namespace(fd)
        finally:
            os.close(fd)
        try:
            with Handle.opened() as handle:
                try:
                    return work(handle)
                finally:
                    self._clean_up(handle)
        finally:
            enter_namespace(self._home)

    def _clean_up(self, handle: Handle) -> None:
        """pyroute2 keeps something of every request, and leaves a thousand objects in cycles when it is closed, an
        event loop among them. To collect them takes longer than all else that a work does, where ports are many."""
        self._works += handle.has_used_pyroute2
        if self._works >= GC_INTERVAL:
            self._works = 0
            self._stay.close()
            self._at_home = None
            gc.collect()

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise asyncio.CancelledError

    def close(self) -> None:
        """Finish the work that is under way, drop what waits. Idempotent."""
        self._closing = True
        with contextlib.suppress(RuntimeError):  # closed already
            self._thread.submit(self._stay.close)  # where it was opened
        self._thread.shutdown()
        self._events.close()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1


def _open_events() -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        events.bind((0, 0))
        events.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, EVENT_BUFFER)
        events.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
        _pass_few(events)
        for group in (
            RTNLGRP_NSID,
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_TC,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_ROUTE,
        ):
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        for group in (RTNLGRP_IPV4_MCADDR, RTNLGRP_IPV6_MCADDR):
            with contextlib.suppress(OSError):  # EINVAL: an older kernel without such events
                events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        events.close()
        raise
    return events


def announces_groups() -> bool:
    """Whether the kernel tells when a device joins or leaves a multicast group (from Linux 6.14)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events:
        try:
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_IPV4_MCADDR)
        except OSError:
            return False
    return True


def _pass_few(events: socket.socket) -> None:
    """Of routes and traffic control the kernel gives us only what `RemovalEvent` tells: a router's table, of which
    every change would be announced, must not fill the buffer. What the daemon sets for ports is static."""
    low = 4 if sys.byteorder == "little" else 5  # of nlmsg_type: all types of rtnetlink are below 256
    program = [  # struct sock_filter: code, where to go if true and if false (after the next one), operand
        (LOAD_BYTE, 0, 0, low),
        (IF_GREATER, 0, 10, RTM_NEWROUTE - 1),  # links and addresses are below: pass
        (IF_EQUAL, 4, 0, RTM_DELROUTE),
        (IF_EQUAL, 8, 0, RTM_DELQDISC),
        (IF_EQUAL, 7, 0, RTM_DELTFILTER),
        (IF_AT_LEAST, 0, 5, RTM_NEWMULTICAST),
        (IF_GREATER, 4, 5, RTM_DELNSID),  # groups and namespaces are in between: pass; chains of filters are above
        (LOAD_BYTE, 0, 0, NLMSG_HDRLEN + 1),  # rtm_dst_len, which is 0 of a default route
        (IF_EQUAL, 3, 0, 0),
        (LOAD_BYTE, 0, 0, NLMSG_HDRLEN + 5),  # rtm_protocol
        (IF_EQUAL, 1, 0, RTPROT_STATIC),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, 0xFFFFFFFF),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    events.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)))


def _nsid(control: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in control:
        if (level, kind) == (SOL_NETLINK, NETLINK_LISTEN_ALL_NSID):
            return int(struct.unpack("=i", data)[0])
    return None


def _close_if_cancelled(future: Future[T], fd: int) -> None:
    if future.cancelled():
        os.close(fd)
