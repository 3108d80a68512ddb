"""From one configuration to another: named actions in the order in which they can be carried out. Pure.

What gives something up (a master, an interface name) comes before what may want it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct, structs

from ipvsw.model import Config, DaemonConfig, PortConfig, SwitchConfig


class RemovePort(Struct, frozen=True):
    switch: str
    port: str

    def __str__(self) -> str:
        return f"remove port {self.switch}/{self.port}"


class RemoveSwitch(Struct, frozen=True):
    """With every port that it still has."""

    switch: str

    def __str__(self) -> str:
        return f"remove switch {self.switch}"


class SetMode(Struct, frozen=True):
    """Mode, flag and what goes with them; `switch` has no ports."""

    switch: SwitchConfig

    def __str__(self) -> str:
        new = self.switch
        return (
            f"set switch {new.name} to {new.mode} {new.flag}, l3_output {new.l3_output}, host_access {new.host_access}"
        )


class ChangePort(Struct, frozen=True):
    """Addresses, gateways, the MTU or who may have it, or what is learned differ: the port stays up."""

    switch: str
    old: PortConfig
    new: PortConfig

    def __str__(self) -> str:
        words = [
            *_moves("address", self.old.addresses, self.new.addresses),
            *_moves("gateway", self.old.gateway, self.new.gateway),
        ]
        if self.old.mtu != self.new.mtu:
            words.append(f"mtu {self.new.mtu or 'as the master'}")
        words += _moves("allow", self.old.allow, self.new.allow)
        if self.old.learn != self.new.learn:
            words.append(f"learn {'on' if self.new.learn else 'off'}")
        if self.old.max_learned != self.new.max_learned:
            words.append(f"max_learned {self.new.max_learned}")
        return f"change port {self.switch}/{self.new.name}: {', '.join(words)}"


class AddSwitch(Struct, frozen=True):
    """Without ports: they follow as actions of their own."""

    switch: SwitchConfig

    def __str__(self) -> str:
        where = f" in {self.switch.netns}" if self.switch.netns else ""
        return f"add switch {self.switch.name} on {self.switch.master}{where}, {self.switch.mode} {self.switch.flag}"


class AddPort(Struct, frozen=True):
    switch: str
    port: PortConfig

    def __str__(self) -> str:
        where = f" in {self.port.netns}" if self.port.netns else ""
        return f"add port {self.switch}/{self.port.name} as {self.port.ifname}{where}"


class Postpone(Struct, frozen=True):
    """A setting of the process itself: it takes effect when the daemon is started anew."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"daemon.{self.key} = {self.value} needs a restart"


Action = RemovePort | RemoveSwitch | SetMode | ChangePort | AddSwitch | AddPort | Postpone


def diff(current: Config, wanted: Config) -> tuple[Action, ...]:
    """What to do, in this order, so that `current` becomes `wanted`."""
    before = {switch.name: switch for switch in current.switches}
    after = {switch.name: switch for switch in wanted.switches}
    kept = [(before[name], new) for name, new in after.items() if name in before and _same_master(before[name], new)]
    stay = {new.name for _, new in kept}
    return (
        *(action for old, new in kept for action in _removals(old, new)),
        *(RemoveSwitch(name) for name in before if name not in stay),
        *(SetMode(_bare(new)) for old, new in kept if _bare(old) != _bare(new)),
        *(action for old, new in kept for action in _changes(old, new)),
        *(AddSwitch(_bare(new)) for name, new in after.items() if name not in stay),
        *(action for name, new in after.items() for action in _additions(before[name] if name in stay else None, new)),
        *_postponed(current.daemon, wanted.daemon),
    )


def _same_master(old: SwitchConfig, new: SwitchConfig) -> bool:
    return (old.master, old.netns) == (new.master, new.netns)


def _same_device(old: PortConfig, new: PortConfig) -> bool:
    keys = ("path", "connect", "local", "remote", "netns", "ifname", "kind", "mac", "queues", "owner", "group")
    return all(getattr(old, key) == getattr(new, key) for key in keys)


def _removals(old: SwitchConfig, new: SwitchConfig) -> Iterator[Action]:
    wanted = {port.name: port for port in new.ports}
    for port in old.ports:
        if port.name not in wanted or not _same_device(port, wanted[port.name]):
            yield RemovePort(old.name, port.name)


def _changes(old: SwitchConfig, new: SwitchConfig) -> Iterator[Action]:
    had = {port.name: port for port in old.ports}
    for port in new.ports:
        if port.name in had and had[port.name] != port and _same_device(had[port.name], port):
            yield ChangePort(new.name, had[port.name], port)


def _additions(old: SwitchConfig | None, new: SwitchConfig) -> Iterator[Action]:
    had = {port.name: port for port in old.ports} if old else {}
    for port in new.ports:
        if port.name not in had or not _same_device(had[port.name], port):
            yield AddPort(new.name, port)


def _postponed(old: DaemonConfig, new: DaemonConfig) -> Iterator[Action]:
    for key in old.__struct_fields__:
        if getattr(old, key) != getattr(new, key):
            yield Postpone(key, str(getattr(new, key)))


def _bare(switch: SwitchConfig) -> SwitchConfig:
    return structs.replace(switch, ports=())


def _moves(word: str, old: Iterable[Any], new: Iterable[Any]) -> Iterator[str]:
    old, new = tuple(old), tuple(new)
    yield from (f"{word} -{item}" for item in old if item not in new)
    yield from (f"{word} +{item}" for item in new if item not in old)
    if old != new and set(old) == set(new):
        yield f"{word} order"
