"""What would become of a frame, in words: what the kernel's programs make of it, or else the stages as the datapath
tells them, with names for numbers, and for each address how the switch knows of it. Nothing is sent and nothing
changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from ipvsw._fast import Datapath
from ipvsw.addresses.table import Table
from ipvsw.linux.netlink import RouteAnswer
from ipvsw.model import Flag, Mode, SwitchConfig
from ipvsw.outcomes import OUTCOMES, is_drop
from ipvsw.routing.router import Router
from ipvsw.status import AddressSource, AddressState, TraceAsked, TraceReceiver, TraceStatus, TraceStep
from ipvsw.switch.tracing.asked_frame import STRANGER, Sender, asked_frame, asked_header
from ipvsw.switch.tracing.kernelpath import Decided, KernelPath

Facts = dict[str, Any]

LEARNED = {
    AddressSource.CONFIG: "by the configuration",
    AddressSource.NETLINK: "seen in its namespace",
    AddressSource.DHCP: "leased to it by a DHCP server",
    AddressSource.DAD: "its duplicate address detection found no other owner",
    AddressSource.ARP: "it sends ARP with it",
    AddressSource.ND: "it sends neighbour discovery with it",
    AddressSource.TRAFFIC: "it sends packets from it",
}
WAITS = {
    "new-address": "the port is not known to have the address that it sends from: the daemon learns it first",
    "report": "a membership report: the daemon notes which groups the port listens to",
    "dhcp": "DHCP: the daemon reads it first; a server's answer goes to the port whose client has asked",
    "arp-probe": "an ARP probe: the daemon notes that the port asks whether the address is free",
    "arp-probe-reply": "the reply to an ARP probe: the daemon gives it to the ports that have asked",
}
ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x8100: "VLAN", 0x88A8: "VLAN (802.1ad)"}
HOST_OWNER, GATEWAY_OWNER = -2, -3  # of the datapath's table


class Tracer:
    """One switch's."""

    def __init__(self, switch: str, datapath: Datapath, table: Table, router: Router, kernel: KernelPath) -> None:
        self._switch = switch
        self._kernel = kernel
        self._datapath = datapath
        self._table = table
        self._router = router

    async def trace(self, asked: TraceAsked, at: str, config: SwitchConfig, master_mac: bytes) -> TraceStatus:
        """`at` is the name of a port that is attached, "master" or "host". Errors: Refused."""
        number = self._table.number(at)
        source = number if number is not None else None if at == "master" else "host"
        frame = asked_frame(asked, self._sender(at, source, master_mac or STRANGER))
        mode, flag = config.mode, config.flag
        outcome, steps, receivers = self._datapath.trace(source, frame, asked_header(asked))
        by_kernel = None if source == "host" else await self._kernel.decide(number, frame, asked_header(asked))
        if by_kernel is not None and by_kernel.outcome:
            outcome, steps = by_kernel.outcome, steps[:1]
            receivers = [("wire" if by_kernel.port is None else by_kernel.port, frame)]
        told = [
            TraceStep(stage=stage, text=self._text(stage, facts, at, mode, flag), outcome=facts["outcome"] or "")
            for stage, facts in steps
        ]
        if by_kernel is not None:
            text = self._kernel_text(by_kernel, steps[0][1])
            told.insert(1, TraceStep(stage="kernel", text=text, outcome=by_kernel.outcome))
        reason, delivered = OUTCOMES[outcome].reason, bool(receivers)
        if outcome == "to_slowpath":
            ends = next(facts for stage, facts in steps if stage == "parse")
            delivered, text = await self._ask(ends["source"], ends["destination"])
            told.append(TraceStep(stage="router", text=text))
            reason = reason if delivered else text
        elif outcome == "to_ports" and not receivers:
            reason = "no port listens to the group"
        return TraceStatus(
            switch=self._switch,
            at=at,
            frame=frame.hex(),
            outcome=outcome,
            delivered=delivered and not is_drop(outcome),
            reason=reason,
            steps=tuple(told),
            receivers=tuple(TraceReceiver(to=self._name(who), frame=raw.hex()) for who, raw in receivers),
        )

    def _sender(self, at: str, source: int | str | None, master: bytes) -> Sender:
        """`source` is as for `Datapath.trace`."""
        return Sender(
            is_wire=source is None,
            mac=STRANGER if source is None else self._table.own_mac(at) or master,
            master=master,
            addresses=() if source is None else self._table.owned_by(at if isinstance(source, int) else None),
            near=self._table.is_known,
        )

    async def _ask(self, source: bytes | None, destination: bytes | None) -> tuple[bool, str]:
        """Whether the host has a route, and what it is."""
        if source is None or destination is None:
            return False, "the packet's addresses can't be read, so that nobody can route it"
        try:
            answer = await self._router.ask(ip_address(source), ip_address(destination))
        except OSError as error:
            return False, f"the host can't be asked for a route: {error.strerror or error}"
        return answer is not None, _route_text(answer)

    # ------------------------------------------------------------------------ words

    def _text(self, stage: str, facts: Facts, at: str, mode: Mode, flag: Flag) -> str:
        words: dict[str, Callable[[Facts], str]] = {
            "parse": _parse_text,
            "macnat": _macnat_text,
            "guard": self._guard_text,
            "limit": self._limit_text,
            "punt": _punt_text,
            "neighbour": lambda facts: "ARP or a neighbour solicitation, which the switch answers in this mode",
            "decide": lambda facts: f"{mode} {flag}: {self._decision(facts, at, mode, flag)}",
            "restore": lambda facts: f"MAC NAT: the endpoint's own MAC address {_mac(facts['own'])} is put back",
            "deliver": lambda facts: f"to {self._name(facts['port'])}",
            "flood": lambda facts: f"copied to the ports that listen to {_mac(facts['group'])}",
            "send": lambda facts: "to the host" if facts["outcome"] == "to_host" else "on the wire",
            "route": self._cached_text,
        }
        return words[stage](facts)

    def _kernel_text(self, decided: Decided, parsed: Facts) -> str:
        if decided.port is None:
            return decided.text
        return f"{decided.text}: {self.provenance(parsed['destination'], decided.port)}"

    def _name(self, who: int | str) -> str:
        if isinstance(who, str):
            return who
        return f"{self._switch}/{self._table.name(who) or who}"

    def _guard_text(self, facts: Facts) -> str:
        if facts["outcome"] is None:
            return "every guard lets it pass"
        claims = "" if facts["claimed"] is None else f"{self.provenance(facts['claimed'], facts['owner'])}; "
        waits = "held until the daemon has looked for the address, then, as the table is now, dropped"
        return f"{claims}{waits if facts['waits'] else 'dropped'}"

    def _limit_text(self, facts: Facts) -> str:
        side = "may send" if facts["direction"] == "rx" else "may get"
        within = "within" if facts["outcome"] is None else "beyond"
        return f"{within} what {self._name(facts['port'])} {side} at this moment"

    def _cached_text(self, facts: Facts) -> str:
        if not facts["cached"]:
            return "no route to the destination is cached: the daemon's router asks the host"
        if facts["outcome"] == "to_slowpath":
            return f"longer than the path's MTU of {facts['mtu']} bytes: the daemon's router makes it smaller"
        if facts["outcome"] is None:
            return f"cached: out on the master to the neighbour {_mac(facts['mac'])}"
        return (
            "cached: the host itself is the destination" if facts["local"] else "cached: through the host's IP output"
        )

    def _decision(self, facts: Facts, at: str, mode: Mode, flag: Flag) -> str:
        outcome, whose = facts["outcome"], self.provenance(facts["destination"], facts["owner"])
        if facts["vlan_device"] and outcome in ("left_to_host", "to_host"):
            return "its VLAN has a device of its own on the host"
        if outcome == "to_ports":
            wire = ", and for the wire" if at not in ("master", "host") else ""
            return f"a multicast frame, for every port that listens{wire}"
        if outcome == "to_master":
            return "everything leaves on the wire" if flag is Flag.VEPA else "to another machine's MAC address"
        if outcome == "left_to_host":
            if mode is Mode.L3S:
                return "what arrives passes the host's own stack first"
            if facts["multicast"] and facts["from_master"]:
                return "a port's own frame that came back from the wire"
            return whose
        if outcome == "to_host" and mode is Mode.L2 and not facts["multicast"]:
            return f"to the master's own MAC address; {whose}"
        if outcome == "to_route":
            return f"{whose}; the host's routes decide"
        return whose

    def provenance(self, address: bytes | None, owner: int | None) -> str:
        """Whose an address is, how the switch knows and since when. `owner` as the datapath's table has it."""
        if address is None:
            return "it names no IP address that would say whose it is"
        text = str(ip_address(address))
        if owner == HOST_OWNER:
            return f"{text} is the master's own address"
        if owner == GATEWAY_OWNER:
            return f"{text} is a gateway of the host's routes"
        claims = self._table.about(address)
        if owner is not None and owner >= 0:
            source = next((one.source for one in claims if one.state is AddressState.OWNED), None)
            how = "" if source is None else f" ({LEARNED[source]}{self._since(address)})"
            return f"{text} is {self._name(owner)}'s{how}"
        if claims:
            first = claims[0]
            why = f": {first.reason}" if first.reason else ""
            return f"{text} is {first.state} at {self._switch}/{first.port} ({LEARNED[first.source]}{why})"
        return f"no port has {text}"

    def _since(self, address: bytes) -> str:
        at = self._table.bound_at(address)
        return "" if at is None else time.strftime(", since %Y-%m-%d %H:%M:%S", time.localtime(at))


