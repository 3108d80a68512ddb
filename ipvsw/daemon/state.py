"""What one daemon tells the next, as JSON with a version, and what follows from it. Pure.

Two records: `Structure` changes when something is done, `Moving` with every frame. What of the structure is to outlive
an orderly stop, and the host, is a file too, and reads the same. Both are read by the next daemon,
which may be another release: fields that it doesn't know are ignored, those that are missing have a default, and a
newer version is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs

from ipvsw.config.file import check, read_document
from ipvsw.config.plan import same_port, same_switch, with_added, with_modes
from ipvsw.config.tables import document, port_table
from ipvsw.linux.fastports import FastCounts
from ipvsw.linux.namespaceref import is_of_process
from ipvsw.linux.namespaces import is_given
from ipvsw.model import Config, Kind, Persist, PortConfig, Refused, SwitchConfig
from ipvsw.ports.backend import Holding, Left, Settings, held_name
from ipvsw.snooping.saved import Snooped
from ipvsw.status import SwitchStats
from ipvsw.switch.held import COUNTS, TUNNELS, MasterLeft, frame_names
from ipvsw.switch.held import held_name as held_master_name
from ipvsw.switch.hostport import HostLeft

log = logging.getLogger("ipvsw")

# Of both records: one more when an older ipvswd would misread them. From 3 on, frames may wait in TAPs that can't be
# read with the short virtio_net_hdr: its reads would fail.
VERSION = 3
WITHOUT_DEVICES = 1  # the version of a structure that has no endpoints, such as the file's

NOTHING: Mapping[str, str] = MappingProxyType({})

T = TypeVar("T", bound="_Versioned")


class _Versioned(Struct, kw_only=True):
    version: int


class Endpoint(Struct, kw_only=True):
    """A port's endpoint as it was last; `port` is the table of its configuration."""

    port: Any
    kind: Kind
    mac: str
    mtu: int
    carrier: bool
    noarp: bool
    index: int
    place: tuple[int, int] | None
    fds: tuple[str, ...]


class MasterEndpoint(Struct, kw_only=True):
    """What was open on a master; see `MasterLeft`."""

    index: int
    place: tuple[int, int]
    sockets: int
    ring: tuple[int, int]
    starts: tuple[int, ...]
    groups: tuple[str, ...]
    host_index: int = 0  # 0: the host had no interface


class Structure(_Versioned):
    """The configuration that runs, the file's, by SWITCH/PORT the endpoints, the masters by switch, and what `birth_of`
    says of the namespaces of ports that were added at run time."""

    running: dict[str, Any] = {}
    filed: dict[str, Any] = {}
    endpoints: dict[str, Endpoint] = {}
    masters: dict[str, MasterEndpoint] = {}
    births: dict[str, str] = {}


class Moving(_Versioned):
    """What frames change, by switch: counters, and what was learned of virtual machines."""

    counters: dict[str, SwitchStats] = {}
    forwarded: dict[str, dict[str, FastCounts]] = {}  # besides, by the kernel: by port or "", the master
    snooped: dict[str, Snooped] = {}


class Inherited(Struct):
    """What is left by the last daemon, as far as the configuration still wants it."""

    config: Config  # with what was added and set at run time
    ports: dict[str, dict[str, Left]] = {}  # by switch and port
    masters: dict[str, MasterLeft] = {}  # by switch
    counters: dict[str, SwitchStats] = {}
    forwarded: dict[str, dict[str, FastCounts]] = {}
    snooped: dict[str, Snooped] = {}
    counts: dict[str, int] = {}  # the maps of what the kernel counts, by switch
    unwanted: dict[str, int] = {}  # held descriptors that nobody has a use for
    gone: tuple[SwitchConfig, ...] = ()  # switches that nobody wants any more, with what is to be undone of them
    gone_ports: tuple[tuple[str, PortConfig], ...] = ()  # and ports of other switches, whose devices would stay


# ---------------------------------------------------------------------------- writing


def encode(record: _Versioned) -> bytes:
    return msgspec.json.encode(record)


