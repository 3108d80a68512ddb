"""Which port of a switch owns which address. Pure: changes to the table are returned, not made.

The first port that claims an address has it. A second port that claims it is reported as a duplicate, becomes a
standby claimant, and gets the address when those before it have released it. A port that is down keeps its address as
long as nobody else wants it: to a claimant that is up it yields, and becomes the last of the standby claimants. While
it is down and nobody else is up, frames for the address go to the host. An address of the master's no port can have.
One address with two prefix lengths is two claims of one port, and is released with the last of them.
Uniqueness is per switch and without scopes, so link-local addresses count too
(`ipvlan_addr_busy` in drivers/net/ipvlan/ipvlan_core.c).

There may be a million addresses. So they are kept as the 4 or 16 bytes that the data plane uses, whose hash costs a
tenth of an address object's; and addresses that one port alone claims once, as nearly all are, share one `SingleClaim`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address

from msgspec import Struct

from ipvsw.model import Address
from ipvsw.status import AddressSource, AddressState, AddressStatus

Packed = bytes
"""An address as its 4 or 16 bytes."""


class Bind(Struct, frozen=True, gc=False):
    """From now on frames for `address` go to `port`, whichever had it."""

    address: Packed
    port: str


class BindAll(Struct, frozen=True):
    """`Bind` for each."""

    addresses: list[Packed]
    port: str


class Unbind(Struct, frozen=True, gc=False):
    """No port has `address` any more: its frames go to the host."""

    address: Packed


class Duplicate(Struct, frozen=True):
    """`port` wanted `address`, which `owner` has; None: the master."""

    address: Packed
    port: str
    owner: str | None

    def __str__(self) -> str:
        return f"{ip_address(self.address)} is refused to port {self.port}: {self._holder()} has it"

    def _holder(self) -> str:
        return "the master" if self.owner is None else f"port {self.owner}"


Change = Bind | BindAll | Unbind | Duplicate
Claims = Mapping[tuple[Address, int], AddressSource]
"""(address, prefix length) -> how the claim was learned."""


class SingleClaim(Struct, frozen=True, gc=False):
    """The only claim to an address."""

    port: str
    prefix: int
    source: AddressSource


ClaimQueue = dict[str, dict[int, AddressSource]]
"""The ports that claim an address, in the order of their claims, with their prefix lengths."""


class Ownership:
    """The claims of one switch's ports and of its master."""

    def __init__(self, switch: str) -> None:
        self._switch = switch
        self._claims: dict[Packed, SingleClaim | ClaimQueue] = {}
        self._last: SingleClaim | None = None  # shared by the addresses that are claimed like it one after the other
        self._addresses: dict[str, dict[Packed, None]] = {}  # of each port, in the order of its claims
        self._master: dict[Packed, set[int]] = {}
        self._up: set[str] = set()

    # ------------------------------------------------------------------------ ports

    def claim(self, port: str, address: Address, prefix: int, source: AddressSource) -> list[Change]:
        """`port` has been given `address`. Claiming again what is claimed changes nothing."""
        return self._claim(port, address.packed, prefix, source)

    def release(self, port: str, address: Address, prefix: int) -> list[Change]:
        """`port` has lost `address`. Releasing what is not claimed changes nothing."""
        return self._release(port, address.packed, prefix)

    def replace(self, port: str, wanted: Claims) -> list[Change]:
        """Make `wanted` all that `port` claims, as after reading its namespace anew."""
        changes: list[Change] = []
        if had := self._addresses.get(port):
            kept = {(address.packed, prefix) for address, prefix in wanted}
            for packed in list(had):
                found = self._claims[packed]
                for prefix in (found.prefix,) if isinstance(found, SingleClaim) else list(found[port]):
                    if (packed, prefix) not in kept:
                        changes += self._release(port, packed, prefix)
        fresh: list[Packed] = []
        mine, claims, master = self._addresses.setdefault(port, {}), self._claims, self._master
        single: SingleClaim | None = None
        for (address, prefix), source in wanted.items():
            packed = address.packed
            if packed in claims or packed in master:
                changes += self._claim(port, packed, prefix, source)
            else:
                if single is None or single.prefix != prefix or single.source is not source:
                    single = self._single(port, prefix, source)
                claims[packed] = single
                mine[packed] = None
                fresh.append(packed)
        if fresh and port in self._up:
            changes.append(BindAll(fresh, port))
        return changes

    def _claim(self, port: str, address: Packed, prefix: int, source: AddressSource) -> list[Change]:
        found = self._claims.get(address)
        if isinstance(found, SingleClaim) and found.port == port and found.prefix == prefix:
            self._claims[address] = self._single(port, prefix, source)
            return []
        if found is None and address not in self._master:
            self._claims[address] = self._single(port, prefix, source)
            self._addresses.setdefault(port, {})[address] = None
            return [Bind(address, port)] if port in self._up else []
        before = self._bound(address)
        queue = self._queue(address)
        new = port not in queue
        queue.setdefault(port, {})[prefix] = source
        self._keep(address, queue)
        self._addresses.setdefault(port, {})[address] = None
        yielded = self._yield(address)
        changes = self._difference(address, before) + yielded
        if new and (address in self._master or self._first(address) != port):
            changes.append(Duplicate(address, port, self._holder(address)))
        return changes

    def _release(self, port: str, address: Packed, prefix: int) -> list[Change]:
        queue = self._queue(address)
        if prefix not in queue.get(port, ()):
            return []
        if isinstance(self._claims[address], SingleClaim):
            del self._claims[address], self._addresses[port][address]
            return [Unbind(address)] if port in self._up and address not in self._master else []
        before = self._bound(address)
        del queue[port][prefix]
        if not queue[port]:
            del queue[port]
            del self._addresses[port][address]
        self._keep(address, queue)
        yielded = self._yield(address)
        return self._difference(address, before) + yielded

    def port_up(self, port: str) -> list[Change]:
        return self._switch_port(port, up=True)

    def port_down(self, port: str) -> list[Change]:
        """The port owns nothing in the table until it is up again, but keeps its claims."""
        return self._switch_port(port, up=False)

    def forget(self, port: str) -> list[Change]:
        """The port is gone, and its claims with it."""
        changes = self.port_down(port) + self.replace(port, {})
        self._addresses.pop(port, None)
        return changes

    # ------------------------------------------------------------------------ master

    def master_addresses(self) -> frozenset[Packed]:
        return frozenset(self._master)

    def master_claim(self, address: Address, prefix: int) -> list[Change]:
        """The master has `address` itself: a port that has it loses it."""
        packed = address.packed
        before = self._bound(packed)
        new = packed not in self._master
        self._master.setdefault(packed, set()).add(prefix)
        changes = self._difference(packed, before)
        if new and packed in self._claims:
            changes.append(Duplicate(packed, self._first(packed), None))
        return changes

    def master_release(self, address: Address, prefix: int) -> list[Change]:
        return self._master_release(address.packed, prefix)

    def master_replace(self, wanted: set[tuple[Address, int]]) -> list[Change]:
        """Make `wanted` all that the master has."""
        changes: list[Change] = []
        kept = {(address.packed, prefix) for address, prefix in wanted}
        for packed, prefixes in list(self._master.items()):
            for prefix in list(prefixes):
                if (packed, prefix) not in kept:
                    changes += self._master_release(packed, prefix)
        for address, prefix in wanted:
            changes += self.master_claim(address, prefix)
        return changes

    def _master_release(self, address: Packed, prefix: int) -> list[Change]:
        prefixes = self._master.get(address, set())
        if prefix not in prefixes:
            return []
        before = self._bound(address)
        prefixes.remove(prefix)
        if not prefixes:
            del self._master[address]
        return self._difference(address, before)

    # ------------------------------------------------------------------------ queries

    def objection(self, port: str, address: Address) -> Duplicate | None:
        """What a claim of the port's would be refused with, None if it wouldn't be."""
        packed = address.packed
        if packed in self._master:
            return Duplicate(packed, port, None)
        if packed not in self._claims or (first := self._first(packed)) == port:
            return None
        if port in self._up and first not in self._up:
            return None  # the first will yield
        return Duplicate(packed, port, first)

    def claims(self, port: str, address: Packed) -> bool:
        """Whether the port claims the address, first or not."""
        return address in self._addresses.get(port, ())

    def count(self, port: str) -> int:
        """How many addresses the port claims."""
        return len(self._addresses.get(port, ()))

    def claimed(self, port: str) -> Iterator[tuple[Packed, int, AddressSource]]:
        """Every claim of the port's, with prefix length and source."""
        for address in self._addresses.get(port, ()):
            for prefix, source in self.claims_to(port, address):
                yield address, prefix, source

    def claimants(self, address: Packed) -> list[str]:
        """The ports that claim the address."""
        return list(self._queue(address))

    def claims_to(self, port: str, address: Packed) -> Iterable[tuple[int, AddressSource]]:
        """The port's claims to one address that it claims: prefix length and source."""
        return self._queue(address)[port].items()

    def owner(self, address: Packed) -> str | None:
        """The port that has it, and is up."""
        return self._bound(address)

    def owned(self, port: str) -> Iterator[Packed]:
        """The addresses that are the port's in the table."""
        return (address for address in self._addresses.get(port, ()) if self._bound(address) == port)

    def about(self, address: Packed) -> tuple[AddressStatus, ...]:
        """What became of every claim to one address, the first claimant's first."""
        return tuple(self._status(port, address) for port in self._queue(address))

    def statuses(self, port: str) -> tuple[AddressStatus, ...]:
        """What became of each address that `port` claims, in the order of its claims."""
        return tuple(self._status(port, address) for address in self._addresses.get(port, ()))

    def _status(self, port: str, address: Packed) -> AddressStatus:
        if address in self._master:
            state = AddressState.MASTER
        elif self._first(address) != port:
            state = AddressState.DUPLICATE
        else:
            state = AddressState.OWNED if port in self._up else AddressState.DOWN
        source = min(self._queue(address)[port].values(), key=list(AddressSource).index)
        return AddressStatus(
            switch=self._switch, port=port, address=str(ip_address(address)), state=state, source=source
        )

    # ------------------------------------------------------------------------ storage

    def _single(self, port: str, prefix: int, source: AddressSource) -> SingleClaim:
        last = self._last
        if last is None or last.prefix != prefix or last.source is not source or last.port != port:
            self._last = last = SingleClaim(port, prefix, source)
        return last

    def _queue(self, address: Packed) -> ClaimQueue:
        """Of an address. A change in it takes effect with `_keep`."""
        found = self._claims.get(address)
        if found is None:
            return {}
        return {found.port: {found.prefix: found.source}} if isinstance(found, SingleClaim) else found

    def _keep(self, address: Packed, queue: ClaimQueue) -> None:
        if not queue:
            self._claims.pop(address, None)
            return
        (port, prefixes), *others = queue.items()
        if others or len(prefixes) > 1:
            self._claims[address] = queue
        else:
            self._claims[address] = self._single(port, *next(iter(prefixes.items())))

    # ------------------------------------------------------------------------ the rules

    def _first(self, address: Packed) -> str:
        found = self._claims[address]
        return found.port if isinstance(found, SingleClaim) else next(iter(found))

    def _yield(self, address: Packed) -> list[Change]:
        """If the first claimant is down and another is up, that one becomes the first."""
        found = self._claims.get(address)
        if found is None or isinstance(found, SingleClaim):
            return []
        ports = list(found)
        first = next((k for k, port in enumerate(ports) if port in self._up), 0)
        if first == 0:
            return []
        self._claims[address] = {port: found[port] for port in (*ports[first:], *ports[:first])}
        return [Duplicate(address, ports[0], self._holder(address))]

    def _holder(self, address: Packed) -> str | None:
        return None if address in self._master else self._first(address)

    def _bound(self, address: Packed) -> str | None:
        """The port that has `address` in the table."""
        if address in self._master or address not in self._claims:
            return None
        first = self._first(address)
        return first if first in self._up else None

    def _difference(self, address: Packed, before: str | None) -> list[Change]:
        after = self._bound(address)
        if after == before:
            return []
        return [Unbind(address) if after is None else Bind(address, after)]

    def _switch_port(self, port: str, *, up: bool) -> list[Change]:
        if (port in self._up) == up:
            return []
        alone: list[Packed] = []  # addresses that no other port and not the master claims
        before: dict[Packed, str | None] = {}
        for address in self._addresses.get(port, ()):
            if isinstance(self._claims[address], SingleClaim) and address not in self._master:
                alone.append(address)
            else:
                before[address] = self._bound(address)
        (self._up.add if up else self._up.discard)(port)
        changes: list[Change] = []
        for address, had in before.items():
            yielded = self._yield(address)
            changes += self._difference(address, had) + yielded
        if up and alone:
            changes.append(BindAll(alone, port))
        elif alone:
            changes += [Unbind(address) for address in alone]
        return changes
