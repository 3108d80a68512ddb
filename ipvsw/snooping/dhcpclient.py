"""A DHCP client for IPv4 that the daemon runs for a port (RFC 2131, 2132, 3442, 6842). Pure: time is an argument, and
what is to be sent is returned.

All ports share the master's MAC address, so a server tells them apart by the client identifier alone. To renew a lease
all servers are asked from the beginning, and not its own one first: the client needs no neighbour table then.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import islice

from msgspec import Struct

from ipvsw.snooping.dhcp4 import COOKIE, FIXED, FOREVER, Code, Kind, kind_of, options

FIRST_WAIT, LONGEST_WAIT = 1.0, 64.0  # seconds for an answer, doubled with each attempt (RFC 2131 section 4.1)
RETRIES = 4  # requests without an answer, after which the client asks all servers
SHORTEST_RENEWAL = 60.0  # seconds between two attempts to renew (RFC 2131 section 4.4.5),
SHORTEST_LEASE = 10  # seconds; a shorter one would have the client do nothing else
PAUSE = 10.0  # seconds after an address that others have, or a refusal (RFC 2131 section 3.1)
RENEW, REBIND = 0.5, 0.875  # of a lease, where the server says nothing (RFC 2131 section 4.4.5)
BROADCAST = 0x8000
MOST_ROUTES, MOST_SERVERS, LONGEST_DOMAIN = 64, 8, 253  # of a lease; more than networks have
SMALLEST = 300  # bytes: relays drop shorter ones (RFC 1542 section 2.1)
WANTED = (Code.MASK, Code.ROUTER, Code.DNS, Code.DOMAIN, Code.SECONDS, Code.SERVER_ID, Code.T1, Code.T2, Code.ROUTES)
ANY = IPv4Network("0.0.0.0/0")
NOBODY, ALL = IPv4Address("0.0.0.0"), IPv4Address("255.255.255.255")


class Leased(Struct, frozen=True, kw_only=True):
    """What a server has given the client, as the next daemon reads it too. Times are the caller's."""

    address: str  # with its prefix length
    server: str
    until: float | None  # None: for ever
    renew: float | None
    rebind: float | None
    gateway: str = ""
    routes: tuple[str, ...] = ()  # as ip-route(8) writes them
    dns: tuple[str, ...] = ()
    domain: str = ""

    @property
    def ip(self) -> IPv4Address:
        return IPv4Interface(self.address).ip


class Outgoing(Struct, frozen=True):
    """A message, and between whom it goes."""

    payload: bytes
    source: IPv4Address = NOBODY
    destination: IPv4Address = ALL


class Phase(enum.Enum):
    """RFC 2131 section 4.4, figure 5."""

    SELECTING = enum.auto()
    REQUESTING = enum.auto()
    REBOOTING = enum.auto()
    BOUND = enum.auto()
    RENEWING = enum.auto()
    REBINDING = enum.auto()


