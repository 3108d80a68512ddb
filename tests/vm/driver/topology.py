"""The topology of the live-traffic comparison, and the names of everything in it.

    netns PREFIX-w           netns PREFIX-h                 netns PREFIX-1..3
    w0 (the wire)  <veth>    m0 (the master)  <switch>      s1, s2, s3 (the ports)

    m0  02:00:00:00:00:01  10.1.0.1/24     fd00:1::1/64   default via the wire
    w0  02:00:00:00:00:fe  10.1.0.254/24   fd00:1::fe/64  a router; reaches 10.2.0.0/24 and fd00:2::/64 through m0
                           10.3.0.1, fd00:3::1 on its lo: what lies behind the router; and 10.4.0.1, fd00:4::1,
                           which the host has a route to with an MTU of 1280
    sK  MAC of m0          10.1.0.1K/24    fd00:1::1K/64  default via the wire
                           10.2.0.1K/32    fd00:2::1K/128 addresses that are reached by routing only;
                           the wire's route to those of p3 has an MTU of 1280
    Each of m0, w0 and sK also has fe80:: with the last group of its own address.

Every stack is real and answers. What depends on time or on chance in a stack is set so that it doesn't: neighbour
entries don't age, ICMP errors are not rationed, nothing announces itself. Python's standard library and iproute2
only: the same code runs in a guest and on the host.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable, Mapping

from tests.support.topology import inside

MASTER_MAC, WIRE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:fe"
PORTS = ("p1", "p2", "p3")
PLACES = (*PORTS, "host", "wire")
DEVICE = {"p1": "s1", "p2": "s2", "p3": "s3", "host": "m0", "wire": "w0"}
SPACE = {"p1": "1", "p2": "2", "p3": "3", "host": "h", "wire": "w"}

# Name -> its address in each family. Those without a place of their own belong to nobody.
ADDRESS: dict[str, dict[int, str]] = {
    "host": {4: "10.1.0.1", 6: "fd00:1::1"},
    "wire": {4: "10.1.0.254", 6: "fd00:1::fe"},
    "beyond": {4: "10.3.0.1", 6: "fd00:3::1"},
    "narrow": {4: "10.4.0.1", 6: "fd00:4::1"},
    "nobody": {4: "10.1.0.77", 6: "fd00:1::77"},
    "nowhere": {4: "10.9.0.9", 6: "fd00:9::9"},
    "stranger": {4: "10.8.0.8", 6: "fd00:8::8"},
    "host-link": {6: "fe80::1"},
    "wire-link": {6: "fe80::fe"},
}
for _k in (1, 2, 3):
    ADDRESS[f"p{_k}"] = {4: f"10.1.0.1{_k}", 6: f"fd00:1::1{_k}"}
    ADDRESS[f"p{_k}-routed"] = {4: f"10.2.0.1{_k}", 6: f"fd00:2::1{_k}"}
    ADDRESS[f"p{_k}-link"] = {6: f"fe80::1{_k}"}
NAME = {address: name for name, families in ADDRESS.items() for address in families.values()}

SYSCTL: dict[str, int | str] = {
    "ipv4/icmp_ratelimit": 0,
    "ipv4/icmp_ratemask": 0,
    "ipv4/ip_local_port_range": "40000 60000",
    "ipv4/ping_group_range": "0 2147483647",
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/accept_redirects": 0,
    "ipv4/conf/default/accept_redirects": 0,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/send_redirects": 0,
    "ipv6/icmp/ratelimit": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/accept_redirects": 0,
    "ipv6/conf/default/router_solicitations": 0,
    "ipv6/conf/default/router_solicitation_delay": 0,
    "ipv6/conf/default/router_probe_interval": 3600,  # s; a router that is not known is asked for after that
    "ipv6/conf/default/addr_gen_mode": 1,
    "ipv6/conf/default/dad_transmits": 3,
    "ipv6/conf/default/mldv2_unsolicited_report_interval": 0,
}
NEIGHBOUR_SYSCTL: dict[str, int | str] = {
    "ipv4/neigh/{}/retrans_time_ms": 250,
    "ipv4/neigh/{}/locktime": 0,
    "ipv6/neigh/{}/retrans_time_ms": 300,
    **{f"ipv{family}/neigh/{{}}/mcast_solicit": 2 for family in (4, 6)},
    **{f"ipv{family}/neigh/{{}}/base_reachable_time_ms": 3600000 for family in (4, 6)},
    **{f"ipv{family}/neigh/{{}}/delay_first_probe_time": 3600 for family in (4, 6)},
}
ROUTER_SYSCTL: dict[str, int | str] = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}


def place_of(name: str) -> str | None:
    """Where an address of that name is: "p2-routed" -> "p2"; None if nobody has it."""
    place = name.split("-")[0]
    return "wire" if place in ("beyond", "narrow") else place if place in PLACES else None


class Rig:
    """One copy of the topology, known by the prefix of its namespaces."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def netns(self, place: str) -> str:
        return f"{self.prefix}-{SPACE[place]}"

    def inside(self, place: str) -> contextlib.AbstractContextManager[None]:
        """Sockets that this thread makes in the body belong to the namespace of `place`, for good."""
        return inside(self.netns(place))

    def ip(self, place: str, *lines: str) -> None:
        """`ip` commands in the namespace of `place`, in one process."""
        ip(lines, self.netns(place))

    def build(self, mode: str) -> None:
        """The namespaces, the master and the wire. The ports are made by what is under test.

        Nobody answers for a port's addresses in l3 and l3s, so that the wire has routes to two of the ports there.
        """
        ip(f"netns add {self.netns(place)}" for place in PLACES)
        for place in PLACES:
            with self.inside(place):
                sysctl(SYSCTL)
                if place == "wire":
                    sysctl(ROUTER_SYSCTL)
        peer = f"peer name w0 netns {self.netns('wire')} address {WIRE_MAC}"
        ip([f"link add m0 netns {self.netns('host')} address {MASTER_MAC} type veth {peer}"])
        self._keep_neighbours("wire", "host")
        self.ip(
            "wire",
            *("link set lo up", "link set w0 up"),
            *_addresses("w0", "wire"),
            *(f"addr add {address} dev lo" for name in ("beyond", "narrow") for address in ADDRESS[name].values()),
            *("route add 10.2.0.0/24 via 10.1.0.1", "route add fd00:2::/64 via fd00:1::1"),
            *(f"route add {ADDRESS['p3-routed'][family]} via {ADDRESS['host'][family]} mtu 1280" for family in (4, 6)),
        )
        if mode != "l2":
            through = ((ADDRESS[place][family], ADDRESS["host"][family]) for place in ("p1", "p2") for family in (4, 6))
            self.ip("wire", *(f"route add {address} via {host}" for address, host in through))
        narrow = (f"route add {ADDRESS['narrow'][family]} via {ADDRESS['wire'][family]} mtu 1280" for family in (4, 6))
        self.ip("host", "link set lo up", "link set m0 up", *_addresses("m0", "host"), *_defaults(), *narrow)

    def make_ipvlan(self, mode: str, flag: str) -> None:
        """The ports, by the kernel's own driver."""
        for place in PORTS:
            link = f"link m0 name {DEVICE[place]} netns {self.netns(place)}"
            self.ip("host", f"link add {link} type ipvlan mode {mode} {flag}")

    def configure_ports(self) -> None:
        """Give the ports their addresses and routes, and set them up."""
        self._keep_neighbours(*PORTS)
        for place in PORTS:
            device, routed = DEVICE[place], ADDRESS[f"{place}-routed"]
            with self.inside(place):
                sysctl({f"ipv6/conf/{device}/addr_gen_mode": 1})
            self.ip(
                place,
                *("link set lo up", f"addr flush dev {device} scope link", f"link set {device} up"),
                *_addresses(device, place),
                *(f"addr add {routed[4]}/32 dev {device}", f"addr add {routed[6]}/128 dev {device} nodad"),
                *_defaults(),
            )

    def _keep_neighbours(self, *places: str) -> None:
        for place in places:
            with self.inside(place):
                sysctl({key.format(DEVICE[place]): value for key, value in NEIGHBOUR_SYSCTL.items()})

    def remove(self) -> None:
        """All of it, however much of it there is."""
        left = [self.netns(place) for place in PLACES if os.path.exists(f"/run/netns/{self.netns(place)}")]
        ip((f"netns del {name}" for name in left), force=True)


def ip(lines: Iterable[str], netns: str | None = None, force: bool = False) -> None:
    """A batch for iproute2. Errors: RuntimeError with what it said."""
    words = ["ip", *(["-force"] if force else []), *(["-n", netns] if netns else []), "-batch", "-"]
    done = subprocess.run(words, input="\n".join(lines) + "\n", capture_output=True, text=True)
    if done.returncode and not force:
        raise RuntimeError(f"ip in {netns}: {done.stderr.strip()}")


def sysctl(values: Mapping[str, int | str]) -> None:
    """Set what is under /proc/sys/net, of the namespace that this thread is in."""
    for key, value in values.items():
        with open(f"/proc/sys/net/{key}", "w") as file:
            file.write(str(value))


def _addresses(device: str, name: str) -> list[str]:
    near, link = ADDRESS[name], ADDRESS[f"{name}-link"]
    return [
        f"addr add {near[4]}/24 brd + dev {device}",
        f"addr add {near[6]}/64 dev {device} nodad",
        f"addr add {link[6]}/64 dev {device} nodad",
    ]


def _defaults() -> list[str]:
    return [f"route add default via {ADDRESS['wire'][family]}" for family in (4, 6)]
