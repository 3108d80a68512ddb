"""The guard matrix, end to end: attack x kind of port x tags, fragments, extension headers x IPv4, IPv6 x target.

One daemon has a port of each kind. Every frame is sent raw from the far end of each: a namespace's device, or what a
virtual machine's monitor has of its port.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.reference.rules import Port, Switch, decide_from_port
from tests.support.machine import idle, machine
from tests.support.patience import LIMIT, until
from tests.support.running import Daemon, port, switch, toml
from tests.support.sniff import Sniffer, raw, sniffing
from tests.support.topology import MASTER4, MASTER6, WIRE4, WIRE6, Lab, port4, port6
from tests.support.wire.attacks import (
    ARP,
    FOREIGN,
    IPV4,
    IPV6,
    MASTER,
    TAGS,
    VLANS,
    Attack,
    Who,
    arp,
    attacks,
    hidden,
    ipv4,
    ipv6,
    udp,
)

BROADCAST = b"\xff" * 6
OWN_MAC = bytes.fromhex("0200000000aa")  # of the machine that has one
LOOKING_THROUGH = ["ip-source", "arp", "nd", "ra", "dhcp-server", "mac", "gateway", "host"]  # a tag stops nothing
NO_FAULT_BEHIND_MAC_NAT = ("arp from another mac", "another's link-layer address")


class Target(NamedTuple):
    mac: bytes
    v4: str
    v6: str


TARGETS = {
    "the wire": Target(FOREIGN, "10.1.0.201", "fd00:1::201"),
    "a sibling": Target(MASTER, port4(2), port6(2)),
    "the host": Target(MASTER, MASTER4, MASTER6),
    "all": Target(BROADCAST, "10.1.0.201", "fd00:1::201"),
}


class Case(NamedTuple):
    """One frame, and at which guards it may end."""

    name: str
    frame: bytes
    packet: bytes
    outcomes: frozenset[str]


def who(own4: str, own6: str) -> Who:
    around = (port4(2), MASTER4, WIRE4, "10.1.0.200"), (port6(2), MASTER6, WIRE6, "fd00:1::200")
    return Who(*(ip_address(one).packed for one in (own4, *around[0], own6, *around[1])))


def honest(w: Who, to: tuple[bytes, bytes]) -> dict[str, Attack]:
    """Packets in which nothing is wrong."""
    return {
        "ipv4": Attack(set(), IPV4, ipv4(w.own4, to[0], udp(5, 6))),
        "ipv6": Attack(set(), IPV6, ipv6(w.own6, to[1], udp(5, 6))),
        "arp": Attack(set(), ARP, arp(w.own4, to[0])),
    }


def ethernet(to: bytes, by: bytes, tags: Sequence[bytes], attack: Attack, packet: bytes) -> bytes:
    return to + by + b"".join(tags) + attack.ethertype.to_bytes(2, "big") + packet


def matrix(w: Who) -> Iterator[tuple[str, list[Case]]]:
    """For each attack its frames: hidden in every way, towards everybody."""
    towards = {name: (ip_address(one.v4).packed, ip_address(one.v6).packed) for name, one in TARGETS.items()}
    for what in attacks(w):
        cases = []
        for target, to in towards.items():
            attack = attacks(w, to)[what]
            for (tags, chain), (stacked, packet) in hidden(attack, TAGS | VLANS).items():
                # What hides in a fragment, or behind too many headers, is taken for neighbour discovery.
                outcomes = attack.outcomes if chain == "plain" else attack.outcomes | {"guard_nd"}
                frame = ethernet(TARGETS[target].mac, MASTER, stacked, attack, packet)
                cases.append(Case(f"{tags}, {chain}, to {target}", frame, packet, frozenset(outcomes)))
        yield what, cases
    for what in honest(w, towards["all"]):
        cases = []
        for target, to in towards.items():
            attack = honest(w, to)[what]
            for (tags, chain), (stacked, packet) in hidden(attack, TAGS | VLANS).items():
                frame = ethernet(TARGETS[target].mac, FOREIGN, stacked, attack, packet)
                cases.append(Case(f"{tags}, {chain}, to {target}", frame, packet, frozenset({"guard_mac", "guard_nd"})))
        yield f"{what} from another MAC address", cases
        attack = honest(w, towards["the host"])[what]
        yield (
            f"{what} to the host",
            [
                Case(tags, ethernet(MASTER, MASTER, stacked, attack, packet), packet, frozenset({"guard_host"}))
                for (tags, chain), (stacked, packet) in hidden(attack, TAGS | VLANS).items()
                if chain == "plain"
            ],
        )


class Hostile:
    """The far end of one port."""

    def __init__(self, name: str, own: tuple[str, str], send: Callable[[bytes], Any], kind: str) -> None:
        self.name, self.send = name, send
        self.mac = OWN_MAC if kind == "stream" else None
        self.early = {"stream": {"drop_macnat", "drop_bad_header"}, "tap": {"drop_runt"}}.get(kind, set())
        self.cases = {what: cases for what, cases in matrix(who(*own)) if self.can_send(what)}

    def can_send(self, what: str) -> bool:
        return self.mac is None or (what not in NO_FAULT_BEHIND_MAC_NAT and "another MAC" not in what)

    def send_all(self, what: str, wanted: Callable[[Case], bool]) -> list[Case]:
        cases = [case for case in self.cases.get(what, []) if wanted(case)]
        for case in cases:
            head, rest = case.frame[:6], case.frame[6:]
            self.send(head + (rest if self.mac is None else rest.replace(MASTER, self.mac)))
        return cases

    def dropped(self, ended: Counter[str]) -> Counter[str]:
        """At a guard, or before."""
        return Counter({one: n for one, n in ended.items() if n and (one.startswith("guard_") or one in self.early)})


def table(lab: Lab, stream: Path, guard: str | list[str]) -> list[dict[str, Any]]:
    """ipvl2 is the sibling; the others are hostile."""
    own = [[f"{port4(k)}/16", f"{port6(k)}/64"] for k in range(1, 7)]
    more: dict[str, Any] = {"guard": guard, "broadcast": "off"}
    ports = [
        port("ipvl1", lab.ports[0], own[0], device="tap", **more),
        port("ipvl2", lab.ports[1], own[1]),
        port("ipvl3", lab.ports[2], own[2], device="veth", **more),
        {"name": "vm1", "kind": "macvtap", "mac": "master", "addresses": own[3], **more},
        {"name": "vm2", "kind": "tap", "mac": "master", "addresses": own[4], **more},
        {"name": "vm3", "kind": "stream", "path": str(stream), "addresses": own[5], **more},
    ]
    return [switch("m0", lab.host, ports)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The host has a gateway on the wire."""
    with Lab(3) as made:
        for gateway in (WIRE4, WIRE6):
            made.ip(made.host, "route", "add", "default", "via", gateway)
        yield made


