"""What the next daemon must know: of virtual machines the learned addresses and leases, and what the daemon itself has
leased, as JSON has them. Pure.

Times are those of the loops, CLOCK_MONOTONIC, which all processes share until the machine is started anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from msgspec import Struct

from ipvsw.snooping.dhcpclient import Leased
from ipvsw.snooping.learned import Learning
from ipvsw.snooping.leases import Lease, Leases
from ipvsw.status import AddressSource


class SavedAddress(Struct):
    address: str
    source: AddressSource
    used: float


class SavedLease(Struct):
    """As `Lease`."""

    port: str
    address: str
    until: float | None
    client: bytes
    chaddr: bytes
    server: str
    hostname: str
    ends: float | None = None  # older daemons do not say it


class Snooped(Struct):
    """Of one switch; learned addresses by port."""

    learned: dict[str, list[SavedAddress]] = {}
    leases: list[SavedLease] = []
    clients: dict[str, Leased] = {}  # what the daemon itself has leased, by port

    def of_port(self, port: str) -> tuple[list[SavedAddress], list[Lease]]:
        leases = [one for one in self.leases if one.port == port]
        return self.learned.get(port, []), [
            Lease(
                port=port,
                address=ip_address(one.address),
                until=one.until,
                client=one.client,
                chaddr=one.chaddr,
                server=one.server,
                hostname=one.hostname,
                ends=one.ends,
            )
            for one in leases
        ]


def save(learnings: Mapping[str, Learning], leases: Leases) -> Snooped:
    return Snooped(
        learned={
            port: [SavedAddress(str(address), source, used) for address, source, used in learning.known()]
            for port, learning in learnings.items()
        },
        leases=[
            SavedLease(
                one.port, str(one.address), one.until, one.client, one.chaddr, one.server, one.hostname, one.ends
            )
            for one in leases.all()
        ],
    )
