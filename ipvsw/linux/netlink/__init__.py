"""rtnetlink in any namespace: the only user of pyroute2.

Two interfaces. `Netlink.events` is one socket in the daemon's own namespace that receives the events of
every namespace that has an id there (NETLINK_LISTEN_ALL_NSID): it keeps none of them alive, as a socket inside
each would. `Netlink.run` runs a function inside a namespace, on one thread kept for that, with a handle that is
closed when the function returns.

    messages.py   events, and rtnetlink's messages parsed into them
    handle.py     requests inside one namespace
    dump.py       all links of a namespace, parsed as events are
    delete.py     many links deleted at once
    questions.py  a socket for questions that are written by hand
    lookup.py     which way the host would send a packet
    gateways.py   which gateways its routes by a device have
    routes.py     what the answers are, and the events after which they may be others
    rules.py      our policy rules
    clsact.py     the shim's two tc filters
    thread.py     the event socket and the thread that enters namespaces
"""

from __future__ import annotations

from ipvsw.linux.netlink.gateways import Gateways
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
)
from ipvsw.linux.netlink.routes import NeighbourChanged, RouteAnswer, RouteMonitor, RoutesChanged
from ipvsw.linux.netlink.rules import TABLES, WIRE_TABLES, Rule
from ipvsw.linux.netlink.thread import Netlink, enter_namespace

__all__ = [
    "TABLES",
    "WIRE_TABLES",
    "AddressEvent",
    "Event",
    "Gateways",
    "GroupsEvent",
    "Handle",
    "KmodAttrs",
    "Link",
    "LinkEvent",
    "NamespaceGone",
    "NeighbourChanged",
    "Netlink",
    "Overrun",
    "RouteAnswer",
    "RouteLookup",
    "RouteMonitor",
    "RoutesChanged",
    "Rule",
    "enter_namespace",
]
