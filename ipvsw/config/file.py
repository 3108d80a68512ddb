"""TOML -> model. Every error is one line that names its place in the file.

A file is read in two steps: first each value by itself, in file order; then what the values are to
each other (nothing may be named, claimed or owned twice). The first mistake is the one reported.
What the API accepts is read by the same functions, so that both have one set of rules.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ipvsw.config.values import (
    MTU_MIN_IPV6,
    ConfigError,
    Reader,
    ifname_fault,
    join,
    quoted,
    read_addresses,
    read_allow,
    read_boolean,
    read_busy_poll,
    read_flag,
    read_gateways,
    read_host_access,
    read_ifname,
    read_io,
    read_kind,
    read_l3_output,
    read_list,
    read_mac_source,
    read_master,
    read_max_learned,
    read_mode,
    read_mtu,
    read_name,
    read_netns,
    read_queues,
    read_socket,
    read_table,
    read_who,
    read_workers,
)
from ipvsw.model import Address, Config, DaemonConfig, Flag, Kind, MacSource, Mode, PortConfig, SwitchConfig

__all__ = ["ConfigError", "check", "load", "parse", "read_attach", "read_document", "read_mode_change"]

Key = TypeVar("Key")


def load(path: str | os.PathLike[str]) -> Config:
    """Read a configuration file. Errors: ConfigError, also when the file can't be read."""
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{os.fspath(path)}: not UTF-8 at byte {error.start}") from None
    except ValueError:
        raise ConfigError(f"{quoted(os.fspath(path))}: not a file name") from None
    return parse(text)


