"""`link`: ports as links, in ip-link(8)'s words."""

from __future__ import annotations

from typing import Any

from ipvsw.cli.command import Asked, Command, first, read_name, read_nothing, read_port, silent
from ipvsw.cli.complete import Names
from ipvsw.cli.keywords import KEYS, complete_add, complete_set, read_add, read_set
from ipvsw.cli.status import read_switches, select_ports
from ipvsw.model import Kind, PortState, PortStatus, SwitchStatus

BROADCAST = "ff:ff:ff:ff:ff:ff"


def _show(asked: Asked) -> list[dict[str, Any]]:
    return [link_record(switch, port) for switch, port in select_ports(read_switches(asked), asked.name)]


def _write_show(found: list[dict[str, Any]], asked: Asked) -> str:
    return "\n".join(map(_link, found))


def _link(one: dict[str, Any]) -> str:
    """As `ip -d link` prints an ipvlan device."""
    info = one["linkinfo"]
    flag = next(key for key in info["info_data"] if key != "mode")
    lines = [
        f"{one['ifindex']}: {one['ifname']}@{one['link']}: <{','.join(one['flags'])}> mtu {one['mtu']}"
        f" state {one['operstate']} mode {one['linkmode']}"
    ]
    ether = [f"link/ether {one['address']} brd {one['broadcast']}"] if one["address"] else []
    netns = [f"link-netns {one['link_netns']}"] if "link_netns" in one else []
    if ether or netns:
        lines.append("    " + " ".join(ether + netns))
    lines.append(f"    {info['info_kind']}  mode {info['info_data']['mode']} {flag}")
    lines += [f"    altname {name}" for name in one.get("altnames", ())]
    return "\n".join(lines)


def link_record(switch: SwitchStatus, port: PortStatus) -> dict[str, Any]:
    """With the keys of `ip -d -j link`; `netns` and `altnames` only where they have a value."""
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


def _add(asked: Asked) -> dict[str, Any]:
    return asked.client.add_port(**asked.port, mode=asked.mode, flag=asked.flag)


def _set(asked: Asked) -> dict[str, Any]:
    return asked.client.set_mode(asked.required_name, mode=asked.mode, flag=asked.flag)


def _delete(asked: Asked) -> None:
    asked.client.delete_port(asked.required_name)


# ---------------------------------------------------------------------------- the commands

_SHOW = Command(
    name="link show",
    summary="ports, as `ip -d link` would print them",
    operands="[[dev] PORT|SWITCH]",
    about="""\
Ports, in the words and the order of `ip -d link`; with --json, with the keys of `ip -d -j link`.
A port that waits has no index yet and is NOTPRESENT.
""",
    read=read_name,
    run=_show,
    write=_write_show,
    complete=first(Names.both),
    aliases=("link list",),
)

COMMANDS = (  # ip's own order: `ip link s` is set
    Command(
        name="link",
        summary="ports as links: add, set, delete, show",
        about="Ports as links, in the words of ip-link(8). `ipvsw link` alone is `ipvsw link show`.\n",
        read=read_nothing,
        run=_show,
        write=_write_show,
    ),
    Command(
        name="link add",
        summary="attach a port",
        operands="link MASTER [name] NAME [KEY VALUE]... type ipvlan|ipvtap [mode MODE] [FLAG]",
        about="""\
Attach a port to the switch of MASTER; the switch is made if there is none yet. ipvlan is for a
namespace, ipvtap for a virtual machine. The words may stand in any order. KEY is one of a port's
keys in ipvsw.toml(5). The number of a process stands for its namespace.

Example: ipvsw link add link eth0 name ipvl0 netns ns0 type ipvlan mode l2 private
""",
        keywords=KEYS,
        read=read_add,
        run=_add,
        write=silent,
        complete=complete_add,
    ),
    Command(
        name="link set",
        summary="change mode or flag of a switch",
        operands="[dev] PORT|SWITCH type ipvlan [mode MODE] [FLAG]",
        about="""\
Change the mode (l2, l3, l3s) or the flag (bridge, private, vepa) of a switch. They belong to the
switch: a change by the name of one port holds for all ports that share its master.

Example: ipvsw link set ipvl0 type ipvlan mode l2 vepa
""",
        read=read_set,
        run=_set,
        write=silent,
        complete=complete_set,
    ),
    Command(
        name="link delete",
        summary="remove a port",
        operands="[dev] PORT",
        about="Remove a port. Its interface disappears from its namespace.\n",
        read=read_port,
        run=_delete,
        complete=first(Names.ports),
    ),
    _SHOW,
)
