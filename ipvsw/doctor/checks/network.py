"""What the network beyond a switch's master does to the ports. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Master, Record


def _wireless(switch: Record, master: Master) -> Iterator[Finding]:
    if master.wireless:
        yield Finding(
            code="wifi",
            where=switch["name"],
            text=f"{switch['master']} is a Wi-Fi device: many access points drop addresses that they have not seen DHCP"
            " for, answer ARP themselves, and send multicast slowly or not at all",
            remedy="DHCP for the ports' addresses, or mode l3 with routes to them; look for `proxy ARP`, `IP source"
            " guard` and `multicast` in the access point's settings",
        )


def _cloud(switch: Record, master: Master) -> Iterator[Finding]:
    if master.cloud and any(port["addresses"] for port in switch["ports"]):
        yield Finding(
            code="cloud",
            where=switch["name"],
            text=f"{switch['master']} is on the network of {master.cloud}, which drops packets from and to addresses"
            " that it has not assigned to this machine",
            remedy="assign the ports' addresses to the machine there, or route them to it and switch off the check of"
            " source addresses",
        )


def _duplicates(switch: Record, master: Master) -> Iterator[Finding]:
    for address, mac in master.others.items():
        yield Finding(
            code="lan-duplicate",
            where=switch["name"],
            text=f"{mac} answers on the network for {address}, which is a port's: some of what is for the port goes"
            " there",
            remedy="give one of the two another address; or it is a router that answers for others (proxy ARP)",
        )


def _gateways(switch: Record, master: Master) -> Iterator[Finding]:
    for address, (known, answering) in master.gateways.items():
        if len(answering) > 1 or (known and answering and known not in answering):
            yield Finding(
                code="gateway-changed",
                where=switch["name"],
                text=f"the gateway {address} answers as {' and as '.join(answering)}, and the host knows it as"
                f" {known or 'nothing yet'}: a second machine has its address, or it was exchanged",
                remedy=f"find out whose these are; then `ip neigh flush {address}`, on the host and in namespaces",
            )


CHECKS: tuple[Callable[[Record, Master], Iterator[Finding]], ...] = (_wireless, _cloud, _duplicates, _gateways)
