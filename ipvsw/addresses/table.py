"""One switch's table carried out: what `addresses` decides goes to the datapath and to the shim.

A frame is stolen from the host only while it can be delivered: an address is bound in the datapath
before the shim is told, and taken from the shim before it is unbound. What is done within one
`change` is committed together at its end, unless it concerns thousands of addresses, then in parts.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import islice

from ipvsw._fast import FRAMINGS, OUTCOMES, Datapath
from ipvsw.addresses.ownership import Bind, BindAll, Change, Claims, Duplicate, Ownership, Packed, Unbind
from ipvsw.batch import Batcher
from ipvsw.linux.bpf import Shim
from ipvsw.model import Address, AddressSource, AddressStatus, Traffic

log = logging.getLogger("ipvsw")

TOGETHER = 8192  # addresses at one commit: as many edits and keys must be in memory at once


class Table:
    """The ports of one switch as its datapath knows them, by name."""

    def __init__(
        self,
        switch: str,
        datapath: Datapath,
        shim: Shim,
        changed: Callable[[], None],
        left: Callable[[str], None],
        bound: Callable[[str, list[Packed], list[Packed]], None] = lambda port, addresses, moved: None,
    ) -> None:
        self.duplicates = 0
        self._switch = switch
        self._datapath = datapath
        self._shim = shim
        self._changed = changed  # groups or addresses are others than before
        self._left = left  # whoever was at this port's other end is there no longer
        self._told_bound = bound  # these addresses are this port's now; which of them were another's just before
        self._ownership = Ownership(switch)
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._past: dict[str, Traffic] = {}  # of a port's earlier TAPs
        self._learning: set[str] = set()
        self._groups: dict[str, frozenset[bytes]] = {}
        self._listeners: Counter[bytes] = Counter()  # group -> ports that listen to it
        self._pending: dict[Packed, str | None] = {}
        self._stolen: set[Packed] = set()
        self._host: frozenset[Packed] = frozenset()  # the master's own addresses in the datapath's table
        self._leaving: list[tuple[str, int]] = []  # ports that are detached, with the numbers that they still have
        self._leave = Batcher(self._detach_all)
        self._depth = 0

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._flush()

    # ------------------------------------------------------------------------ ports

    @property
    def readers(self) -> int:
        """How many workers there are to read a port's queues."""
        return self._datapath.n_workers

    def attach(
        self,
        port: str,
        fd: int,
        mtu: int,
        own: bytes | None = None,
        *,
        extra_fds: Sequence[int] = (),
        framing: str = "",
        accepts_uso: bool = False,
    ) -> None:
        """`extra_fds`: of its device's other queues, less than there are readers. `own`: the MAC address that the
        endpoint is expected to use in the place of the master's. `framing`: of a port that is a socket, see
        `_fast.FRAMINGS`. `accepts_uso`: it takes UDP GSO frames."""
        number = self._datapath.attach_port(
            fd, mtu, extra_fds=extra_fds, own=own, framing=FRAMINGS[framing], accepts_uso=accepts_uso
        )
        self._numbers[port], self._names[number] = number, port

    def connect(self, port: str, fd: int) -> None:
        """Somebody is at the other end of the socket `fd`, or with -1 nobody is any more."""
        with self.change():
            self._datapath.connect_port(self._numbers[port], fd)

    def write(self, port: str, frame: bytes) -> None:
        """Give a port that is a socket a frame, its virtio_net_hdr before it, unless it can't take one now."""
        self._datapath.write_port(self._numbers[port], frame)

    async def leave(self, port: str) -> None:
        """`detach`, at one commit with all that leave at this moment."""
        await self._leave.ask(port)

    async def _detach_all(self, ports: list[str]) -> None:
        with self.change():
            for port in ports:
                self.detach(port)

    def detach(self, port: str) -> None:
        """Nothing of the port is left but its counters. Nothing happens if it isn't attached."""
        with self.change():
            number = self._numbers.pop(port, None)
            self._apply(self._ownership.forget(port))
            self.set_groups(port, ())
            if number is not None:
                self._learning.discard(port)
                self._left(port)
                del self._names[number]
                self._leaving.append((port, number))

    def forget(self, port: str) -> None:
        """The port won't come back: neither will its counters."""
        self._past.pop(port, None)

    def own_mac(self, port: str) -> bytes | None:
        """The MAC address that its endpoint uses; None if it is the master's, or the port isn't attached."""
        number = self._numbers.get(port)
        return None if number is None else self._datapath.own_mac(number)

    def number(self, port: str) -> int | None:
        """Of a port that is attached."""
        return self._numbers.get(port)

    def name(self, number: int) -> str | None:
        return self._names.get(number)

    def set_port(self, port: str, *, up: bool, mtu: int) -> None:
        with self.change():
            self._datapath.set_port(self._numbers[port], up=up, mtu=mtu)
            self._apply(self._ownership.port_up(port) if up else self._ownership.port_down(port))
            if not up:
                self._left(port)

    def set_learning(self, port: str, learning: bool) -> None:
        """Whether what the port says of addresses is told. Nothing happens if that is so already."""
        if learning != (port in self._learning):
            (self._learning.add if learning else self._learning.discard)(port)
            with self.change():
                self._datapath.set_learning(self._numbers[port], learning)

    def set_groups(self, port: str, groups: Iterable[bytes], *, all_multicast: bool = False) -> None:
        with self.change():
            if port in self._numbers:
                self._datapath.set_groups(self._numbers[port], tuple(groups), all_multicast=all_multicast)
            old, new = self._groups.pop(port, frozenset()), frozenset(groups)
            if new:
                self._groups[port] = new
            if old != new:
                self._listeners.update(new - old)
                self._listeners.subtract(old - new)
                for group in old - new:
                    if not self._listeners[group]:
                        del self._listeners[group]
                self._changed()

    def groups(self) -> frozenset[bytes]:
        """Every group that a port listens to."""
        return frozenset(self._listeners)

    # ------------------------------------------------------------------------ addresses

    def claim(self, port: str, address: Address, prefix: int, source: AddressSource) -> None:
        with self.change():
            self._apply(self._ownership.claim(port, address, prefix, source))

    def release(self, port: str, address: Address, prefix: int) -> None:
        with self.change():
            self._apply(self._ownership.release(port, address, prefix))

    def replace(self, port: str, wanted: Claims) -> None:
        with self.change():
            self._apply(self._ownership.replace(port, wanted))

    def master_claim(self, address: Address, prefix: int) -> None:
        with self.change():
            self._apply(self._ownership.master_claim(address, prefix))

    def master_release(self, address: Address, prefix: int) -> None:
        with self.change():
            self._apply(self._ownership.master_release(address, prefix))

    def master_replace(self, wanted: set[tuple[Address, int]]) -> None:
        with self.change():
            self._apply(self._ownership.master_replace(wanted))

    def objection(self, port: str, address: Address) -> Duplicate | None:
        """What speaks against a claim of the port's: somebody else has the address."""
        return self._ownership.objection(port, address)

    def owned(self) -> frozenset[Address]:
        """The addresses that are in the table. With a million of them this takes a second."""
        return frozenset(ip_address(packed) for packed in self._stolen)

    def stolen(self) -> Iterable[Packed]:
        """As `owned`, at once. Not to be kept."""
        return self._stolen

    def owner(self, address: Packed) -> int | None:
        """The number of the port that has it in the table."""
        port = self._ownership.owner(address)
        return None if port is None else self._numbers.get(port)

    def statuses(self, port: str) -> tuple[AddressStatus, ...]:
        return self._ownership.statuses(port)

    # ------------------------------------------------------------------------ carrying out

    def _apply(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, Bind):
                self._pending[change.address] = change.port
            elif isinstance(change, BindAll):
                self._pending |= dict.fromkeys(change.addresses, change.port)
            elif isinstance(change, Unbind):
                self._pending[change.address] = None
            else:
                self.duplicates += 1
                log.warning("switch %s: %s", self._switch, change)

    def _flush(self) -> None:
        pending, self._pending = self._pending, {}
        host, self._host = self._host, self._ownership.master_addresses()
        for address in host - self._host:
            self._datapath.unbind(address)
        with contextlib.suppress(OSError):  # of which we shall hear when one is added
            self._shim.expect(len(pending) - sum(map(self._stolen.__contains__, pending)))
        addresses, ports = iter(pending), iter(pending.values())
        part = list(islice(addresses, TOGETHER))
        while len(part) == TOGETHER:
            self._carry_out(part, list(islice(ports, TOGETHER)), ())
            part = list(islice(addresses, TOGETHER))
        self._carry_out(part, list(ports), self._host - host)
        self._let_go()
        if pending:
            self._changed()

    def _let_go(self) -> None:
        """Of ports that nothing is bound to any more."""
        leaving, self._leaving = self._leaving, []
        for port, number in leaving:
            self._past[port] = self._add(self._past.get(port), self._datapath.traffic(number))
            self._datapath.detach_port(number)
        self._datapath.commit()

    def _carry_out(self, part: list[Packed], ports: list[str | None], host: Iterable[Packed]) -> None:
        """So much at one commit: who has which address now, and which of them the host has besides."""
        bound, freed = _shares(part, ports)
        self._give_back(freed)
        for address in freed:
            self._datapath.unbind(address)
        for port, addresses in bound.items():
            self._datapath.bind_all(addresses, self._numbers[port])
        for address in host:
            self._datapath.bind_host(address)
        self._datapath.commit()
        for port, addresses in bound.items():
            moved = [] if self._stolen.isdisjoint(addresses) else [one for one in addresses if one in self._stolen]
            self._steal([one for one in addresses if one not in self._stolen] if moved else addresses)
            self._told_bound(port, addresses, moved)

    def _steal(self, addresses: list[Packed]) -> None:
        if not addresses:
            return
        try:
            self._shim.add(addresses)
        except OSError as error:
            if len(addresses) > 1:
                for address in addresses:
                    self._steal([address])
            else:
                what = ip_address(addresses[0])
                log.error("switch %s: the host still hears frames for %s: %s", self._switch, what, error)
        else:
            self._stolen.update(addresses)

    def _give_back(self, addresses: list[Packed]) -> None:
        stolen = [address for address in addresses if address in self._stolen]
        if stolen:
            self._stolen.difference_update(stolen)
            self._shim.remove(stolen)

    # ------------------------------------------------------------------------ counters

    def traffic(self, port: str) -> Traffic:
        """Of all the port's TAPs, one after the other."""
        number = self._numbers.get(port)
        return self._add(self._past.get(port), None if number is None else self._datapath.traffic(number))

    def master_traffic(self) -> Traffic:
        return self._add(None, self._datapath.traffic(None))

    def host_traffic(self) -> Traffic:
        return self._add(None, self._datapath.traffic("host"))

    def _add(self, past: Traffic | None, now: tuple[int, int, int, int, int, tuple[int, ...]] | None) -> Traffic:
        *interfaces, outcomes = now or (0, 0, 0, 0, 0, (0,) * len(OUTCOMES))
        old = past or Traffic(outcomes={})
        names = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "tx_errors")
        sums = {name: getattr(old, name) + count for name, count in zip(names, interfaces, strict=True)}
        return Traffic(
            **sums,
            outcomes={name: old.outcomes.get(name, 0) + n for name, n in zip(OUTCOMES, outcomes, strict=True)},
        )


def _shares(addresses: list[Packed], ports: list[str | None]) -> tuple[dict[str, list[Packed]], list[Packed]]:
    """Who has which of the addresses, and which nobody has; `ports` has the owner of each. Mostly it is one for all."""
    bound: dict[str, list[Packed]] = {}
    freed: list[Packed] = []
    first = next(iter(ports), None)
    if first is not None and ports.count(first) == len(ports):
        return {first: addresses}, []
    for address, port in zip(addresses, ports, strict=True):
        (freed if port is None else bound.setdefault(port, [])).append(address)
    return bound, freed
