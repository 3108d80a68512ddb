"""`link`: ports as links, in ip-link(8)'s words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ipvsw.cli.command import Asked, Command, Option, first, read_name, read_nothing, read_port, silent
from ipvsw.cli.complete import Names
from ipvsw.cli.record import records
from ipvsw.cli.status import read_switches, select_ports

if TYPE_CHECKING:
    from ipvsw.client import Record
    from ipvsw.config.keys import Key
    from ipvsw.status import PortStatus, SwitchStatus

LABEL = "label"
DESCRIPTOR = "fd:"
BROADCAST = "ff:ff:ff:ff:ff:ff"


def _show(asked: Asked) -> list[Record]:
    if (label := asked.options.get(LABEL)) is not None:
        selected = select_ports(records(asked.client.labelled(label)), None)
    else:
        selected = select_ports(read_switches(asked), asked.name)
    counted = {one["name"]: one["ports"] for one in asked.client.stats()} if "statistics" in asked.options else None
    return [
        link_record(switch, port)
        # A port that came between the two answers has no counters yet.
        | ({} if counted is None else statistics(counted.get(switch.name, {}).get(port.name)))
        for switch, port in selected
    ]


def _write_show(found: list[Record], asked: Asked) -> str:
    return "\n".join(map(_link, found))


def _link(one: Record) -> str:
    """As `ip -d link` prints an ipvlan device, and `ip -d -s link` with its counters."""
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
    lines += [f"    alias {one['ifalias']}"] if "ifalias" in one else []
    lines += [f"    altname {name}" for name in one.get("altnames", ())]
    for side, counters in one.get("stats64", {}).items():
        heads = [f"{side.upper()}:", *counters]
        cells = [str(value) for value in counters.values()]
        widths = [max(len(head), len(cell)) for head, cell in zip(heads[1:], cells, strict=True)]
        lines += [
            f"    {heads[0]} " + " ".join(head.rjust(width) for head, width in zip(heads[1:], widths, strict=True)),
            "        " + " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)),
        ]
    return "\n".join(lines)


def link_record(switch: SwitchStatus, port: PortStatus) -> Record:
    """With the keys of `ip -d -j link`; `netns`, `altnames` and `ifalias`, the label, only where they have a value."""
    up = port.state in ("up", "degraded")
    flags = ["BROADCAST", "MULTICAST"]
    if up:
        flags = [*flags, "UP", "LOWER_UP"] if port.carrier else ["NO-CARRIER", *flags, "UP"]
    record: Record = {
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
            "info_kind": "ipvlan" if port.kind in ("netns", "link") else "ipvtap",
            "info_data": {"mode": switch.mode, str(switch.flag): True},
        },
    }
    if port.netns:
        record["link_netns"] = port.netns
    if port.label:
        record["ifalias"] = port.label
    if port.name != port.ifname:
        record["altnames"] = [port.name]
    return record


def statistics(traffic: Record | None) -> Record:
    """Counters with the keys of `ip -s -j link`, as the port's own side sees them: it receives what the switch sent.
    Dropped is what the switch did not deliver: rx for want of room in the port's device, tx by its rules."""
    from ipvsw.outcomes import is_drop  # a millisecond, at each TAB if it were above

    if traffic is None:
        return {}
    lost = sum(count for name, count in traffic["outcomes"].items() if is_drop(name))
    rx = {"bytes": traffic["tx_bytes"], "packets": traffic["tx_frames"], "errors": 0, "dropped": traffic["tx_errors"]}
    tx = {"bytes": traffic["rx_bytes"], "packets": traffic["rx_frames"], "errors": 0, "dropped": lost}
    return {"stats64": {"rx": rx, "tx": tx}}


def _add(asked: Asked) -> Record:
    port = dict(asked.port)
    descriptor = str(port.get("netns", "")).removeprefix(DESCRIPTOR)
    if port.get("netns") == DESCRIPTOR + descriptor and descriptor.isdecimal():
        del port["netns"]
        return asked.client.add_port(netns_fd=int(descriptor), **port, mode=asked.mode, flag=asked.flag)
    return asked.client.add_port(**port, mode=asked.mode, flag=asked.flag)


