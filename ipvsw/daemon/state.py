"""What one daemon tells the next, as JSON with a version, and what follows from it. Pure.

Two records: `Structure` changes when something is done, `Moving` with every frame. Both are read by the next daemon,
which may be another release: fields that it doesn't know are ignored, those that are missing have a default, and a
newer version is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ipvsw.config.file import check, read_document
from ipvsw.config.plan import same_port, same_switch, with_added, with_modes
from ipvsw.config.tables import document, port_table
from ipvsw.model import Config, Kind, PortConfig, Refused, SwitchConfig, SwitchStats
from ipvsw.ports.backend import Holding, Left, Settings, held_name
from ipvsw.snooping.saved import Snooped

log = logging.getLogger("ipvsw")

VERSION = 1  # of both records: one more when an older ipvswd would misread them

T = TypeVar("T", bound="_Versioned")


class _Versioned(Struct, kw_only=True):
    version: int


class Endpoint(Struct, kw_only=True):
    """A port's endpoint as it was last; `port` is the table of its configuration."""

    port: dict[str, Any]
    kind: Kind
    mac: str
    mtu: int
    carrier: bool
    noarp: bool
    index: int
    place: tuple[int, int] | None
    fds: tuple[str, ...]


class Structure(_Versioned):
    """The configuration that runs, the file's, and the endpoints by SWITCH/PORT."""

    running: dict[str, Any] = {}
    filed: dict[str, Any] = {}
    endpoints: dict[str, Endpoint] = {}


class Moving(_Versioned):
    """What frames change, by switch: counters, and what was learned of virtual machines."""

    counters: dict[str, SwitchStats] = {}
    snooped: dict[str, Snooped] = {}


class Heritage(Struct):
    """What is left by the last daemon, as far as the configuration still wants it."""

    config: Config  # with what was added and set at run time
    ports: dict[str, dict[str, Left]] = {}  # by switch and port
    counters: dict[str, SwitchStats] = {}
    snooped: dict[str, Snooped] = {}
    unwanted: dict[str, int] = {}  # held descriptors that nobody has a use for


# ---------------------------------------------------------------------------- writing


def encode(record: _Versioned) -> bytes:
    return msgspec.json.encode(record)


def describe(running: Config, filed: Config, endpoints: Mapping[str, Left]) -> Structure:
    return Structure(
        version=VERSION,
        running=document(running),
        filed=document(filed),
        endpoints={name: _endpoint(left) for name, left in endpoints.items()},
    )


def _endpoint(left: Left) -> Endpoint:
    settings, holding = left.settings, left.holding
    return Endpoint(
        port=port_table(settings.config),
        kind=left.kind,
        mac=settings.mac.hex(),
        mtu=settings.mtu,
        carrier=settings.carrier,
        noarp=settings.noarp,
        index=holding.index,
        place=holding.place,
        fds=tuple(holding.fds),
    )


# ---------------------------------------------------------------------------- reading


def decode(content: bytes | None, kind: type[T]) -> T:
    """An empty record if there is none. Errors: Refused."""
    if content is None:
        return kind(version=VERSION)
    try:
        version = msgspec.json.decode(content, type=_Versioned).version
        if version > VERSION:
            raise Refused(
                f"the running ports were left by a newer ipvswd (state version {version}, this one reads {VERSION}):"
                " start that one, or remove them with --cleanup"
            )
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise Refused(f"what the last ipvswd has left can't be read: {error}; remove it with --cleanup") from None


def inherit(filed: Config, structure: Structure, moving: Moving, held: Mapping[str, int]) -> Heritage:
    """What the daemon with the configuration `filed` goes on with. `held` are the ports' descriptors by name. Errors:
    Refused."""
    before, running = read_document(structure.filed), read_document(structure.running)
    wanted = _with_changes(before, running, filed)
    switches = {switch.name: switch for switch in running.switches}
    kept = {
        switch.name: switch
        for switch in wanted.switches
        if switch.name in switches and same_switch(switches[switch.name], switch)
    }
    heritage = Heritage(config=wanted, unwanted=dict(held))
    for name, endpoint in structure.endpoints.items():
        switch, _, port = name.partition("/")
        left = _left(switch, port, endpoint, held)
        if left is not None and switch in kept and _is_wanted(left.settings.config, kept[switch]):
            heritage.ports.setdefault(switch, {})[port] = left
            for fd_name in (held_name(switch, port, word) for word in endpoint.fds):
                del heritage.unwanted[fd_name]
    heritage.counters = {name: counted for name, counted in moving.counters.items() if name in kept}
    heritage.snooped = {name: snooped for name, snooped in moving.snooped.items() if name in kept}
    return heritage


def _with_changes(before: Config, running: Config, filed: Config) -> Config:
    wanted = with_modes(before, running, with_added(before, running, filed))
    try:
        check(wanted)
    except Refused as error:
        log.warning("ports that were added at run time are not restored: %s", error)
        return with_modes(before, running, filed)
    return wanted


def _is_wanted(port: PortConfig, switch: SwitchConfig) -> bool:
    return any(each.name == port.name and same_port(port, each) for each in switch.ports)


def _left(switch: str, port: str, endpoint: Endpoint, held: Mapping[str, int]) -> Left | None:
    """None if a descriptor is missing."""
    names = {word: held_name(switch, port, word) for word in endpoint.fds}
    if any(name not in held for name in names.values()):
        return None
    document = {"switch": [{"name": switch, "master": "-", "port": [endpoint.port]}]}
    config = read_document(document).switches[0].ports[0]
    settings = Settings(config, bytes.fromhex(endpoint.mac), endpoint.mtu, endpoint.carrier, endpoint.noarp)
    fds = {word: held[name] for word, name in names.items()}
    return Left(endpoint.kind, settings, Holding(fds, endpoint.index, endpoint.place))
