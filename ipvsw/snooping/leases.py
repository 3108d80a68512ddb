"""Which port's client has leased what, by its DHCP messages, and whose a server's answer is. Pure: time is an argument.

A client's message is remembered as a transaction: the identifier that it chose, its hardware address and its client
identifier. Together they tell apart even two guests that chose the same number.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from ipvsw.model import Address
from ipvsw.snooping.dhcp4 import DhcpAction, DhcpMessage
from ipvsw.status import AddressState, LeaseStatus

TRANSACTION_TIMEOUT = 120.0  # seconds that an answer may take; clients retry after 64 at most (RFC 2131 section 4.1)
TRANSACTIONS = 16  # of a port, the newest
LEASES = 64  # of a port


class Lease(Struct, frozen=True, kw_only=True):
    """`port` may use `address` until `until`, in the caller's time; None: for ever. `ends` is the same by the wall
    clock as it was when the lease was granted, in seconds since the epoch; None: never, or it isn't known."""

    port: str
    address: Address
    until: float | None
    client: bytes
    chaddr: bytes
    server: str
    hostname: str
    ends: float | None = None


def lease_status(switch: str, lease: Lease, state: AddressState | None, now: float) -> LeaseStatus:
    """As the API shows it; `state` is the address's."""
    return LeaseStatus(
        switch=switch,
        port=lease.port,
        address=str(lease.address),
        state=state,
        client_id=lease.client.hex(":"),
        mac=lease.chaddr.hex(":"),
        hostname=lease.hostname,
        server=lease.server,
        remaining=None if lease.until is None else max(0, round(lease.until - now)),
        ends=lease.ends,
    )


class Answer(Struct, frozen=True):
    """What follows from a server's message."""

    port: str | None = None  # whose it is; None: anybody's
    granted: tuple[Lease, ...] = ()
    ended: tuple[Lease, ...] = ()


class Transaction(Struct, frozen=True):
    version: int
    xid: int
    chaddr: bytes
    client: bytes

    def fits(self, message: DhcpMessage) -> bool:
        """A server that is older than RFC 6842 doesn't repeat the identifier."""
        return (self.version, self.xid, self.chaddr) == (message.version, message.xid, message.chaddr) and (
            message.client in (b"", self.client)
        )


class Leases:
    """Those of one switch's ports."""

    def __init__(self) -> None:
        self._transactions: dict[str, dict[Transaction, tuple[float, str]]] = {}  # of each port: until when, hostname
        self._leases: dict[str, dict[Address, Lease]] = {}

    def on_client(self, port: str, message: DhcpMessage, now: float) -> tuple[Lease, ...]:
        """A client's message. Returns the leases that it has ended."""
        transactions = self._transactions.setdefault(port, {})
        transaction = Transaction(message.version, message.xid, message.chaddr, message.client)
        transactions.pop(transaction, None)
        transactions[transaction] = now + TRANSACTION_TIMEOUT, message.hostname
        if len(transactions) > TRANSACTIONS:
            del transactions[next(iter(transactions))]
        if message.action is not DhcpAction.GIVE_UP:
            return ()
        return self._end(port, [address for address, _ in message.addresses])

    def on_server(
        self, message: DhcpMessage, now: float, sender: str | None = None, wall: float | None = None
    ) -> Answer:
        """A server's message; `sender` is the port that it comes from, if it comes from one, and `wall` is `now` by the
        wall clock."""
        found = {port: transaction for port, transaction in self._matching(message, now) if port != sender}
        if len(found) != 1:
            return Answer()
        port, transaction = next(iter(found.items()))
        if message.action is DhcpAction.REFUSE:
            return Answer(port, ended=self._end(port, self._held_by(port, transaction)))
        if message.action is not DhcpAction.GRANT:
            return Answer(port)
        granted = self._grant(port, transaction, message, now, wall)
        gone = [address for address, seconds in message.addresses if seconds == 0]
        if message.version == 4 and granted:  # a client has one lease
            gone += [address for address in self._held_by(port, transaction) if address != granted[0].address]
        return Answer(port, granted, self._end(port, gone))

    def restore(self, lease: Lease) -> None:
        """Granted before this was made."""
        self._leases.setdefault(lease.port, {})[lease.address] = lease

    def expire(self, now: float) -> tuple[Lease, ...]:
        """Returns the leases that have ended."""
        over = [lease for lease in self.all() if lease.until is not None and lease.until <= now]
        return tuple(lease for one in over for lease in self._end(one.port, [one.address]))

    def next_end(self) -> float | None:
        """When `expire` will have something to do; None: never."""
        return min((lease.until for lease in self.all() if lease.until is not None), default=None)

    def forget(self, port: str) -> tuple[Lease, ...]:
        """The port has another endpoint from now on, or is gone. Returns what it had."""
        self._transactions.pop(port, None)
        return tuple(self._leases.pop(port, {}).values())

    def all(self) -> Iterator[Lease]:
        for held in self._leases.values():
            yield from held.values()

    # ------------------------------------------------------------------------ the rules

    def _matching(self, message: DhcpMessage, now: float) -> Iterator[tuple[str, Transaction]]:
        for port, transactions in self._transactions.items():
            for transaction, (until, _) in transactions.items():
                if until > now and transaction.fits(message):
                    yield port, transaction

    def _grant(
        self, port: str, transaction: Transaction, message: DhcpMessage, now: float, wall: float | None
    ) -> tuple[Lease, ...]:
        held = self._leases.setdefault(port, {})
        _, hostname = self._transactions[port][transaction]
        granted = tuple(
            Lease(
                port=port,
                address=address,
                until=None if seconds is None else now + seconds,
                client=transaction.client,
                chaddr=transaction.chaddr,
                server=message.server,
                hostname=message.hostname or hostname,
                ends=None if seconds is None or wall is None else wall + seconds,
            )
            for address, seconds in message.addresses
            if seconds != 0 and (address in held or len(held) < LEASES)
        )
        held.update({lease.address: lease for lease in granted})
        return granted

    def _held_by(self, port: str, transaction: Transaction) -> list[Address]:
        """By the client of this transaction."""
        client = (transaction.client, transaction.chaddr)
        held = self._leases.get(port, {})
        return [
            address
            for address, lease in held.items()
            if (lease.client, lease.chaddr) == client and address.version == transaction.version
        ]

    def _end(self, port: str, addresses: list[Address]) -> tuple[Lease, ...]:
        held = self._leases.get(port, {})
        return tuple(held.pop(address) for address in addresses if address in held)
