"""Checks what a configuration needs of this machine, before anything is changed. Reads only."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial

from ipvsw._fast import uring_error
from ipvsw.config.file import by_index
from ipvsw.linux.devices.packet import claim_master
from ipvsw.linux.namespaces import open_namespace
from ipvsw.linux.netlink import Handle, Link, Netlink
from ipvsw.model import Config, Io, Refused, SwitchConfig
from ipvsw.switch.fitness import Unfit, fit_master

log = logging.getLogger("ipvsw")


async def preflight(
    netlink: Netlink,
    config: Config,
    name: Callable[[int, int | None], str] = by_index,
    *,
    running: Config | None = None,
    untaken: bool = False,
) -> None:
    """`name` gives the place of a switch, or of a port, from its indexes; what is in `running` is not looked at again;
    `untaken`: a master that is served already, be it by this process, is refused. Errors: Refused."""
    for problem in await _problems(netlink, config, name, running or Config(), untaken):
        raise problem


async def preflight_start(netlink: Netlink, config: Config, *, untaken: bool = True) -> None:
    """A switch that can't be served doesn't keep the others from starting: it waits for what it needs, and the log has
    the reason. Errors: Refused if none can be."""
    problems = await _problems(netlink, config, by_index, Config(), untaken)
    if problems and len(problems) == len(config.switches):
        raise problems[0]
    for problem in problems:
        log.warning("%s; the other switches start", problem)


async def _problems(
    netlink: Netlink, config: Config, name: Callable[[int, int | None], str], running: Config, untaken: bool
) -> list[Refused]:
    """One for each switch that has any. Errors: Refused for what concerns all."""
    if config.daemon.io is Io.URING and (error := uring_error()):
        raise Refused(f"daemon.io: the kernel grants no io_uring: {os.strerror(error)}")
    problems = []
    for index, switch in enumerate(config.switches):
        if _is_port(switch, config):
            continue
        try:
            await _check_switch(netlink, switch, partial(name, index), running, untaken)
        except Refused as problem:
            problems.append(problem)
    return problems


def _is_port(switch: SwitchConfig, config: Config) -> bool:
    """Whether the master is a port that another switch is going to make."""
    place = switch.netns, switch.master
    return any((port.netns, port.ifname) == place for other in config.switches for port in other.ports)


async def _check_switch(
    netlink: Netlink, switch: SwitchConfig, name: Callable[[int | None], str], running: Config, untaken: bool
) -> None:
    """Errors: Refused."""
    same = (one for one in running.switches if (one.netns, one.master) == (switch.netns, switch.master))
    was = next(same, None)
    try:
        link = await _master(netlink, switch, name(None), untaken)
    except Refused:
        if was is not None:
            return
        raise
    for number, port in enumerate(switch.ports):
        old = was is not None and port in was.ports
        if link is not None and port.mtu is not None and port.mtu > link.mtu and not old:
            raise Refused(f"{name(number)}.mtu: {port.mtu} is larger than the master's {link.mtu}")


async def _master(netlink: Netlink, switch: SwitchConfig, place: str, untaken: bool) -> Link | None:
    """The master's link, None while its namespace does not exist. Errors: Refused."""
    try:
        fd = open_namespace(switch.netns)
        if fd is None:
            return None
        try:
            return await netlink.run(fd, lambda handle: _fit(handle, switch.master, place, untaken))
        finally:
            os.close(fd)
    except Unfit as error:
        raise Refused(f"{place}.master: {error}") from None
    except OSError as error:
        raise Refused(f"{place}.master: {error.strerror or error}") from None


def _fit(handle: Handle, name: str, place: str, untaken: bool) -> Link:
    """Errors: Refused, Unfit, OSError."""
    link = fit_master(handle, name)
    if link is None:
        raise Refused(f"{place}.master: {name} does not exist")
    if untaken and _is_taken(link.index):
        raise Refused(f"{place}.master: {name} is already served by another ipvswd")
    return link


def _is_taken(index: int) -> bool:
    try:
        claim_master(index).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise
    return False
