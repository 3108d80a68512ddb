"""A switch as the API shows it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec

from ipvsw._fast import Datapath
from ipvsw.addresses.table import Table
from ipvsw.model import Io, SwitchConfig
from ipvsw.ports.port import Port
from ipvsw.routing.router import Router
from ipvsw.snooping.snooper import Snooper
from ipvsw.status import PortStatus, SwitchStats, SwitchStatus, Traffic, WorkerLoad
from ipvsw.switch.master import Master


def switch_status(
    config: SwitchConfig, master: Master, datapath: Datapath, ports: Iterable[Port], snooper: Snooper
) -> SwitchStatus:
    link = master.link
    return SwitchStatus(
        name=config.name,
        master=config.master,
        netns=config.netns,
        mode=config.mode,
        flag=config.flag,
        l3_output=config.l3_output,
        host_access=config.host_access,
        multicast=tuple(map(str, config.multicast)),
        export=config.export,
        exported=master.exported,
        guard=config.guard,
        state=master.state,
        reason=master.reason,
        index=link.index if link else 0,
        mac=link.mac.hex(":") if link else "",
        mtu=link.mtu if link else 0,
        carrier=link.carrier if link else False,
        workers=datapath.n_workers,
        io=Io(datapath.io),
        ports=tuple(_port_status(port, snooper) for port in ports),
    )


def own_stats(name: str, table: Table, snooper: Snooper, router: Router, repaired: Mapping[str, int]) -> SwitchStats:
    """What the kernel has no part in: without the ports and the master."""
    return SwitchStats(
        name=name,
        master=Traffic(),
        host=table.counters.of_host(),
        duplicates=table.duplicates,
        refused=table.refused,
        repaired=dict(repaired),
        learned=dict(snooper.counters),
        routed=dict(router.counters),
    )


def worker_loads(datapath: Datapath) -> tuple[WorkerLoad, ...]:
    """Of the workers that run."""
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in datapath.threads if thread.ident is not None]
    return tuple(
        WorkerLoad(time.clock_gettime(clock), *queues)
        for clock, queues in zip(clocks, datapath.waiting(), strict=False)  # no clock: they don't run yet
    )


def _port_status(port: Port, snooper: Snooper) -> PortStatus:
    """With the addresses that were not learned of it."""
    status = port.status()
    refused = tuple(snooper.refusals(port.config.name))
    return msgspec.structs.replace(status, addresses=status.addresses + refused) if refused else status
