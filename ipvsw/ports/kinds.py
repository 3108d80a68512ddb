"""Which backend a port of which kind has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ipvsw.linux.devices import macvtap, veth
from ipvsw.linux.namespaces import is_followed
from ipvsw.linux.netlink import KmodAttrs
from ipvsw.model import Device, Kind, PortConfig
from ipvsw.ports.backend import Backend, PortEnvironment
from ipvsw.ports.backends.dgram import DgramBackend
from ipvsw.ports.backends.following import FollowingBackend
from ipvsw.ports.backends.kmod import KmodBackend, KmodDevice
from ipvsw.ports.backends.macvtap import MacvtapBackend
from ipvsw.ports.backends.netns import NetnsBackend
from ipvsw.ports.backends.stream import StreamBackend
from ipvsw.ports.backends.tap import TapBackend
from ipvsw.ports.backends.veth import VethBackend
from ipvsw.ports.port import Port
from ipvsw.status import NO_VETH

_CONFIGURED: tuple[type[Backend], ...] = (NetnsBackend, MacvtapBackend, TapBackend, StreamBackend, DgramBackend)
BACKENDS: dict[Kind, type[Backend]] = {backend.kind: backend for backend in _CONFIGURED}


def configured_port(env: PortEnvironment, config: PortConfig, device: Device) -> Port:
    """The port of a configuration; `device` is a namespace's. Where the kernel has no macvtap, such a port is a
    persistent TAP."""
    kind = config.kind
    if kind is Kind.MACVTAP and not macvtap.supported():
        kind = Kind.TAP
    if is_followed(config.netns):
        return Port(env, config, FollowingBackend)
    if device is Device.VETH or (device is Device.AUTO and veth.supported()):
        return Port(env, config, VethBackend)
    if device is Device.AUTO:
        return Port(env, config, partial(NetnsBackend, path=NO_VETH))
    return Port(env, config, BACKENDS[kind])


def kmod_port(
    env: PortEnvironment, found: KmodDevice, lost: Callable[[Port], None], announced: Callable[[KmodAttrs], None]
) -> Port:
    """The port of a device that the kernel module has made; the callbacks are `KmodBackend`'s."""
    made: Port = Port(env, found.config, lambda port: KmodBackend(port, found, lambda: lost(made), announced))
    return made
