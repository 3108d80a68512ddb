"""The daemon's policy rules and routes in the master's namespace, which have a protocol number of their own."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from msgspec import Struct
from pyroute2.netlink.exceptions import NetlinkError

from ipvsw.linux.netlink.messages import AF_INET, AF_INET6, attributes
from ipvsw.linux.netlink.questions import NLM_F_DUMP, Questions
from ipvsw.model import Address

OURS = 118  # FRA_PROTOCOL of our rules
TABLES = OURS << 16  # the routing table of a master is this and its interface index
WIRE_TABLES = OURS << 20  # likewise the one for what arrives on the master alone
FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_BLACKHOLE = 1, 2, 3, 6  # linux/fib_rules.h
FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_TABLE, FRA_OIFNAME, FRA_PROTOCOL = 3, 4, 6, 15, 17, 21
RTM_GETRULE = 34  # linux/rtnetlink.h
_RTA_DST, _RTA_TABLE = 1, 15
_RULE_HEADER = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr: family, lengths, tos, table, ..., action, flags
_UINT = struct.Struct("=I")
_FAMILIES = {4: AF_INET, 6: AF_INET6}


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

    def __str__(self) -> str:
        return f"IPv{self.version} rule {self.preference} for {self.oif or self.iif}"


def ours(kernel: Questions) -> set[Rule]:
    """Our rules in this namespace. Errors: OSError."""
    found = set()
    for version, family in _FAMILIES.items():
        for body in kernel.ask(RTM_GETRULE, NLM_F_DUMP, _RULE_HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            parts = attributes(body, _RULE_HEADER.size)
            if parts.get(FRA_PROTOCOL) == bytes([OURS]):
                found.add(_read(version, body[7], parts))
    return found


def add(route: Any, rule: Rule) -> None:
    """Errors: NetlinkError."""
    route.rule("add", **_words(rule))


def replace(route: Any, had: set[Rule], wanted: set[Rule]) -> None:
    """Make `wanted` of `had`. Errors: NetlinkError."""
    for rule in wanted - had:
        add(route, rule)
    for rule in had - wanted:
        with contextlib.suppress(NetlinkError):
            route.rule("del", **_words(rule))


def _read(version: int, action: int, parts: dict[int, bytes]) -> Rule:
    def number(kind: int) -> int:
        return int(_UINT.unpack(parts[kind])[0]) if kind in parts else 0

    def text(kind: int) -> str:
        return parts.get(kind, b"").rstrip(b"\0").decode(errors="surrogateescape")

    preference = number(FRA_PRIORITY)
    return Rule(
        version,
        preference,
        text(FRA_IIFNAME),
        table=number(FRA_TABLE) if action == FR_ACT_TO_TBL else 0,
        oif=text(FRA_OIFNAME),
        go_to={FR_ACT_GOTO: number(FRA_GOTO), FR_ACT_NOP: preference}.get(action, 0),
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


def read_host_route(route: bytes, parts: dict[int, bytes]) -> tuple[Address, int] | None:
    """Destination and table of a route of the daemon's own, given its struct rtmsg and its attributes."""
    if route[5] != OURS or _RTA_DST not in parts or _RTA_TABLE not in parts:
        return None
    destination = parts[_RTA_DST]
    address = IPv4Address(destination) if len(destination) == 4 else IPv6Address(destination)
    return address, int(_UINT.unpack(parts[_RTA_TABLE])[0])
