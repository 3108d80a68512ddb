"""One switch: its master, its ports, its table, and the data plane under them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import msgspec

from ipvsw._fast import ACCESS, EVENT_GONE, EVENT_GROUPS, FLAGS, MODES, Datapath
from ipvsw.addresses.announcer import Announcer
from ipvsw.addresses.table import Table
from ipvsw.config.plan import ChangePort
from ipvsw.linux.bpf import Shim
from ipvsw.linux.devices.macvtap import supported
from ipvsw.linux.netlink import KmodAttrs
from ipvsw.linux.runtime import Runtime
from ipvsw.model import (
    DaemonConfig,
    Flag,
    HostAccess,
    Io,
    Kind,
    L3Output,
    LeaseStatus,
    Mode,
    PortConfig,
    SwitchConfig,
    SwitchStats,
    SwitchStatus,
)
from ipvsw.ports.kmodlink import KmodDevice, KmodPort
from ipvsw.ports.netns import NetnsPort
from ipvsw.ports.port import MasterState, Port
from ipvsw.ports.unixsocket import DgramPort, StreamPort
from ipvsw.ports.vm import MacvtapPort, TapPort, VmPort
from ipvsw.routing.router import Router
from ipvsw.snooping.snooper import Snooper
from ipvsw.switch.hostport import HostPortConfig
from ipvsw.switch.master import Master

log = logging.getLogger("ipvsw")

PORTS: dict[Kind, type[Port]] = {
    Kind.NETNS: NetnsPort,
    Kind.MACVTAP: MacvtapPort,
    Kind.TAP: TapPort,
    Kind.STREAM: StreamPort,
    Kind.DGRAM: DgramPort,
}


class Switch:
    """Made, started and stopped on the loop. Its calls are not to be interleaved: the caller has a lock."""

    def __init__(self, runtime: Runtime, config: SwitchConfig, settings: DaemonConfig) -> None:
        """`config.ports` are added by `add_port`. Errors: OSError."""
        self.name = config.name
        self.ports: dict[str, Port] = {}
        self.links: dict[str, KmodPort] = {}  # ports that the daemon has not made
        self._config = msgspec.structs.replace(config, ports=())
        self._runtime = runtime
        self._workers = settings.workers
        self._uplink = MasterState(name=config.master)
        self._leaving: dict[KmodPort, asyncio.Task[None]] = {}
        self._said: tuple[int, int] | None = None  # mode and flags, as the links' attributes have them
        self._shim = Shim()
        self._datapath = Datapath(
            settings.workers, settings.io, busy_poll=settings.busy_poll, coalesce=settings.coalesce
        )
        self._table = Table(config.name, self._datapath, self._shim, self._table_changed, self._left, self._bound)
        self._announcer = Announcer(self._table, self._datapath)
        self._router = Router(runtime, self._datapath, self._answer)
        self._snooper = Snooper(config.name, self._table, self._datapath, self._pupil, asyncio.get_running_loop())
        self.master = Master(
            runtime,
            self._table,
            self._shim,
            self._datapath,
            name=config.master,
            netns=config.netns,
            workers=settings.workers,
            changed=self._master_changed,
        )

    @property
    def config(self) -> SwitchConfig:
        """As it is now, with its ports."""
        return msgspec.structs.replace(self._config, ports=tuple(port.config for port in self.ports.values()))

    # ------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Returns when the master is served or known to be absent, taken or unfit. Errors: OSError."""
        self._datapath.start()
        self._router.start()
        self.set_mode(self._config)
        asyncio.get_running_loop().add_reader(self._datapath.notify_fd, self._hear)
        self.master.start()
        await self.master.settled()

    async def stop(self) -> None:
        """Nothing is left of the switch when this returns."""
        await asyncio.gather(*(self.remove_port(name) for name in list(self.ports)))
        await asyncio.gather(*(self.remove_link(port) for port in list(self.links.values())))
        await self._router.stop()
        await self.master.stop()
        self._announcer.close()
        asyncio.get_running_loop().remove_reader(self._datapath.notify_fd)
        self._snooper.stop()
        self._datapath.close()
        self._shim.close()

    # ------------------------------------------------------------------------ changes

    def add_port(self, config: PortConfig) -> Port:
        """`settled` of what is returned tells when the port is up or has told why it isn't."""
        kind = config.kind
        if kind is Kind.MACVTAP and not supported():
            kind = Kind.TAP
        port = PORTS[kind](self._runtime, self._table, self._shim, self._uplink, self.name, config)
        self.ports[config.name] = port
        port.start()
        return port

    async def remove_port(self, name: str) -> None:
        port = self.ports[name]
        await port.stop()
        del self.ports[name]
        self._table.forget(name)

    def has_master(self, served: KmodAttrs) -> bool:
        """Whether the device's master is ours."""
        return self.master.identity == (served.master_netns, served.master)

    def add_link(self, found: KmodDevice, lost: Callable[[KmodPort], None]) -> bool:
        """Serve a device of the kernel module's if it is one of this master's: whether it is served. `lost` is told
        when the device is gone, for `remove_link`."""
        served = found.link.served
        if served is None or not self.has_master(served):
            return False
        if found.name in self.ports or found.name in self.links:
            return False
        port = KmodPort(self._runtime, self._table, self._uplink, self.name, found, lost, self._hear_attributes)
        self.links[port.name] = port
        port.start()
        self._hear_attributes(served)
        return True

    async def remove_link(self, port: KmodPort) -> None:
        """May be asked for again, before it is done and after."""
        if self.links.get(port.name) is not port:
            return
        if port not in self._leaving:
            self._leaving[port] = asyncio.create_task(self._remove_link(port), name=f"{port.label} leaves")
        await self._leaving[port]

    async def _remove_link(self, port: KmodPort) -> None:
        await port.stop()
        del self.links[port.name]
        del self._leaving[port]
        self._table.forget(port.name)
        if not self.links:
            self._said = None

    def change_port(self, action: ChangePort) -> None:
        self.ports[action.new.name].change(action.new)

    def set_mode(self, config: SwitchConfig) -> None:
        """Mode, flag and what goes with them, for the whole switch at once. Ports stay."""
        self._config = msgspec.structs.replace(config, ports=())
        mode, access = config.mode, config.host_access
        routed = mode is not Mode.L2
        self._datapath.set_mode(MODES[mode], FLAGS[config.flag], ACCESS[access])
        self._datapath.commit()
        self._shim.set_mode(MODES[mode])
        self._router.set_mode(routes=routed, exact=mode is Mode.L3S or config.l3_output is L3Output.HOST)
        talk = access is not HostAccess.NONE
        self.master.set_host_door(
            HostPortConfig(mode is Mode.L3S or talk, routes=routed, forward=mode is Mode.L3S, talk=talk)
        )
        self._uplink.noarp = routed
        self._tell_announcer()
        self._wake_ports()

    # ------------------------------------------------------------------------ news

    def _master_changed(self) -> None:
        link, before = self.master.link, self._uplink.mac
        self._uplink.present = link is not None
        self._uplink.carrier = link is not None and link.carrier
        if link is not None:
            self._uplink.mac, self._uplink.mtu = link.mac, link.mtu
        self._router.set_uplink(self.master.uplink)
        self._tell_announcer()
        if before not in (b"", self._uplink.mac):
            self._announcer.want(self._table.stolen())
        self._wake_ports()

    def _wake_ports(self) -> None:
        for port in self._all_ports():
            port.wake()

    def _hear_attributes(self, served: KmodAttrs) -> None:
        """Mode and flag can be set through any device of the kernel module's, and are taken over from there once."""
        said = None if served.mode is None else (served.mode, served.flags or 0)
        if said is None or said == self._said:
            return
        self._said = said
        mode, flag = tuple(Mode)[said[0]], tuple(Flag)[said[1]]
        if (mode, flag) != (self._config.mode, self._config.flag):
            log.info("switch %s: %s %s, as its links say", self.name, mode, flag)
            self.set_mode(msgspec.structs.replace(self._config, mode=mode, flag=flag))

    def _all_ports(self) -> Iterator[Port | KmodPort]:
        yield from self.ports.values()
        yield from self.links.values()

    def _port(self, number: int) -> Port | KmodPort | None:
        name = self._table.name(number) or ""
        return self.ports.get(name) or self.links.get(name)

    def _tell_announcer(self) -> None:
        heard = self.master.link is not None and self._config.mode is Mode.L2
        self._announcer.set_mac(self._uplink.mac if heard else None)

    def _bound(self, name: str, addresses: list[bytes], moved: list[bytes]) -> None:
        """A virtual machine's addresses are announced, and everybody's that move. For the rest it is as with the
        kernel's driver: what a namespace does by itself is enough."""
        self._announcer.want(addresses if isinstance(self.ports.get(name), VmPort) else moved)

    def _table_changed(self) -> None:
        self.master.wake()

    def _hear(self) -> None:
        for number, bits in self._datapath.events():
            port = self._port(number)
            if port is None:
                continue
            if bits & EVENT_GONE:
                port.gone()
            if bits & EVENT_GROUPS and not self._runtime.groups_told:
                port.mark_stale()

        if frames := self._datapath.slow():
            self._router.take(frames)
        if frames := self._datapath.punted():
            self._snooper.take(frames)

    def _left(self, port: str) -> None:
        self._snooper.forget(port)

    def _pupil(self, name: str) -> VmPort | None:
        port = self.ports.get(name)
        return port if isinstance(port, VmPort) else None

    def _answer(self, number: int, frame: bytes) -> None:
        port = self._port(number)
        if port is not None:
            port.write(frame)

    # ------------------------------------------------------------------------ reports

    def status(self) -> SwitchStatus:
        link = self.master.link
        return SwitchStatus(
            name=self.name,
            master=self._config.master,
            netns=self._config.netns,
            mode=self._config.mode,
            flag=self._config.flag,
            l3_output=self._config.l3_output,
            host_access=self._config.host_access,
            state=self.master.state,
            reason=self.master.reason,
            index=link.index if link else 0,
            mac=link.mac.hex(":") if link else "",
            mtu=link.mtu if link else 0,
            carrier=link.carrier if link else False,
            workers=self._workers,
            io=Io(self._datapath.io),
            ports=tuple(port.status() for port in self._all_ports()),
        )

    def leases(self) -> tuple[LeaseStatus, ...]:
        return tuple(self._snooper.leases())

    def stats(self) -> SwitchStats:
        return SwitchStats(
            name=self.name,
            master=self._table.master_traffic(),
            host=self._table.host_traffic(),
            ports={name: self._table.traffic(name) for name in (*self.ports, *self.links)},
            duplicates=self._table.duplicates,
            learned=dict(self._snooper.counters),
            routed=dict(self._router.counters),
        )
