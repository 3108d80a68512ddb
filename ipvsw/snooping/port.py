"""What the snooper needs of a port."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Protocol

from ipvsw.model import Address
from ipvsw.status import AddressSource


class SnoopedPort(Protocol):
    """A port whose addresses may be learned, and its groups."""

    @property
    def serves_vm(self) -> bool:
        """Whether its reports alone tell which groups it listens to: no namespace's stack does."""

    def set_joined(self, groups: Set[bytes], versions: Set[int]) -> None:
        """MAC addresses of all groups that it has reported, and the IP versions of which it needs no others."""

    @property
    def max_learned(self) -> int:
        """How many; 0: none are."""

    def may_learn(self, address: Address) -> bool:
        """Whether this one."""

    def mark_stale(self) -> None:
        """Read the addresses that its device has anew."""

    def set_learned(self, addresses: Mapping[Address, AddressSource], tentative: Set[Address]) -> None:
        """All that was learned, and what the machine has only asked about."""