def _set(asked: Asked) -> Record:
    if asked.port:
        return asked.client.change_port(asked.required_name, **asked.port)
    return asked.client.set_mode(asked.required_name, mode=asked.mode, flag=asked.flag)


def _delete(asked: Asked) -> None:
    if (label := asked.options.get(LABEL)) is not None:
        asked.client.delete_labelled(label)
    else:
        asked.client.delete_port(asked.required_name)


def _or_label(read: Callable[[list[str], Asked], None]) -> Callable[[list[str], Asked], None]:
    """`label LABEL`, or what `read` takes. A port with the name `label` is `dev label`."""

    def read_or_label(words: list[str], asked: Asked) -> None:
        if words[:1] == [LABEL] and len(words) == 2:
            asked.options[LABEL] = words[1]
        else:
            read(words, asked)

    return read_or_label


# ---------------------------------------------------------------------------- keywords, imported where there are any


def _read_add(words: list[str], asked: Asked) -> None:
    from ipvsw.cli.keywords import read_add

    read_add(words, asked)


def _read_set(words: list[str], asked: Asked) -> None:
    from ipvsw.cli.keywords import read_set

    read_set(words, asked)


def _keywords() -> dict[str, Key]:
    from ipvsw.cli.keywords import KEYS

    return KEYS


def _complete_add(words: list[str], names: Names) -> Iterable[str]:
    from ipvsw.cli.keywords import complete_add

    return complete_add(words, names)


def _complete_set(words: list[str], names: Names) -> Iterable[str]:
    if not words or words == ["dev"]:
        return names.both()
    from ipvsw.cli.keywords import complete_set

    return complete_set(words)


# ---------------------------------------------------------------------------- the commands

_STATISTICS = Option("--statistics", "also counters, as `ip -s` prints them", short="-s")
_SHOW = Command(
    name="link show",
    summary="ports, as `ip -d link` would print them",
    operands="[[dev] PORT|SWITCH | label LABEL]",
    about="""\
Ports, in the words and the order of `ip -d link`; with --json, with the keys of `ip -d -j link`.
A port that waits has no index yet and is NOTPRESENT. Counters with -s are the port's own:
RX is what it received, TX what it sent, dropped what was not delivered; `ipvsw stats` has reasons.
LABEL stands for all ports with that label, or one that begins with it and a colon.
""",
    options=(_STATISTICS,),
    read=_or_label(read_name),
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
        options=(_STATISTICS,),
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
keys in ipvsw.toml(5). The number of a process stands for its namespace, and fd:N for the one that
the shell has opened as descriptor N. `numtxqueues` and `numrxqueues` are ip's words for `queues`; a
port has as many of both.

Example: ipvsw link add link eth0 name ipvl0 netns ns0 type ipvlan mode l2 private
""",
        keywords=_keywords,
        read=_read_add,
        run=_add,
        write=silent,
        complete=_complete_add,
    ),
    Command(
        name="link set",
        summary="change mode or flag of a switch, or a port's MTU",
        operands="[dev] PORT|SWITCH|MASTER type ipvlan [mode MODE] [FLAG] | [dev] PORT mtu N",
        about="""\
Change the mode (l2, l3, l3s) or the flag (bridge, private, vepa) of a switch. They belong to the
switch: a change by the name of one port, or of the master, holds for all ports that share it.
Or change the MTU of a port, which stays up.

Example: ipvsw link set ipvl0 type ipvlan mode l2 vepa
         ipvsw link set eth0 type ipvlan mode l3
         ipvsw link set ipvl0 mtu 1400
""",
        read=_read_set,
        run=_set,
        write=silent,
        complete=_complete_set,
    ),
    Command(
        name="link delete",
        summary="remove ports",
        operands="[dev] PORT | label LABEL",
        about="""\
Remove a port. Its interface disappears from its namespace. With a label: all ports with that
label, or one that begins with it and a colon, together.

Example: ipvsw link delete label cni:lan
""",
        read=_or_label(read_port),
        run=_delete,
        complete=first(Names.ports),
    ),
    _SHOW,
)
