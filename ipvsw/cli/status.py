"""`show`, `address` and `lease`: what there is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ipvsw.cli.command import Asked, Command, Failed, first, read_name, read_show_name
from ipvsw.cli.complete import Names
from ipvsw.cli.record import records
from ipvsw.cli.table import table
from ipvsw.config.names import find_ports

if TYPE_CHECKING:
    from ipvsw.client import Record
    from ipvsw.model import Guard
    from ipvsw.status import AddressStatus, LeaseStatus, PortStatus, SwitchStatus


def read_switches(asked: Asked) -> list[SwitchStatus]:
    found: list[SwitchStatus] = records(asked.client.switches())
    return found


def select_ports(switches: Sequence[SwitchStatus], name: str | None) -> list[tuple[SwitchStatus, PortStatus]]:
    """All ports; those of the switch `name`; or those that PORT or SWITCH/PORT means. Errors: Failed for none."""
    every = {(switch.name, port.name): (switch, port) for switch in switches for port in switch.ports}
    if name is None:
        return list(every.values())
    if any(switch.name == name for switch in switches):
        return [pair for (switch, _), pair in every.items() if switch == name]
    found = find_ports(name, {switch.name: [port.name for port in switch.ports] for switch in switches})
    if not found:
        raise no_such(name)
    return [every[place] for place in found]


def no_such(name: str) -> Failed:
    return Failed(f"there is no switch or port {json.dumps(name)}")


def _of_ports(found: list[Record], asked: Asked) -> list[Record]:
    """Those that are of the port or switch that was named."""
    if asked.name is None:
        return found
    wanted = {(switch.name, port.name) for switch, port in select_ports(read_switches(asked), asked.name)}
    return [one for one in found if (one["switch"], one["port"]) in wanted]


# ---------------------------------------------------------------------------- show


def _show(asked: Asked) -> list[Record]:
    return asked.client.switches() if asked.name is None else [asked.client.switch(asked.name)]


def _write_show(found: list[Record], asked: Asked) -> str:
    return show(records(found))


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
                "MULTICAST",
                "EXPORT",
                "GUARD",
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
            (
                "PORT",
                "KIND",
                "DEVICE",
                "PATH",
                "STATE",
                "NETNS",
                "IFNAME",
                "OWN-MAC",
                "MTU",
                "OFFLOADS",
                "GUARDS",
                "LIMITS",
                "REASON",
            ),
            (_port_row(switch, port) for switch, port in ports),
        ),
        _address_table([one for _, port in ports for one in port.addresses]),
    ]
    return "\n\n".join("\n".join(part) for part in parts if len(part) > 1)


def _write_addresses(found: list[Record], asked: Asked) -> str:
    return "\n".join(_address_table(records(found))) if found else ""


def _write_leases(found: list[Record], asked: Asked) -> str:
    titles = ("ADDRESS", "PORT", "STATE", "REMAINING", "MAC", "CLIENT-ID", "HOSTNAME", "SERVER")
    return "\n".join(table(titles, map(_lease_row, records(found)))) if found else ""


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
        "" if switch.l3_output == "fast" else switch.l3_output,
        "" if switch.host_access == "none" else switch.host_access,
        ",".join(switch.multicast),
        "" if switch.export == "none" else f"{switch.exported} {switch.export}",
        "" if switch.guard is None else _guards(switch.guard) or "off",
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
        port.kind,
        "" if port.device == "tap" else port.device,
        port.path,
        _state(port),
        port.netns,
        port.ifname,
        port.mac if port.mac_source == "own" else "",
        _number(port.mtu),
        ",".join(port.offloads),
        _guards(port.guards),
        ",".join(f"{key}={value}" for key, value in vars(port.limits).items()),
        port.reason,
    )


def _address_table(found: Iterable[AddressStatus]) -> list[str]:
    return table(
        ("ADDRESS", "PORT", "STATE", "SOURCE"),
        ((one.address, f"{one.switch}/{one.port}", one.state, one.source) for one in found),
    )


def _state(one: SwitchStatus | PortStatus) -> str:
    return "no-carrier" if one.state == "up" and not one.carrier else str(one.state)


def _guards(guards: Sequence[Guard]) -> str:
    if not guards:
        return ""
    from ipvsw.model import Guard

    return "strict" if len(guards) == len(Guard) else ",".join(guards)


def _number(value: int) -> str:
    return str(value) if value else ""


# ---------------------------------------------------------------------------- the commands

COMMANDS = (
    Command(
        name="show",
        summary="switches, their ports, their addresses",
        operands="[SWITCH]",
        about="""\
Switches with mode, flag, master and state; their ports with namespace, MTU and the offloads
that the kernel granted; their addresses, with state and source. PATH says of a veth whether the
kernel forwards its unicast, or why the daemon does. Ports of kind link were made by
`ip link add ... type ipvsw` with the optional kernel module: they are named DEVICE@NETNS, and only
`ip link del` removes them.

States:     up, no-carrier, down, failed, waiting (for a namespace, the master or a VMM),
            degraded (it forwards, but something is not as it should be: see REASON)
Addresses:  owned      frames for it go to the port
            down       the port is down: frames for it go to the host
            duplicate  another port of the switch has it
            master     the master has it itself
Sources:    config     the configuration asked for it
            netlink    seen in the port's namespace
            dhcp       a server has leased it to the virtual machine
            dad        the guest's duplicate address detection found no other owner
            arp, nd    the guest sends ARP or neighbour discovery with it
            traffic    the guest sends packets from it
""",
        read=read_name,
        run=_show,
        write=_write_show,
        complete=first(Names.switches),
    ),
    Command(
        name="address",
        summary="the address table",
        operands="[show] [[dev] SWITCH|PORT]",
        about="""\
The address table: which port has which address, its state and its source.
`ipvsw show --help` explains the words.
""",
        read=read_show_name,
        run=lambda asked: _of_ports(asked.client.addresses(), asked),
        write=_write_addresses,
        complete=first(Names.both),
    ),
    Command(
        name="lease",
        summary="the DHCP leases of the ports' clients",
        operands="[list] [[dev] SWITCH|PORT]",
        about="""\
What DHCP servers have leased to the ports' clients, for IPv4 and IPv6: the address, its state (see
`ipvsw show --help`; a dash: the port does not have it), how long the lease lasts, the client's MAC
address, identifier and host name, and the server.
""",
        read=read_show_name,
        run=lambda asked: _of_ports(asked.client.leases(), asked),
        write=_write_leases,
        complete=first(Names.both),
    ),
)
