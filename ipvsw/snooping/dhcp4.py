"""DHCP for IPv4, read and in one place changed on its way (RFC 2131, 2132, 3396, 6842). Pure.

A server's unicast to a client that has no address yet goes to the MAC address that the client calls its own. Where that
isn't the master's, it would reach no port: such a client is made to ask for a broadcast answer. Nothing else of a
message is changed.
"""

from __future__ import annotations

import enum
import struct
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from ipvsw.model import Address

HEADER = 10  # sizeof(struct virtio_net_hdr)
CLIENT, SERVER = 68, 67  # UDP ports
CLIENT6, SERVER6 = 546, 547
UDP = 17

FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")  # RFC 2131 section 2, up to the magic cookie
COOKIE = bytes((99, 130, 83, 99))
_FLAGS_AT = 10  # in the message
_BROADCAST = 0x8000
_NEEDS_CSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is of the pseudo header alone
FOREVER = 0xFFFFFFFF


class Kind(enum.IntEnum):
    """Of a message: RFC 2132 section 9.6."""

    DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)


class Code(enum.IntEnum):
    """Of an option: RFC 2132, 3442."""

    PAD, MASK, ROUTER, DNS, HOSTNAME, DOMAIN = 0, 1, 3, 6, 12, 15
    REQUESTED, SECONDS, OVERLOAD, KIND, SERVER_ID, WANTED = 50, 51, 52, 53, 54, 55
    T1, T2, CLIENT_ID, ROUTES, END = 58, 59, 61, 121, 255


class Datagram(Struct, frozen=True):
    """Where a UDP datagram's payload stands in a frame with its virtio_net_hdr, and between whom it goes."""

    source: Address
    to_port: int
    udp: int  # where the UDP header begins
    end: int  # where the payload ends

    @property
    def payload(self) -> slice:
        return slice(self.udp + 8, self.end)


class DhcpAction(enum.Enum):
    ASK = enum.auto()  # a client expects an answer
    GRANT = enum.auto()  # a server gives the client these addresses
    REFUSE = enum.auto()  # a server tells the client that it has none
    GIVE_UP = enum.auto()  # a client releases or declines these addresses
    OTHER = enum.auto()  # another answer


class DhcpMessage(Struct, frozen=True, kw_only=True):
    """What a message of either protocol says about leases."""

    version: int  # 4 or 6
    xid: int
    action: DhcpAction
    chaddr: bytes = b""  # the client's hardware address; IPv6 has none
    client: bytes = b""  # its identifier, b"" if it sent none; IPv6: its DUID
    addresses: tuple[tuple[Address, int | None], ...] = ()  # with seconds that they are valid, None: for ever
    server: str = ""
    hostname: str = ""

    @property
    def is_reply(self) -> bool:
        return self.action in (DhcpAction.GRANT, DhcpAction.REFUSE, DhcpAction.OTHER)


def datagram(frame: bytes) -> Datagram | None:
    """The UDP datagram that a frame holds whole: no tag but a priority tag, no fragment, no IPv6 extension header."""
    start = HEADER + 14
    if frame[start - 2 : start] == b"\x81\x00" and int.from_bytes(frame[start : start + 2], "big") & 0x0FFF == 0:
        start += 4
    kind, packet = frame[start - 2 : start], frame[start:]
    if kind == b"\x08\x00" and len(packet) >= 20 and packet[0] >> 4 == 4 and packet[9] == UDP:
        size, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        if size < 20 or total > len(packet) or int.from_bytes(packet[6:8], "big") & 0x3FFF:
            return None
        source: Address = IPv4Address(packet[12:16])
    elif kind == b"\x86\xdd" and len(packet) >= 40 and packet[0] >> 4 == 6 and packet[6] == UDP:
        size, total = 40, 40 + int.from_bytes(packet[4:6], "big")
        if total > len(packet):
            return None
        source = IPv6Address(packet[8:24])
    else:
        return None
    if size + 8 > total:
        return None
    _, to_port, length = struct.unpack_from("!HHH", packet, size)
    if not 8 <= length <= total - size:
        return None
    return Datagram(source, to_port, start + size, start + size + length)


def read(message: bytes, to_port: int) -> DhcpMessage | None:
    """What a message for IPv4 to that UDP port says; None if it isn't DHCP, or is between relay and server. A relay
    leaves its address in what it hands on to a client (RFC 1542 section 4.1.2). Raises nothing."""
    if len(message) < FIXED.size:
        return None
    op, _, hardware, _, xid, _, _, ciaddr, yiaddr, _, giaddr, chaddr, _, _, cookie = FIXED.unpack_from(message)
    if cookie != COOKIE or hardware > len(chaddr):
        return None
    if (op, to_port) != (2, CLIENT) and ((op, to_port) != (1, SERVER) or any(giaddr)):
        return None
    found = options(message)
    action, addresses = _meaning(op, kind_of(found), ciaddr, yiaddr, found)
    server = found.get(Code.SERVER_ID, b"")
    return DhcpMessage(
        version=4,
        xid=xid,
        action=action,
        chaddr=chaddr[:hardware],
        client=found.get(Code.CLIENT_ID, b""),
        addresses=addresses,
        server=str(IPv4Address(server)) if len(server) == 4 else "",
        hostname=_printable(found.get(Code.HOSTNAME, b"")),
    )


