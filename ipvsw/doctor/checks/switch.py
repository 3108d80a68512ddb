"""What of a switch bites, as the daemon shows it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address

from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Record


def _state(switch: Record) -> Iterator[Finding]:
    name, master = switch["name"], switch["master"]
    if switch["state"] in ("waiting", "failed"):
        yield Finding(
            code="master-away",
            where=name,
            text=f"the master {master} is not served: {switch['reason']}",
            remedy="create the device or set it up; the daemon takes it as soon as it is there",
        )
    elif not switch["carrier"]:
        yield Finding(
            code="no-carrier",
            where=name,
            text=f"the master {master} has no carrier, or is down: nothing reaches the network",
            remedy=f"`ip link set {master} up`, and look at its cable or its peer",
        )
    for where, one in ((name, switch), *((f"{name}/{port['name']}", port) for port in switch["ports"])):
        if one["state"] == "degraded" or (one is not switch and one["state"] == "failed"):
            yield Finding(
                code="not-as-wanted",
                where=where,
                text=f"it is {one['state']}: {one['reason']}",
                remedy="the daemon tries again by itself; its log says who is in the way",
            )


def _addresses(switch: Record) -> Iterator[Finding]:
    for port in switch["ports"]:
        for one in port["addresses"]:
            where = f"{switch['name']}/{port['name']}"
            if one["state"] in ("duplicate", "master"):
                owner = "the master" if one["state"] == "master" else "another port"
                yield Finding(
                    code="address-conflict",
                    where=where,
                    text=f"{one['address']} is {owner}'s already: the port gets nothing for it",
                    remedy="give one of the two another address",
                )
            elif one["state"] == "refused" and not ip_address(one["address"]).is_link_local:  # every stack has one
                yield Finding(
                    code="address-refused",
                    where=where,
                    text=f"the port may not have {one['address']}: {one['reason']}",
                    remedy="list it in `addresses`, or widen the port's `claim` or `max_addresses`",
                )


def _mtu(switch: Record) -> Iterator[Finding]:
    sizes = {port["mtu"] for port in switch["ports"] if port["mtu"]}
    if switch["mode"] == "l2" and switch["flag"] == "bridge" and len(sizes) > 1:
        small = ", ".join(port["name"] for port in switch["ports"] if port["mtu"] == min(sizes))
        yield Finding(
            code="mtu-differs",
            where=switch["name"],
            text=f"ports have MTUs from {min(sizes)} to {max(sizes)}: in l2 nobody tells a sender that its packets are"
            f" too long, and those for {small} are dropped",
            remedy="the same `mtu` for every port of the switch",
        )


def _mtu_of_master(switch: Record) -> Iterator[Finding]:
    for port in switch["ports"]:
        if switch["mtu"] and port["mtu"] > switch["mtu"]:
            yield Finding(
                code="mtu-above-master",
                where=f"{switch['name']}/{port['name']}",
                text=f"the port's MTU is {port['mtu']}, that of the master {switch['master']} {switch['mtu']}: longer"
                " packets for the network are dropped, or made smaller one by one",
                remedy=f"an `mtu` of {switch['mtu']} for the port, or a larger one for the master and its network",
            )


CHECKS: tuple[Callable[[Record], Iterator[Finding]], ...] = (_state, _addresses, _mtu, _mtu_of_master)
