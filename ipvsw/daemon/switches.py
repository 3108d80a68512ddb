"""All switches by name, and which of them, or of their ports, the names mean that users write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Container, Sequence

from msgspec import structs

from ipvsw.config import names
from ipvsw.linux.peercred import Peer
from ipvsw.model import Forbidden, NotFound, PortConfig, Refused, Who, label_of_user
from ipvsw.ports.port import Port
from ipvsw.status import SwitchStatus
from ipvsw.switch.switch import Switch

USER_PORTS = 256  # of one user who is not root


class Switches(dict[str, Switch]):
    """By name. Errors of every search: NotFound, and Refused for a name that means several."""

    def named(self, name: str) -> Switch:
        if name not in self:
            raise NotFound(f"there is no switch {json.dumps(name)}")
        return self[name]

    def find_switch(self, name: str) -> Switch:
        """The one of that name, or the one whose port or whose master has it."""
        return self[names.find_switch(name, self._ports(), self._masters())]

    def find_port(self, name: str) -> tuple[str, str]:
        """The switch and the port that PORT or SWITCH/PORT means."""
        return names.find_port(name, self._ports())

    def find_configured(self, name: str, otherwise: str) -> tuple[str, Port]:
        """The switch, and the port that PORT or SWITCH/PORT means, unless it is a device of the kernel module's: for
        one of these the error says what to do `otherwise`."""
        switch, port = self.find_port(name)
        if port in self[switch].links:
            raise Refused(f"{name}: `ip link add` made this port; {otherwise}")
        return switch, self[switch].ports[port]

    def find_interface(self, name: str) -> tuple[Switch, str]:
        """The switch, and the port, "master" or "host" that PORT, SWITCH/PORT, a master's name, "master", "host",
        SWITCH/master and SWITCH/host mean. A port comes first."""
        ports = self._ports()
        if names.find_ports(name, ports):
            switch, port = names.find_port(name, ports)
            return self[switch], port
        of, _, last = name.rpartition("/")
        if last in ("master", "host"):
            if not of and len(ports) > 1:
                raise Refused(f"{name}: say which switch's: {', '.join(f'{one}/{last}' for one in ports)}")
            if (of or next(iter(ports), None)) in ports:
                return self[of or next(iter(ports))], last
        return self[names.find_by_master(name, self._masters())], "master"

    def find_captured(self, name: str) -> tuple[Switch, str | None]:
        """The same, or None for all of a switch, which "" means if it is the only one."""
        if name in self and not names.find_ports(name, self._ports()):
            return self[name], None
        if name:
            return self.find_interface(name)
        if len(self) != 1:
            raise Refused(f"say which switch: {', '.join(self)}" if self else "there is no switch")
        return next(iter(self.values())), None

    def end_captures(self) -> None:
        for switch in self.values():
            switch.captures.end()

    async def undo_ports(self, gone: Sequence[tuple[str, PortConfig]]) -> None:
        """Ports that the last daemon has left on these switches, and nobody wants any more: they are taken over, and
        removed."""
        ports = [self[switch].add_port(port) for switch, port in gone]
        await asyncio.gather(*(port.settled() for port in ports))
        await asyncio.gather(*(self[switch].remove_port(port.name) for switch, port in gone))

    def labelled(self, label: str) -> tuple[SwitchStatus, ...]:
        """The ports with that label, or one that begins with it and a colon; only the switches that have any."""
        found = (
            structs.replace(one, ports=tuple(port for port in one.ports if names.has_label(port.label, label)))
            for one in (switch.status() for switch in self.values())
        )
        return tuple(switch for switch in found if switch.ports)

    def find_labelled(self, label: str) -> list[tuple[str, str]]:
        """Switch and port of each of these that can be removed."""
        found = [
            (name, port.config.name)
            for name, switch in self.items()
            for port in switch.ports.values()
            if names.has_label(port.config.label, label)
        ]
        if not found:
            raise NotFound(f"there is no port with the label {json.dumps(label)}")
        return found

    def on_master(self, master: str) -> Switch | None:
        """The switch on this master; one in the daemon's own namespace goes before others."""
        found = [switch for switch in self.values() if switch.config.master == master]
        own = [switch for switch in found if not switch.config.netns]
        if not own and len(found) > 1:
            several = ", ".join(switch.name for switch in found)
            raise Refused(f"master: several switches have {master} as their master: {several}")
        return next(iter(own or found), None)

    def check_user(self, master: str, peer: Peer) -> None:
        """Whether the switch on `master` lets this user attach one more namespace of their own. Errors: Forbidden."""
        found = self.on_master(master)
        if found is None or not peer.is_among(found.config.users):
            raise Forbidden(f"master: this user may not attach to {master}; `users` of its switch says who may")
        label = label_of_user(peer.uid or 0)
        ports = [port.config.label for switch in self.values() for port in switch.ports.values()]
        if sum(names.has_label(one, label) for one in ports) >= USER_PORTS:
            raise Refused(f"this user has {USER_PORTS} ports already")

    def _ports(self) -> dict[str, Container[str]]:
        """The names of each one's; those of the kernel module's devices too."""
        return {name: switch.ports.keys() | switch.links.keys() for name, switch in self.items()}

    def _masters(self) -> dict[str, str]:
        return {name: switch.config.master for name, switch in self.items()}

    # ------------------------------------------------------------------------ virtual machines

    def find_vm(self, name: str, peer: Peer, allow: Sequence[Who]) -> Port:
        """The port `name`, or the first free one on the switch `name` that `peer` may have; `allow` are those who may
        have any. Errors: also Forbidden."""
        ports = self._ports()
        if name in self and not names.find_ports(name, ports):
            return self._free_vm(name, peer, allow)
        switch, of = names.find_port(name, ports)
        port = self[switch].ports.get(of) or self[switch].links[of]
        if not port.serves_vm:
            raise Refused(f"{name}: the port is of kind {port.config.kind}, which is not for virtual machines")
        if not _may(peer, port, allow):
            raise Forbidden(f"{name}: this user may not have the port")
        return port

    def _free_vm(self, switch: str, peer: Peer, allow: Sequence[Who]) -> Port:
        ports = [port for port in self[switch].ports.values() if port.offers_tap and _may(peer, port, allow)]
        if free := next((port for port in ports if port.free), None):
            return free
        if ports or peer.is_master:
            raise Refused(f"{switch}: the switch has no free port for a virtual machine")
        raise Forbidden(f"{switch}: this user may not have any port of the switch")


def _may(peer: Peer, port: Port, allow: Sequence[Who]) -> bool:
    return peer.is_master or peer.is_among((*allow, *port.config.allow))
