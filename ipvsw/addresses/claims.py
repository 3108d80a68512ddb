"""Which addresses a port may claim at all. Pure; which port comes first among those that may is `ownership`'s business.

A port may claim what the configuration pins to it, and besides that any address, the addresses of a list of prefixes,
or those that are on-link at the master (any, of a family in which the master has no prefix). Three kinds of addresses
it may never claim, whatever its rule says: the master's own (`ownership` sees to that), one that a route of the host
uses as its gateway, and one that is pinned to another port. A claim that is refused is remembered, at most
`MAX_REFUSED` of a port, and stands as soon as the rules allow it: when the route is gone, when the port's rule is
another, when the master has got a prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Network, ip_address

from msgspec import Struct

from ipvsw.addresses.ownership import Change as TableChange
from ipvsw.addresses.ownership import Claims, Duplicate, Ownership, Packed
from ipvsw.model import Address, Kind, Network, PortConfig
from ipvsw.status import AddressSource, AddressState, AddressStatus

MAX_REFUSED = 64  # claims of one port that are remembered in case they may stand later


class Rule(Struct, frozen=True, kw_only=True):
    """What one port may claim."""

    pinned: frozenset[Packed] = frozenset()  # by the configuration
    by_root: bool = True  # it is root's choice, for others than the LAN too; else that of the user who has the port
    prefixes: tuple[Network, ...] | None = None  # None: any address
    on_link: bool = False  # the master's on-link prefixes besides `prefixes`
    max_addresses: int | None = None  # None: any number

    @property
    def allows_any(self) -> bool:
        """Whether nothing but the special addresses is forbidden to the port."""
        return self.prefixes is None and self.max_addresses is None


ANYTHING = Rule()


def claim_rule(config: PortConfig) -> Rule:
    """The rule that a port's configuration makes. Without `claim` a namespace may claim anything, as with the kernel's
    driver, and a virtual machine what is on-link, if it is learned at all."""
    pinned, by_root = frozenset(one.ip.packed for one in config.addresses), not config.is_users
    claim = config.claim if config.claim is not None else "any" if config.kind is Kind.NETNS else "on-link"
    if claim == "any":
        return Rule(pinned=pinned, by_root=by_root, max_addresses=config.max_addresses)
    return Rule(
        pinned=pinned,
        by_root=by_root,
        prefixes=claim if isinstance(claim, tuple) else (),
        on_link=claim == "on-link",
        max_addresses=config.max_addresses,
    )


class Refused(Struct, frozen=True):
    """`port` wanted `address` and may not have it."""

    address: Packed
    port: str
    reason: str

    def __str__(self) -> str:
        return f"{ip_address(self.address)} is refused to port {self.port}: {self.reason}"


Change = TableChange | Refused


class Prefixes:
    """Networks, and whether an address is in one of them."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._ranges = {
            (len(network.network_address.packed), int(network.network_address), int(network.broadcast_address))
            for network in networks
        }

    def __contains__(self, address: Packed) -> bool:
        size, number = len(address), int.from_bytes(address, "big")
        return any(size == length and first <= number <= last for length, first, last in self._ranges)

    def has(self, size: int) -> bool:
        """Whether any of them is of addresses of so many bytes."""
        return any(length == size for length, _, _ in self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prefixes) and self._ranges == other._ranges

    __hash__ = None  # type: ignore[assignment]


LINK_LOCAL6 = Prefixes((IPv6Network("fe80::/10"),))


class _PortClaims:
    """One port's rule, and its claims that were refused by it."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.prefixes = Prefixes(rule.prefixes or ())
        self.refused: dict[Packed, dict[int, AddressSource]] = {}

    @property
    def has_ipv6(self) -> bool:
        """Whether it may have any IPv6 address, and with it the link-local one that IPv6 can't do without."""
        rule = self.rule
        networks = rule.prefixes or ()
        return rule.on_link or any(len(one) == 16 for one in rule.pinned) or any(one.version == 6 for one in networks)