class DhcpClient:
    def __init__(self, identifier: bytes, mac: bytes, hostname: str, draw: Callable[[], int]) -> None:
        """`draw` gives a random number of 32 bits."""
        self.lease: Leased | None = None
        self.due: float | None = None  # when `tick` has something to do; None: never
        self.attempts = 0  # since a server has answered
        self._identifier, self._mac, self._hostname, self._draw = identifier, mac, hostname, draw
        self._phase = Phase.SELECTING
        self._xid = 0
        self._asked = 0.0  # when the last request has left: a lease is counted from there
        self._offer: tuple[IPv4Address, bytes] | None = None  # address and server

    def begin(self, now: float) -> Outgoing:
        """The link is there, perhaps again, and perhaps another one: a lease must be confirmed."""
        known = self.lease is not None and not _over(self.lease.until, now)
        return self._enter(Phase.REBOOTING if known else Phase.SELECTING, now)

    def tick(self, now: float) -> Outgoing | None:
        lease = self.lease
        if lease is not None and _over(lease.until, now):
            return self._enter(Phase.SELECTING, now)
        if self._phase is Phase.REQUESTING and self.attempts >= RETRIES:
            return self._enter(Phase.SELECTING, now)
        if self._phase in (Phase.SELECTING, Phase.REQUESTING) or lease is None:
            return self._send(now)
        if self._phase is Phase.REBOOTING and self.attempts < RETRIES:
            return self._send(now)
        if not _over(lease.renew, now):  # no server has confirmed it, nor refused: it is valid
            self._phase, self.due = Phase.BOUND, lease.renew
            return None
        phase = Phase.REBINDING if _over(lease.rebind, now) else Phase.RENEWING
        return self._send(now) if phase is self._phase else self._enter(phase, now)

    def take(self, payload: bytes, now: float) -> Outgoing | None:
        """A server's message, which `dhcp4.read` has understood. Raises nothing."""
        found = options(payload)
        head = FIXED.unpack_from(payload)
        xid, address = head[4], IPv4Address(head[8])
        kind, server = kind_of(found), found.get(Code.SERVER_ID, b"")
        if xid != self._xid or self._phase is Phase.BOUND or len(server) != 4:
            return None
        if self._phase is Phase.SELECTING:
            if kind != Kind.OFFER or address == NOBODY:
                return None
            self._offer, self._phase, self.attempts = (address, server), Phase.REQUESTING, 0
            return self._send(now)
        if kind == Kind.NAK:
            self._give_up(now)
        elif kind == Kind.ACK and (lease := self._read(address, found)) is not None:
            self.lease, self._phase, self.due, self.attempts = lease, Phase.BOUND, lease.renew, 0
        return None

    def decline(self, now: float) -> Outgoing | None:
        """Somebody else has the address."""
        message = self._to_server(Kind.DECLINE, ALL)
        self._give_up(now)
        return message

    def release(self) -> Outgoing | None:
        """The port goes. None: it has no lease."""
        message = None if self.lease is None else self._to_server(Kind.RELEASE, IPv4Address(self.lease.server))
        self.lease = self.due = None
        return message

    # ------------------------------------------------------------------------ phases

    def _enter(self, phase: Phase, now: float) -> Outgoing:
        self._phase, self.attempts, self._xid = phase, 0, self._draw()
        if phase is Phase.SELECTING:
            self.lease = None
        return self._send(now)

    def _give_up(self, now: float) -> None:
        self.lease, self._phase, self._xid, self.attempts = None, Phase.SELECTING, self._draw(), 0
        self.due = now + PAUSE

    def _send(self, now: float) -> Outgoing:
        self._asked = now
        lease = self.lease
        if self._phase in (Phase.RENEWING, Phase.REBINDING) and lease is not None:
            end = lease.rebind if self._phase is Phase.RENEWING else lease.until
            assert end is not None  # of a lease for ever nothing is renewed
            self.due = min(now + max((end - now) / 2, SHORTEST_RENEWAL), end)
        else:
            jitter = 0.9 + (self._draw() % 1000) / 5000
            self.due = now + min(FIRST_WAIT * 2**self.attempts, LONGEST_WAIT) * jitter
        self.attempts = min(self.attempts + 1, 16)
        match self._phase:
            case Phase.REQUESTING if self._offer is not None:
                address, server = self._offer
                return Outgoing(self._message(Kind.REQUEST, {Code.REQUESTED: address.packed, Code.SERVER_ID: server}))
            case Phase.REBOOTING if lease is not None:
                return Outgoing(self._message(Kind.REQUEST, {Code.REQUESTED: lease.ip.packed}))
            case Phase.RENEWING | Phase.REBINDING if lease is not None:
                return Outgoing(self._message(Kind.REQUEST, {}, lease.ip), lease.ip)
        return Outgoing(self._message(Kind.DISCOVER, {}))

    # ------------------------------------------------------------------------ messages

    def _to_server(self, kind: Kind, destination: IPv4Address) -> Outgoing | None:
        """That its lease is used no more."""
        if self.lease is None:
            return None
        address = self.lease.ip
        self._xid = self._draw()
        more = {Code.SERVER_ID: IPv4Address(self.lease.server).packed}
        if kind is Kind.DECLINE:
            return Outgoing(self._message(kind, more | {Code.REQUESTED: address.packed}))
        return Outgoing(self._message(kind, more, address), address, destination)

    def _message(self, kind: Kind, more: dict[Code, bytes], ciaddr: IPv4Address = NOBODY) -> bytes:
        head = (1, 1, 6, 0, self._xid, 0, 0 if int(ciaddr) else BROADCAST, ciaddr.packed)
        fixed = FIXED.pack(*head, *[bytes(4)] * 3, self._mac, b"", b"", COOKIE)
        said = {Code.KIND: bytes([kind]), Code.CLIENT_ID: self._identifier, **more}
        if kind in (Kind.DISCOVER, Kind.REQUEST):
            said |= {Code.HOSTNAME: self._hostname.encode()} if self._hostname else {}
            said[Code.WANTED] = bytes(WANTED)
        body = b"".join(bytes([code, len(content)]) + content for code, content in said.items())
        return (fixed + body + bytes([Code.END])).ljust(SMALLEST, b"\0")

    def _read(self, address: IPv4Address, found: dict[int, bytes]) -> Leased | None:
        """None: it is no lease."""
        seconds = _number(found.get(Code.SECONDS, b""))
        if address == NOBODY or not seconds:
            return None
        until = renew = rebind = None
        if seconds != FOREVER:
            valid = max(seconds, SHORTEST_LEASE)
            t1, t2 = _number(found.get(Code.T1, b"")), _number(found.get(Code.T2, b""))
            if not 0 < t1 < t2 < valid:
                t1, t2 = int(valid * RENEW), int(valid * REBIND)
            until, renew, rebind = self._asked + valid, self._asked + t1, self._asked + t2
        routes = dict(islice(_routes(found.get(Code.ROUTES, b"")), MOST_ROUTES))
        router = next(_addresses(found.get(Code.ROUTER, b"")), NOBODY)
        gateway = routes.pop(ANY, NOBODY) if routes else router  # RFC 3442: with routes the router says nothing
        ends = [(str(to), "" if by == NOBODY else f" via {by}") for to, by in routes.items()]
        return Leased(
            address=f"{address}/{_prefix(found.get(Code.MASK, b''))}",
            server=str(IPv4Address(found[Code.SERVER_ID])),
            until=until,
            renew=renew,
            rebind=rebind,
            gateway="" if gateway in (NOBODY, address) else str(gateway),
            routes=tuple(to + via for to, via in ends),
            dns=tuple(map(str, islice(_addresses(found.get(Code.DNS, b"")), MOST_SERVERS))),
            domain=_domain(found.get(Code.DOMAIN, b"")),
        )