class PortTables:
    """The tables of ports as JSON, each made once for as long as a port is the same: everything is written at each
    change, and of a hundred thousand addresses few are new."""

    def __init__(self) -> None:
        self._last: dict[str, list[tuple[PortConfig, msgspec.Raw]]] = {}  # by the port's name
        self._now: dict[str, list[tuple[PortConfig, msgspec.Raw]]] = {}

    def renew(self) -> None:
        """What was not asked for since the last call is forgotten at the next one."""
        self._last, self._now = self._now, {}

    def write(self, port: PortConfig) -> msgspec.Raw:
        now = self._now.setdefault(port.name, [])
        known = (table for one, table in (*now, *self._last.get(port.name, ())) if one is port or one == port)
        table = next(known, None) or msgspec.Raw(msgspec.json.encode(port_table(port)))
        if not any(one is port for one, _ in now):
            now.append((port, table))
        return table


def describe(
    running: Config,
    filed: Config,
    endpoints: Mapping[str, Left],
    masters: Mapping[str, MasterLeft],
    tables: PortTables,
    births: Mapping[str, str] = NOTHING,
) -> Structure:
    """To be encoded: `tables`, which are kept from one call to the next, give a port's as it is written."""
    tables.renew()
    return Structure(
        version=VERSION if endpoints or masters else WITHOUT_DEVICES,
        running=document(running, tables.write),
        filed=document(filed, tables.write),
        endpoints={name: _endpoint(left, tables) for name, left in endpoints.items()},
        masters={name: _master(left) for name, left in masters.items()},
        births=dict(births),
    )


def lasting(running: Config, filed: Config) -> Config | None:
    """What of `running` is to be there again after an orderly stop; None if that is what `filed` says."""
    known = _names(filed)
    kept = tuple(
        structs.replace(switch, ports=ports)
        for switch in running.switches
        for ports in [tuple(each for each in switch.ports if _lasts(switch.name, each, known))]
        if ports or any(switch.name == one.name for one in filed.switches)
    )
    return None if kept == filed.switches else structs.replace(running, switches=kept)


def _lasts(switch: str, port: PortConfig, known: Container[tuple[str, str]]) -> bool:
    return port.persist is not Persist.NEVER or (switch, port.name) in known


def _names(config: Config) -> set[tuple[str, str]]:
    return {(switch.name, port.name) for switch in config.switches for port in switch.ports}


def _endpoint(left: Left, tables: PortTables) -> Endpoint:
    settings, holding = left.settings, left.holding
    return Endpoint(
        port=tables.write(settings.config),
        kind=left.kind,
        mac=settings.mac.hex(),
        mtu=settings.mtu,
        carrier=settings.carrier,
        noarp=settings.noarp,
        index=holding.index,
        place=holding.place,
        fds=tuple(holding.fds),
    )


def _master(left: MasterLeft) -> MasterEndpoint:
    return MasterEndpoint(
        index=left.index,
        place=left.place,
        sockets=len(left.frames),
        ring=left.ring,
        starts=left.starts,
        groups=tuple(sorted(group.hex() for group in left.groups)),
        host_index=left.host.index if left.host else 0,
    )


# ---------------------------------------------------------------------------- reading


def decode(content: bytes | None, kind: type[T], hint: str = "; remove it with --cleanup") -> T:
    """An empty record if there is none. `hint` ends what is said of one that can't be read. Errors: Refused."""
    if content is None:
        return kind(version=VERSION)
    try:
        version = msgspec.json.decode(content, type=_Versioned).version
        if version > VERSION:
            raise Refused(
                f"the ports were left by a newer ipvswd (state version {version}, this one reads {VERSION}): start that"
                f" one{hint}"
            )
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise Refused(f"what the last ipvswd has left can't be read: {error}{hint}") from None


