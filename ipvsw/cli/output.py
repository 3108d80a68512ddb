"""Status -> text for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ipvsw.model import (
    AddressStatus,
    HostAccess,
    Kind,
    L3Output,
    LeaseStatus,
    MacSource,
    PortState,
    PortStatus,
    SwitchStats,
    SwitchStatus,
    Traffic,
)

BROADCAST = "ff:ff:ff:ff:ff:ff"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they must be. One that is empty in all rows is left out, an empty cell is a dash."""
    rows = list(rows)
    kept = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    cells = [[titles[at] for at in kept], *([row[at] or "-" for at in kept] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(kept))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


# ---------------------------------------------------------------------------- show, addr


def show(switches: Sequence[SwitchStatus]) -> str:
    ports = [(switch.name, port) for switch in switches for port in switch.ports]
    parts = [
        table(
            (
                "SWITCH",
                "MASTER",
                "NETNS",
                "MODE",
                "FLAG",
                "L3-OUTPUT",
                "HOST-ACCESS",
                "STATE",
                "MAC",
                "MTU",
                "WORKERS",
                "IO",
                "PORTS",
                "REASON",
            ),
            map(_switch_row, switches),
        ),
        table(
            ("PORT", "KIND", "STATE", "NETNS", "IFNAME", "OWN-MAC", "MTU", "OFFLOADS", "REASON"),
            (_port_row(switch, port) for switch, port in ports),
        ),
        _address_table([one for _, port in ports for one in port.addresses]),
    ]
    return "\n\n".join("\n".join(part) for part in parts if len(part) > 1)


def addresses(found: Sequence[AddressStatus]) -> str:
    return "\n".join(_address_table(found)) if found else ""


def leases(found: Sequence[LeaseStatus]) -> str:
    titles = ("ADDRESS", "PORT", "STATE", "REMAINING", "MAC", "CLIENT-ID", "HOSTNAME", "SERVER")
    return "\n".join(table(titles, map(_lease_row, found))) if found else ""


def _lease_row(one: LeaseStatus) -> Sequence[str]:
    return (
        one.address,
        f"{one.switch}/{one.port}",
        one.state or "",
        "for ever" if one.remaining is None else f"{one.remaining} s",
        one.mac,
        one.client_id,
        one.hostname,
        one.server,
    )


def _switch_row(switch: SwitchStatus) -> Sequence[str]:
    return (
        switch.name,
        switch.master,
        switch.netns,
        switch.mode,
        switch.flag,
        "" if switch.l3_output is L3Output.FAST else switch.l3_output,
        "" if switch.host_access is HostAccess.NONE else switch.host_access,
        _state(switch),
        switch.mac,
        _number(switch.mtu),
        str(switch.workers),
        switch.io,
        str(len(switch.ports)),
        switch.reason,
    )


def _port_row(switch: str, port: PortStatus) -> Sequence[str]:
    return (
        f"{switch}/{port.name}",
        port.kind if port.kind is not Kind.NETNS else "",
        _state(port),
        port.netns,
        port.ifname,
        port.mac if port.mac_source is MacSource.OWN else "",
        _number(port.mtu),
        ",".join(port.offloads),
        port.reason,
    )


def _address_table(found: Iterable[AddressStatus]) -> list[str]:
    return table(
        ("ADDRESS", "PORT", "STATE", "SOURCE"),
        ((one.address, f"{one.switch}/{one.port}", one.state, one.source) for one in found),
    )


def _state(one: SwitchStatus | PortStatus) -> str:
    return "no-carrier" if one.state is PortState.UP and not one.carrier else str(one.state)


def _number(value: int) -> str:
    return str(value) if value else ""


# ---------------------------------------------------------------------------- stats


def stats(found: Sequence[SwitchStats], masters: dict[str, str], *, zeros: bool, totals: bool) -> str:
    """`masters`: the name of each switch's master. Without `totals` only the ports are shown."""
    return "\n".join(line for one in found for line in _stats_lines(one, masters[one.name], zeros, totals))


def _stats_lines(one: SwitchStats, master: str, zeros: bool, totals: bool) -> Iterator[str]:
    if totals:
        yield f"switch {one.name}"
        every = [one.master, one.host, *one.ports.values()]
        learned = {f"addresses_{name}": count for name, count in one.learned.items()}
        yield from _counters({"duplicates": one.duplicates} | learned | _sum(every), zeros)
        yield f"master {one.name}/{master}"
        yield from _counters(_sum([one.master]), zeros)
        if one.host.rx_frames:
            yield f"host {one.name}/{master}"
            yield from _counters(_sum([one.host]), zeros)
    for name, traffic in one.ports.items():
        yield f"port {one.name}/{name}"
        yield from _counters(_sum([traffic]), zeros)


def _sum(interfaces: Iterable[Traffic]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in interfaces:
        total.update(
            rx_frames=one.rx_frames,
            rx_bytes=one.rx_bytes,
            tx_frames=one.tx_frames,
            tx_bytes=one.tx_bytes,
            tx_errors=one.tx_errors,
        )
        total.update(one.outcomes)
    return dict(total)


def _counters(counters: dict[str, int], zeros: bool) -> Iterator[str]:
    shown = {name: value for name, value in counters.items() if value or zeros}
    names = max(map(len, shown), default=0)
    values = max((len(str(value)) for value in shown.values()), default=0)
    return (f"    {name:<{names}}  {value:>{values}}" for name, value in shown.items())


# ---------------------------------------------------------------------------- link show


def link(switch: SwitchStatus, port: PortStatus) -> str:
    """As `ip -d link` prints an ipvlan device."""
    one = link_record(switch, port)
    lines = [
        f"{port.index}: {port.ifname}@{switch.master}: <{','.join(one['flags'])}> mtu {port.mtu}"
        f" state {one['operstate']} mode {one['linkmode']}"
    ]
    ether = [f"link/ether {port.mac} brd {BROADCAST}"] if port.mac else []
    netns = [f"link-netns {port.netns}"] if port.netns else []
    if ether or netns:
        lines.append("    " + " ".join(ether + netns))
    lines.append(f"    {one['linkinfo']['info_kind']}  mode {switch.mode} {switch.flag}")
    lines += [f"    altname {name}" for name in one.get("altnames", ())]
    return "\n".join(lines)


def link_record(switch: SwitchStatus, port: PortStatus) -> dict[str, Any]:
    """With the keys of `ip -d -j link`; `netns` and `altnames` only where there is something to say."""
    up = port.state is PortState.UP
    flags = ["BROADCAST", "MULTICAST"]
    if up:
        flags = [*flags, "UP", "LOWER_UP"] if port.carrier else ["NO-CARRIER", *flags, "UP"]
    record: dict[str, Any] = {
        "ifindex": port.index,
        "link": switch.master,
        "ifname": port.ifname,
        "flags": flags,
        "mtu": port.mtu,
        "operstate": "NOTPRESENT" if not port.index else "UP" if up and port.carrier else "DOWN",
        "linkmode": "DEFAULT",
        "link_type": "ether",
        "address": port.mac,
        "broadcast": BROADCAST,
        "linkinfo": {
            "info_kind": "ipvlan" if port.kind in (Kind.NETNS, Kind.LINK) else "ipvtap",
            "info_data": {"mode": switch.mode, str(switch.flag): True},
        },
    }
    if port.netns:
        record["link_netns"] = port.netns
    if port.name != port.ifname:
        record["altnames"] = [port.name]
    return record