class Net(NamedTuple):
    lab: Lab
    daemon: Daemon
    stream: Path
    hostile: list[Hostile]
    sniffers: Mapping[str, Sniffer]

    def change(self, guard: str | list[str]) -> None:
        self.daemon.config.write_text(toml(self.daemon.socket, table(self.lab, self.stream, guard)))
        self.daemon.cli("reload")
        count = {"strict": 9, "off": 0}.get(str(guard), len(guard))
        until(lambda: all(len(self.daemon.port(one.name)["guards"]) == count for one in self.hostile), "it is changed")

    def outcomes(self) -> dict[str, Counter[str]]:
        ports = self.daemon.stats()[0]["ports"]
        return {one.name: Counter(ports[one.name]["outcomes"]) for one in self.hostile}


@pytest.fixture
def net(lab: Lab, tmp_path: Path) -> Iterator[Net]:
    stream = tmp_path / "vm.sock"
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(*table(lab, stream, "strict"), home=lab.home))
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1", "vm2", "vm3")
        monitor = stack.enter_context(socket.socket(socket.AF_UNIX))
        monitor.settimeout(LIMIT)
        monitor.connect(str(stream))
        sends: list[Callable[[bytes], Any]] = [
            stack.enter_context(raw(lab.ports[0], "ipvl1")).send,
            stack.enter_context(raw(lab.ports[2], "ipvl3")).send,
            stack.enter_context(machine(daemon, "vm1")).send,
            stack.enter_context(machine(daemon, "vm2")).send,
            lambda frame: monitor.sendall(len(frame).to_bytes(4, "big") + frame),
        ]
        until(lambda: daemon.port("vm3")["state"] == "up", "vm3 is up")
        places = {"the wire": (lab.wire, "w0"), "the sibling": (lab.ports[1], "ipvl2"), "the host": (lab.host, "m0")}
        sniffers = {name: stack.enter_context(sniffing(*place)) for name, place in places.items()}
        names = {"ipvl1": "netns", "ipvl2": "", "ipvl3": "veth", "vm1": "macvtap", "vm2": "tap", "vm3": "stream"}
        kinds = [(name, k, kind) for k, (name, kind) in enumerate(names.items(), 1) if kind]
        hostile = [
            Hostile(name, (port4(k), port6(k)), send, kind) for (name, k, kind), send in zip(kinds, sends, strict=True)
        ]
        yield Net(lab, daemon, stream, hostile, sniffers)


