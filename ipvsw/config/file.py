"""TOML -> model. Every error is one line that names its place in the file.

A file is read in two steps: first each value by itself, in file order; then the values
against each other (nothing may be named, claimed or owned twice). The first mistake is the one reported.
What the API accepts is read by the same functions, so that both have one set of rules.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from msgspec import structs

from ipvsw.config import keys, port_keys
from ipvsw.config.multicast import check_groups
from ipvsw.config.port_keys import DEVICES, SOCKETS
from ipvsw.config.values import MTU_MIN_IPV6, ConfigError, ifname_fault, join, quoted, read_list, read_table
from ipvsw.model import (
    FOLLOW,
    Config,
    DaemonConfig,
    Device,
    Export,
    Flag,
    Kind,
    MacSource,
    Mode,
    Persist,
    PortConfig,
    SwitchConfig,
)

__all__ = [
    "ATTACH",
    "ConfigError",
    "by_index",
    "check",
    "checked",
    "load",
    "parse",
    "place_by_descriptor",
    "read_attach",
    "read_contents",
    "read_document",
    "read_mode_change",
    "read_port_change",
    "with_defaults",
]

ATTACH = (*(key for key in keys.SWITCH if key.name == "master"), *port_keys.PORT, *keys.MODE)
"""What the API takes to attach a port."""

FILE_MAX = 64 << 20  # bytes: a million ports or addresses


def load(path: str | os.PathLike[str]) -> Config:
    """Read a configuration file. Errors: ConfigError, also when the file can't be read."""
    return parse(read_contents(path))


def read_contents(path: str | os.PathLike[str]) -> str:
    """Errors: ConfigError."""
    try:
        return _contents(path).decode()
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{os.fspath(path)}: not UTF-8 at byte {error.start}") from None
    except ValueError:
        raise ConfigError(f"{quoted(os.fspath(path))}: not a file name") from None


def _contents(path: str | os.PathLike[str]) -> bytes:
    """Never waits, and never for long: a FIFO has no end until its writer says so, /dev/zero has none at all.
    Errors: OSError, ConfigError, ValueError if no file can have that name."""
    # O_NONBLOCK: a FIFO without a writer must not hold us up.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"{os.fspath(path)}: not a regular file")
    with open(fd, "rb") as file:
        content = file.read(FILE_MAX + 1)
    if len(content) > FILE_MAX:
        raise ConfigError(f"{os.fspath(path)}: larger than {FILE_MAX >> 20} MiB")
    return content


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
    """A configuration from what a TOML parser gives. A port may have been read already. Errors: ConfigError."""
    found = read_table(document, "", {"daemon": _read_daemon, "switch": _read_switches})
    config = Config(daemon=found.get("daemon", DaemonConfig()), switches=found.get("switch", ()))
    _check_together(config, by_index, lambda place, key: f"{place}.{key}")
    return config


def read_attach(body: object) -> tuple[str, PortConfig, Mode | None, Flag | None]:
    """What the API is asked to attach: the keys of a port, and `master`, `mode`, `flag`. Errors: ConfigError."""
    found = read_table(body, "", keys.readers(ATTACH))
    master, mode, flag = (found.pop(key, None) for key in ("master", "mode", "flag"))
    if master is None:
        raise ConfigError("master: is missing")
    return master, _make_port(found, ""), mode, flag


def place_by_descriptor(port: PortConfig, netns: str) -> PortConfig:
    """The port in a namespace that came as a descriptor, with which it goes. Errors: ConfigError."""
    if port.netns:
        raise ConfigError("netns: the namespace came as a descriptor already")
    persist = Persist.NETNS if port.persist is Persist.ALWAYS else port.persist
    placed = structs.replace(port, netns=netns, persist=persist)
    _check_followed(placed, "")
    return placed


def read_mode_change(body: object) -> tuple[Mode | None, Flag | None]:
    """What the API is asked to change of a switch. Errors: ConfigError."""
    found = read_table(body, "", keys.readers(keys.MODE))
    if not found:
        raise ConfigError("mode or flag is missing")
    return found.get("mode"), found.get("flag")


def read_port_change(body: object, port: PortConfig) -> PortConfig:
    """The port as the API is asked to change it. Errors: ConfigError."""
    found = read_table(body, "", keys.readers(port_keys.CHANGE))
    if not found:
        raise ConfigError("mtu is missing")
    changed = structs.replace(port, **found)
    _check_mtu(changed, "")
    return changed


