"""Names of ports as users write them: PORT, or SWITCH/PORT where several switches have such a port. Pure.

Completion uses it on every TAB: the model is imported only where there is something to refuse.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping

Switches = Mapping[str, Container[str]]
"""The ports of each switch, by their names."""


def find_ports(name: str, switches: Switches) -> list[tuple[str, str]]:
    """Every switch and port that `name` may mean."""
    wanted, slash, port = name.rpartition("/")
    return [(switch, port) for switch, ports in switches.items() if port in ports and (not slash or switch == wanted)]


def find_port(name: str, switches: Switches) -> tuple[str, str]:
    """The switch and the port. Errors: NotFound, Refused if there are several."""
    from ipvsw.model import NotFound, Refused

    found = find_ports(name, switches)
    if not found:
        raise NotFound(f"there is no port {json.dumps(name)}")
    if len(found) > 1:
        every = ", ".join(f"{switch}/{port}" for switch, port in found)
        raise Refused(f"port {json.dumps(name)} is on several switches: say which of {every}")
    return found[0]


def find_switch(name: str, switches: Switches, masters: Mapping[str, str]) -> str:
    """The switch of that name, or the one whose port has it, or whose master: `masters` has the master of each switch.
    Errors: NotFound, Refused if there are several."""
    if name in switches:
        return name
    if find_ports(name, switches):
        return find_port(name, switches)[0]
    return find_by_master(name, masters)


def find_by_master(name: str, masters: Mapping[str, str]) -> str:
    """The switch whose master has that name. Errors: NotFound, Refused if there are several."""
    from ipvsw.model import NotFound, Refused

    found = [switch for switch, master in masters.items() if master == name]
    if not found:
        raise NotFound(f"there is no switch, port or master {json.dumps(name)}")
    if len(found) > 1:
        raise Refused(f"master {json.dumps(name)} is of several switches: say which of {', '.join(found)}")
    return found[0]


def short_names(ports: Iterable[tuple[str, str]]) -> list[str]:
    """How to name each switch and port: PORT where that is enough."""
    every = list(ports)
    count = Counter(port for _, port in every)
    return [port if count[port] == 1 else f"{switch}/{port}" for switch, port in every]


def has_label(label: str, wanted: str) -> bool:
    """Whether `wanted` is the label, or its first parts."""
    return label == wanted or label.startswith(f"{wanted}:")
