"""All switches of the daemon, and the operations on them, from the configuration file and from the API.

Changes are made one after the other. A change that is refused has changed nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial

import msgspec

from ipvsw.config.again import ConfigFile
from ipvsw.config.file import check, checked
from ipvsw.config.plan import (
    Action,
    AddPort,
    AddSwitch,
    ChangePort,
    RemovePort,
    RemoveSwitch,
    SetMode,
    diff,
    with_added,
)
from ipvsw.daemon.api.contract import Feed
from ipvsw.daemon.events import Events, about_action
from ipvsw.daemon.kmodlinks import KmodLinks
from ipvsw.daemon.preflight import preflight, preflight_start
from ipvsw.daemon.running import Running
from ipvsw.daemon.state import VERSION, Inherited
from ipvsw.daemon.statestore import StateStore
from ipvsw.linux.lasting.fdstore import FdStore, NoStore
from ipvsw.linux.peercred import Peer
from ipvsw.linux.runtime import Runtime
from ipvsw.model import Config, Flag, Mode, PortConfig, Refused, SwitchConfig
from ipvsw.ports.port import Port
from ipvsw.snooping.saved import Snooped
from ipvsw.status import (
    CaptureAsked,
    HandedOver,
    LeaseStatus,
    PortState,
    PortStatus,
    States,
    SwitchStats,
    SwitchStatus,
    TraceAsked,
    TraceStatus,
)
from ipvsw.switch.switch import Switch

log = logging.getLogger("ipvsw")


class Manager:
    """The control side of everything. Made, started and stopped on the loop."""

    def __init__(
        self, file: ConfigFile, store: FdStore | None = None, held: Mapping[str, int] | None = None, state: str = ""
    ) -> None:
        """`file` is what `reload` reads, `held` what `store` had at the start, `state` the file of what lasts, "" if
        nothing does. Errors: OSError."""
        self._file = file
        self._store = store or NoStore()
        self._runtime = Runtime(self._store, held)
        self._running = running = Running()
        self._switches = running.switches
        self._state = StateStore(
            self._store, held or {}, running.describe, running.count, running.progress, state, running.lasting
        )
        self._runtime.note_change = self._state.note_change
        self._inherited = Inherited(Config())
        self._lock = asyncio.Lock()
        self._links = KmodLinks(self._runtime, self._switches)
        self._collecting: set[asyncio.Task[None]] = set()  # each waits for the lock
        self.taken_over: Callable[[], None] = lambda: None
        self.started = False  # whether anything that the last daemon has left may be touched
        self.events = Events()

    # ------------------------------------------------------------------------ life

    async def start(self, config: Config) -> None:
        """Returns when every master has been opened or waits; ports still come up. Errors: Refused, after
        which nothing is left, but `stop` must be called all the same."""
        async with self._lock:
            await preflight_start(self._runtime.netlink, config)
            inherited = self._inherited = self._state.inherit(config)
            self._running.set_filed(config)
            self._running.settings = config.daemon
            await self._undo(inherited)
            actions = diff(self._running.config, inherited.config)
            await self._execute(action for action in actions if isinstance(action, AddSwitch))
            masters = [self._switches[switch.name].master for switch in config.switches]
            if masters and all(master.taken for master in masters):
                raise Refused(f"switch[0].master: {masters[0].reason}")
            self.started = True
            await self._switches.undo_ports(inherited.gone_ports)
            await self._execute(action for action in actions if not isinstance(action, AddSwitch))
            await asyncio.gather(*(switch.resume() for switch in self._switches.values()))
            self._links.start()
            self._state.start()

    async def _undo(self, inherited: Inherited) -> None:
        """What the last daemon has left and nobody wants any more. Of a switch not all goes with descriptors: it is
        taken over as it ran, and stopped."""
        await self._state.discard(inherited.unwanted)
        for config in inherited.gone:
            log.info("switch %s is not in the configuration any more: what is left of it goes", config.name)
            await self._add_switch(config)
            await self._switches.undo_ports([(config.name, port) for port in config.ports])
            await self._switches[config.name].resume()  # which also deletes what no port is known to have
            await self._remove_switch(config.name)

    async def clean_up(self, config: Config) -> None:
        """Take over what a killed daemon has left, so that `stop` removes it; `config` is its configuration if nothing
        tells of it."""
        async with self._lock:
            inherited = self._inherited = self._state.inherit_all(config)
            self._running.settings, self.started = inherited.config.daemon, True
            await self._state.discard(inherited.unwanted)
            await self._execute(diff(self._running.config, inherited.config))
            ports = [port for switch in self._switches.values() for port in switch.ports.values()]
            await asyncio.gather(*(port.settled() for port in ports))

    async def stop(self) -> None:
        async with self._lock:
            self._state.stop()
            await self._state.saved()
            await self._links.stop()
            await asyncio.gather(*(self._remove_switch(name) for name in list(self._switches)))
            await self._links.gone()
            self._runtime.close()

    def beat(self) -> None:
        """Returns when every worker of every switch has made a round."""
        for switch in self._switches.values():
            switch.beat()

    # ------------------------------------------------------------------------ for a successor

    async def take_over(self, version: int) -> None:
        """Leave everything to a daemon that reads a state of that version, and forward nothing more. `taken_over` is
        called. Errors: Refused."""
        if version < VERSION:
            raise Refused(f"this ipvswd has a state of version {VERSION}; an older one can't take over")
        await self.leave()
        self.taken_over()

    async def leave(self) -> None:
        """Forward nothing more, and leave everything as it is to the next daemon. This process must end without
        `stop`."""
        async with self._lock:
            await self._links.stop()
            for switch in self._switches.values():
                switch.halt()
            self._state.write()
            self._state.stop()
            await self._state.saved()

    # ------------------------------------------------------------------------ status

    def switches(self) -> tuple[SwitchStatus, ...]:
        self._state.write_noted()
        return tuple(switch.status() for switch in self._switches.values())

    def switch(self, name: str) -> SwitchStatus:
        """Errors: NotFound."""
        return self._switches.named(name).status()

    def stats(self) -> tuple[SwitchStats, ...]:
        self._state.write_counters()  # no successor counts from less than what was seen
        return tuple(switch.stats() for switch in self._switches.values())

    def states(self) -> dict[str, States]:
        """By switch."""
        return {name: switch.states() for name, switch in self._switches.items()}

    def leases(self) -> tuple[LeaseStatus, ...]:
        self._state.write_noted()
        return tuple(lease for switch in self._switches.values() for lease in switch.leases())

    async def trace(self, asked: TraceAsked) -> TraceStatus:
        """What would become of a frame; nothing is sent. Errors: NotFound, Refused."""
        switch, at = self._switches.find_interface(asked.at)
        return await switch.trace(asked, at)

    def capture(self, asked: CaptureAsked) -> AbstractContextManager[Feed]:
        """Frames copied for a reader. Errors: NotFound, Refused; of the context also OSError."""
        switch, at = self._switches.find_captured(asked.at)
        return switch.captures.open(at, switch.config.master)

    def end_streams(self) -> None:
        """Nobody gets more of what happens, nor of frames."""
        self.events.end()
        self._switches.end_captures()

    # ------------------------------------------------------------------------ virtual machines

    async def hand_over(self, name: str, peer: Peer) -> tuple[HandedOver, list[int]]:
        """Descriptors of the port `name`, or of the first free one on the switch `name` that `peer` may have; the
        caller closes them. Errors: NotFound, Forbidden, Refused."""
        async with self._lock:
            return await self._switches.find_vm(name, peer, self._running.settings.allow).hand_over()

    # ------------------------------------------------------------------------ the API's changes

    async def add_port(self, master: str, port: PortConfig, mode: Mode | None, flag: Flag | None) -> PortStatus:
        """Attach a port to the switch on `master`, which is made if there is none, as the kernel's driver
        does. Returns when the port is up, or waits. Errors: Refused."""
        async with self._lock:
            found = self._switches.on_master(master)
            old = found.config if found else SwitchConfig(name=master, master=master)
            new = msgspec.structs.replace(old, mode=mode or old.mode, flag=flag or old.flag, ports=(*old.ports, port))
            others = [switch.config for switch in self._switches.values() if switch is not found]
            wanted = Config(daemon=self._running.settings, switches=(*others, new))
            check(wanted)
            await self._preflight_port(new, port)
            await self._execute(diff(self._running.config, wanted))
            added = self._switches[new.name].ports[port.name]
        await added.settled()  # other changes needn't wait for its thousands of addresses
        async with self._lock:
            await self._confirm(new.name, added)
            self._state.write()
            status = added.status()
        await self._state.saved()
        return status

    def check_user(self, master: str, peer: Peer) -> None:
        """See `Switches.check_user`. Errors: Forbidden, Refused."""
        self._switches.check_user(master, peer)

    async def _preflight_port(self, switch: SwitchConfig, port: PortConfig) -> None:
        only = Config(switches=(msgspec.structs.replace(switch, ports=(port,)),))
        names = {None: switch.name, 0: f"{switch.name}/{port.name}"}
        await preflight(self._runtime.netlink, only, lambda _, at: names[at])

    async def _confirm(self, switch: str, port: Port) -> None:
        """A port that was asked for has settled: take it back if it can't be there. Errors: Refused."""
        found = self._switches.get(switch)
        if found is None or found.ports.get(port.config.name) is not port:
            raise Refused(f"{switch}/{port.config.name}: was removed before it was there")
        if wrong := [one.reason for one in (port, found.master) if one.state is PortState.FAILED]:
            await self._remove_port(switch, port.config.name)
            raise Refused(f"{switch}/{port.config.name}: {wrong[0]}")

    async def delete_port(self, name: str) -> None:
        """PORT or SWITCH/PORT. Also of a port that the file has; the next `reload` brings that one back.
        Errors: NotFound, Refused."""
        async with self._lock:
            switch, port = self._switches.find_configured(name, "delete it with `ip link del`")
            await self._remove_port(switch, port.config.name)
            self._state.write()
        await self._state.saved()

    async def change_port(self, name: str, change: Callable[[PortConfig], PortConfig]) -> PortStatus:
        """PORT or SWITCH/PORT becomes what `change` makes of it. Errors: NotFound, Refused, those of `change`."""
        async with self._lock:
            switch, port = self._switches.find_configured(name, "change it with `ip link set`")
            new = change(port.config)
            await self._preflight_port(self._switches[switch].config, new)
            await self._execute([ChangePort(switch, port.config, new)])
            self._state.write()
        await self._state.saved()
        return port.status()

    def labelled(self, label: str) -> tuple[SwitchStatus, ...]:
        """The ports with that label, or one that begins with it and a colon; only the switches that have any."""
        return self._switches.labelled(label)

    async def delete_labelled(self, label: str) -> None:
        """The ports that `labelled` gives, all of them or none. Errors: NotFound."""
        async with self._lock:
            found = [RemovePort(switch, port) for switch, port in self._switches.find_labelled(label)]
            await self._remove_ports(found)
            for name in {one.switch for one in found}:
                await self._remove_if_empty(name)
            self._state.write()
        await self._state.saved()

    def _collect(self, switch: str, port: str) -> None:
        """The port's namespace is gone, and it is to go with it."""
        if not self._running.is_filed(switch, port):
            task = asyncio.create_task(self._remove_lost(switch, port))
            self._collecting.add(task)
            task.add_done_callback(self._collecting.discard)

    async def _remove_lost(self, switch: str, port: str) -> None:
        async with self._lock:
            if switch in self._switches and (found := self._switches[switch].ports.get(port)) and found.is_lost:
                log.info("port %s/%s is removed: its namespace is gone", switch, port)
                await self._remove_port(switch, port)
                self._state.write()

    async def set_mode(self, name: str, mode: Mode | None, flag: Flag | None) -> SwitchStatus:
        """`name` is that of a switch, of a port on it or of its master: mode and flag belong to the whole switch.
        Errors: NotFound, Refused."""
        async with self._lock:
            switch = self._switches.find_switch(name)
            now = switch.config
            switch.set_mode(checked(msgspec.structs.replace(now, mode=mode or now.mode, flag=flag or now.flag)))
            self._state.write()
            return switch.status()

    async def reload(self) -> tuple[str, ...]:
        """Read the file again; what was done, a line for each action. What the API has added stays.
        Errors: Refused."""
        async with self._lock:
            filed, actions = await self._plan()
            await self._execute(actions)
            for switch in self._switches.values():
                switch.renew_namespaces()
            self._running.set_filed(filed)
            self._state.write()
            return tuple(map(str, actions))

    async def plan(self) -> tuple[str, ...]:
        """What `reload` would do now. Errors: Refused."""
        async with self._lock:
            _, actions = await self._plan()
            return tuple(map(str, actions))

    async def _plan(self) -> tuple[Config, tuple[Action, ...]]:
        """What the file has, and what has to be done for it. Changes nothing."""
        filed = await asyncio.to_thread(self._file.load)  # a hundred thousand addresses may take half a second
        await preflight(self._runtime.netlink, filed, running=self._running.config)
        wanted = with_added(self._running.filed, self._running.config, filed)
        check(wanted)
        return filed, diff(self._running.config, wanted)

    def configuration(self) -> Config:
        """What runs: the file's switches and ports as they were changed since, and those that the API has added."""
        return self._running.config

    # ------------------------------------------------------------------------ actions

    async def _execute(self, actions: Iterable[Action]) -> None:
        """Ports that go, go together: closing a TAP takes long."""
        going: list[RemovePort] = []
        for action in actions:
            log.info("%s", action, extra=about_action(action))
            if isinstance(action, RemovePort):
                going.append(action)
                continue
            await self._remove_ports(going)
            going = []
            await self._do(action)
        await self._remove_ports(going)

    async def _remove_ports(self, going: list[RemovePort]) -> None:
        await asyncio.gather(*(self._switches[each.switch].remove_port(each.port) for each in going))

    async def _do(self, action: Action) -> None:
        match action:
            case AddSwitch():
                await self._add_switch(action.switch)
            case RemoveSwitch():
                await self._remove_switch(action.switch)
            case SetMode():
                self._switches[action.switch.name].set_mode(action.switch)
            case AddPort():
                self._switches[action.switch].add_port(action.port)
            case ChangePort():
                self._switches[action.switch].change_port(action)

    async def _add_switch(self, config: SwitchConfig) -> None:
        try:
            left = self._inherited.ports.pop(config.name, {})
            master = self._inherited.masters.pop(config.name, None)
            lost = partial(self._collect, config.name)
            is_filed = partial(self._running.is_filed, config.name)
            counts = self._inherited.counts.pop(config.name, None)
            switch = Switch(self._runtime, config, self._running.settings, left, master, counts, lost, is_filed)
            if past := self._inherited.counters.pop(config.name, None):
                forwarded = self._inherited.forwarded.pop(config.name, {})
                switch.set_past(past, forwarded, self._inherited.snooped.pop(config.name, Snooped()))
            self._switches[config.name] = switch
            await switch.start()
        except OSError as error:
            raise Refused(f"switch {config.name}: {error.strerror or error}") from error

    async def _remove_switch(self, name: str) -> None:
        left = [port.config.netns for port in self._switches[name].links.values()]
        await self._switches[name].stop()
        del self._switches[name]
        for netns in left:
            self._links.forget(netns)

    async def _remove_port(self, switch: str, port: str) -> None:
        """A switch that the API made goes with its last port, as the kernel's does."""
        await self._remove_ports([RemovePort(switch, port)])
        await self._remove_if_empty(switch)

    async def _remove_if_empty(self, switch: str) -> None:
        if not self._switches[switch].ports and all(switch != one.name for one in self._running.filed.switches):
            await self._remove_switch(switch)
