"""Model -> tables: what `file.read_document` reads as the same. What the keys' defaults say is left out."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct, structs

from ipvsw.config.file import with_defaults
from ipvsw.config.keys import DAEMON, SWITCH, Key
from ipvsw.config.port_keys import PORT
from ipvsw.model import Config, DaemonConfig, Kind, Mode, PortConfig, SwitchConfig


def document(config: Config, write_port: Callable[[PortConfig], object] | None = None) -> dict[str, Any]:
    """A whole configuration: words, numbers, lists and tables alone, but for what `write_port` gives for a port."""
    write = write_port or port_table
    switches = [switch_table(one) | {"port": [write(port) for port in one.ports]} for one in config.switches]
    return {"daemon": daemon_table(config.daemon), "switch": switches}


def daemon_table(daemon: DaemonConfig) -> dict[str, Any]:
    return _table(DAEMON, daemon, DaemonConfig())


def switch_table(switch: SwitchConfig) -> dict[str, Any]:
    """Without its ports. Groups that a switch does without since it was set to l2 would be a mistake in a file."""
    groups = () if switch.mode is Mode.L2 else switch.multicast
    return _table(SWITCH, structs.replace(switch, multicast=groups), SwitchConfig(name="", master=""))


def port_table(port: PortConfig) -> dict[str, Any]:
    like_it = with_defaults({"name": port.name, "kind": port.kind})
    required = {"name": port.name} | ({} if port.kind is Kind.NETNS else {"kind": str(port.kind)})
    return required | _table((key for key in PORT if port.kind in key.kinds), port, like_it)


def _table(keys: Iterable[Key], value: Struct, default: Struct) -> dict[str, Any]:
    """The keys whose value is not the default one."""
    found = {key.name: (getattr(value, key.name), getattr(default, key.name)) for key in keys}
    return {name: _plain(now) for name, (now, otherwise) in found.items() if now != otherwise}


def _plain(value: Any) -> Any:
    """A value as the key's reader takes it: words, numbers, lists."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum) or not isinstance(value, (bool, int, str)):
        return str(value)
    return value
