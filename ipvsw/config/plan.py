"""From one configuration to another: named actions in the order in which they can be done. Pure.

What gives something up (a master, an interface name) comes before what may want it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct, structs

from ipvsw.config.keys import DAEMON, MODE, SWITCH, Change, Key
from ipvsw.config.port_keys import CHANGE, PORT
from ipvsw.model import FOLLOW, Config, DaemonConfig, Device, Kind, PortConfig, SwitchConfig


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
    """What a switch may change while its ports stay up; `switch` has no ports."""

    switch: SwitchConfig

    def __str__(self) -> str:
        keys = (key for key in SWITCH if key.change is Change.IN_PLACE)
        words = [f"{key.name} {key.write(getattr(self.switch, key.name))}" for key in keys]
        return f"set switch {self.switch.name}: {', '.join(words)}"


class ChangePort(Struct, frozen=True):
    """What a port may change while it stays up."""

    switch: str
    old: PortConfig
    new: PortConfig

    def __str__(self) -> str:
        keys = (key for key in PORT if key.change is Change.IN_PLACE)
        words = [word for key in keys for word in _words(key, getattr(self.old, key.name), getattr(self.new, key.name))]
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
    kept = [(before[name], new) for name, new in after.items() if name in before and same_switch(before[name], new)]
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


def same_port(switch: SwitchConfig, old: PortConfig, wanted: SwitchConfig, new: PortConfig) -> bool:
    """Whether nothing differs for which the port `old` of `switch` would have to be made anew as `new` of `wanted`."""
    devices = [
        structs.replace(port, device=device_of(port, one.device)) for one, port in ((switch, old), (wanted, new))
    ]
    return _stays(PORT, *devices)


def device_of(port: PortConfig, of_switch: Device) -> Device:
    """The port's own, else its switch's. Only of one with a namespace that it stays in, and any index, there are
    several."""
    several = port.kind is Kind.NETNS and port.index is None and port.netns.split(":")[0] != FOLLOW
    return (port.device or of_switch) if several else Device.TAP


def same_switch(old: SwitchConfig, new: SwitchConfig) -> bool:
    """Whether nothing differs for which the switch, and all its ports, would have to be made anew."""
    return _stays(SWITCH, old, new)


def _stays(keys: Iterable[Key], old: SwitchConfig | PortConfig, new: SwitchConfig | PortConfig) -> bool:
    """Whether nothing differs for which it would have to be made anew."""
    return all(getattr(old, key.name) == getattr(new, key.name) for key in keys if key.change is Change.ANEW)


def with_added(before: Config, running: Config, filed: Config) -> Config:
    """The configuration `filed`, and what runs without being in the file that was read `before`: each port on the
    switch that has its master."""
    known = {(switch.name, port.name) for switch in before.switches for port in switch.ports}
    switches = {(switch.master, switch.netns): switch for switch in filed.switches}
    for each in running.switches:
        into = switches.get((each.master, each.netns), structs.replace(each, ports=()))
        names = {port.name for port in into.ports}
        extra = [port for port in each.ports if (each.name, port.name) not in known and port.name not in names]
        if extra:
            into = structs.replace(into, ports=(*into.ports, *extra))
            switches[each.master, each.netns] = into
    return structs.replace(filed, switches=tuple(switches.values()))


def with_modes(before: Config, running: Config, filed: Config) -> Config:
    """The configuration `filed`, with the modes, flags and MTUs that were changed at run time and that the file still
    has as it had them `before`."""
    old = {switch.name: switch for switch in before.switches}
    now = {switch.name: switch for switch in running.switches}

    def changed(switch: SwitchConfig) -> SwitchConfig:
        if switch.name not in old or switch.name not in now:
            return switch
        had, has = ({port.name: port for port in one[switch.name].ports} for one in (old, now))
        ports = (
            structs.replace(port, **_kept(CHANGE, had[port.name], has[port.name], port))
            if port.name in had and port.name in has
            else port
            for port in switch.ports
        )
        return structs.replace(switch, ports=tuple(ports), **_kept(MODE, old[switch.name], now[switch.name], switch))

    return structs.replace(filed, switches=tuple(map(changed, filed.switches)))


def _kept(keys: Iterable[Key], old: Any, now: Any, filed: Any) -> dict[str, Any]:
    """As they are `now`, those that the file still has as before."""
    return {key.name: getattr(now, key.name) for key in keys if getattr(filed, key.name) == getattr(old, key.name)}


def _removals(old: SwitchConfig, new: SwitchConfig) -> Iterator[Action]:
    wanted = {port.name: port for port in new.ports}
    for port in old.ports:
        if port.name not in wanted or not same_port(old, port, new, wanted[port.name]):
            yield RemovePort(old.name, port.name)


def _changes(old: SwitchConfig, new: SwitchConfig) -> Iterator[Action]:
    had = {port.name: port for port in old.ports}
    for port in new.ports:
        if port.name in had and had[port.name] != port and same_port(old, had[port.name], new, port):
            yield ChangePort(new.name, had[port.name], port)


def _additions(old: SwitchConfig | None, new: SwitchConfig) -> Iterator[Action]:
    had = {port.name: port for port in old.ports} if old else {}
    for port in new.ports:
        if old is None or port.name not in had or not same_port(old, had[port.name], new, port):
            yield AddPort(new.name, port)


def _postponed(old: DaemonConfig, new: DaemonConfig) -> Iterator[Action]:
    for key in DAEMON:
        if getattr(old, key.name) != getattr(new, key.name):
            yield Postpone(key.name, str(getattr(new, key.name)))


def _bare(switch: SwitchConfig) -> SwitchConfig:
    return structs.replace(switch, ports=())


def _words(key: Key, old: Any, new: Any) -> Iterator[str]:
    """How a key changes; a list by what goes and what comes."""
    word = key.word or key.name
    if isinstance(old, tuple) and isinstance(new, tuple):
        yield from (f"{word} -{item}" for item in old if item not in new)
        yield from (f"{word} +{item}" for item in new if item not in old)
        if old != new and set(old) == set(new):
            yield f"{word} order"
    elif old != new:
        yield f"{word} {key.write(new)}"
