"""The learner with a table, a clock and a wire that its tests look into."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Set
from ipaddress import ip_address
from typing import Any, cast

from msgspec import Struct

from ipvsw.addresses.ownership import Duplicate
from ipvsw.changes import Changes
from ipvsw.model import Address, Guard
from ipvsw.snooping.snooper import Snooper
from ipvsw.status import AddressSource, AddressState, AddressStatus
from tests.support.wire.dhcp import CHADDR, bootp, in_frame

MAC = bytes.fromhex("020000000001")
WIRE = -1
A, B = ip_address("192.0.2.1"), ip_address("192.0.2.2")


class Timer(Struct):
    at: float
    ring: Callable[[], None]
    over: bool = False

    def cancel(self) -> None:
        self.over = True


class Runtime:
    """Clock, table, datapath and ports: port number k is called p<k>. `taken`: addresses of somebody else."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.names = {0: "p0", 1: "p1"}
        self.own = {"p0"}
        self.taken: dict[Address, str | None] = {}
        self.tentative: dict[str, Set[Address]] = {}
        self.learned: dict[str, Mapping[Address, AddressSource]] = {}
        self.in_use: set[bytes] = set()
        self.log: list[Any] = []  # in order: what ports have, what goes on, who got credit
        self.max_learned = 4
        self.link_local_alone = False
        self.guarded: tuple[Guard, ...] = ()
        self.namespaces: set[str] = set()
        self.joined: dict[str, Set[bytes]] = {}
        self.versions: dict[str, Set[int]] = {}
        self.bound: dict[bytes, int] = {}
        self.changes = Changes("lan", cast(Any, self), cast(Any, self))
        self.snooper = Snooper("lan", cast(Any, self), self.changes, self.find_port, self)

    # the clock

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [one for one in self.timers if not one.over and one.at <= until]:
            first = min(due, key=lambda one: one.at)
            first.over = True
            self.now = max(self.now, first.at)
            first.ring()
        self.now = until

    # the table and the datapath

    def change(self) -> Any:
        return contextlib.nullcontext()

    def name(self, number: int) -> str | None:
        return self.names.get(number)

    def number(self, port: str) -> int | None:
        return next((number for number, name in self.names.items() if name == port), None)

    def own_mac(self, port: str) -> bytes | None:
        return CHADDR if port in self.own else None

    def objection(self, port: str, address: Address) -> Duplicate | None:
        if address not in self.taken or self.taken[address] == port:
            return None
        return Duplicate(address, port, self.taken[address])

    def statuses(self, port: str) -> Iterator[AddressStatus]:
        for address, source in self.learned.get(port, {}).items():
            yield AddressStatus(switch="lan", port=port, address=str(address), state=AddressState.OWNED, source=source)

    def used(self, number: int, addresses: list[bytes]) -> list[bytes]:
        return [one for one in addresses if one in self.in_use]

    def guards(self, port: str) -> tuple[Guard, ...]:
        return self.guarded

    def owner(self, address: bytes) -> int | None:
        return self.bound.get(address)

    def reinject(self, source: int, frame: bytes, to: int = -1, *, copy: bool = False) -> None:
        self.log.append(("copy", frame, to) if copy else (source, frame, to))

    def give_credit(self, source: int) -> None:
        self.log.append(("credit", source))

    def commit(self) -> None:
        self.log.append("commit")

    # ports

    def find_port(self, port: str) -> Any:
        runtime = self

        class SnoopedPort:
            max_learned = runtime.max_learned
            serves_vm = port not in runtime.namespaces

            def may_learn(self, address: Address) -> bool:
                return bool(runtime.max_learned) and (not runtime.link_local_alone or address.is_link_local)

            def set_joined(self, groups: Set[bytes], versions: Set[int]) -> None:
                runtime.versions[port] = versions
                runtime.joined[port] = groups

            def mark_stale(self) -> None:
                runtime.log.append(("read", port))

            def set_learned(self, addresses: Mapping[Address, AddressSource], tentative: Set[Address]) -> None:
                runtime.learned[port] = addresses
                runtime.tentative[port] = tentative
                runtime.log.append((port, {str(one): str(source) for one, source in addresses.items()}))

        return SnoopedPort()

    def lease(self, address: Address, seconds: int = 3600, xid: int = 5) -> None:
        self.snooper.take([(0, in_frame(bootp(1, kind=3, xid=xid)))])
        self.snooper.take(
            [(WIRE, in_frame(bootp(2, kind=5, xid=xid, yiaddr=str(address), seconds=seconds), to_port=68))]
        )


def says(address: Address) -> bytes:
    return bytes(10) + b"\xff" * 6 + MAC + b"\x08\x00\x45" + bytes(11) + address.packed + bytes(4)


def asks(address: Address) -> bytes:
    """An ARP probe: RFC 5227 section 2.1.1."""
    arp = b"\0\1\x08\0\6\4\0\1" + MAC + bytes(4) + bytes(6) + address.packed
    return bytes(10) + b"\xff" * 6 + MAC + b"\x08\x06" + arp