def all_are_dropped(net: Net, wanted: Callable[[Case], bool], more: frozenset[str]) -> int:
    """Every frame that is wanted ends at a guard, or before, and none comes out. Returns how many there were. `more`:
    guards at which any may end."""
    total = 0
    sent: dict[bytes, str] = {}
    for what in net.hostile[0].cases:
        before, ended = net.outcomes(), dict[str, Counter[str]]()
        cases = {one.name: one.send_all(what, wanted) for one in net.hostile}

        def done(
            cases: dict[str, list[Case]] = cases,
            before: dict[str, Counter[str]] = before,
            ended: dict[str, Counter[str]] = ended,
        ) -> bool:
            now = net.outcomes()
            ended.update({one.name: one.dropped(now[one.name] - before[one.name]) for one in net.hostile})
            return all(ended[name].total() >= len(some) for name, some in cases.items())

        with contextlib.suppress(AssertionError):  # which port's are missing is said below
            until(done, what)
        for one in net.hostile:
            allowed = frozenset().union(*(case.outcomes for case in cases[one.name])) | more | one.early
            assert ended[one.name].total() == len(cases[one.name]), (what, one.name, net.outcomes()[one.name])
            assert set(ended[one.name]) <= allowed, (what, one.name, ended[one.name])
        sent |= {case.packet: f"{what}, {case.name}" for some in cases.values() for case in some}
        total += sum(map(len, cases.values()))
    for place, sniffer in net.sniffers.items():
        for _, frame in sniffer.frames:
            found = next((name for packet, name in sent.items() if frame.endswith(packet)), None)
            assert found is None, f"at {place}: {found}: {frame.hex()}"
    return total


def has_vlan(case: Case) -> bool:
    return case.name.split(",")[0] in VLANS


def test_every_attack_is_dropped_and_counted(net: Net) -> None:
    """Under `strict`; and without the guard against tags, through these."""
    total = all_are_dropped(net, lambda case: True, frozenset({"guard_vlan"}))
    net.change(LOOKING_THROUGH)
    total += all_are_dropped(net, has_vlan, frozenset())
    print(f"{total} frames")
    assert total > 20_000
    for one in net.hostile:
        assert f"port {one.name}: guard_" in net.daemon.said()


def test_without_guards_every_attack_goes_where_the_kernels_driver_sends_it(net: Net) -> None:
    """As the model of its rules says."""
    net.change("off")
    owned = {ip_address(one(k)).packed: k - 1 for k in range(1, 7) for one in (port4, port6)}
    model = Switch(MASTER, ports=[Port(all_multicast=True) for _ in range(6)], table=owned)
    for what in net.hostile[0].cases:
        before = net.outcomes()
        wanted = {
            one.name: Counter(
                decide_from_port(model, case.frame).outcome for case in one.send_all(what, lambda _: True)
            )
            for one in net.hostile
            if not one.early  # those have no counterpart there
        }

        def done(wanted: dict[str, Counter[str]] = wanted, before: dict[str, Counter[str]] = before) -> bool:
            now = net.outcomes()
            return all(not count - (now[name] - before[name]) for name, count in wanted.items())

        until(done, f"{what}: {wanted}, before: {before}, now: {net.outcomes()}")
    assert not [one for ended in net.outcomes().values() for one in ended if one.startswith("guard_") and ended[one]]
