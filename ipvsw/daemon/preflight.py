"""Checks what a configuration needs of this machine, before anything is changed. Reads only."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ipvsw._fast import uring_error
from ipvsw.config.file import by_index
from ipvsw.linux.devices.packet import claim_master
from ipvsw.linux.namespaces import open_namespace
from ipvsw.linux.netlink import Handle, Link, Netlink
from ipvsw.model import Config, Io, Refused, SwitchConfig


async def preflight(
    netlink: Netlink, config: Config, name: Callable[[int, int | None], str] = by_index, *, untaken: bool = False
) -> None:
    """`name` gives the place of a switch, or of a port, from its indexes; `untaken`: a master that is
    served already, be it by this process, is refused. Errors: Refused."""
    if config.daemon.io is Io.URING and (error := uring_error()):
        raise Refused(f"daemon.io: the kernel grants no io_uring: {os.strerror(error)}")
    for index, switch in enumerate(config.switches):
        place = name(index, None)
        link = None if _is_port(switch, config) else await _master(netlink, switch, place, untaken)
        if link is None:
            continue
        for number, port in enumerate(switch.ports):
            if port.mtu is not None and port.mtu > link.mtu:
                at = f"{name(index, number)}.mtu"
                raise Refused(f"{at}: {port.mtu} is larger than the master's {link.mtu}")


def _is_port(switch: SwitchConfig, config: Config) -> bool:
    """Whether the master is a port that another switch is going to make."""
    place = switch.netns, switch.master
    return any((port.netns, port.ifname) == place for other in config.switches for port in other.ports)


async def _master(netlink: Netlink, switch: SwitchConfig, place: str, untaken: bool) -> Link | None:
    """The master's link, None while its namespace does not exist."""
    try:
        fd = open_namespace(switch.netns)
        if fd is None:
            return None
        try:
            return await netlink.run(fd, lambda handle: _fit(handle, switch.master, place, untaken))
        finally:
            os.close(fd)
    except OSError as error:
        raise Refused(f"{place}.master: {error.strerror or error}") from None


def _fit(handle: Handle, name: str, place: str, untaken: bool) -> Link:
    link = handle.link(name)
    if link is None:
        raise Refused(f"{place}.master: {name} does not exist")
    if not link.ethernet:
        raise Refused(f"{place}.master: {name} is not an Ethernet device")
    if link.master and not _is_vrf(handle.link_at(link.master)):
        raise Refused(f"{place}.master: {name} is part of another device, such as a bridge or a bond")
    if untaken and _is_taken(link.index):
        raise Refused(f"{place}.master: {name} is already served by another ipvswd")
    return link


def _is_vrf(link: Link | None) -> bool:
    """A VRF takes no frames away from its members: it is a table for their routes."""
    return link is not None and link.kind == "vrf"


def _is_taken(index: int) -> bool:
    try:
        claim_master(index).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise
    return False
