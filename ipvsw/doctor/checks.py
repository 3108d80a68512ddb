"""What bites, from what was seen. Pure: each check takes facts and gives findings. Every code has a section in
docs/reference/doctor.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ipaddress import ip_address

from msgspec import Struct

from ipvsw.doctor.facts import Host, Master, Record

CAPABILITIES = {"net_admin": 12, "net_raw": 13, "sys_admin": 21}  # linux/capability.h
NEARLY = 0.8  # of the descriptors and of the memory that the daemon may have
UPPERS = ("bridge", "bond", "team", "macvlan", "macvtap", "ipvlan", "ipvtap")  # that take frames from their device
BRIDGE_HOOKS = ("iptables", "ip6tables", "arptables")


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that bites."""

    code: str
    where: str  # a switch, SWITCH/PORT, or "host"
    text: str  # what is so, and what follows
    remedy: str  # what to do


def examine(host: Host, switches: list[tuple[Record, Master | None]]) -> list[Finding]:
    """Every finding, those of the host first."""
    found = [finding for check in HOST_CHECKS for finding in check(host)]
    for switch, master in switches:
        found += [finding for check in SWITCH_CHECKS for finding in check(switch)]
        if master is not None:
            found += [finding for check in MASTER_CHECKS for finding in check(switch, master)]
    return found


def daemon_away(why: str) -> Finding:
    return Finding(
        code="daemon-away",
        where="host",
        text=f"{why}: nothing is forwarded",
        remedy="`systemctl start ipvswd`, or say where it listens with --socket; its log says why it ended",
    )


# ---------------------------------------------------------------------------- the host


def _no_uring(host: Host) -> Iterator[Finding]:
    if host.uring_error:
        yield Finding(
            code="no-uring",
            where="host",
            text=f"the kernel grants no io_uring ({os.strerror(host.uring_error)}): the data plane uses epoll, and"
            " needs more of the CPU for each frame",
            remedy="Linux 6.7 or newer, `sysctl kernel.io_uring_disabled=0`, and no seccomp filter in the way",
        )


def _manager(host: Host) -> Iterator[Finding]:
    for name in host.managers:
        yield Finding(
            code="network-manager",
            where="host",
            text=f"{name} runs, and no file of its configuration leaves devices named ipvsw-* alone: it may take away"
            " their addresses and routes, or set them down",
            remedy="install contrib/60-ipvsw-unmanaged.conf or .network, as docs/howto/install.md says",
        )


def _capabilities(host: Host) -> Iterator[Finding]:
    if host.process is None:
        return
    missing = [name for name, bit in CAPABILITIES.items() if not host.process.capabilities >> bit & 1]
    if missing:
        yield Finding(
            code="capabilities",
            where="host",
            text=f"ipvswd runs without {', '.join(f'CAP_{name.upper()}' for name in missing)}: it can't make"
            " ports, open the master, or enter namespaces",
            remedy="run it as root, or with the capabilities of contrib/ipvswd.service",
        )


def _few_fds(host: Host) -> Iterator[Finding]:
    process = host.process
    if process is not None and process.fds >= NEARLY * process.fds_max:
        yield Finding(
            code="few-fds",
            where="host",
            text=f"ipvswd has {process.fds} of {process.fds_max} descriptors open: the next ports or clients are"
            " refused",
            remedy="a higher LimitNOFILE= in the unit, or `prlimit --nofile`",
        )


def _little_memory(host: Host) -> Iterator[Finding]:
    process = host.process
    if process is not None and process.memory_max and process.memory >= NEARLY * process.memory_max:
        yield Finding(
            code="little-memory",
            where="host",
            text=f"ipvswd's control group uses {process.memory >> 20} of {process.memory_max >> 20} MB: at the limit"
            " the kernel kills the daemon",
            remedy="a higher MemoryMax= in the unit, or in a slice above it",
        )


# ---------------------------------------------------------------------------- a switch, as the daemon shows it


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


# ---------------------------------------------------------------------------- what else is on the master


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


HOST_CHECKS: tuple[Callable[[Host], Iterator[Finding]], ...] = (
    _no_uring,
    _manager,
    _capabilities,
    _few_fds,
    _little_memory,
)
SWITCH_CHECKS: tuple[Callable[[Record], Iterator[Finding]], ...] = (_state, _addresses, _mtu, _mtu_of_master)
MASTER_CHECKS: tuple[Callable[[Record, Master], Iterator[Finding]], ...] = (
    _proxy_arp,
    _rp_filter,
    _bridge_nf,
    _ipv6_off,
    _xdp,
    _filters,
    _uppers,
    _lro,
    _wireless,
    _cloud,
    _duplicates,
    _gateways,
)
