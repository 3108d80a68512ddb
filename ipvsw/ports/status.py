"""A port as the API shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ipvsw.model import Limit, MacSource, PortConfig
from ipvsw.ports.addressing import Addressing
from ipvsw.ports.backend import Backend, BackendPort
from ipvsw.status import AddressSource, AddressState, AddressStatus, PortState, PortStatus

LIMITS = ("rate", "packets", "broadcast", "max_addresses", "max_groups")
DEFAULTS = PortConfig(name="", ifname="", netns="")


class ShownPort(BackendPort, Protocol):
    state: PortState
    reason: str


def port_status(port: ShownPort, backend: Backend, addressing: Addressing) -> PortStatus:
    config, table, link = port.config, port.env.table, port.link
    mac = link.mac if link else b""
    if link and backend.serves_vm:
        mac = table.own_mac(config.name) or port.env.master.mac
    return PortStatus(
        name=config.name,
        ifname=link.name if link else config.ifname,
        netns=config.netns,
        device=backend.device,
        path=table.path(config.name) or backend.path,
        kind=backend.kind,
        state=port.state,
        reason=port.reason,
        index=link.index if link else 0,
        mac=mac.hex(":"),
        mac_source=config.mac if isinstance(config.mac, MacSource) else MacSource.OWN,
        mtu=link.mtu if link else 0,
        carrier=link.carrier if link else False,
        offloads=backend.offloads,
        addresses=(*table.statuses(config.name), *_tentative(port, addressing)),
        guards=table.guards(config.name),
        limits=_limits(config),
        label=config.label,
    )


def _tentative(port: ShownPort, addressing: Addressing) -> Iterator[AddressStatus]:
    for address in sorted(addressing.tentative(port.config), key=lambda one: (one.version, one)):
        yield AddressStatus(
            switch=port.env.switch,
            port=port.config.name,
            address=str(address),
            state=AddressState.TENTATIVE,
            source=AddressSource.DAD,
        )


def _limits(config: PortConfig) -> dict[str, str | int]:
    """Those that are not the default."""
    found = {key: getattr(config, key) for key in LIMITS}
    return {
        key: value.text if isinstance(value, Limit) else value
        for key, value in found.items()
        if value != getattr(DEFAULTS, key)
    }
