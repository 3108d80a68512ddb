"""Every place that something can be measured at, by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tests.bench.places import crowd, ours, peers, socketports, tables, tunnels
from tests.bench.places.ground import Builder

FANS = (1, 16, 256)  # receivers of a broadcast
CROWDS = (1024, 4096)  # idle ports
LIMITED = 20_000  # packets a second that a port may send
TABLES = (10, 1000, 100_000, 1_000_000)  # addresses

PLACES: Mapping[str, Builder] = {
    "ipvsw": ours.ipvsw,
    "fast": ours.fast,
    "epoll": ours.epoll,
    "guarded": ours.guarded,
    "limited": partial(ours.limited, packets=LIMITED),
    "apart": ours.apart,
    "macvlan": ours.macvlan,
    "host": ours.host,
    "beside-stream": socketports.beside,
    "stream": socketports.stream,
    "routed": ours.routed,
    "l3s": partial(ours.routed, mode="l3s"),
    "vxlan": tunnels.vxlan,
    "workers1": partial(ours.workers, number=1),
    "workers2": partial(ours.workers, number=2),
    "captured": ours.captured,
    "queues2": partial(ours.workers, number=2, queues=2),
    "veth": peers.veth,
    "bridge": peers.bridge,
    "bare-host": peers.bare_host,
    "loop": peers.loop,
    "vde": peers.vde,
    "vde-plugs": socketports.vde_plugs,
    "ovs": peers.ovs,
    "ovs-tso": peers.ovs_tso,
    **{f"fan{n}": partial(crowd.fan, receivers=n) for n in FANS},
    **{f"bridge-fan{n}": partial(crowd.bridge_fan, receivers=n) for n in FANS},
    **{f"crowd{n}": partial(crowd.crowd, idle=n) for n in CROWDS},
    **{f"table{n}": partial(tables.table, addresses=n) for n in TABLES},
    **{f"table6-{n}": partial(tables.table, addresses=n, family=6) for n in TABLES},
}
