"""Addresses and multicast groups of virtual machines; DHCP and ARP probes for all ports.

The datapath punts a frame that claims an address which its port isn't known to have, every DHCP message, ARP probes
with their replies, and a virtual machine's membership reports; the frame waits until it is reinjected. `learned`,
`leases`, `probes` and `groups` decide what follows. The table is changed first and the frame reinjected afterwards, so
that an answer to it finds its way. An address that another port or the master has is refused.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address

from ipvsw.addresses.table import Table
from ipvsw.changes import Changes
from ipvsw.model import Address
from ipvsw.snooping import dhcp4, dhcp6
from ipvsw.snooping.groups import QUERY_INTERVAL, Memberships, is_query, queries, read_reports
from ipvsw.snooping.learned import Full, Learning, claimed_address
from ipvsw.snooping.leases import Lease, Leases, lease_status
from ipvsw.snooping.port import SnoopedPort
from ipvsw.snooping.probes import Probes, as_from_another, comes_from_asker, probe_reply, probed_address
from ipvsw.snooping.saved import Snooped, save
from ipvsw.snooping.timers import Clock, Timers
from ipvsw.status import AddressSource, AddressState, AddressStatus, Event, LeaseStatus

log = logging.getLogger("ipvsw")

HOLD = 0.5  # seconds that a frame waits for its address to be read, at most; a busy machine needs some of it
CREDIT = 1.0  # seconds until ports that had frames punted get new credits
QUERY_DELAY = 0.1  # seconds until a machine is asked for its groups, once for what happens meanwhile
SWEEP = 60.0  # seconds between two checks which addresses are in use
REFUSALS = 64  # of each port that are remembered: each is logged once, and shown

Delivery = tuple[bytes, int]
"""A frame to reinject, and the port that alone is to have it."""
WIRE = -1  # as the source of a frame
BY_RULES = -1  # in the place of that port: the rules say who is


class Snooper:
    """One switch's. Made and stopped on the loop."""

    def __init__(
        self, switch: str, table: Table, changes: Changes, find_port: Callable[[str], SnoopedPort | None], clock: Clock
    ) -> None:
        """`find_port` gives a port by its name, None if there is none whose addresses could be learned."""
        self.counters: Counter[str] = Counter()
        self._switch = switch
        self._table = table
        self._changes = changes
        self._datapath = changes.datapath
        self._find_port = find_port
        self._clock = clock
        self._learnings: dict[str, Learning] = {}
        self._leases = Leases()
        self._probes = Probes()
        self._memberships = Memberships()
        self._refusals: dict[str, dict[Address, tuple[AddressSource, str]]] = {}  # of each port, and why
        self._given_up: list[Lease] = []  # by the frames that are about to go on
        self._held: dict[int, list[bytes]] = {}  # port number -> frames that wait for their address
        self._spenders: set[int] = set()  # sources of frames that were punted since credits were last renewed
        self._timers = Timers(clock)
        self.answered: Callable[[str, bytes], bool] = lambda port, message: False
        """Called with the port that has asked a DHCP server, and the server's message; whether the daemon itself is the
        client."""

    def stop(self) -> None:
        self._timers.stop()

    def forget(self, port: str) -> None:
        """The machine has left: what was learned of it does not hold for the next one."""
        self._leases.forget(port)
        self._probes.forget(port)
        if self._memberships.forget(port):
            self._set_joined(port)
        self._refusals.pop(port, None)
        if self._learnings.pop(port, None) is not None:
            self._update_port(port)

    def save(self) -> Snooped:
        return save(self._learnings, self._leases)

    def restore(self, port: str, snooped: Snooped) -> None:
        """What the last daemon knew of the machine, which goes on."""
        addresses, leases = snooped.of_port(port)
        snooped_port = self._find_port(port)
        if snooped_port is None or not snooped_port.max_learned:
            return
        learning = self._learnings[port] = Learning(snooped_port.max_learned)
        for one in addresses[: snooped_port.max_learned]:
            if snooped_port.may_learn(address := ip_address(one.address)):
                learning.learn(address, one.source, one.used)
        for lease in leases:
            self._leases.restore(lease)
        self._await_end()
        self._timers.after("sweep", SWEEP, self._sweep)
        self._update_port(port)

    def refusals(self, port: str) -> Iterator[AddressStatus]:
        """Addresses that were not learned of the port, the last ones, and why."""
        for address, (source, why) in self._refusals.get(port, {}).items():
            yield AddressStatus(
                switch=self._switch,
                port=port,
                address=str(address),
                state=AddressState.REFUSED,
                source=source,
                reason=why.partition(f"port {port}: ")[2],
            )

    def leases(self) -> Iterator[LeaseStatus]:
        now = self._clock.time()
        for lease in self._leases.all():
            states = {one.address: one.state for one in self._table.statuses(lease.port)}
            yield lease_status(self._switch, lease, states.get(str(lease.address)), now)

    # ------------------------------------------------------------------------ frames

    def take(self, frames: list[tuple[int, bytes]]) -> None:
        """(source, virtio_net_hdr and frame) that the datapath has punted."""
        returns: list[tuple[int, list[Delivery]]] = []
        with self._table.change():
            for source, frame in frames:
                self._spenders.add(source)
                if self._holds(source, frame):
                    continue
                try:
                    returns.append((source, self._consider(source, frame)))
                except Exception:  # one frame must not stop the others
                    log.exception("switch %s: a frame of %d bytes", self._switch, len(frame))
                    returns.append((source, [(frame, BY_RULES)]))
        with self._changes.batch() as datapath:  # after the table's: answers to these frames find the addresses known
            for source, deliveries in returns:
                if source < 0 or self._table.name(source) is not None:
                    for k, (frame, to) in enumerate(deliveries):
                        datapath.reinject(source, frame, to, copy=k > 0)
        if self._given_up:  # the client's last frame from the address has passed the guards
            with self._table.change():
                self._end(self._given_up)
            self._given_up.clear()
        self._timers.after("credit", CREDIT, self._give_credit)

    def _holds(self, source: int, frame: bytes) -> bool:
        """Whether a guard asks about an address that the device has perhaps had for a moment. Its frame waits until one
        is bound to the port, or for HOLD."""
        name = self._table.name(source) if source >= 0 else None
        port = None if name is None else self._find_port(name)
        found = claimed_address(frame)
        if port is None or port.max_learned or found is None or not self._table.guards(name or ""):
            return False
        if found[1] is AddressSource.DAD:  # a question: no guard is against it
            return False
        if self._table.owner(found[0].packed) is not None:
            return False
        port.mark_stale()
        self._held.setdefault(source, []).append(frame)
        self._timers.after(f"held {source}", HOLD, lambda: self.release(source))
        return True

    def release(self, number: int) -> None:
        """An address was bound to the port of that number, or none was: what waited for it is checked once more."""
        frames = self._held.pop(number, [])
        self._timers.cancel(f"held {number}")
        if frames and self._table.name(number) is not None:
            with self._changes.batch() as datapath:
                for frame in frames:
                    datapath.reinject(number, frame)

    def _consider(self, source: int, frame: bytes) -> list[Delivery]:
        """What to reinject for the frame."""
        port = self._table.name(source) if source >= 0 else None
        if port is not None and (found := claimed_address(frame)) is not None:
            self._learn(port, *found)
        now = self._clock.time()
        if port is not None and (reports := read_reports(frame)):
            self._report(port, reports, now)
        if port is not None and is_query(frame):
            self._memberships.query(port, now)
            self._set_joined(port)
            self._await_silence()
        if port is not None and (asked := probed_address(frame)) is not None:
            self._probes.ask(port, asked, now)
        if (taken := probe_reply(frame)) is not None:
            askers = [asker for asker in self._probes.askers(taken, now) if asker != port]
            return [one for asker in askers for one in self._to_asker(asker, frame)] or [(frame, BY_RULES)]
        return [self._consider_dhcp(port, frame)]

    def _to_asker(self, port: str, frame: bytes) -> list[Delivery]:
        """A reply to an ARP probe. Who asks from the master's MAC address takes no notice of one from the same: another
        follows that does not come from it."""
        number = self._table.number(port)
        if number is None:
            return []
        if self._table.own_mac(port) is not None or not comes_from_asker(frame):
            return [(frame, number)]
        return [(one, number) for one in (frame, *as_from_another(frame))]

    def _consider_dhcp(self, port: str | None, frame: bytes) -> Delivery:
        where = dhcp4.datagram(frame)
        if where is None:
            return frame, BY_RULES
        payload = frame[where.payload]
        is_ipv6 = where.to_port in (dhcp4.CLIENT6, dhcp4.SERVER6)
        message = dhcp6.read(payload) if is_ipv6 else dhcp4.read(payload, where.to_port)
        if message is None:
            return frame, BY_RULES
        if message.is_reply:
            asker = self._on_server(message, port) or ""
            number, is_broadcast = self._table.number(asker), not dhcp4.is_for_sender(frame)
            if message.version == 4 and self.answered(asker, payload):
                frame = dhcp4.as_broadcast(frame)  # of which no stack says that nobody listens
            if number is None or (port is not None and is_broadcast):
                return frame, BY_RULES
            return frame, number
        if port is not None:
            self._given_up += self._leases.on_client(port, message, self._clock.time())
            if message.version == 4 and self._table.own_mac(port) is not None and dhcp4.wants_broadcast(payload):
                frame = dhcp4.with_broadcast(frame, where)
        return frame, BY_RULES

    def send(self, port: str, frame: bytes) -> None:
        """A DHCP message to all of the daemon's own client for the port, unless the port is gone."""
        if (number := self._table.number(port)) is not None:
            self._consider_dhcp(port, frame)
            with self._changes.batch() as datapath:
                datapath.announce(number, frame)

    def _on_server(self, message: dhcp4.DhcpMessage, sender: str | None) -> str | None:
        """The port whose client's the message is."""
        answer = self._leases.on_server(message, self._clock.time(), sender, time.time())
        self._end(answer.ended)
        for lease in answer.granted:
            self._learn(lease.port, lease.address, AddressSource.DHCP)
        if answer.granted:
            self._await_end()
        return answer.port

    # ------------------------------------------------------------------------ addresses

    def _learn(self, port: str, address: Address, source: AddressSource) -> None:
        snooped = self._find_port(port)
        if snooped is None or not snooped.may_learn(address):
            return
        learning = self._learnings.setdefault(port, Learning(snooped.max_learned))
        learning.max_learned = snooped.max_learned
        now = self._clock.time()
        if source is AddressSource.DAD:  # a question, and no claim
            if learning.ask(address, now):
                self._update_port(port)
                self._timers.after("sweep", SWEEP, self._sweep)
            return
        if objection := self._table.objection(port, address):
            self._refuse(port, address, source, str(objection))
            return
        if len(learning.addresses) >= learning.max_learned:
            self._note_used(port, learning, now)
        try:
            new = learning.learn(address, source, now)
        except Full:
            why = f"{address} is not learned of port {port}: it has {learning.max_learned} already"
            self._refuse(port, address, source, why)
            return
        if new:
            self.counters["learned"] += 1
            self._refusals.get(port, {}).pop(address, None)
            about = self._about(Event.LEARNED, port, address, source)
            log.info("switch %s: port %s has %s, by %s", self._switch, port, address, source, extra=about)
            self._update_port(port)
            self._timers.after("sweep", SWEEP, self._sweep)

    def _about(self, event: Event, port: str, address: object, reason: str) -> dict[str, object]:
        """For the log, as fields."""
        return {"event": event, "switch": self._switch, "port": port, "address": address, "reason": reason}

    def _refuse(self, port: str, address: Address, source: AddressSource, why: str) -> None:
        """Counted each time, logged once."""
        self.counters["refused"] += 1
        known = self._refusals.setdefault(port, {})
        had, known[address] = known.get(address), (source, why)
        if len(known) > REFUSALS:
            del known[next(iter(known))]
        if had is None or had[1] != why:
            log.warning("switch %s: %s", self._switch, why, extra=self._about(Event.REFUSED, port, address, why))

    def _end(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            learning = self._learnings.get(lease.port)
            if learning is not None and learning.forget(lease.address):
                about = self._about(Event.FORGOTTEN, lease.port, lease.address, "lease ended")
                log.info("switch %s: port %s has %s no longer", self._switch, lease.port, lease.address, extra=about)
                self.counters["ended"] += 1
                self._update_port(lease.port)

    def _update_port(self, port: str) -> None:
        snooped = self._find_port(port)
        if snooped is not None:
            learning = self._learnings.get(port)
            if learning is None:
                snooped.set_learned({}, frozenset())
            else:
                snooped.set_learned(learning.addresses, learning.tentative)

    def _note_used(self, port: str, learning: Learning, now: float) -> None:
        """Which of its addresses the port has sent from since the last time."""
        number = self._table.number(port)
        if number is not None:
            packed = {address.packed: address for address in learning.addresses}
            learning.use([packed[one] for one in self._datapath.used(number, list(packed))], now)

    # ------------------------------------------------------------------------ groups

    def _report(self, port: str, reports: list[tuple[Address, bool]], now: float) -> None:
        snooped = self._find_port(port)
        if snooped is None or not snooped.serves_vm:
            return
        self._memberships.report(port, reports, now)
        self._set_joined(port)
        if not all(joined for _, joined in reports):
            self.query_soon(port)
        self._timers.after("queries", QUERY_INTERVAL, self._query_all)
        self._await_silence()

    def _set_joined(self, port: str) -> None:
        snooped = self._find_port(port)
        if snooped is not None and snooped.serves_vm:
            snooped.set_joined(self._memberships.macs(port), self._memberships.versions(port))

    def query_soon(self, port: str) -> None:
        """Ask a virtual machine which groups it listens to."""
        self._timers.after(f"query {port}", QUERY_DELAY, lambda: self._query([port]))

    def _query_all(self) -> None:
        if ports := self._memberships.ports():
            self._query(ports)
            self._timers.after("queries", QUERY_INTERVAL, self._query_all)

    def _query(self, ports: list[str]) -> None:
        with self._changes.batch() as datapath:
            for port in ports:
                if (number := self._table.number(port)) is not None:
                    for frame in queries():
                        datapath.reinject(WIRE, frame, number, copy=True)

    def _await_silence(self) -> None:
        """Of the group that is reported no more first."""
        self._timers.at("silence", self._memberships.next_end(), self._forget_silent)

    def _forget_silent(self) -> None:
        self._memberships.expire(self._clock.time())
        with self._table.change():
            for port in self._memberships.ports():
                self._set_joined(port)
        self._await_silence()

    # ------------------------------------------------------------------------ time

    def _give_credit(self) -> None:
        spenders, self._spenders = self._spenders, set()
        for source in spenders:
            if source < 0 or self._table.name(source) is not None:
                self._datapath.give_credit(source)
        if spenders:
            self._timers.after("credit", CREDIT, self._give_credit)

    def _sweep(self) -> None:
        now = self._clock.time()
        with self._table.change():
            for port, learning in self._learnings.items():
                self._note_used(port, learning, now)
                had = set(learning.addresses)
                if learning.age(now):
                    if gone := had - set(learning.addresses):
                        self.counters["aged"] += len(gone)
                        addresses = ", ".join(map(str, gone))
                        about = self._about(Event.FORGOTTEN, port, addresses, "unused")
                        log.info("switch %s: port %s no longer uses %s", self._switch, port, addresses, extra=about)
                    self._update_port(port)
        if any(learning.addresses or learning.tentative for learning in self._learnings.values()):
            self._timers.after("sweep", SWEEP, self._sweep)

    def _await_end(self) -> None:
        """Of the lease that ends first."""
        self._timers.at("lease", self._leases.next_end(), self._expire)

    def _expire(self) -> None:
        with self._table.change():
            self._end(self._leases.expire(self._clock.time()))
        self._await_end()