def check(config: Config) -> None:
    """What `read_document` checks across switches and ports, for a configuration that does not come from
    one file. Places are named as `lan` and `lan/ipvl0`. Errors: ConfigError."""

    def name(switch: int, port: int | None) -> str:
        one = config.switches[switch]
        return one.name if port is None else f"{one.name}/{one.ports[port].name}"

    _check_together(config, name, lambda place, _: f"{'port' if '/' in place else 'switch'} {place}")


def checked(switch: SwitchConfig) -> SwitchConfig:
    """The switch, if its keys go together. Errors: ConfigError."""
    _check_mode(switch, f"switch {switch.name}")
    return switch


def by_index(switch: int, port: int | None) -> str:
    """The place of a switch, or of a port, in the file."""
    return f"switch[{switch}]" if port is None else f"switch[{switch}].port[{port}]"


# ---------------------------------------------------------------------------- tables


def _read_daemon(value: object, place: str) -> DaemonConfig:
    return DaemonConfig(**read_table(value, place, keys.readers(keys.DAEMON)))


def _read_switches(value: object, place: str) -> tuple[SwitchConfig, ...]:
    if isinstance(value, Mapping):
        raise ConfigError(f"{place}: must be an array of tables, written [[{place}]], not a table")
    return read_list(value, place, _read_switch)


def _read_switch(value: object, place: str) -> SwitchConfig:
    found = read_table(value, place, keys.readers(keys.SWITCH) | {"port": _read_ports})
    if "master" not in found:
        raise ConfigError(f"{place}.master: is missing")
    found["ports"] = found.pop("port", ())
    return SwitchConfig(**({"name": found["master"]} | found))


def _read_ports(value: object, place: str) -> tuple[PortConfig, ...]:
    if isinstance(value, Mapping):
        raise ConfigError(f"{place}: must be an array of tables, written [[switch.port]], not a table")
    readers = keys.readers(port_keys.PORT)

    def read(item: object, at: str) -> PortConfig:
        return item if isinstance(item, PortConfig) else _make_port(read_table(item, at, readers), at)

    return read_list(value, place, read)


def _make_port(found: dict[str, Any], place: str) -> PortConfig:
    """A port from its values, which are checked against each other."""
    if "name" not in found:
        raise ConfigError(f"{join(place, 'name')}: is missing")
    is_socket = found.get("kind") in SOCKETS
    if not is_socket and "ifname" not in found and (fault := ifname_fault(found["name"])):
        at = join(place, "name")
        raise ConfigError(f"{at}: {quoted(found['name'])} {fault}; set ifname, or choose another name")
    port = with_defaults(found)
    _check_kind(port, found, place)
    _check_sockets(port, place)
    _check_gateways(port, place)
    _check_mtu(port, place)
    if port.index is not None and not port.netns:
        raise ConfigError(f"{join(place, 'index')}: is for a port in a namespace: set netns")
    if port.index is not None and port.device is Device.VETH:
        raise ConfigError(f"{join(place, 'index')}: is for a device that is a tap")
    return port


def _check_mtu(port: PortConfig, place: str) -> None:
    if port.mtu is not None and port.mtu < MTU_MIN_IPV6 and any(one.version == 6 for one in port.addresses):
        raise ConfigError(f"{join(place, 'mtu')}: {port.mtu} is less than {MTU_MIN_IPV6}, which IPv6 addresses need")


def with_defaults(found: dict[str, Any]) -> PortConfig:
    """A port of these values, `name` among them, with the defaults that follow from others."""
    mac = MacSource.MASTER if found.get("kind", Kind.NETNS) is Kind.NETNS else MacSource.OWN
    return PortConfig(**({"ifname": found["name"], "netns": "", "mac": mac} | found))


def _check_kind(port: PortConfig, found: Mapping[str, object], place: str) -> None:
    """Keys that ports of this kind do not have."""
    for key in port_keys.PORT:
        if key.name in found and port.kind not in key.kinds:
            kinds = " and ".join(key.kinds)
            raise ConfigError(f"{join(place, key.name)}: is for ports of kind {kinds}; this one is of kind {port.kind}")
    _check_followed(port, place)
    if "max_learned" in found and not port.learn:
        raise ConfigError(f"{join(place, 'max_learned')}: has no effect without learn = true")


def _check_followed(port: PortConfig, place: str) -> None:
    """A descriptor of the device tells where it is."""
    if port.netns.split(":")[0] == FOLLOW and (port.kind is not Kind.NETNS or port.device is Device.VETH):
        raise ConfigError(
            f"{join(place, 'netns')}: {FOLLOW}, or a descriptor, is for ports of kind netns with the device tap"
        )


