"""Where a port's addresses come from: followed by netlink, or pinned by the configuration and snooped.

As everywhere in the project, multicast includes broadcast, as in the kernel's is_multicast_ether_addr()."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from typing import ClassVar

from ipvsw.addresses.table import Table
from ipvsw.linux.netlink import AddressEvent
from ipvsw.linux.tracked import Snapshot
from ipvsw.model import Address, PortConfig
from ipvsw.status import AddressSource

LINK_LOCALS = 2  # of a guest of which nothing else is learned: its firmware's, and its system's
ALL_NODES = bytes.fromhex("333300000001"), bytes.fromhex("01005e000001")


class Addressing(ABC):
    """Tells the table which addresses and multicast groups are a port's, while the port is open."""

    __slots__ = ()

    reads_groups: ClassVar[bool]  # whether a snapshot must have the device's groups

    @abstractmethod
    def see(self, table: Table, config: PortConfig, snapshot: Snapshot) -> None:
        """The device was read."""

    def follow(self, table: Table, config: PortConfig, event: AddressEvent) -> None:
        """An address of the device's came or went."""

    def is_configured(self, config: PortConfig, address: Address, prefix: int) -> bool:
        """Whether the device is to have this address, as the configuration says."""
        return False

    def max_learned(self, config: PortConfig) -> int:
        """How many addresses may be learned besides those that the configuration has."""
        return 0

    def may_learn(self, config: PortConfig, address: Address) -> bool:
        """Whether the address is of those."""
        return False

    def set_learned(self, addresses: Mapping[Address, AddressSource], tentative: Set[Address]) -> None:
        """All that the snooper has learned, and what the machine has only asked about; `publish` tells the table."""

    def set_joined(self, groups: Set[bytes], versions: Set[int]) -> None:
        """MAC addresses of the groups that the machine says it listens to, and the IP versions of which it needs no
        others; `publish` tells the table."""

    def tentative(self, config: PortConfig) -> Set[Address]:
        """Addresses that the machine has asked about and does not have yet."""
        return frozenset()

    def publish(self, table: Table, config: PortConfig) -> None:
        """Tell the table what has been learned."""


class FollowedAddresses(Addressing):
    """A namespace's own stack has the addresses, whichever process has added them, and joins the groups."""

    __slots__ = ("_pinned",)

    reads_groups = True

    def __init__(self) -> None:
        self._pinned: tuple[PortConfig, set[tuple[Address, int]]] | None = None  # the addresses that one has

    def see(self, table: Table, config: PortConfig, snapshot: Snapshot) -> None:
        table.replace(config.name, {claim: self._source(config, *claim) for claim in snapshot.addresses})
        groups, most = snapshot.groups, config.max_groups
        if most is not None and len(groups) > most:
            needed = {*ALL_NODES, *(_solicited_node(one) for one, _ in snapshot.addresses if one.version == 6)}
            groups = tuple(sorted(groups, key=lambda group: group not in needed)[:most])
        table.set_groups(config.name, groups, all_multicast=snapshot.link.all_multicast and most is None)

    def follow(self, table: Table, config: PortConfig, event: AddressEvent) -> None:
        if event.gone:
            table.release(config.name, event.address, event.prefix)
        else:
            source = self._source(config, event.address, event.prefix)
            table.claim(config.name, event.address, event.prefix, source)

    def is_configured(self, config: PortConfig, address: Address, prefix: int) -> bool:
        return self._source(config, address, prefix) is AddressSource.CONFIG

    def _source(self, config: PortConfig, address: Address, prefix: int) -> AddressSource:
        if self._pinned is None or self._pinned[0] is not config:
            self._pinned = config, {(one.ip, one.network.prefixlen) for one in config.addresses}
        return AddressSource.CONFIG if (address, prefix) in self._pinned[1] else AddressSource.NETLINK


class GuestAddresses(Addressing):
    """What a guest does inside can't be read: the configuration pins addresses to it, or has them learned from the
    frames that it sends. Its link-local addresses are learned if it has any pinned: IPv6 can't do without, and nobody
    but the guest knows what they are."""

    __slots__ = ("_joined", "_learned", "_tentative", "_versions")

    reads_groups = False

    def __init__(self) -> None:
        self._learned: Mapping[Address, AddressSource] = {}
        self._tentative: Set[Address] = frozenset()
        self._joined: Set[bytes] = frozenset()
        self._versions: Set[int] = frozenset()

    def see(self, table: Table, config: PortConfig, snapshot: Snapshot) -> None:
        table.set_learning(config.name, config.learn, link_local=bool(config.addresses))
        self.publish(table, config)

    def max_learned(self, config: PortConfig) -> int:
        if config.learn:
            return config.max_learned
        return LINK_LOCALS if config.addresses else 0

    def may_learn(self, config: PortConfig, address: Address) -> bool:
        return config.learn or (bool(config.addresses) and address.version == 6 and address.is_link_local)

    def set_learned(self, addresses: Mapping[Address, AddressSource], tentative: Set[Address]) -> None:
        self._learned, self._tentative = addresses, tentative

    def set_joined(self, groups: Set[bytes], versions: Set[int]) -> None:
        self._joined, self._versions = groups, versions

    def tentative(self, config: PortConfig) -> Set[Address]:
        return frozenset(one for one in self._tentative if self.may_learn(config, one))

    def publish(self, table: Table, config: PortConfig) -> None:
        learned = {one: source for one, source in self._learned.items() if self.may_learn(config, one)}
        pinned = {(one.ip, one.network.prefixlen): AddressSource.CONFIG for one in config.addresses}
        claims = {(address, address.max_prefixlen): source for address, source in learned.items()}
        table.replace(config.name, claims | pinned)
        # A guest that has joined groups before its reports were read, or without any, must not miss them: it gets every
        # multicast frame until it has reported some. Set on the master are those that it has reported, and those that
        # it can't do without: those of a tentative address with them, by which its owner, or somebody who asks as well,
        # is heard.
        own = {*(one.ip for one in config.addresses), *learned, *self.tentative(config)}
        groups = {*ALL_NODES, *self._joined, *(_solicited_node(one) for one in own if one.version == 6)}
        table.set_groups(config.name, groups, all_multicast=True, joined=self._versions)


def _solicited_node(address: Address) -> bytes:
    """The MAC of an IPv6 address's solicited-node group: RFC 4291 section 2.7.1, RFC 2464 section 7."""
    return b"\x33\x33\xff" + address.packed[-3:]