def inherit(
    filed: Config,
    structure: Structure,
    moving: Moving,
    held: Mapping[str, int],
    birth_of: Callable[[str], str] = lambda netns: "",
) -> Inherited:
    """What the daemon with the configuration `filed` goes on with. `held` are the descriptors of ports and masters by
    name; `birth_of` tells what a namespace is now. Errors: Refused."""
    before = read_document(structure.filed)
    running = _collect(read_document(structure.running), before, structure.births, birth_of)
    wanted = _with_changes(before, running, filed)
    switches = {switch.name: switch for switch in running.switches}
    kept = {
        switch.name: switch
        for switch in wanted.switches
        if switch.name in switches and same_switch(switches[switch.name], switch)
    }
    gone = {name: list[PortConfig]() for name in (*structure.masters, *_switches_of(structure)) if name not in kept}
    inherited = Inherited(config=wanted, unwanted=dict(held))
    for name, endpoint in structure.endpoints.items():
        switch, _, port = name.partition("/")
        left = _left(switch, port, endpoint, held)
        if left is None:
            continue
        config = left.settings.config
        if switch in gone:
            gone[switch].append(config)
        elif not _is_wanted(switches[switch], config, kept[switch]):
            if left.kind is not Kind.TAP:  # the others go with their descriptors, veths with their switch's start
                continue
            inherited.gone_ports += ((switch, config),)
        inherited.ports.setdefault(switch, {})[port] = left
        for fd_name in (held_name(switch, port, word) for word in endpoint.fds):
            del inherited.unwanted[fd_name]
    inherited.gone = tuple(
        structs.replace(switches[name], ports=tuple(ports)) for name, ports in gone.items() if name in switches
    )
    for switch, master in structure.masters.items():
        names = frame_names(switch, master.sockets)
        if master.sockets == wanted.daemon.workers and all(name in held for name in names):
            host = inherited.unwanted.pop(held_master_name(switch, "host"), None) if master.host_index else None
            frames = [inherited.unwanted.pop(name) for name in names]
            tunnels = inherited.unwanted.pop(held_master_name(switch, TUNNELS), None)
            inherited.masters[switch] = _master_left(master, frames, host, tunnels)
    inherited.counters = {name: counted for name, counted in moving.counters.items() if name in kept}
    inherited.forwarded = {name: counted for name, counted in moving.forwarded.items() if name in kept}
    for switch in (*kept, *gone):
        if (counts := inherited.unwanted.pop(held_master_name(switch, COUNTS), None)) is not None:
            inherited.counts[switch] = counts
    inherited.snooped = {name: snooped for name, snooped in moving.snooped.items() if name in kept}
    return inherited


def _collect(running: Config, before: Config, births: Mapping[str, str], birth_of: Callable[[str], str]) -> Config:
    """Without the ports that were added at run time for a process that has ended, or as long as a namespace exists that
    is gone."""
    known = _names(before)

    def is_there(switch: str, port: PortConfig) -> bool:
        birth = births.get(f"{switch}/{port.name}", "")
        goes = port.persist is Persist.NETNS or is_given(port.netns)
        if (switch, port.name) in known or not (is_of_process(birth) or (birth and goes)):
            return True
        if birth == birth_of(port.netns):
            return True
        log.info("port %s/%s is not restored: its namespace %s is gone", switch, port.name, port.netns)
        return False

    return structs.replace(
        running,
        switches=tuple(
            structs.replace(switch, ports=tuple(port for port in switch.ports if is_there(switch.name, port)))
            for switch in running.switches
        ),
    )


def _with_changes(before: Config, running: Config, filed: Config) -> Config:
    wanted = with_modes(before, running, with_added(before, running, filed))
    try:
        check(wanted)
    except Refused as error:
        log.warning("ports that were added at run time are not restored: %s", error)
        return with_modes(before, running, filed)
    return wanted


def _switches_of(structure: Structure) -> Iterable[str]:
    """Those that had endpoints."""
    return (name.partition("/")[0] for name in structure.endpoints)


def _is_wanted(before: SwitchConfig, port: PortConfig, switch: SwitchConfig) -> bool:
    """Whether the switch goes on with this port of what it was `before`."""
    return any(each.name == port.name and same_port(before, port, switch, each) for each in switch.ports)


def _master_left(master: MasterEndpoint, frames: Sequence[int], host: int | None, tunnels: int | None) -> MasterLeft:
    groups = frozenset(map(bytes.fromhex, master.groups))
    left = None if host is None else HostLeft(host, master.host_index)
    return MasterLeft(master.index, master.place, tuple(frames), master.ring, master.starts, groups, left, tunnels)


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
