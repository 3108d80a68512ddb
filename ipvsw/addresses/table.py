"""The ports of one switch by name: what `ownership` decides about their addresses becomes edits of the data plane.

What is done within one `change` is committed together at its end, see `Changes`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import AbstractContextManager
from functools import partial
from ipaddress import ip_address
from itertools import islice

from ipvsw._fast import FRAMINGS, GUARDS, Datapath
from ipvsw.addresses.bindings import log_bindings
from ipvsw.addresses.captures import Captures
from ipvsw.addresses.claims import Admission, Change, Refused, Rule
from ipvsw.addresses.counters import Counters
from ipvsw.addresses.fastpath import FastPaths
from ipvsw.addresses.lapses import Lapses
from ipvsw.addresses.ownership import Bind, BindAll, Claims, Duplicate, Ownership, Packed, Unbind
from ipvsw.batch import Batcher
from ipvsw.changes import Changes
from ipvsw.linux.fastports import FastDevice
from ipvsw.model import UNLIMITED, Address, Guard, Limit, Network
from ipvsw.status import AddressSource, AddressState, AddressStatus, Event, Traffic

log = logging.getLogger("ipvsw")

BOUND_KEPT = 4096  # addresses of which it is remembered since when they are bound: the last ones


class Table:
    """The ports of one switch as its datapath knows them, by name."""

    def __init__(
        self, switch: str, changes: Changes, changed: Callable[[], None], disconnected: Callable[[str], None]
    ) -> None:
        """`changed` is called when the groups have changed that ports listen to, `disconnected` with the name of a
        port whose endpoint is gone."""
        self.duplicates = 0
        self.refused = 0  # claims that a rule was against
        self.counters = Counters(changes)
        self._switch = switch
        self._changes = changes
        self._datapath = changes.datapath
        self._on_changed = changed
        self._on_disconnected = disconnected
        self._ownership = Ownership(switch)
        self._claims = Admission(switch, self._ownership)
        changes.diverts = self._may_divert
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._learning: dict[str, tuple[bool, bool]] = {}  # as `set_learning` has it, of those that learn anything
        self._guards: dict[str, tuple[tuple[Guard, ...], bool]] = {}
        self._limits: dict[str, tuple[Limit, Limit, Limit]] = {}
        self._paths = FastPaths(changes)
        self._lapses = Lapses(changes)
        self.captures = Captures(switch, changes, self._numbers, self._restrict_path)
        self._groups: dict[str, frozenset[bytes]] = {}
        self._listeners: Counter[bytes] = Counter()  # group -> ports that listen to it
        self._leaving = Batcher(self._detach_all)
        self._bound_at: dict[Packed, float] = {}  # seconds since the epoch

    def change(self) -> AbstractContextManager[Datapath]:
        return self._changes.batch()

    def close(self) -> None:
        self._lapses.close()

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
        macnat: bytes | None = None,
        *,
        extra_fds: Sequence[int] = (),
        framing: str = "",
        accepts_uso: bool = False,
        long_header: bool = False,
        device: FastDevice | None = None,
    ) -> None:
        """`extra_fds`: of its device's other queues, less than there are readers. `macnat`: the MAC address that the
        endpoint is expected to use in the place of the master's. `framing`: of a port that is a socket, see
        `_fast.FRAMINGS`. `accepts_uso`: it takes UDP GSO frames. `long_header`: see `Datapath`. `device`: of a port
        whose unicast the kernel may forward, after `put_devices`."""
        number = self._datapath.attach_port(
            fd,
            mtu,
            extra_fds=extra_fds,
            macnat=macnat,
            framing=FRAMINGS[framing],
            accepts_uso=accepts_uso,
            long_header=long_header,
        )
        self._numbers[port], self._names[number] = number, port
        if device is not None:
            self._paths.attach(port, number, device, mtu)
            self._restrict_path(port)
        self.captures.attach(port)
        if port in self._guards:
            self._apply_guards(port)
        if port in self._limits:
            self._apply_limits(port)

    def connect(self, port: str, fd: int) -> None:
        """A VMM is connected to the socket `fd`; -1: none is any more."""
        with self.change():
            self._datapath.connect_port(self._numbers[port], fd)

    def write(self, port: str, frame: bytes) -> None:
        """Give a port that is a socket a frame, its virtio_net_hdr before it, unless it can't take one now."""
        self._datapath.write_port(self._numbers[port], frame)

    async def leave(self, port: str) -> None:
        """`detach`, at one commit with all ports that leave at this moment."""
        await self._leaving.ask(port)

    async def _detach_all(self, ports: list[str]) -> None:
        with self.change():
            for port in ports:
                self.detach(port)

    def detach(self, port: str) -> None:
        """Nothing of the port is left but its counters. Nothing happens if it isn't attached."""
        with self.change():
            number = self._numbers.pop(port, None)
            self._apply([*self._ownership.forget(port)])
            self._claims.detach(port)
            self.set_groups(port, ())
            if number is not None:
                self._learning.pop(port, None)
                self._on_disconnected(port)
                self._paths.detach(port)
                del self._names[number]
                self._changes.detach_port(number, partial(self.counters.keep, port, number))

    def forget(self, port: str) -> None:
        """The port won't come back: its counters go too, and what is pinned to it is free."""
        self.counters.forget(port)
        self._guards.pop(port, None)
        self._limits.pop(port, None)
        with self.change():
            self._apply(self._claims.forget(port))

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
            self._paths.set_link(port, up=up, mtu=mtu)
            self._apply([*(self._ownership.port_up(port) if up else self._ownership.port_down(port))], loses=port)
            if not up:
                self._on_disconnected(port)

    def set_learning(self, port: str, learning: bool, *, link_local: bool = False) -> None:
        """Whether frames that claim an address unknown to the port are punted; `link_local`: those with a link-local
        one at least. Idempotent."""
        if (learning, link_local) != self._learning.get(port, (False, False)):
            self._learning[port] = learning, link_local
            with self.change():
                self._datapath.set_learning(self._numbers[port], learning, link_local=link_local)

    def set_guards(self, port: str, guards: tuple[Guard, ...], *, holds: bool) -> None:
        """What the port is kept from sending, now and whenever it is attached again; `holds` as in the datapath."""
        if self._guards.get(port, ((), False)) != (guards, holds):
            self._guards[port] = guards, holds
            if port in self._numbers:
                self._apply_guards(port)

    def _apply_guards(self, port: str) -> None:
        guards, holds = self._guards[port]
        with self.change():
            self._datapath.set_guards(self._numbers[port], sum(GUARDS[guard] for guard in guards), holds=holds)
            self._restrict_path(port)

    def guards(self, port: str) -> tuple[Guard, ...]:
        return self._guards.get(port, ((), False))[0]

    def set_limits(self, port: str, rate: Limit, packets: Limit, broadcast: Limit) -> None:
        """What may pass in a second, now and whenever the port is attached again. A change begins with a burst."""
        limits = rate, packets, broadcast
        if self._limits.get(port) != limits:
            self._limits[port] = limits
            if port in self._numbers:
                self._apply_limits(port)

    def _apply_limits(self, port: str) -> None:
        rate, packets, broadcast = self._limits[port]
        with self.change():
            self._datapath.set_limits(
                self._numbers[port], rate=(rate.rx, rate.tx), packets=(packets.rx, packets.tx), broadcast=broadcast.rx
            )
            self._restrict_path(port)

    def _restrict_path(self, port: str) -> None:
        """The port's unicast is the daemon's while something is set that the kernel can't do."""
        rate, packets, _ = self._limits.get(port, (UNLIMITED, UNLIMITED, UNLIMITED))
        limits: dict[str, object] = {"rate": rate.rx or rate.tx, "packets": packets.rx or packets.tx}
        others = {"guard": self.guards(port), "mac own": self.own_mac(port), "capture": self.captures.wants(port)}
        self._paths.restrict(port, others | limits)

    def path(self, port: str) -> str:
        """Who forwards the port's unicast, see `FastPaths`."""
        return self._paths.path(port)

    def put_devices(self, port: str, device: FastDevice, mtu: int, *, adopted: bool) -> None:
        """Before `attach`: programs are about to run on them, and leave everything to the daemon. `adopted`: the last
        daemon had the same. Errors: OSError."""
        if self._changes.put_devices(device, mtu, adopted=adopted):
            self.counters.go_on(port)

    def drop_devices(self, device: FastDevice) -> None:
        """After `detach`: no program runs on them any more. Errors: OSError."""
        self._changes.drop_devices(device)

    def set_groups(
        self, port: str, groups: Iterable[bytes], *, all_multicast: bool = False, joined: Set[int] = frozenset()
    ) -> None:
        """See `Datapath.set_groups`."""
        with self.change():
            if (number := self._numbers.get(port)) is not None:
                self._datapath.set_groups(number, tuple(groups), all_multicast=all_multicast, joined=joined)
            old, new = self._groups.pop(port, frozenset()), frozenset(groups)
            if new:
                self._groups[port] = new
            if old != new:
                self._listeners.update(new - old)
                self._listeners.subtract(old - new)
                for group in old - new:
                    if not self._listeners[group]:
                        del self._listeners[group]
                self._on_changed()

    def groups(self) -> frozenset[bytes]:
        """Every group that a port listens to, and whose frames it gets."""
        switched = self._changes.switched_macs
        return frozenset(group for group in self._listeners if switched is None or group in switched)

    # ------------------------------------------------------------------------ addresses

    def claim(self, port: str, address: Address, prefix: int, source: AddressSource) -> None:
        with self.change():
            self._apply(self._claims.claim(port, address, prefix, source))

    def release(self, port: str, address: Address, prefix: int) -> None:
        with self.change():
            self._apply(self._claims.release(port, address, prefix), loses=port)

    def replace(self, port: str, wanted: Claims) -> None:
        with self.change():
            self._apply(self._claims.replace(port, wanted), loses=port)

    def master_claim(self, address: Address, prefix: int) -> None:
        self._apply_master([*self._ownership.master_claim(address, prefix)])

    def master_release(self, address: Address, prefix: int) -> None:
        self._apply_master([*self._ownership.master_release(address, prefix)])

    def master_replace(self, wanted: set[tuple[Address, int]]) -> None:
        self._apply_master([*self._ownership.master_replace(wanted)])

    def set_rule(self, port: str, rule: Rule) -> None:
        """What the port may claim."""
        pinned = self._claims.pinned(port) ^ rule.pinned
        with self.change():
            self._apply(self._claims.set_rule(port, rule))
        self._changes.review_diversion(pinned)
        self._on_changed()

    def set_host(self, on_link: Iterable[Network], gateways: Iterable[Address]) -> None:
        """The master's on-link prefixes, and every address that a route of the host by the master has as gateway."""
        gateways = frozenset(gateways)
        with self.change():
            self._apply(self._claims.set_host(on_link, gateways))
            self._changes.set_gateways(frozenset(one.packed for one in gateways) - self._ownership.master_addresses())
        self._changes.review_diversion(self._changes.stolen)

    @property
    def claims(self) -> Admission:
        """Which port may have what."""
        return self._claims

    def objection(self, port: str, address: Address) -> Refused | Duplicate | None:
        """Why a claim of the port's would be refused. None: it wouldn't."""
        return self._claims.objection(port, address)

    def owned(self) -> frozenset[Address]:
        """The addresses that are in the table. With a million of them this takes a second."""
        return frozenset(ip_address(packed) for packed in self._changes.stolen)

    def diverted(self) -> frozenset[Address]:
        """Those to which the host's own traffic goes too."""
        return frozenset(ip_address(packed) for packed in self._changes.diverted)

    def owner(self, address: Packed) -> int | None:
        """The number of the port that has it in the table."""
        port = self._ownership.owner(address)
        return None if port is None else self._numbers.get(port)

    def statuses(self, port: str) -> tuple[AddressStatus, ...]:
        return (*self._ownership.statuses(port), *self._claims.statuses(port))

    def about(self, address: Packed) -> tuple[AddressStatus, ...]:
        """Every claim to one address; first the one that stands, if one does."""
        return (*self._ownership.about(address), *self._claims.about(address))

    def owned_by(self, port: str | None) -> tuple[Address, ...]:
        """The addresses that are a port's in the table, or the master's own for None."""
        if port is None:
            return tuple(ip_address(packed) for packed in sorted(self._ownership.master_addresses()))
        states = self._ownership.statuses(port)
        return tuple(ip_address(one.address) for one in states if one.state is AddressState.OWNED)

    def is_known(self, address: Address) -> bool:
        """Whether it is a port's or the master's."""
        packed = address.packed
        return self._ownership.owner(packed) is not None or packed in self._ownership.master_addresses()

    def bound_at(self, address: Packed) -> float | None:
        """Since when the address is its port's, in seconds since the epoch; None: longer than is remembered."""
        return self._bound_at.get(address)

    # ------------------------------------------------------------------------ edits

    def _apply(self, decided: list[Change], loses: str | None = None) -> None:
        """Within a change. `loses`: the port that has lost what is unbound, and may have sent from it just before."""
        if log.isEnabledFor(logging.DEBUG):
            log_bindings(self._switch, decided)
        for each in decided:
            if isinstance(each, Bind):
                self._changes.bind((each.address,), self._numbers[each.port])
                self._note_bound((each.address,))
            elif isinstance(each, BindAll):
                self._changes.bind(each.addresses, self._numbers[each.port])
                self._note_bound(each.addresses[-BOUND_KEPT:])
            elif isinstance(each, Unbind):
                self._unbind(each.address, loses)
                self._bound_at.pop(each.address, None)
            else:
                self.duplicates += isinstance(each, Duplicate)
                self.refused += isinstance(each, Refused)
                event = Event.DUPLICATE if isinstance(each, Duplicate) else Event.REFUSED
                about = {"event": event, "switch": self._switch, "port": each.port, "address": ip_address(each.address)}
                log.warning("switch %s: %s", self._switch, each, extra=about | {"reason": str(each)})

    def _unbind(self, address: Packed, loses: str | None) -> None:
        """A machine whose addresses are learned has them until it uses them no more: nothing can be under way."""
        number = self._numbers.get(loses or "")
        if number is None or loses is None or not self.guards(loses) or any(self._learning.get(loses, ())):
            self._changes.unbind(address)
        else:
            self._lapses.begin(address, number)

    def _note_bound(self, addresses: Sequence[Packed]) -> None:
        now, kept = time.time(), self._bound_at
        for address in addresses:
            kept.pop(address, None)
            kept[address] = now
        for address in list(islice(kept, max(0, len(kept) - BOUND_KEPT))):
            del kept[address]

    def _may_divert(self, address: Packed) -> bool:
        owner = self._ownership.owner(address)
        return owner is not None and self._claims.may_divert(address, owner)

    def _apply_master(self, decided: list[Change]) -> None:
        with self.change():
            self._apply(decided)
            self._changes.set_host_addresses(self._ownership.master_addresses())

    # ------------------------------------------------------------------------ counters

    def traffic(self, ports: Iterable[str]) -> dict[str, Traffic]:
        """Of all attachments of each port, one after the other."""
        return self.counters.of_ports({port: self._numbers.get(port) for port in ports})
