"""rtnetlink in any namespace: the only user of pyroute2, which is loaded when it is first needed.

Two interfaces. `Netlink.events` is one socket in the daemon's own namespace that receives the events of
every namespace that has an id there (NETLINK_LISTEN_ALL_NSID): it keeps none of them alive, as a socket inside
each would. `Netlink.run` runs a function inside a namespace, on one thread kept for that, with a handle that is
closed when the function returns.

    messages.py   events, and rtnetlink's messages parsed into them
    handle.py     requests inside one namespace
    dump.py       all links of a namespace, parsed as events are
    addresses.py  the addresses of a device, thousands at a time
    links.py      links made, and many deleted at once
    questions.py  a socket for questions that are written by hand
    lookup.py     which way the host would send a packet
    routes.py     what the answers are, and the events after which they may be others
    device.py     one device's link, addresses and routes
    rules.py      our policy rules and routes
    clsact.py     the shim's two tc filters
    thread.py     the event socket and the thread that enters namespaces
"""

from __future__ import annotations

from ipvsw.linux.netlink.clsact import EGRESS, INGRESS
from ipvsw.linux.netlink.device import DeviceReader
from ipvsw.linux.netlink.handle import Handle
from ipvsw.linux.netlink.lookup import RouteLookup
from ipvsw.linux.netlink.messages import (
    AddressEvent,
    Event,
    GroupsEvent,
    KmodAttrs,
    Link,
    LinkEvent,
    NamespaceGone,
    Overrun,
    RemovalEvent,
)
from ipvsw.linux.netlink.routes import NeighbourChanged, RouteAnswer, RouteMonitor, RoutesChanged
from ipvsw.linux.netlink.rules import (
    EXPORT_TABLE,
    TABLES,
    WIRE_TABLES,
    Destination,
    Rule,
    export_routes,
    withdraw_routes,
)
from ipvsw.linux.netlink.thread import Netlink, announces_groups, enter_namespace

__all__ = [
    "EGRESS",
    "EXPORT_TABLE",
    "INGRESS",
    "TABLES",
    "WIRE_TABLES",
    "AddressEvent",
    "Destination",
    "DeviceReader",
    "Event",
    "GroupsEvent",
    "Handle",
    "KmodAttrs",
    "Link",
    "LinkEvent",
    "NamespaceGone",
    "NeighbourChanged",
    "Netlink",
    "Overrun",
    "RemovalEvent",
    "RouteAnswer",
    "RouteLookup",
    "RouteMonitor",
    "RoutesChanged",
    "Rule",
    "announces_groups",
    "enter_namespace",
    "export_routes",
    "withdraw_routes",
]
