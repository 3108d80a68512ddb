"""rtnetlink in any namespace: the only user of pyroute2.

Two interfaces. `Netlink.events` is one socket in the daemon's own namespace that hears every namespace
that has an id there (NETLINK_LISTEN_ALL_NSID): it keeps none of them alive, which a socket inside
each would. `Netlink.run` does work inside a namespace, on one thread kept for that, with a handle
that is gone when the work is done.

    messages.py   what is heard: the events, and rtnetlink's messages read into them
    handle.py     what is done: requests inside one namespace
    dump.py       all links of a namespace, read as those that are heard
    delete.py     many links deleted at once
    routes.py     where the host would send a packet, and news about that
    rules.py      our policy rules
    clsact.py     the shim's two tc filters
    thread.py     the event socket and the thread that enters namespaces
"""

from __future__ import annotations

from ipvsw.linux.netlink.handle import Handle
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
from ipvsw.linux.netlink.routes import NeighbourChanged, RouteAnswer, RouteMonitor, WaysChanged
from ipvsw.linux.netlink.rules import TABLES, Rule
from ipvsw.linux.netlink.thread import Netlink, enter_namespace

__all__ = [
    "TABLES",
    "AddressEvent",
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
    "RouteAnswer",
    "RouteMonitor",
    "Rule",
    "WaysChanged",
    "enter_namespace",
]
