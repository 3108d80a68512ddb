"""Which port's client has leased what, by listening to DHCP, and for whom an answer is. Pure; the clock comes in.

A client's question is remembered by its transaction: the identifier that it chose, its hardware address and its
client identifier. All of them together tell apart even two guests that chose the same number.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from ipvsw.model import Address
from ipvsw.snooping.dhcp4 import DhcpAction, DhcpMessage

PATIENCE = 120.0  # seconds that an answer may take; clients ask again after 64 at most (RFC 2131 section 4.1)
QUESTIONS = 16  # of a port, the newest
LEASES = 64  # of a port


class Lease(Struct, frozen=True, kw_only=True):
    """`port` may use `address` until `until`, by the clock that was given in; None: for ever."""

    port: str
    address: Address
    until: float | None
    client: bytes
    chaddr: bytes
    server: str
    hostname: str


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

    def fits(self, said: DhcpMessage) -> bool:
        """A server that is older than RFC 6842 doesn't repeat the identifier."""
        return (self.version, self.xid, self.chaddr) == (said.version, said.xid, said.chaddr) and (
            said.client in (b"", self.client)
        )


class Leases:
    """Those of one switch's ports."""

    def __init__(self) -> None:
        self._questions: dict[str, dict[Transaction, tuple[float, str]]] = {}  # of each port: until when, hostname
        self._leases: dict[str, dict[Address, Lease]] = {}

    def on_client(self, port: str, said: DhcpMessage, now: float) -> tuple[Lease, ...]:
        """A client's message. Returns the leases that it has ended."""
        questions = self._questions.setdefault(port, {})
        question = Transaction(said.version, said.xid, said.chaddr, said.client)
        questions.pop(question, None)
        questions[question] = now + PATIENCE, said.hostname
        if len(questions) > QUESTIONS:
            del questions[next(iter(questions))]
        if said.verb is not DhcpAction.GIVE_UP:
            return ()
        return self._end(port, [address for address, _ in said.addresses])

    def on_server(self, said: DhcpMessage, now: float, by: str | None = None) -> Answer:
        """A server's message; `by` is the port that it comes from, if it comes from one."""
        found = {port: question for port, question in self._asking(said, now) if port != by}
        if len(found) != 1:
            return Answer()
        port, question = next(iter(found.items()))
        if said.verb is DhcpAction.REFUSE:
            return Answer(port, ended=self._end(port, self._held_by(port, question)))
        if said.verb is not DhcpAction.GRANT:
            return Answer(port)
        granted = self._grant(port, question, said, now)
        gone = [address for address, seconds in said.addresses if seconds == 0]
        if said.version == 4 and granted:  # a client has one
            gone += [address for address in self._held_by(port, question) if address != granted[0].address]
        return Answer(port, granted, self._end(port, gone))

    def expire(self, now: float) -> tuple[Lease, ...]:
        """Returns the leases that have ended."""
        over = [lease for lease in self.all() if lease.until is not None and lease.until <= now]
        return tuple(lease for one in over for lease in self._end(one.port, [one.address]))

    def next_end(self) -> float | None:
        """When `expire` will have something to do; None: never."""
        return min((lease.until for lease in self.all() if lease.until is not None), default=None)

    def forget(self, port: str) -> tuple[Lease, ...]:
        """The port is another's from now on, or gone. Returns what it had."""
        self._questions.pop(port, None)
        return tuple(self._leases.pop(port, {}).values())

    def all(self) -> Iterator[Lease]:
        for held in self._leases.values():
            yield from held.values()

    # ------------------------------------------------------------------------ the rules

    def _asking(self, said: DhcpMessage, now: float) -> Iterator[tuple[str, Transaction]]:
        for port, questions in self._questions.items():
            for question, (until, _) in questions.items():
                if until > now and question.fits(said):
                    yield port, question

    def _grant(self, port: str, question: Transaction, said: DhcpMessage, now: float) -> tuple[Lease, ...]:
        held = self._leases.setdefault(port, {})
        _, hostname = self._questions[port][question]
        granted = tuple(
            Lease(
                port=port,
                address=address,
                until=None if seconds is None else now + seconds,
                client=question.client,
                chaddr=question.chaddr,
                server=said.server,
                hostname=said.hostname or hostname,
            )
            for address, seconds in said.addresses
            if seconds != 0 and (address in held or len(held) < LEASES)
        )
        held.update({lease.address: lease for lease in granted})
        return granted

    def _held_by(self, port: str, question: Transaction) -> list[Address]:
        """By the client that asks."""
        client = (question.client, question.chaddr)
        held = self._leases.get(port, {})
        return [
            address
            for address, lease in held.items()
            if (lease.client, lease.chaddr) == client and address.version == question.version
        ]

    def _end(self, port: str, addresses: list[Address]) -> tuple[Lease, ...]:
        held = self._leases.get(port, {})
        return tuple(held.pop(address) for address in addresses if address in held)