def _check_sockets(port: PortConfig, place: str) -> None:
    """How both ends of a socket come together."""
    if port.path and port.connect:
        raise ConfigError(f"{join(place, 'connect')}: the daemon listens on path already; set one of them")
    for key, other in (("local", "remote"), ("remote", "local")):
        if getattr(port, key) and not getattr(port, other):
            raise ConfigError(f"{join(place, other)}: is missing; dgram needs both local and remote, or neither")
    if port.kind in SOCKETS and not (port.path or port.local):
        for key in ("owner", "group"):
            if getattr(port, key) is not None:
                raise ConfigError(f"{join(place, key)}: is for a socket that the daemon makes: set path or local")


def _check_gateways(port: PortConfig, place: str) -> None:
    if not port.gateway:
        return
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


# ---------------------------------------------------------------------------- across switches and ports


class _Claims:
    """Who uses what, to refuse what a second one wants too."""

    def __init__(self) -> None:
        self._owners: dict[tuple[Hashable, ...], str] = {}

    def add(self, scope: Hashable, value: Hashable, what: str, place: str, owner: str) -> None:
        """`value`, of which `scope` can have one alone. Errors: ConfigError."""
        if used_by := self._owners.get((scope, value)):
            raise ConfigError(f"{place}: {what} is already used by {used_by}")
        self._owners[scope, value] = owner


def _check_together(config: Config, name: Callable[[int, int | None], str], owner: Callable[[str, str], str]) -> None:
    """Nothing is used twice. `name` gives the place of a switch, or of a port, from its indexes; `owner` names the
    owner of a value from its place and key."""
    claims = _Claims()

    def claim(scope: Hashable, value: Hashable, noun: str, place: str, key: str) -> None:
        claims.add(scope, value, f"{noun} {quoted(str(value))}", f"{place}.{key}", owner(place, key))

    for s, switch in enumerate(config.switches):
        place = name(s, None)
        claim(("masters", _same_netns(switch.netns)), switch.master, "the interface", place, "master")
        claim((s, f"in {_same_netns(switch.netns)}"), switch.master, "the interface", place, "master")
        claim("switches", switch.name, "the name", place, "name")
        _check_mode(switch, place)
    for s, switch in enumerate(config.switches):
        doubled = _has_doubles(switch)
        for p, port in enumerate(switch.ports):
            place = name(s, p)
            claim(("ports", s), port.name, "the name", place, "name")
            if port.kind in DEVICES:
                claim(_room(port), port.ifname, "the interface name", place, "ifname")
                claim((s, _room(port)), port.ifname, "the interface name", place, "ifname")  # nor its own master's
            if port.dhcp and switch.mode is not Mode.L2:
                raise ConfigError(f"{place}.dhcp: needs mode l2; {switch.mode} passes no broadcast")
            for key in ("path", "connect", "local", "remote"):
                if path := getattr(port, key):
                    claim("paths", path, "the path", place, key)
            for a, interface in enumerate(port.addresses if doubled else ()):
                claim(("addresses", s), interface.ip, "the address", place, f"addresses[{a}]")


def _check_mode(switch: SwitchConfig, place: str) -> None:
    """Keys that switches of this mode do not have."""
    check_groups(switch, f"{place}.multicast")
    if switch.export is not Export.NONE and switch.mode is Mode.L2:
        raise ConfigError(f"{place}.export: {switch.export} needs mode l3 or l3s; hosts on the link find l2's by ARP")


def _has_doubles(switch: SwitchConfig) -> bool:
    """Whether an address stands twice. A hundred thousand are looked at as numbers first: to name the place of each
    takes a hundred times as long."""
    numbers = [(one.version, int(one)) for port in switch.ports for one in port.addresses]
    return len(set(numbers)) < len(numbers)


def _room(port: PortConfig) -> str:
    """Where its interface name must be the only one. Macvtaps without a namespace are by themselves."""
    return "macvtap" if port.kind is Kind.MACVTAP and not port.netns else f"in {_same_netns(port.netns)}"


def _same_netns(spec: str) -> str:
    """One spelling for `ns0`, `/run/netns/ns0` and `/var/run/netns/ns0`. What others are to move is made here."""
    return "" if spec == FOLLOW else re.sub(r"^(/var)?/run/netns/(?=[^/]+$)", "", spec)


def _syntax_error(message: str, text: str) -> str:
    """tomllib puts the place at the end of its message; we put it first."""
    if found := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL):
        what, line, column = found.groups()
    else:
        what = message.removesuffix(" (at end of document)")
        lines = text.split("\n")
        line, column = str(len(lines)), str(len(lines[-1]) + 1)
    return f"line {line}, column {column}: {' '.join(what.split())}"