class Admission:
    """The claims of one switch's ports, those that its rules allow handed on to `ownership`."""

    def __init__(self, switch: str, ownership: Ownership) -> None:
        self._switch = switch
        self._ownership = ownership
        self._ports: dict[str, _PortClaims] = {}
        self._refusing: set[str] = set()  # ports that have had a claim refused
        self._pinned: dict[Packed, str] = {}
        self._gateways: frozenset[Packed] = frozenset()
        self._on_link = Prefixes(())

    # ------------------------------------------------------------------------ rules

    def set_rule(self, port: str, rule: Rule) -> list[Change]:
        """From now on `rule` holds for the port, and what it pins for the others."""
        if (had := self._ports.get(port)) is not None and had.rule == rule:
            return []
        claims = _PortClaims(rule)
        pinned: frozenset[Packed] = frozenset()
        if had is not None:
            claims.refused, pinned = had.refused, had.rule.pinned
        self._ports[port] = claims
        self._unpin(port, pinned - rule.pinned)
        for address in rule.pinned:
            self._pinned.setdefault(address, port)
        return self._review([port], rule.pinned ^ pinned)

    def forget(self, port: str) -> list[Change]:
        """The port is no part of the switch any more, and pins nothing."""
        if (had := self._ports.pop(port, None)) is None:
            return []
        self._refusing.discard(port)
        self._unpin(port, had.rule.pinned)
        return self._review([], had.rule.pinned)

    def _unpin(self, port: str, addresses: Iterable[Packed]) -> None:
        for address in addresses:
            if self._pinned.get(address) == port:
                del self._pinned[address]
                others = (name for name, claims in self._ports.items() if address in claims.rule.pinned)
                if (other := next((name for name in others if name != port), None)) is not None:
                    self._pinned[address] = other

    def detach(self, port: str) -> None:
        """The port claims nothing for now. What is pinned to it stays so."""
        if port in self._ports:
            self._ports[port].refused.clear()
            self._refusing.discard(port)

    def set_host(self, on_link: Iterable[Network], gateways: Iterable[Address]) -> list[Change]:
        """The master's on-link prefixes, and every address that a route of the host uses as its gateway."""
        near = Prefixes(one for one in on_link if not one.is_link_local)
        followers = [] if near == self._on_link else [name for name, one in self._ports.items() if one.rule.on_link]
        had, self._on_link = self._gateways, near
        self._gateways = frozenset(address.packed for address in gateways)
        return self._review(followers, self._gateways ^ had)

    def pinned(self, port: str) -> frozenset[Packed]:
        """What the configuration pins to the port."""
        return self._ports[port].rule.pinned if port in self._ports else frozenset()

    def may_divert(self, address: Packed, port: str) -> bool:
        """Whether the host's own traffic to an address of the port's is the port's: only if root's configuration pins
        it to the port or the master has it on-link. Anything else belongs where the host's routes lead."""
        if address in self._gateways:
            return False
        return address in self._on_link or (self._pinned.get(address) == port and self._of(port).rule.by_root)

    def may_export(self, address: Packed) -> bool:
        """Whether routers may be told whose it is: not of one that a user has chosen."""
        owner = self._ownership.owner(address)
        return owner is not None and self._of(owner).rule.by_root

    def used_prefixes(self) -> Iterator[Network]:
        """The prefixes that routers may be told of: those of ports' rules in which they own an address."""
        for port, claims in self._ports.items():
            for network in (claims.rule.prefixes or ()) if claims.rule.by_root else ():
                within = Prefixes((network,))
                if any(address in within for address in self._ownership.owned(port)):
                    yield network

    # ------------------------------------------------------------------------ claims

    def claim(self, port: str, address: Address, prefix: int, source: AddressSource) -> list[Change]:
        """`port` has been given `address`."""
        if reason := self._objection(port, address.packed):
            return self._refuse(port, address.packed, prefix, source, reason)
        return [*self._ownership.claim(port, address, prefix, source)]

    def release(self, port: str, address: Address, prefix: int) -> list[Change]:
        """`port` has lost `address`."""
        self._unrefuse(port, address.packed, prefix)
        changes: list[Change] = [*self._ownership.release(port, address, prefix)]
        return changes + self._readmit(port)

    def replace(self, port: str, wanted: Claims) -> list[Change]:
        """Make `wanted` all that `port` claims."""
        claims = self._of(port)
        before, claims.refused = claims.refused, {}
        allowed, refused = self._sorted(port, wanted)
        changes: list[Change] = [*self._ownership.replace(port, allowed)]
        for packed, prefix, source, reason in refused:
            reports = self._refuse(port, packed, prefix, source, reason)
            changes += () if packed in before else reports
        return changes

    def _sorted(self, port: str, wanted: Claims) -> tuple[Claims, list[tuple[Packed, int, AddressSource, str]]]:
        """What of `wanted` may stand, and the rest with its reasons."""
        rule = self._of(port).rule
        if rule.allows_any and not self._special:
            return wanted, []
        allowed: dict[tuple[Address, int], AddressSource] = {}
        refused: list[tuple[Packed, int, AddressSource, str]] = []
        counted: set[Packed] = set()
        for (address, prefix), source in wanted.items():
            packed = address.packed
            reason = self._rule_against(port, packed)
            if reason is None and rule.max_addresses is not None and packed not in counted:
                if len(counted) < rule.max_addresses:
                    counted.add(packed)
                else:
                    reason = _full(rule)
            if reason is None:
                allowed[address, prefix] = source
            else:
                refused.append((packed, prefix, source, reason))
        return allowed, refused

    def statuses(self, port: str) -> Iterator[AddressStatus]:
        """Of the claims that were refused by a rule."""
        return (self._refusal(port, address) for address in self._of(port).refused)

    def about(self, address: Packed) -> Iterator[AddressStatus]:
        """Of the claims to one address that were refused by a rule."""
        return (self._refusal(port, address) for port in sorted(self._refusing) if address in self._of(port).refused)

    def _refusal(self, port: str, address: Packed) -> AddressStatus:
        return AddressStatus(
            switch=self._switch,
            port=port,
            address=str(ip_address(address)),
            state=AddressState.REFUSED,
            source=min(self._of(port).refused[address].values(), key=list(AddressSource).index),
            reason=self._objection(port, address) or "",
        )

    def objection(self, port: str, address: Address) -> Refused | Duplicate | None:
        """What a claim of the port's would be refused with."""
        if reason := self._objection(port, address.packed):
            return Refused(address.packed, port, reason)
        return self._ownership.objection(port, address)

    # ------------------------------------------------------------------------ deciding

    def _of(self, port: str) -> _PortClaims:
        if port not in self._ports:
            self._ports[port] = _PortClaims(ANYTHING)
        return self._ports[port]

    def _objection(self, port: str, address: Packed) -> str | None:
        if reason := self._rule_against(port, address):
            return reason
        rule = self._of(port).rule
        if rule.max_addresses is None or self._ownership.claims(port, address):
            return None
        return None if self._ownership.count(port) < rule.max_addresses else _full(rule)

    def _rule_against(self, port: str, address: Packed) -> str | None:
        """What having fewer addresses would not mend."""
        if address in self._gateways:
            return "a route of the host uses it as its gateway"
        owner = self._pinned.get(address)
        if owner is not None:
            return None if owner == port else f"the configuration pins it to port {owner}"
        claims = self._of(port)
        rule = claims.rule
        if rule.prefixes is None or address in claims.prefixes or (rule.on_link and self._is_on_link(address)):
            return None
        if address in LINK_LOCAL6 and claims.has_ipv6:
            return None
        return "it is outside the prefixes that the port may claim"

    def _is_on_link(self, address: Packed) -> bool:
        """So is every address of a family in which the master has no prefix that would tell."""
        return address in self._on_link or not self._on_link.has(len(address))

    @property
    def _special(self) -> bool:
        """Whether there is an address that not everybody may claim."""
        return bool(self._gateways or self._pinned)

    def _refuse(self, port: str, address: Packed, prefix: int, source: AddressSource, reason: str) -> list[Change]:
        refused = self._of(port).refused
        new = address not in refused
        if not new or len(refused) < MAX_REFUSED:
            refused.setdefault(address, {})[prefix] = source
            self._refusing.add(port)
        return [Refused(address, port, reason)] if new else []

    def _unrefuse(self, port: str, address: Packed, prefix: int) -> None:
        refused = self._of(port).refused
        if address in refused:
            refused[address].pop(prefix, None)
            if not refused[address]:
                del refused[address]

    def _review(self, ports: Iterable[str], addresses: Iterable[Packed]) -> list[Change]:
        """What may be claimed by these ports, or of these addresses by any, is something else than before: take back
        what may stand no longer, and let stand what may now."""
        changes: list[Change] = []
        offending = [(port, *claim) for port in ports for claim in self._offending(port)]
        for address in addresses:
            for port in self._ownership.claimants(address):
                if self._rule_against(port, address):
                    offending += [(port, address, *how) for how in self._ownership.claims_to(port, address)]
        for port, address, prefix, source in dict.fromkeys(offending):
            reason = self._rule_against(port, address) or _full(self._of(port).rule)
            changes += self._ownership.release(port, ip_address(address), prefix)
            changes += self._refuse(port, address, prefix, source, reason)
        for port in sorted(self._refusing):
            changes += self._readmit(port)
        return changes

    def _readmit(self, port: str) -> list[Change]:
        """Let stand what was refused and may stand now."""
        changes: list[Change] = []
        refused = self._of(port).refused
        for address, prefixes in list(refused.items()):
            if self._objection(port, address) is None:
                del refused[address]
                for prefix, source in prefixes.items():
                    changes += self._ownership.claim(port, ip_address(address), prefix, source)
        return changes

    def _offending(self, port: str) -> list[tuple[Packed, int, AddressSource]]:
        """The port's claims that a rule is against. One that may claim anything may have a million of them, of which
        only gateways and what is pinned to others could be, and those are looked at by address."""
        rule = self._of(port).rule
        if rule.allows_any:
            return []
        offending, counted = [], set[Packed]()
        for claim in self._ownership.claimed(port):
            against = self._rule_against(port, claim[0]) is not None
            if not against and claim[0] not in counted:
                against = len(counted) == rule.max_addresses
                counted |= set() if against else {claim[0]}
            offending += [claim] if against else []
        return offending


def _full(rule: Rule) -> str:
    return f"the port may have {rule.max_addresses} addresses at most"
