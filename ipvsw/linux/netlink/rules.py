"""The daemon's policy rules, which have a protocol number of their own."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from msgspec import Struct
from pyroute2.netlink.exceptions import NetlinkError

OURS = 118  # FRA_PROTOCOL of our rules
TABLES = OURS << 16  # the routing table of a master is this and its interface index
WIRE_TABLES = OURS << 20  # likewise the one for what arrives on the master alone
FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_BLACKHOLE = 1, 2, 3, 6  # linux/fib_rules.h
_FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}


class Rule(Struct, frozen=True):
    """What arrives on `iif` ("lo": what the host itself sends) is looked up in `table`, or goes nowhere with 0.

    With `go_to` the rules from that preference on are asked instead; with its own preference the rule says nothing,
    and is there to be gone to.
    """

    version: int  # of IP
    preference: int
    iif: str
    table: int = 0
    oif: str = ""  # only what names this output device
    go_to: int = 0


def ours(route: Any) -> set[Rule]:
    """Our rules in this namespace. Errors: NetlinkError."""
    return {
        _read(version, message)
        for version, family in _FAMILIES.items()
        for message in route.get_rules(family=family)
        if message.get_attr("FRA_PROTOCOL") == OURS
    }


def replace(route: Any, wanted: set[Rule], master: str, table: int) -> None:
    """Make `wanted` all the rules of ours for this master. Errors: NetlinkError."""
    had = {rule for rule in ours(route) if master in (rule.iif, rule.oif) or rule.table == table}
    for rule in wanted - had:
        route.rule("add", **_words(rule))
    for rule in had - wanted:
        with contextlib.suppress(NetlinkError):
            route.rule("del", **_words(rule))


def _read(version: int, message: Any) -> Rule:
    action, preference = message["action"], message.get_attr("FRA_PRIORITY") or 0
    return Rule(
        version,
        preference,
        message.get_attr("FRA_IIFNAME") or "",
        table=message.get_attr("FRA_TABLE") if action == FR_ACT_TO_TBL else 0,
        oif=message.get_attr("FRA_OIFNAME") or "",
        go_to={FR_ACT_GOTO: message.get_attr("FRA_GOTO") or 0, FR_ACT_NOP: preference}.get(action, 0),
    )


def _words(rule: Rule) -> dict[str, Any]:
    words = {"family": _FAMILIES[rule.version], "priority": rule.preference, "iifname": rule.iif, "protocol": OURS}
    if rule.oif:
        words["oifname"] = rule.oif
    if rule.table:
        return words | {"action": FR_ACT_TO_TBL, "table": rule.table}
    if rule.go_to == rule.preference:
        return words | {"action": FR_ACT_NOP}
    if rule.go_to:
        return words | {"action": FR_ACT_GOTO, "goto": rule.go_to}
    return words | {"action": FR_ACT_BLACKHOLE}