def _over(end: float | None, now: float) -> bool:
    return end is not None and now >= end


def _number(content: bytes) -> int:
    return int.from_bytes(content, "big") if len(content) == 4 else 0


def _addresses(content: bytes) -> Iterator[IPv4Address]:
    for at in range(0, len(content) - 3, 4):
        yield IPv4Address(content[at : at + 4])


def _prefix(content: bytes) -> int:
    """Of a mask; one that is none means the address alone."""
    mask = _number(content)
    ones = mask.bit_count()
    return ones if mask == (0xFFFFFFFF << (32 - ones)) & 0xFFFFFFFF and mask else 32


def _domain(content: bytes) -> str:
    text = content[: LONGEST_DOMAIN + 1].rstrip(b"\0").decode("ascii", "replace")
    is_name = text.isascii() and all(one.isalnum() or one in ".-" for one in text)
    return text if is_name and len(text) <= LONGEST_DOMAIN else ""


def _routes(content: bytes) -> Iterator[tuple[IPv4Network, IPv4Address]]:
    """RFC 3442: of a destination only the bytes that its prefix covers."""
    at = 0
    while at < len(content) and (length := content[at]) <= 32:
        size = -(-length // 8)
        rest = content[at + 1 : at + 1 + size + 4]
        if len(rest) < size + 4:
            return
        (number,) = struct.unpack("!I", rest[:size].ljust(4, b"\0"))
        yield IPv4Network((number, length), strict=False), IPv4Address(rest[size:])
        at += 1 + size + 4
