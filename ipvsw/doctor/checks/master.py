"""What else is on a switch's master, and bites. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address

from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Master, Record

UPPERS = ("bridge", "bond", "team", "macvlan", "macvtap", "ipvlan", "ipvtap")  # that take frames from their device
BRIDGE_HOOKS = ("iptables", "ip6tables", "arptables")


def _proxy_arp(switch: Record, master: Master) -> Iterator[Finding]:
    if switch["mode"] == "l2" and _either(master, "ipv4/conf/{}/proxy_arp") > 0:
        yield Finding(
            code="proxy-arp",
            where=switch["name"],
            text=f"proxy_arp is on for {switch['master']}: the host answers ARP requests for addresses that are not its"
            " own, and may take traffic that is for others",
            remedy=f"`sysctl net.ipv4.conf.{switch['master']}.proxy_arp=0`, and the same for `all`",
        )


def _rp_filter(switch: Record, master: Master) -> Iterator[Finding]:
    opens = switch["host_access"] in ("to-host", "both")
    if switch["mode"] != "l2" and opens and _either(master, "ipv4/conf/{}/rp_filter") > 0:
        yield Finding(
            code="rp-filter",
            where=switch["name"],
            text=f"rp_filter is on for {switch['master']}: the host drops the ports' IPv4 multicast packets, which"
            " arrive on it though the routes to the ports lead elsewhere",
            remedy=f"`sysctl net.ipv4.conf.{switch['master']}.rp_filter=0`, and the same for `all`",
        )


def _either(master: Master, path: str) -> int:
    """The kernel takes the larger of the two."""
    return max(int(master.sysctls.get(path.format(device), "0")) for device in ("all", "MASTER"))


def _bridge_nf(switch: Record, master: Master) -> Iterator[Finding]:
    on = [hook for hook in BRIDGE_HOOKS if master.sysctls.get(f"bridge/bridge-nf-call-{hook}") == "1"]
    if master.kind == "bridge" and on:
        yield Finding(
            code="bridge-nf",
            where=switch["name"],
            text=f"the master {switch['master']} is a bridge, and bridge-nf-call-{on[0]} is on: what ports send through"
            " it passes the host's netfilter, whose FORWARD policy may drop it",
            remedy="; ".join(f"`sysctl net.bridge.bridge-nf-call-{hook}=0`" for hook in on),
        )


def _ipv6_off(switch: Record, master: Master) -> Iterator[Finding]:
    with_ipv6 = any(ip_address(one["address"]).version == 6 for port in switch["ports"] for one in port["addresses"])
    off = any(master.sysctls.get(f"ipv6/conf/{device}/disable_ipv6") == "1" for device in ("all", "MASTER"))
    if switch["mode"] != "l2" and with_ipv6 and off:
        yield Finding(
            code="ipv6-off",
            where=switch["name"],
            text=f"IPv6 is off for {switch['master']}: the host can't route the ports' IPv6 packets",
            remedy=f"`sysctl net.ipv6.conf.{switch['master']}.disable_ipv6=0`, and the same for `all`",
        )


def _xdp(switch: Record, master: Master) -> Iterator[Finding]:
    if master.xdp:
        yield Finding(
            code="xdp",
            where=switch["name"],
            text=f"an XDP program is on {switch['master']}: it sees frames before the switch, and what it drops or"
            " redirects no port gets",
            remedy=f"`ip link set {switch['master']} xdp off`, unless it is meant to be there",
        )


def _filters(switch: Record, master: Master) -> Iterator[Finding]:
    for side in master.filters:
        yield Finding(
            code="tc-filter",
            where=switch["name"],
            text=f"others have tc filters at {side} of {switch['master']}: what they drop or redirect the host doesn't"
            " get, and at egress the ports' frames don't leave",
            remedy=f"look at `tc filter show dev {switch['master']} {side}`",
        )


def _uppers(switch: Record, master: Master) -> Iterator[Finding]:
    for name, kind in master.uppers.items():
        if kind in UPPERS:
            yield Finding(
                code="other-upper",
                where=switch["name"],
                text=f"{name}, a {kind}, is on {switch['master']} as well: the switch doesn't know its addresses, and"
                " ports do not reach it",
                remedy="a port in its place, or another master for one of the two",
            )


def _lro(switch: Record, master: Master) -> Iterator[Finding]:
    if master.lro:
        yield Finding(
            code="lro",
            where=switch["name"],
            text=f"{switch['master']} merges TCP segments as it receives them (LRO): what it makes of them can't be"
            " forwarded as it came",
            remedy=f"`ethtool -K {switch['master']} lro off`; GRO does the same and can be undone",
        )


def _all_multicast(switch: Record, master: Master) -> Iterator[Finding]:
    if switch["mode"] == "l2" and master.all_multicast:
        yield Finding(
            code="allmulti",
            where=switch["name"],
            text=f"{switch['master']} takes every multicast frame of its network (allmulticast): the data plane is"
            " woken for groups to which nobody listens",
            remedy=f"`ip link set {switch['master']} allmulticast off`; if a multicast router or a capture has set it,"
            " it ends with that",
        )


def _many_groups(switch: Record, master: Master) -> Iterator[Finding]:
    if master.group_limit and master.groups > master.group_limit:
        yield Finding(
            code="group-limit",
            where=switch["name"],
            text=f"{switch['master']} listens to {master.groups} groups and is a virtual function, which gets those of"
            f" {master.group_limit}: frames for the others never arrive, IPv6 neighbour discovery among them",
            remedy="`ip link set DEVICE vf N trust on` for it on the machine that has the card, then"
            f" `ip link set {switch['master']} allmulticast on`; or fewer `max_groups`",
        )


CHECKS: tuple[Callable[[Record, Master], Iterator[Finding]], ...] = (
    _proxy_arp,
    _rp_filter,
    _bridge_nf,
    _ipv6_off,
    _xdp,
    _filters,
    _uppers,
    _lro,
    _all_multicast,
    _many_groups,
)
