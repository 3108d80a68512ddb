"""Which port of a switch owns which address. Pure: what must change in the table is returned, not done.

The first port that claims an address keeps it, also while the port is down: frames for it then go to
the host, and others are refused all the same. Who comes second is reported, waits in line, and gets
the address when those before it have given it up. What the master has itself no port can have. One
address with two prefix lengths is two claims of one port, and is given up with the last of them.
Uniqueness is per switch and without scopes, so link-local addresses count too
(`ipvlan_addr_busy` in drivers/net/ipvlan/ipvlan_core.c).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from .model import Address, AddressSource, AddressState, AddressStatus


class Bind(Struct, frozen=True):
    """From now on frames for `address` go to `port`, whoever had it."""

    address: Address
    port: str


class Unbind(Struct, frozen=True):
    """`address` is nobody's any more: its frames go to the host."""

    address: Address


class Duplicate(Struct, frozen=True):
    """`port` wanted `address`, which `owner` has; None: the master."""

    address: Address
    port: str
    owner: str | None

    def __str__(self) -> str:
        return f"{self.address} is refused to port {self.port}: {self._holder()} has it"

    def _holder(self) -> str:
        return "the master" if self.owner is None else f"port {self.owner}"


Change = Bind | Unbind | Duplicate
Claims = Mapping[tuple[Address, int], AddressSource]
"""(address, prefix length) -> how the claim was learned."""


class Ownership:
    """The claims of one switch's ports and of its master."""

    def __init__(self, switch: str) -> None:
        self._switch = switch
        self._claims: dict[Address, dict[str, dict[int, AddressSource]]] = {}  # ports in the order of their claims
        self._addresses: dict[str, dict[Address, None]] = {}  # of each port, in the order of its claims
        self._master: dict[Address, set[int]] = {}
        self._up: set[str] = set()

    # ------------------------------------------------------------------------ ports

    def claim(self, port: str, address: Address, prefix: int, source: AddressSource) -> list[Change]:
        """`port` has been given `address`. Claiming again what is claimed changes nothing."""
        before = self._bound(address)
        claims = self._claims.setdefault(address, {})
        new = port not in claims
        claims.setdefault(port, {})[prefix] = source
        self._addresses.setdefault(port, {})[address] = None
        changes = self._difference(address, before)
        if new and (address in self._master or self._first(address) != port):
            changes.append(Duplicate(address, port, self._holder(address)))
        return changes

    def release(self, port: str, address: Address, prefix: int) -> list[Change]:
        """`port` has lost `address`. Releasing what is not claimed changes nothing."""
        claims = self._claims.get(address, {})
        prefixes = claims.get(port)
        if prefixes is None or prefix not in prefixes:
            return []
        before = self._bound(address)
        del prefixes[prefix]
        if not prefixes:
            del claims[port]
            del self._addresses[port][address]
        if not claims:
            del self._claims[address]
        return self._difference(address, before)

    def replace(self, port: str, wanted: Claims) -> list[Change]:
        """Make `wanted` all that `port` claims, as after reading its namespace anew."""
        changes: list[Change] = []
        for address in list(self._addresses.get(port, ())):
            for prefix in list(self._claims[address][port]):
                if (address, prefix) not in wanted:
                    changes += self.release(port, address, prefix)
        for (address, prefix), source in wanted.items():
            changes += self.claim(port, address, prefix, source)
        return changes

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

    def master_addresses(self) -> frozenset[Address]:
        return frozenset(self._master)

    def master_claim(self, address: Address, prefix: int) -> list[Change]:
        """The master has `address` itself: a port that has it loses it."""
        before = self._bound(address)
        new = address not in self._master
        self._master.setdefault(address, set()).add(prefix)
        changes = self._difference(address, before)
        if new and address in self._claims:
            changes.append(Duplicate(address, self._first(address), None))
        return changes

    def master_release(self, address: Address, prefix: int) -> list[Change]:
        prefixes = self._master.get(address, set())
        if prefix not in prefixes:
            return []
        before = self._bound(address)
        prefixes.remove(prefix)
        if not prefixes:
            del self._master[address]
        return self._difference(address, before)

    def master_replace(self, wanted: set[tuple[Address, int]]) -> list[Change]:
        """Make `wanted` all that the master has."""
        changes: list[Change] = []
        for address, prefixes in list(self._master.items()):
            for prefix in list(prefixes):
                if (address, prefix) not in wanted:
                    changes += self.master_release(address, prefix)
        for address, prefix in wanted:
            changes += self.master_claim(address, prefix)
        return changes

    # ------------------------------------------------------------------------ questions

    def objection(self, port: str, address: Address) -> Duplicate | None:
        """What a claim of the port's would be refused with, None if it wouldn't be."""
        if address in self._master:
            return Duplicate(address, port, None)
        if address in self._claims and self._first(address) != port:
            return Duplicate(address, port, self._first(address))
        return None

    def statuses(self, port: str) -> tuple[AddressStatus, ...]:
        """What became of each address that `port` claims, in the order of its claims."""
        return tuple(self._status(port, address) for address in self._addresses.get(port, ()))

    def _status(self, port: str, address: Address) -> AddressStatus:
        if address in self._master:
            state = AddressState.MASTER
        elif self._first(address) != port:
            state = AddressState.DUPLICATE
        else:
            state = AddressState.OWNED if port in self._up else AddressState.DOWN
        source = min(self._claims[address][port].values(), key=list(AddressSource).index)
        return AddressStatus(switch=self._switch, port=port, address=str(address), state=state, source=source)

    # ------------------------------------------------------------------------ the rules

    def _first(self, address: Address) -> str:
        return next(iter(self._claims[address]))

    def _holder(self, address: Address) -> str | None:
        return None if address in self._master else self._first(address)

    def _bound(self, address: Address) -> str | None:
        """The port that the table shows for `address`."""
        if address in self._master or address not in self._claims:
            return None
        first = self._first(address)
        return first if first in self._up else None

    def _difference(self, address: Address, before: str | None) -> list[Change]:
        after = self._bound(address)
        if after == before:
            return []
        return [Unbind(address) if after is None else Bind(address, after)]

    def _switch_port(self, port: str, *, up: bool) -> list[Change]:
        addresses = self._addresses.get(port, ())
        before = {address: self._bound(address) for address in addresses}
        (self._up.add if up else self._up.discard)(port)
        return [change for address in addresses for change in self._difference(address, before[address])]
