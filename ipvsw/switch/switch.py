"""One switch: its master, its ports, its table, and the data plane under them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import msgspec

from ipvsw._fast import ACCESS, EVENT_GONE, EVENT_GROUPS, EVENT_GUARD, FLAGS, MODES, Datapath
from ipvsw.addresses.announcer import Announcer
from ipvsw.addresses.claims import claim_rule
from ipvsw.addresses.table import Table
from ipvsw.changes import Changes
from ipvsw.config.plan import ChangePort, device_of
from ipvsw.linux.bpf import Shim
from ipvsw.linux.fastports import FastCounts
from ipvsw.linux.netlink import KmodAttrs
from ipvsw.linux.runtime import Runtime
from ipvsw.model import DaemonConfig, Export, Flag, HostAccess, L3Output, Mode, PortConfig, Refused, SwitchConfig
from ipvsw.packets.multicast import group_mac
from ipvsw.ports.backend import Left, MasterState, PortEnvironment
from ipvsw.ports.backends.kmod import KmodDevice
from ipvsw.ports.kinds import configured_port, kmod_port
from ipvsw.ports.port import Port
from ipvsw.routing.router import Router
from ipvsw.snooping.saved import Snooped
from ipvsw.snooping.snooper import Snooper
from ipvsw.status import LeaseStatus, States, SwitchStats, SwitchStatus, TraceAsked, TraceStatus
from ipvsw.switch.clients import Clients
from ipvsw.switch.guards import GuardLog, guards_of, holds_unknown
from ipvsw.switch.held import COUNTS, MasterLeft, held_name
from ipvsw.switch.hostport import HostPortConfig
from ipvsw.switch.master import Master
from ipvsw.switch.status import own_stats, switch_status, worker_loads
from ipvsw.switch.tracing.kernelpath import KernelPath
from ipvsw.switch.tracing.trace import Tracer

log = logging.getLogger("ipvsw")

RESUME = 1.0  # seconds after which frames are forwarded though some ports are not there again,
REPLACE = 10.0  # and, after that, after which the last daemon's programs on the master are replaced


class Switch:
    """Made, started and stopped on the loop. Its calls must not overlap: the caller has a lock."""

    def __init__(
        self,
        runtime: Runtime,
        config: SwitchConfig,
        settings: DaemonConfig,
        left: dict[str, Left] | None = None,
        master_left: MasterLeft | None = None,
        counts: int | None = None,
        lost: Callable[[str], None] = lambda port: None,
        is_filed: Callable[[str], bool] = lambda port: True,
    ) -> None:
        """`config.ports` are added by `add_port`. Of the last daemon, `left` are those of them whose endpoints it has
        left, `master_left` is what it had on the master, and `counts` its map, as for `Shim`. `lost` is called with the
        name of a port whose namespace it does not outlive; `is_filed` says whether the configuration file has a port.
        Errors: OSError."""
        self.name = config.name
        self.ports: dict[str, Port] = {}
        self.links: dict[str, Port] = {}  # ports whose devices the kernel module has made
        self._config = msgspec.structs.replace(config, ports=())
        self._runtime = runtime
        self._master_state = MasterState(name=config.master)
        self._left = left or {}
        self._resuming = bool(left)  # the data plane stands still
        self._snooped = Snooped()  # by the last daemon
        self._leaving: dict[Port, asyncio.Task[None]] = {}
        self._announced: tuple[int, int] | None = None  # mode and flags, as the links' attributes have them
        self._repaired: Counter[str] = Counter()  # what others had changed, by subject
        self._shim = Shim(counts)
        runtime.store.put(held_name(config.name, COUNTS), self._shim.counts_fd)
        self._datapath = Datapath(
            settings.workers, settings.io, busy_poll=settings.busy_poll, coalesce=settings.coalesce
        )
        self._changes = Changes(
            config.name, self._datapath, self._shim, bound=self._addresses_bound, changed=self._table_changed
        )
        self._table = Table(config.name, self._changes, self._table_changed, self._endpoint_gone)
        self.captures = self._table.captures
        self._announcer = Announcer(self._table, self._changes)
        self._router = Router(self._changes, self._answer, lambda changes: self.master.routes_changed(changes))
        kernel = KernelPath(runtime, self._changes, self._shim, lambda: self.master.open_place())
        self._tracer = Tracer(config.name, self._datapath, self._table, self._router, kernel)
        self._snooper = Snooper(config.name, self._table, self._changes, self._named_port, asyncio.get_running_loop())
        self._clients = Clients(config.name, self._table, self._snooper, asyncio.get_running_loop())
        self._guard_log = GuardLog(config.name, self._datapath, self._table.name, asyncio.get_running_loop())
        state, left, changed = self._master_state, self._left, self._clients.port_changed
        self._port_env = PortEnvironment(
            config.name, runtime, self._table, self._shim, state, self._repaired, left, lost, changed, is_filed
        )
        self.master = Master(
            runtime,
            self._table,
            self._shim,
            self._changes,
            switch=config.name,
            name=config.master,
            netns=config.netns,
            workers=settings.workers,
            left=master_left,
            changed=self._master_changed,
            repaired=self._repaired,
        )
        self._master_state.open_place = self.master.open_place
        self.master.set_resuming(self._resuming)

    @property
    def config(self) -> SwitchConfig:
        """As it is now, with its ports."""
        return msgspec.structs.replace(self._config, ports=tuple(port.config for port in self.ports.values()))

    # ------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Returns when the master is served or known to be absent, taken or unfit. Errors: OSError."""
        if not self._resuming:
            self._datapath.start()
        self._router.start()
        self.set_mode(self._config)
        asyncio.get_running_loop().add_reader(self._datapath.notify_fd, self._take_events)
        self.master.start()
        await self.master.settled()

    def halt(self) -> None:
        """Forward nothing more, for good, and let go of the master: another daemon goes on. What was read has left."""
        self._take_events()
        asyncio.get_running_loop().remove_reader(self._datapath.notify_fd)
        self._datapath.halt()
        self.master.release(self._datapath.ring_starts())

    async def resume(self) -> None:
        """Forward frames as soon as the ports are there again that the last daemon has left: what was sent to them
        waits until then. After a while without those that can't be."""
        if self._resuming:
            self._resuming = False
            ports = [asyncio.ensure_future(port.settled()) for port in self.ports.values()]
            pending = (await asyncio.wait(ports, timeout=RESUME))[1] if ports else ()
            if pending:
                self._datapath.start()
                await asyncio.wait(pending, timeout=REPLACE)
            await self.master.resume()
            if not pending:
                self._datapath.start()

    async def stop(self) -> None:
        """Nothing is left of the switch when this returns."""
        self.captures.end()
        self._clients.stop()
        await asyncio.gather(*(self.remove_port(name) for name in list(self.ports)))
        await asyncio.gather(*(self.remove_link(port) for port in list(self.links.values())))
        await self._router.stop()
        await self.master.stop()
        self._announcer.close()
        self._table.close()
        asyncio.get_running_loop().remove_reader(self._datapath.notify_fd)
        self._snooper.stop()
        self._datapath.close()
        self._runtime.store.forget(held_name(self.name, COUNTS))
        self._shim.close()

    # ------------------------------------------------------------------------ changes

    def add_port(self, config: PortConfig) -> Port:
        """Wait for the port's `settled`: then it is up, or its `reason` says why it isn't."""
        port = configured_port(self._port_env, config, device_of(config, self._config.device))
        self.ports[config.name] = port
        self._table.set_rule(config.name, claim_rule(config))
        self._restrain(config)
        if config.name in self._left:
            self._snooper.restore(config.name, self._snooped)
            self._clients.restore(config.name, self._snooped)
        port.start()
        return port

    async def remove_port(self, name: str) -> None:
        port = self.ports[name]
        await self._clients.remove(name)
        await port.stop()
        del self.ports[name]
        self._table.forget(name)

    def has_master(self, served: KmodAttrs) -> bool:
        """Whether the device's master is ours."""
        return self.master.identity == (served.master_netns, served.master)

    def add_link(self, found: KmodDevice, lost: Callable[[Port], None]) -> bool:
        """Serve a device of the kernel module's if it is one of this master's: whether it is served. `lost` is called
        when the device is gone, for `remove_link`."""
        served = found.link.served
        if served is None or not self.has_master(served):
            return False
        port = kmod_port(self._port_env, found, lost, self._adopt_mode)
        if port.config.name in self.ports or port.config.name in self.links:
            return False
        self.links[port.config.name] = port
        self._restrain(port.config)
        port.start()
        self._adopt_mode(served)
        return True

    async def remove_link(self, port: Port) -> None:
        """May be called again, before it is done and after."""
        if self.links.get(port.config.name) is not port:
            return
        if port not in self._leaving:
            self._leaving[port] = asyncio.create_task(self._remove_link(port), name=f"{port.label} leaves")
        await self._leaving[port]

    async def _remove_link(self, port: Port) -> None:
        await port.stop()
        del self.links[port.config.name]
        del self._leaving[port]
        self._table.forget(port.config.name)
        if not self.links:
            self._announced = None

    def states(self) -> States:
        """Quickly, for metrics: without the addresses themselves."""
        ports = {name: port.state for name, port in (*self.ports.items(), *self.links.items())}
        return States(master=self.master.state, ports=ports, addresses=len(self._changes.stolen))

    def beat(self) -> None:
        """Returns when every worker has made a round."""
        self._changes.beat()

    def renew_namespaces(self) -> None:
        """The configuration was read again: names of processes that have ended mean those of the same number."""
        self.master.renew_namespace()
        for port in self.ports.values():
            port.renew_namespace()

    def change_port(self, action: ChangePort) -> None:
        self._table.set_rule(action.new.name, claim_rule(action.new))
        self._restrain(action.new)
        self.ports[action.new.name].change(action.new)

    def _restrain(self, port: PortConfig) -> None:
        """Guards and limits."""
        self._table.set_guards(port.name, guards_of(port, self._config.guard), holds=holds_unknown(port))
        self._table.set_limits(port.name, port.rate, port.packets, port.broadcast)

    def set_mode(self, config: SwitchConfig) -> None:
        """Mode, flag and what goes with them, for the whole switch at once. Ports stay."""
        self._config = msgspec.structs.replace(config, ports=())
        for port in self._all_ports():
            self._restrain(port.config)
            self._ask_groups(port)  # their reports went unread where no group is switched
        mode, access = config.mode, config.host_access
        routed = mode is not Mode.L2
        groups = {group.packed: group_mac(group) for group in config.multicast}
        self._changes.set_mode(MODES[mode], FLAGS[config.flag], ACCESS[access], groups)
        self._router.set_mode(routes=routed, exact=mode is Mode.L3S or config.l3_output is L3Output.HOST)
        host_access, l3s = access is not HostAccess.NONE, mode is Mode.L3S
        host = HostPortConfig(host_access or l3s, routes=routed, forward=l3s, host_access=host_access)
        self.master.set_host_side(host, exports=routed and config.export is Export.ROUTES)
        self._master_state.noarp = routed
        self._update_announcer()
        self._wake_ports()

    # ------------------------------------------------------------------------ events

    def _master_changed(self) -> None:
        link, state = self.master.link, self._master_state
        before = state.mac
        state.present = link is not None
        state.carrier = link is not None and link.carrier
        if link is not None:
            state.mac, state.mtu, state.nsid = link.mac, link.mtu, self.master.nsid
        self._router.set_uplink(self.master.router_uplink)
        self._update_announcer()
        if before not in (b"", state.mac):
            self._announcer.want(self._changes.stolen)
        self._wake_ports()

    def _wake_ports(self) -> None:
        for port in self._all_ports():
            port.wake()

    def _adopt_mode(self, served: KmodAttrs) -> None:
        """Mode and flag can be set through any device of the kernel module's; each change of theirs is adopted once."""
        announced = None if served.mode is None else (served.mode, served.flags or 0)
        if announced is None or announced == self._announced:
            return
        self._announced = announced
        mode, flag = tuple(Mode)[announced[0]], tuple(Flag)[announced[1]]
        if (mode, flag) != (self._config.mode, self._config.flag):
            log.info("switch %s: %s %s, as its links have it", self.name, mode, flag)
            self.set_mode(msgspec.structs.replace(self._config, mode=mode, flag=flag))

    def _all_ports(self) -> Iterator[Port]:
        yield from self.ports.values()
        yield from self.links.values()

    def _port(self, number: int) -> Port | None:
        return self._named_port(self._table.name(number) or "")

    def _named_port(self, name: str) -> Port | None:
        return self.ports.get(name) or self.links.get(name)

    def _update_announcer(self) -> None:
        resolved = self.master.link is not None and self._config.mode is Mode.L2  # neighbours ask for MAC addresses
        self._announcer.set_mac(self._master_state.mac if resolved else None)

    def _addresses_bound(self, number: int, addresses: list[bytes], moved: list[bytes]) -> None:
        """A virtual machine's addresses are announced, and of other ports those that have moved. As with the kernel's
        driver a namespace announces by itself what is new."""
        port = self._port(number)
        self._announcer.want(addresses if port is not None and port.serves_vm else moved)
        self._snooper.release(number)
        if port is not None and port.serves_vm:
            self._ask_groups(port)  # it may have joined some before the switch was there
            self._runtime.note_change()

    def _ask_groups(self, port: Port) -> None:
        if port.serves_vm and (self._config.mode is Mode.L2 or self._config.multicast):
            self._snooper.query_soon(port.config.name)

    def _table_changed(self) -> None:
        self.master.wake()

    def _take_events(self) -> None:
        for number, bits in self._datapath.events():
            port = self._port(number)
            if port is None:
                continue
            if bits & EVENT_GONE:
                port.gone()
            if bits & EVENT_GUARD:
                self._guard_log.report(number)
            if bits & EVENT_GROUPS and not self._runtime.announces_groups:
                port.mark_stale()
        self._router.wake()
        if frames := self._datapath.punted():
            self._snooper.take(frames)

    def _endpoint_gone(self, port: str) -> None:
        self._snooper.forget(port)

    def _answer(self, number: int, frame: bytes) -> None:
        if (port := self._port(number)) is not None:
            port.write(frame)

    # ------------------------------------------------------------------------ reports

    def status(self) -> SwitchStatus:
        return switch_status(self._config, self.master, self._datapath, self._all_ports(), self._snooper)

    async def trace(self, asked: TraceAsked, at: str) -> TraceStatus:
        """What would become of a frame; `at` is the name of a port, "master" or "host". Errors: Refused."""
        port = self._named_port(at)
        if port is not None and self._table.number(at) is None:
            raise Refused(f"{self.name}/{at}: the port is {port.state}, and sends nothing")
        return await self._tracer.trace(asked, at, self._config, self._master_state.mac)

    def leases(self) -> tuple[LeaseStatus, ...]:
        return tuple(map(self._clients.describe, self._snooper.leases()))

    def left(self) -> dict[str, Left]:
        """What a successor would find if the daemon were killed now, by port."""
        return {name: left for name, port in self.ports.items() if (left := port.left) is not None}

    @property
    def frames_read(self) -> int:
        """Another number when a frame has come since that the daemon has seen. What the kernel counts is held."""
        return self._datapath.frames_read()

    def set_past(self, counted: SwitchStats, forwarded: Mapping[str, FastCounts], snooped: Snooped) -> None:
        """What earlier daemons have counted, what of that the kernel, and what they knew of virtual machines."""
        self._table.counters.set_past(counted.ports, counted.master, counted.host, forwarded)
        self._snooped = snooped

    def counted(self) -> tuple[SwitchStats, dict[str, FastCounts]]:
        """The first two."""
        ports = {name: self._table.number(name) for name in (*self.ports, *self.links)}
        own, master, forwarded = self._table.counters.split(ports)
        return msgspec.structs.replace(self._other_stats(), ports=own, master=master), forwarded

    def snooped(self) -> Snooped:
        """What is known of virtual machines, and what was leased."""
        return self._clients.save(self._snooper.save())

    def stats(self) -> SwitchStats:
        ports = self._table.traffic([*self.ports, *self.links])
        master, loads = self._table.counters.of_master(), worker_loads(self._datapath)
        return msgspec.structs.replace(self._other_stats(), ports=ports, master=master, workers=loads)

    def _other_stats(self) -> SwitchStats:
        """All but what the kernel counts too."""
        return own_stats(self.name, self._table, self._snooper, self._router, self._repaired)
