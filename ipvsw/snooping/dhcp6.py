"""DHCP for IPv6, read on its way (RFC 8415). Pure, and nothing is changed: answers go to the client's own link-local
address, which its port has."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address

from ipvsw.model import Address
from ipvsw.snooping.dhcp4 import FOREVER, DhcpAction, DhcpMessage

_ASKS = {1, 3, 4, 5, 6, 11}  # solicit, request, confirm, renew, rebind, information-request
_GIVES_UP = {8, 9}  # release, decline
_ADVERTISE, _REPLY = 2, 7
_CLIENT_ID, _SERVER_ID, _IA_NA, _IA_TA, _IAADDR, _STATUS = 1, 2, 3, 4, 5, 13
_BEFORE_OPTIONS = {_IA_NA: 12, _IA_TA: 4}  # bytes of an identity association before its own options
_DUID_MAX = 130  # bytes (section 11.1)


def read(message: bytes) -> DhcpMessage | None:
    """What a message between client and server says; None if it is another, a relay's for one. Raises nothing."""
    if len(message) < 4:
        return None
    kind, xid = message[0], int.from_bytes(message[1:4], "big")
    options = list(_options(message[4:]))
    first = dict(reversed(options))
    client = first.get(_CLIENT_ID, b"")
    if not client or len(client) > _DUID_MAX:
        return None
    addresses: tuple[tuple[Address, int | None], ...] = ()
    if kind in _ASKS:
        action = DhcpAction.ASK
    elif kind in _GIVES_UP:
        action, addresses = DhcpAction.GIVE_UP, tuple(_addresses(options))
    elif kind == _REPLY:
        addresses = tuple(_addresses(options))
        action = DhcpAction.GRANT if addresses and _succeeded(options) else DhcpAction.OTHER
    elif kind == _ADVERTISE:
        action = DhcpAction.OTHER
    else:
        return None
    server = first.get(_SERVER_ID, b"").hex(":")
    return DhcpMessage(version=6, xid=xid, action=action, client=client, addresses=addresses, server=server)


def _options(field: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(field):
        code, size = int.from_bytes(field[at : at + 2], "big"), int.from_bytes(field[at + 2 : at + 4], "big")
        if at + 4 + size > len(field):
            return
        yield code, field[at + 4 : at + 4 + size]
        at += 4 + size


def _addresses(options: list[tuple[int, bytes]]) -> Iterator[tuple[Address, int | None]]:
    """Those of all identity associations, with their valid lifetimes; 0 takes an address back."""
    for code, content in options:
        before = _BEFORE_OPTIONS.get(code)
        if before is None or len(content) < before:
            continue
        inner = list(_options(content[before:]))
        if not _succeeded(inner):
            continue
        for code, content in inner:
            if code == _IAADDR and len(content) >= 24 and _succeeded(list(_options(content[24:]))):
                valid = int.from_bytes(content[20:24], "big")
                yield IPv6Address(content[:16]), None if valid == FOREVER else valid


def _succeeded(options: list[tuple[int, bytes]]) -> bool:
    """Status code 0, or none (section 21.13)."""
    return all(content[:2] == b"\0\0" for code, content in options if code == _STATUS)
