"""The TAP by which GSO frames of tunnels leave on the wire whole: no packet socket can be told what they are.

It stands beside the master. A BPF program redirects to the master what the daemon writes to it (`ipvsw_wire` in
kmod-shim/bpf/port.bpf.c). It outlives the daemon, so that the host sees no device come and go.
"""

from __future__ import annotations

import errno
import logging

from ipvsw.linux.devices.tap import MAX_MTU, Tap, adopt_tap, open_tap
from ipvsw.linux.netlink import Handle, Link

log = logging.getLogger("ipvsw")

PREFIX = "sg-"  # how its name begins


def open_tunnel_tap(handle: Handle, master: Link, program_fd: int, left: int | None) -> Tap | None:
    """In the master's namespace; `left` is the descriptor of the last daemon's, which is taken. None where the kernel
    has no such frames, before 6.17, or gives no such device: the data plane segments them then."""
    if left is not None:
        try:
            return _adopt(handle, master, program_fd, left)
        except OSError as error:
            log.warning("master %s: its TAP for tunnels can't be kept: %s", master.name, error.strerror or error)
    try:
        return _make(handle, master, program_fd)
    except OSError as error:
        log.warning("master %s: no TAP for tunnels: %s", master.name, error.strerror or error)
        return None


def _make(handle: Handle, master: Link, program_fd: int) -> Tap | None:
    tap = open_tap(tunnels=True)
    try:
        link = handle.link(tap.name)
        if link is not None and "tunnel" in tap.offloads:
            handle.disable_ipv6(tap.name)
            name = f"{PREFIX}{link.index}"
            handle.set_link(link.index, name=name, alias=_alias(master), mtu=MAX_MTU, noarp=True)
            handle.mute(link.index, program_fd)
            handle.set_link(link.index, up=True)
            return tap
    except OSError:
        tap.close()
        raise
    tap.close()
    return None


def _adopt(handle: Handle, master: Link, program_fd: int, fd: int) -> Tap:
    tap = adopt_tap([fd], tunnels=True)
    try:
        link = handle.link(tap.name)
        if link is None or handle.alias(link.index) != _alias(master) or "tunnel" not in tap.offloads:
            raise OSError(errno.ENODEV, "it is not as it was")
        handle.mute(link.index, program_fd)
        if not link.up:
            handle.set_link(link.index, up=True)
    except OSError:
        tap.close()
        raise
    return tap


def _alias(master: Link) -> str:
    return f"ipvsw {master.name} tunnels"
