"""A routed topology: ports in a subnet of their own behind the master, two ways to what is far.

    netns p1, p2, ...          netns host                netns link        netns r1             netns far
    ipvl1  10.2.0.11           m0  10.1.0.1   <veth>     br0  <veth>  u0  10.1.0.254
           fd02::11                fd01::1                                fd01::254
    (the daemon puts them                                            d0  10.9.1.1   <veth>  d1  10.9.1.2
    behind m0)                                                           fd09:1::1              fd09:1::2
                               x0  10.3.0.1   <veth>  r2 x0              netns r2
                                   fd03::1                <veth>  u0  10.1.0.253            lo  192.0.2.1
                                                                          fd01::253             2001:db8::1
                                                                     d0  10.9.2.1   <veth>  d2  10.9.2.2

The host's default routes go by r1, and so do those of `far`. Both routers have the routes back.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import Sniffer, sniffing
from tests.support.topology import MASTER_MAC, Lab, run
from tests.support.wire.frames import mac

HOST4, HOST6 = "10.1.0.1", "fd01::1"
FAR4, FAR6 = "192.0.2.1", "2001:db8::1"
FAR = (FAR4, FAR6)
ROUTER4 = {1: "10.1.0.254", 2: "10.1.0.253"}
ROUTER6 = {1: "fd01::254", 2: "fd01::253"}
ROUTER_MAC = {1: "02:00:00:00:01:01", 2: "02:00:00:00:01:02"}
OTHER_MAC = "02:00:00:00:01:77"  # of no device
SIDE_MAC = {"host": "02:00:00:00:03:01", "router": "02:00:00:00:03:02"}


def inner4(k: int) -> str:
    """The IPv4 address of port number `k` (from 1)."""
    return f"10.2.0.{10 + k}"


def inner6(k: int) -> str:
    return f"fd02::{10 + k}"


def inner(k: int, version: int) -> str:
    return inner4(k) if version == 4 else inner6(k)


def change(netns: str, *lines: str, force: bool = False) -> None:
    """`ip` commands in a namespace, in their order; each may begin with -4 or -6."""
    for family, group in itertools.groupby(lines, lambda line: line[:2] if line[0] == "-" else ""):
        text = "".join(f"{line.removeprefix(family)}\n" for line in group)
        run(
            "ip",
            *([family] if family else []),
            *(["-force"] if force else []),
            "-n",
            netns,
            "-batch",
            "-",
            text=text,
            check=not force,
        )


class Routed(Lab):
    """The topology above. Everything on the host and the routers that tests may change `restore` makes anew."""

    def make_master(self, name: str = "m0", peer: str = "w0") -> None:
        self.far = f"{self.prefix}-far"
        self.routers = {k: f"{self.prefix}-r{k}" for k in (1, 2)}
        self.add(self.far, *self.routers.values())
        change(self.wire, "link add br0 type bridge", "link set br0 up")
        master = f"link add {name} address {MASTER_MAC} type veth peer name {peer} netns {self.wire}"
        change(self.host, master, f"link set {name} up")
        change(self.wire, f"link set {peer} master br0 up")
        for k, netns in self.routers.items():
            change(
                netns,
                f"link add u0 address {ROUTER_MAC[k]} type veth peer name r{k} netns {self.wire}",
                f"link add d0 type veth peer name d{k} netns {self.far}",
                "link set u0 up",
                "link set d0 up",
                f"addr add {ROUTER4[k]}/24 dev u0",
                f"addr add {ROUTER6[k]}/64 dev u0 nodad",
                f"addr add 10.9.{k}.1/24 dev d0",
                f"addr add fd09:{k}::1/64 dev d0 nodad",
            )
            self.sysctl(netns, "net/ipv4/ip_forward", "1")
            self.sysctl(netns, "net/ipv6/conf/all/forwarding", "1")
            self.sysctl(netns, "net/ipv4/icmp_ratelimit", "0")
            self.sysctl(netns, "net/ipv6/icmp/ratelimit", "0")
            change(self.wire, f"link set r{k} master br0 up")
            change(
                self.far,
                f"link set d{k} up",
                f"addr add 10.9.{k}.2/24 dev d{k}",
                f"addr add fd09:{k}::2/64 dev d{k} nodad",
            )
        change(self.far, f"addr add {FAR4}/32 dev lo", f"addr add {FAR6}/128 dev lo nodad")
        side = f"address {SIDE_MAC['host']} type veth peer name x0 address {SIDE_MAC['router']}"
        change(self.host, f"link add x0 {side} netns {self.routers[2]}", "link set x0 up")
        change(self.routers[2], "link set x0 up")
        self.restore()

    def restore(self) -> None:
        """Addresses, routes, rules and neighbours as at first."""
        first = [
            "link set m0 up mtu 1500",
            "addr flush dev m0 scope global",
            "neigh flush dev m0",
            f"addr add {HOST4}/24 dev m0",
            f"addr add {HOST6}/64 dev m0 nodad",
            "addr replace 10.3.0.1/24 dev x0",
            "addr replace fd03::1/64 dev x0 nodad",
            "route flush root 0/0 proto boot",
            "-6 route flush root ::/0 proto boot",
            "route flush table 100",
            "-6 route flush table 100",
            f"route add default via {ROUTER4[1]}",
            f"route add default via {ROUTER6[1]}",
        ]
        for family in ("-4", "-6"):
            first += [f"{family} rule del pref {priority}" for priority in (90, 100)]
        change(self.host, *first, force=True)
        for k, netns in self.routers.items():
            change(
                netns,
                f"link set u0 address {ROUTER_MAC[k]}",
                "addr replace 10.3.0.2/24 dev x0",
                "addr replace fd03::2/64 dev x0 nodad",
                "link set d0 mtu 1500",
                f"route replace {FAR4} via 10.9.{k}.2",
                f"route replace {FAR6} via fd09:{k}::2",
                f"route replace 10.2.0.0/24 via {HOST4}",
                f"route replace fd02::/64 via {HOST6}",
                "neigh flush dev u0",
                force=True,
            )
        change(
            self.far,
            "route replace default via 10.9.1.1",
            "route replace default via fd09:1::1",
            "link set d1 mtu 1500",
            "link set d2 mtu 1500",
        )

    def configured(self, mode: str, **more: object) -> dict[str, object]:
        """The [[switch]] table for this topology."""
        ports = [
            port(
                f"ipvl{k}",
                netns,
                [f"{inner4(k)}/24", f"{inner6(k)}/64"],
                gateway=["10.2.0.1", "fd02::1"],
            )
            for k, netns in enumerate(self.ports, 1)
        ]
        return switch("m0", self.host, ports, mode=mode, **more)


@contextlib.contextmanager
def routed(mode: str = "l3", **more: object) -> Iterator[tuple[Routed, Daemon]]:
    """The topology with the daemon running on it, everything reachable."""
    with Routed(2) as lab, Daemon(lab.configured(mode, **more), home=lab.home) as daemon:
        daemon.wait()
        for address in FAR:
            lab.reachable(lab.ports[0], address)
        yield lab, daemon


class Flow:
    """A ping that goes on, seen where it may pass by: r1, r2, `other` (a router that isn't there) and `side`, the
    host's second device. A context manager."""

    def __init__(self, lab: Routed, source: str, address: str, interval: float = 0.05) -> None:
        self.lab, self.source, self.address, self.interval = lab, source, address, interval
        self.version = 6 if ":" in address else 4

    def __enter__(self) -> Flow:
        with contextlib.ExitStack() as undo:
            device = f"ipvl{self.lab.ports.index(self.source) + 1}"
            self.sent = undo.enter_context(sniffing(self.source, device, outgoing=True))
            wire = undo.enter_context(sniffing(self.lab.wire, "w0"))
            side = undo.enter_context(sniffing(self.lab.routers[2], "x0"))
            self.places: dict[str, tuple[Sniffer, str]] = {
                "r1": (wire, ROUTER_MAC[1]),
                "r2": (wire, ROUTER_MAC[2]),
                "other": (wire, OTHER_MAC),
                "side": (side, SIDE_MAC["router"]),
            }
            self.wire = wire
            self.ping = self.lab.spawn(self.source, "ping", "-n", "-i", str(self.interval), self.address)
            undo.callback(self._end)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _end(self) -> None:
        self.ping.kill()
        self.ping.communicate()
        self.lab.children.remove(self.ping)

    def _requests(self, sniffer: Sniffer) -> list[tuple[int, bytes]]:
        """(sequence number, frame)"""
        ethertype, protocol, at, kind = (b"\x08\x00", 23, 34, 8) if self.version == 4 else (b"\x86\xdd", 20, 54, 128)
        return [
            (int.from_bytes(frame[at + 6 : at + 8], "big"), frame)
            for _, frame in list(sniffer.frames)
            if frame[12:14] == ethertype and frame[protocol] in (1, 58) and frame[at] == kind
        ]

    def requests(self, name: str) -> list[tuple[int, bytes]]:
        sniffer, to = self.places[name]
        return [(number, frame) for number, frame in self._requests(sniffer) if frame[:6] == mac(to)]

    def seen(self, name: str) -> list[int]:
        """The sequence numbers of the requests that came by there."""
        return [number for number, _ in self.requests(name)]

    def newest(self) -> int:
        """The number of the last request that the port sent."""
        return max((number for number, _ in self._requests(self.sent)), default=0)

    def at(self, name: str, count: int = 3) -> None:
        """Wait until that many more requests have come by there."""
        before = len(self.seen(name))
        until(lambda: len(self.seen(name)) >= before + count, f"pings to {self.address} pass {name}")

    def turn(self, name: str, *lines: str) -> None:
        """After these `ip` commands on the host packets pass `name`, and from the first that does nothing else; none
        is lost."""
        newest = self.newest()
        change(self.lab.host, *lines)
        self.at(name, 5)
        first, *_, last = (number for number in self.seen(name) if number > newest)
        late = {other: [n for n in self.seen(other) if n > first] for other in self.places if other != name}
        assert not any(late.values()), f"after {lines}: {late} instead of {name} ({first} was the first)"
        passed = {number for place in self.places for number in self.seen(place)}
        lost = [number for number in range(newest + 1, last) if number not in passed]
        assert not lost, f"after {lines}: {lost} passed nowhere ({newest} before)"

    def stops(self, *lines: str) -> None:
        """After these `ip` commands on the host soon nothing passes anywhere."""
        change(self.lab.host, *lines)

        def quiet() -> bool:
            passed = max(number for place in self.places for number in self.seen(place))
            return self.newest() >= passed + 5

        until(quiet, "what the port sends passes nowhere")