def parse(text: str) -> Config:
    """Read a configuration from TOML text. Errors: ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_error(str(error), text)) from None
    except ValueError:
        raise ConfigError("the document: a number in it has too many digits") from None
    except RecursionError:
        raise ConfigError("the document: nested too deeply") from None
    return read_document(document)


def read_document(document: Mapping[str, object]) -> Config:
    """A configuration from what a TOML parser gives. Errors: ConfigError."""
    found = read_table(document, "", {"daemon": _read_daemon, "switch": _read_switches})
    config = Config(daemon=found.get("daemon", DaemonConfig()), switches=found.get("switch", ()))
    _check_together(config, lambda s, p: f"switch[{s}]" if p is None else f"switch[{s}].port[{p}]")
    return config


def read_attach(body: object) -> tuple[str, PortConfig, Mode | None, Flag | None]:
    """What the API is asked to attach: the keys of a port, and `master`, `mode`, `flag`. Errors: ConfigError."""
    found = read_table(body, "", _PORT | {"master": read_master, "mode": read_mode, "flag": read_flag})
    master, mode, flag = (found.pop(key, None) for key in ("master", "mode", "flag"))
    if master is None:
        raise ConfigError("master: is missing")
    return master, _make_port(found, ""), mode, flag


def read_mode_change(body: object) -> tuple[Mode | None, Flag | None]:
    """What the API is asked to change of a switch. Errors: ConfigError."""
    found = read_table(body, "", {"mode": read_mode, "flag": read_flag})
    if not found:
        raise ConfigError("mode: is missing, and so is flag")
    return found.get("mode"), found.get("flag")


def check(config: Config) -> None:
    """What `read_document` checks across switches and ports, for a configuration that was put together
    in other ways. Places are named as `lan` and `lan/ipvl0`. Errors: ConfigError."""

    def name(switch: int, port: int | None) -> str:
        one = config.switches[switch]
        return one.name if port is None else f"{one.name}/{one.ports[port].name}"

    _check_together(config, name)


# ---------------------------------------------------------------------------- tables


def _read_daemon(value: object, place: str) -> DaemonConfig:
    return DaemonConfig(**read_table(value, place, _DAEMON))


def _read_switches(value: object, place: str) -> tuple[SwitchConfig, ...]:
    if isinstance(value, Mapping):
        raise ConfigError(f"{place}: must be an array of tables, written [[{place}]], not a table")
    return read_list(value, place, _read_switch)


def _read_switch(value: object, place: str) -> SwitchConfig:
    found = read_table(value, place, _SWITCH)
    if "master" not in found:
        raise ConfigError(f"{place}.master: is missing")
    found["ports"] = found.pop("port", ())
    return SwitchConfig(**({"name": found["master"]} | found))


def _read_ports(value: object, place: str) -> tuple[PortConfig, ...]:
    if isinstance(value, Mapping):
        raise ConfigError(f"{place}: must be an array of tables, written [[switch.port]], not a table")
    return read_list(value, place, lambda item, at: _make_port(read_table(item, at, _PORT), at))


def _make_port(found: dict[str, Any], place: str) -> PortConfig:
    """A port from its values, after a look at what they are to each other."""
    if "name" not in found:
        raise ConfigError(f"{join(place, 'name')}: is missing")
    is_socket = found.get("kind") in (Kind.STREAM, Kind.DGRAM)
    if not is_socket and "ifname" not in found and (fault := ifname_fault(found["name"])):
        at = join(place, "name")
        raise ConfigError(f"{at}: {quoted(found['name'])} {fault}; set ifname, or choose another name")
    mac = MacSource.MASTER if found.get("kind", Kind.NETNS) is Kind.NETNS else MacSource.OWN
    port = PortConfig(**({"ifname": found["name"], "netns": "", "mac": mac} | found))
    _check_kind(port, found, place)
    _check_sockets(port, place)
    _check_gateways(port, place)
    if port.mtu is not None and port.mtu < MTU_MIN_IPV6 and any(one.version == 6 for one in port.addresses):
        raise ConfigError(f"{join(place, 'mtu')}: {port.mtu} is less than {MTU_MIN_IPV6}, which IPv6 addresses need")
    return port


def _check_kind(port: PortConfig, found: Mapping[str, object], place: str) -> None:
    """Keys that say nothing to a port of this kind."""
    for key, kinds in _KINDS.items():
        if key in found and port.kind not in kinds:
            raise ConfigError(f"{join(place, key)}: is for kind {' and '.join(kinds)}; this port's is {port.kind}")
    if "max_learned" in found and not port.learn:
        raise ConfigError(f"{join(place, 'max_learned')}: says nothing without learn = true")


def _check_sockets(port: PortConfig, place: str) -> None:
    """How both ends of a socket come together."""
    if port.path and port.connect:
        raise ConfigError(f"{join(place, 'connect')}: either the daemon listens or the machine does; there is a path")
    for key, other in (("local", "remote"), ("remote", "local")):
        if getattr(port, key) and not getattr(port, other):
            raise ConfigError(f"{join(place, other)}: is missing; datagrams need both, or neither")
    if port.kind in (Kind.STREAM, Kind.DGRAM) and not (port.path or port.local):
        for key in ("owner", "group"):
            if getattr(port, key) is not None:
                raise ConfigError(f"{join(place, key)}: is for a file that the daemon makes: set path or local")


def _check_gateways(port: PortConfig, place: str) -> None:
    own = {one.ip for one in port.addresses}
    families = {one.version for one in port.addresses}
    seen: dict[int, str] = {}
    for index, gateway in enumerate(port.gateway):
        at = f"{join(place, 'gateway')}[{index}]"
        if gateway.version in seen:
            raise ConfigError(
                f"{at}: {gateway} is a second IPv{gateway.version} gateway; the first is {seen[gateway.version]}"
            )
        if gateway.version not in families:
            raise ConfigError(f"{at}: {gateway} needs an IPv{gateway.version} address in addresses")
        if gateway in own:
            raise ConfigError(f"{at}: {gateway} is the port's own address")
        seen[gateway.version] = at


_DAEMON: dict[str, Reader] = {
    "socket": read_socket,
    "workers": read_workers,
    "io": read_io,
    "busy_poll": read_busy_poll,
    "coalesce": read_boolean,
    "allow": read_allow,
}
_PORT: dict[str, Reader] = {
    "name": read_name,
    "ifname": read_ifname,
    "netns": read_netns,
    "kind": read_kind,
    "mac": read_mac_source,
    "addresses": read_addresses,
    "gateway": read_gateways,
    "mtu": read_mtu,
    "queues": read_queues,
    "owner": read_who,
    "group": read_who,
    "allow": read_allow,
    "learn": read_boolean,
    "max_learned": read_max_learned,
    "path": read_socket,
    "connect": read_socket,
    "local": read_socket,
    "remote": read_socket,
}
_DEVICES = (Kind.NETNS, Kind.MACVTAP, Kind.TAP)
_MACHINES = (Kind.MACVTAP, Kind.TAP, Kind.STREAM, Kind.DGRAM)
_KINDS: dict[str, tuple[Kind, ...]] = {
    "gateway": (Kind.NETNS,),
    "queues": _DEVICES,
    "owner": (Kind.TAP, Kind.STREAM, Kind.DGRAM),
    "group": (Kind.TAP, Kind.STREAM, Kind.DGRAM),
    "allow": _MACHINES,
    "learn": _MACHINES,
    "max_learned": _MACHINES,
    "netns": _DEVICES,
    "ifname": _DEVICES,
    "path": (Kind.STREAM,),
    "connect": (Kind.STREAM,),
    "local": (Kind.DGRAM,),
    "remote": (Kind.DGRAM,),
}
_SWITCH: dict[str, Reader] = {
    "name": read_name,
    "master": read_master,
    "netns": read_netns,
    "mode": read_mode,
    "flag": read_flag,
    "l3_output": read_l3_output,
    "host_access": read_host_access,
    "port": _read_ports,
}


# ---------------------------------------------------------------------------- across switches and ports


def _check_together(config: Config, name: Callable[[int, int | None], str]) -> None:
    """Nothing twice. `name` gives the place of a switch, or of a port, from its indexes."""
    names: dict[str, str] = {}
    masters: dict[tuple[str, str], str] = {}
    for s, switch in enumerate(config.switches):
        place = name(s, None)
        _claim(masters, (f"in {_same_netns(switch.netns)}", switch.master), f"{place}.master", switch.master)
        _claim(names, switch.name, f"{place}.name", switch.name)
    devices = dict(masters)
    paths: dict[str, str] = {}
    for s, switch in enumerate(config.switches):
        ports: dict[str, str] = {}
        owners: dict[Address, str] = {}
        for p, port in enumerate(switch.ports):
            place = name(s, p)
            _claim(ports, port.name, f"{place}.name", port.name)
            if port.kind in _DEVICES:
                _claim(devices, (_room(port), port.ifname), f"{place}.ifname", port.ifname)
            for key in ("path", "connect", "local", "remote"):
                if path := getattr(port, key):
                    _claim(paths, path, f"{place}.{key}", path)
            for a, interface in enumerate(port.addresses):
                _claim(owners, interface.ip, f"{place}.addresses[{a}]", str(interface.ip))


def _claim(owners: dict[Key, str], key: Key, place: str, what: str) -> None:
    if key in owners:
        raise ConfigError(f"{place}: {quoted(what)} is taken by {owners[key]}")
    owners[key] = place


def _room(port: PortConfig) -> str:
    """Where its interface name must be the only one. Macvtaps without a namespace are by themselves."""
    return "macvtap" if port.kind is Kind.MACVTAP and not port.netns else f"in {_same_netns(port.netns)}"


def _same_netns(spec: str) -> str:
    """One spelling for `ns0`, `/run/netns/ns0` and `/var/run/netns/ns0`."""
    return re.sub(r"^(/var)?/run/netns/(?=[^/]+$)", "", spec)


def _syntax_error(message: str, text: str) -> str:
    """tomllib ends its message with the place; ours begin with it."""
    if found := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL):
        what, line, column = found.groups()
    else:
        what = message.removesuffix(" (at end of document)")
        lines = text.split("\n")
        line, column = str(len(lines)), str(len(lines[-1]) + 1)
    return f"line {line}, column {column}: {' '.join(what.split())}"