def is_for_sender(frame: bytes) -> bool:
    """Whether the frame is for the MAC address that it comes from, as a port's for another: all have the master's."""
    return frame[HEADER : HEADER + 6] == frame[HEADER + 6 : HEADER + 12]


def as_broadcast(frame: bytes) -> bytes:
    return frame[:HEADER] + b"\xff" * 6 + frame[HEADER + 6 :]


def wants_broadcast(message: bytes) -> bool:
    """Whether the answer would be sent to an address that the client has not got yet (RFC 2131 section 4.1), and the
    client hasn't asked for a broadcast. `message` is one that `read` has understood."""
    flags, ciaddr = struct.unpack_from("!H4s", message, _FLAGS_AT)
    return message[0] == 1 and not flags & _BROADCAST and not any(ciaddr)


def with_broadcast(frame: bytes, where: Datagram) -> bytes:
    """The frame with its client asking for a broadcast. The UDP checksum is adjusted (RFC 1624) where there is one
    and it is complete."""
    at = where.udp + 8 + _FLAGS_AT
    old = int.from_bytes(frame[at : at + 2], "big")
    new = old | _BROADCAST
    changed = bytearray(frame)
    changed[at : at + 2] = new.to_bytes(2, "big")
    checksum = int.from_bytes(frame[where.udp + 6 : where.udp + 8], "big")
    if checksum and not frame[0] & _NEEDS_CSUM:
        total = (checksum ^ 0xFFFF) + (old ^ 0xFFFF) + new
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        changed[where.udp + 6 : where.udp + 8] = ((total ^ 0xFFFF) or 0xFFFF).to_bytes(2, "big")
    return bytes(changed)


def _meaning(
    op: int, kind: int, ciaddr: bytes, yiaddr: bytes, options: dict[int, bytes]
) -> tuple[DhcpAction, tuple[tuple[Address, int | None], ...]]:
    if op == 1:
        given = options.get(Code.REQUESTED, b"") if kind == Kind.DECLINE else ciaddr if kind == Kind.RELEASE else b""
        if kind in (Kind.DECLINE, Kind.RELEASE):
            return DhcpAction.GIVE_UP, ((IPv4Address(given), 0),) if len(given) == 4 else ()
        return DhcpAction.ASK, ()
    if kind == Kind.NAK:
        return DhcpAction.REFUSE, ()
    seconds = options.get(Code.SECONDS, b"")
    if kind != Kind.ACK or len(seconds) != 4 or not any(yiaddr):  # the answer to an INFORM has neither
        return DhcpAction.OTHER, ()
    valid = int.from_bytes(seconds, "big")
    return DhcpAction.GRANT, ((IPv4Address(yiaddr), None if valid == FOREVER else valid),)


def kind_of(options: dict[int, bytes]) -> int:
    """A number of `Kind`, or another one; 0 if there is none."""
    return int.from_bytes(options.get(Code.KIND, b"")[:1], "big")


def options(message: bytes) -> dict[int, bytes]:
    """Code -> content, in pieces put together (RFC 3396); `file` and `name` hold more if option 52 says so. `message`
    is one that `read` has understood."""
    name, file, _ = FIXED.unpack_from(message)[-3:]
    found: dict[int, bytes] = {}
    _add_options(found, message[FIXED.size :])
    overload = found.get(Code.OVERLOAD, b"\0")[:1]
    if overload in (b"\1", b"\3"):
        _add_options(found, file)
    if overload in (b"\2", b"\3"):
        _add_options(found, name)
    return found


def _add_options(found: dict[int, bytes], field: bytes) -> None:
    at = 0
    while at < len(field) and field[at] != Code.END:
        if field[at] == Code.PAD:
            at += 1
            continue
        if at + 2 > len(field) or at + 2 + field[at + 1] > len(field):
            return
        code, size = field[at], field[at + 1]
        found[code] = found.get(code, b"") + field[at + 2 : at + 2 + size]
        at += 2 + size


def _printable(raw: bytes) -> str:
    text = raw.rstrip(b"\0").decode("ascii", "replace")
    return "".join(one if one.isprintable() and one != "�" else "?" for one in text)
