"""The daemon's policy rules and routes in the master's namespace, which have a protocol number of their own.

Routes of two kinds: to the host's interface, in tables of each master's, and those that are exported: by the master, in
a table that no rule looks up and routing daemons read. Their metric is the master's index, so that masters don't meet.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from msgspec import Struct

from ipvsw.linux.netlink.messages import AF_INET, AF_INET6, attributes, pack_attribute
from ipvsw.linux.netlink.questions import NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Questions
from ipvsw.model import Address

OURS = 118  # FRA_PROTOCOL of our rules
TABLES = OURS << 16  # the routing table of a master is this and its interface index
WIRE_TABLES = OURS << 20  # likewise the one for what arrives on the master alone
EXPORT_TABLE = OURS  # of what routing daemons see; FRR reads tables up to 252
FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_BLACKHOLE = 1, 2, 3, 6  # linux/fib_rules.h
FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_TABLE, FRA_OIFNAME, FRA_PROTOCOL = 3, 4, 6, 15, 17, 21
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34  # linux/rtnetlink.h
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
_RTN_UNICAST, _RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 1, 0, 253
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 6, 15
RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # family, lengths of destination and source, tos, table, protocol, scope, type, flags
_RULE_HEADER = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr: family, lengths, tos, table, ..., action, flags
_UINT = struct.Struct("=I")
_FAMILIES = {4: AF_INET, 6: AF_INET6}


class Destination(NamedTuple):
    """Of an exported route. There may be a hundred thousand: tuples are hashed ten times as fast as networks."""

    packed: bytes  # the network's address
    length: int  # of the prefix

    def __str__(self) -> str:
        whole = self.length == 8 * len(self.packed)
        return f"{ip_address(self.packed)}" + ("" if whole else f"/{self.length}")


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


def add(kernel: Questions, rule: Rule) -> None:
    """Errors: OSError."""
    kernel.change_one(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _body(rule))


def replace(kernel: Questions, had: set[Rule], wanted: set[Rule]) -> None:
    """Make `wanted` of `had`. Errors: OSError."""
    for rule in wanted - had:
        add(kernel, rule)
    for rule in had - wanted:
        with contextlib.suppress(OSError):
            kernel.change_one(RTM_DELRULE, 0, _body(rule))


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


def _body(rule: Rule) -> bytes:
    action, more = _action(rule)
    parts = [
        (FRA_PRIORITY, _UINT.pack(rule.preference)),
        (FRA_IIFNAME, os.fsencode(rule.iif) + b"\0"),
        (FRA_PROTOCOL, bytes([OURS])),
        *([(FRA_OIFNAME, os.fsencode(rule.oif) + b"\0")] if rule.oif else []),
        *more,
    ]
    head = _RULE_HEADER.pack(_FAMILIES[rule.version], 0, 0, 0, 0, 0, 0, action, 0)
    return head + b"".join(pack_attribute(kind, value) for kind, value in parts)


def _action(rule: Rule) -> tuple[int, Sequence[tuple[int, bytes]]]:
    """And the attributes that it needs."""
    if rule.table:
        return FR_ACT_TO_TBL, [(FRA_TABLE, _UINT.pack(rule.table))]
    if rule.go_to == rule.preference:
        return FR_ACT_NOP, []
    if rule.go_to:
        return FR_ACT_GOTO, [(FRA_GOTO, _UINT.pack(rule.go_to))]
    return FR_ACT_BLACKHOLE, []


def export_routes(kernel: Questions, index: int, wanted: Sequence[Destination]) -> dict[Destination, OSError]:
    """By the device of that index; what is there is replaced. What the kernel has refused. Errors: OSError."""
    answers = kernel.change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, [_exported(index, one) for one in wanted])
    return {
        one: OSError(code, f"exported route to {one}: {why or os.strerror(code)}")
        for one, (code, why) in zip(wanted, answers, strict=True)
        if code
    }


def withdraw_routes(kernel: Questions, index: int, unwanted: Sequence[Destination]) -> None:
    """One that is not there is no error. Errors: OSError."""
    kernel.change(RTM_DELROUTE, 0, [_exported(index, one) for one in unwanted])


def read_exported(route: bytes, parts: dict[int, bytes]) -> Destination | None:
    """The destination of an exported route, given its struct rtmsg and its attributes."""
    if route[5] != OURS or parts.get(_RTA_TABLE) != _UINT.pack(EXPORT_TABLE) or _RTA_DST not in parts:
        return None
    return Destination(parts[_RTA_DST], route[1])


def _exported(index: int, destination: Destination) -> bytes:
    six = len(destination.packed) == 16
    scope = _RT_SCOPE_UNIVERSE if six else _RT_SCOPE_LINK
    family = AF_INET6 if six else AF_INET
    head = RTMSG.pack(family, destination.length, 0, 0, EXPORT_TABLE, OURS, scope, _RTN_UNICAST, 0)
    parts = [
        (_RTA_DST, destination.packed),
        (_RTA_OIF, _UINT.pack(index)),
        (_RTA_PRIORITY, _UINT.pack(index)),
        (_RTA_TABLE, _UINT.pack(EXPORT_TABLE)),
    ]
    return head + b"".join(pack_attribute(kind, value) for kind, value in parts)


def read_host_route(route: bytes, parts: dict[int, bytes]) -> tuple[Address, int] | None:
    """Destination and table of a route of the daemon's own, given its struct rtmsg and its attributes."""
    if route[5] != OURS or _RTA_DST not in parts or _RTA_TABLE not in parts:
        return None
    destination = parts[_RTA_DST]
    address = IPv4Address(destination) if len(destination) == 4 else IPv6Address(destination)
    return address, int(_UINT.unpack(parts[_RTA_TABLE])[0])
