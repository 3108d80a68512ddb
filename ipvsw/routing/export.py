"""Which routes a switch exports for routing daemons to announce: one to each address that a port owns, and one to each
prefix of a port's rules in which the port owns an address. Pure.

Each destination is in one of three states: `due`, to be added; there; or `missing`, after others have removed it or the
kernel has refused it, to be put back. Of what an earlier daemon has left, `stale` is what nobody owns yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from itertools import islice

from ipvsw.linux.netlink import Destination
from ipvsw.model import Network


def to_address(packed: bytes) -> Destination | None:
    """None for an address that means something on its link alone."""
    address = ip_address(packed)
    if address.is_link_local or address.is_loopback or address.is_multicast or address.is_unspecified:
        return None
    return Destination(packed, 8 * len(packed))


def to_prefix(network: Network) -> Destination | None:
    """None for one that stands for every address, or for one, or means something on its link alone."""
    if network.is_link_local or network.is_loopback or network.is_multicast:
        return None
    is_prefix = 0 < network.prefixlen < network.max_prefixlen
    return Destination(network.network_address.packed, network.prefixlen) if is_prefix else None


class Exports:
    """One switch's."""

    def __init__(self) -> None:
        self.due: dict[Destination, None] = {}
        self.missing: set[Destination] = set()
        self.stale: set[Destination] = set()
        self._there: set[Destination] = set()
        self._prefixes: frozenset[Destination] = frozenset()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._there)

    def begin(self, owned: Iterable[bytes], present: Iterable[Destination]) -> None:
        """`owned` are the addresses in the table, `present` the routes that an earlier daemon has left."""
        self.stale = set(present)
        self.arrive(owned)

    def arrive(self, addresses: Iterable[bytes]) -> None:
        """They are ports'."""
        for packed in addresses:
            if (destination := to_address(packed)) is not None:
                self._want(destination)

    def leave(self, addresses: Iterable[bytes]) -> list[Destination]:
        """They are about to be no port's any more: the routes that have to go first."""
        return self._drop(Destination(packed, 8 * len(packed)) for packed in addresses)

    def set_prefixes(self, prefixes: frozenset[Destination]) -> list[Destination]:
        """All prefixes in which ports own addresses: the routes that have to go."""
        had, self._prefixes = self._prefixes, prefixes
        for destination in prefixes - had:
            self._want(destination)
        return self._drop(had - prefixes)

    def _want(self, destination: Destination) -> None:
        if destination in self.stale:
            self.stale.remove(destination)
            self._there.add(destination)
        elif destination not in self._there and destination not in self.missing:
            self.due[destination] = None

    def _drop(self, destinations: Iterable[Destination]) -> list[Destination]:
        going = []
        for destination in destinations:
            self.due.pop(destination, None)
            self.missing.discard(destination)
            if destination in self._there:
                self._there.remove(destination)
                going.append(destination)
        return going

    def take_stale(self) -> list[Destination]:
        """The routes that nobody owns: they have to go."""
        stale, self.stale = self.stale, set()
        return [*stale]

    def next_due(self, most: int) -> list[Destination]:
        """Some of those to be added; they stay due until `added` says what became of them."""
        return [*islice(self.due, most)]

    def added(self, tried: Iterable[Destination], refused: Iterable[Destination]) -> list[Destination]:
        """What the kernel was given and what of it it has not taken: the routes that have to go, as nobody has owned
        them since."""
        failed, going = set(refused), []
        for destination in tried:
            if destination in self.due:
                del self.due[destination]
                (self.missing if destination in failed else self._there).add(destination)
            elif destination not in failed and destination not in self._there:
                going.append(destination)
        return going

    def put_back(self, destination: Destination) -> bool:
        """One of the missing is there again; False if nobody owns it any more."""
        if destination not in self.missing:
            return False
        self.missing.remove(destination)
        self._there.add(destination)
        return True

    def compare(self, present: frozenset[Destination]) -> None:
        """What the kernel has now."""
        gone = self._there - present
        self._there -= gone
        self.missing |= gone

    def is_there(self, destination: Destination) -> bool:
        """As far as is known."""
        return destination in self._there

    def every(self) -> list[Destination]:
        """All that the kernel may have."""
        return [*self._there, *self.missing, *self.stale, *self.due]

    def lose_all(self) -> None:
        """The master is down, and took every route with it: they are due when it is up."""
        self.due |= dict.fromkeys((*self._there, *self.missing))
        self._there.clear()
        self.missing.clear()
