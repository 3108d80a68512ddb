"""What the network beyond a switch's master does to the ports. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Master, Record

SENT = 20  # frames to the network after which a port that got none in return is worth a word


def _wireless(switch: Record, master: Master, stats: Record) -> Iterator[Finding]:
    if master.wireless and (ports := _unanswered(switch, stats)):
        yield Finding(
            code="wifi",
            where=switch["name"],
            text=f"{switch['master']} is a Wi-Fi device, and nothing comes back to {', '.join(ports)}: many access"
            " points drop addresses that they have not seen DHCP for, answer ARP themselves, and send multicast slowly"
            " or not at all",
            remedy="DHCP for the ports' addresses, or mode l3 with routes to them; look for `proxy ARP`, `IP source"
            " guard` and `multicast` in the access point's settings",
        )


def _cloud(switch: Record, master: Master, stats: Record) -> Iterator[Finding]:
    if master.cloud and (ports := _unanswered(switch, stats)):
        yield Finding(
            code="cloud",
            where=switch["name"],
            text=f"{switch['master']} is on the network of {master.cloud}, and nothing comes back to"
            f" {', '.join(ports)}: such a network drops packets from and to addresses that it has not assigned to this"
            " machine",
            remedy="assign the ports' addresses to the machine there, or route them to it and switch off the check of"
            " source addresses",
        )


def _unanswered(switch: Record, stats: Record) -> list[str]:
    """Ports that have sent to the network, and got nothing: nobody on the switch from there, or they from anybody."""
    silent = switch["mode"] != "l3s" and not _ended(stats["master"], "to_port")
    return [
        name
        for name, port in stats["ports"].items()
        if _ended(port, "to_master") + _ended(port, "to_ports") >= SENT and (silent or not port["tx_frames"])
    ]


def _ended(traffic: Record, outcome: str) -> int:
    return int(traffic["outcomes"].get(outcome, 0))


def _duplicates(switch: Record, master: Master, stats: Record) -> Iterator[Finding]:
    for address, mac in master.others.items():
        yield Finding(
            code="lan-duplicate",
            where=switch["name"],
            text=f"{mac} answers on the network for {address}, which is a port's: some of what is for the port goes"
            " there",
            remedy="give one of the two another address; or it is a router that answers for others (proxy ARP)",
        )


def _gateways(switch: Record, master: Master, stats: Record) -> Iterator[Finding]:
    for address, (known, answering) in master.gateways.items():
        if len(answering) > 1 or (known and answering and known not in answering):
            yield Finding(
                code="gateway-changed",
                where=switch["name"],
                text=f"the gateway {address} answers as {' and as '.join(answering)}, and the host knows it as"
                f" {known or 'nothing yet'}: a second machine has its address, or it was exchanged",
                remedy=f"find out whose these are; then `ip neigh flush {address}`, on the host and in namespaces",
            )


CHECKS: tuple[Callable[[Record, Master, Record], Iterator[Finding]], ...] = (_wireless, _cloud, _duplicates, _gateways)