def _mac(raw: bytes) -> str:
    return raw.hex(":")


def _address(raw: bytes | None) -> str:
    return "?" if raw is None else str(ip_address(raw))


def _parse_text(facts: Facts) -> str:
    if facts["outcome"] is not None:
        return f"{facts['length']} bytes"
    kind = ETHERTYPES.get(facts["ethertype"], f"ethertype {facts['ethertype']:#06x}")
    ends = "" if facts["source"] is None else f" {_address(facts['source'])} -> {_address(facts['destination'])}"
    macs = f"{_mac(facts['mac_source'])} -> {_mac(facts['mac_destination'])}"
    return f"{facts['length']} bytes, {macs}, {kind}{ends}"


def _macnat_text(facts: Facts) -> str:
    text = f"MAC NAT: the endpoint's own MAC address {_mac(facts['own'])} becomes the master's {_mac(facts['master'])}"
    return text if facts["outcome"] is None else "MAC NAT can't replace the endpoint's own MAC address"


def _punt_text(facts: Facts) -> str:
    spent = "; the interface has no credit left for that at this moment, and the frame goes on unseen"
    return WAITS[facts["why"]] + ("" if facts["waits"] else spent)


def _route_text(answer: RouteAnswer | None) -> str:
    if answer is None:
        return OUTCOMES["drop_no_route"].reason
    if answer.local:
        return "the host itself has the destination"
    mac = "whose MAC address is not known yet" if answer.mac is None else f"at {_mac(answer.mac)}"
    return f"by interface {answer.index} to the neighbour {answer.via}, {mac}"
