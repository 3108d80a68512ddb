"""Frames out of a capture file: pcap, and pcapng as far as Ethernet frames in it are concerned.

Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng sections 4.1 to 4.4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ipvsw.cli.command import Failed

ETHERNET = 1  # link type
PCAP = {b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">", b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<"}
SECTION, INTERFACE, SIMPLE, ENHANCED = 0x0A0D0D0A, 1, 3, 6
BYTE_ORDER = b"\x1a\x2b\x3c\x4d"


def frames(path: str) -> Iterator[bytes]:
    """Every frame, from its Ethernet header on. Errors: Failed."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    try:
        if data[:4] in PCAP:
            yield from _pcap(path, data, PCAP[data[:4]])
        elif data[:4] == SECTION.to_bytes(4, "big"):
            yield from _pcapng(path, data)
        else:
            raise Failed(f"{path}: neither pcap nor pcapng")
    except struct.error:
        raise Failed(f"{path}: it ends in the middle") from None


def _pcap(path: str, data: bytes, order: str) -> Iterator[bytes]:
    (link,) = struct.unpack_from(f"{order}I", data, 20)
    _check_link(path, link & 0xFFFF)
    at = 24
    while at < len(data):
        kept, length = struct.unpack_from(f"{order}II", data, at + 8)
        yield _whole(path, data, at + 16, kept, length)
        at += 16 + kept


def _pcapng(path: str, data: bytes) -> Iterator[bytes]:
    at, order = 0, "<"
    while at < len(data):
        if data[at : at + 4] == SECTION.to_bytes(4, "big"):
            order = ">" if data[at + 8 : at + 12] == BYTE_ORDER else "<"
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if size < 12:
            raise Failed(f"{path}: a block of {size} bytes")
        if kind == INTERFACE:
            _check_link(path, struct.unpack_from(f"{order}H", data, at + 8)[0])
        elif kind == ENHANCED:
            kept, length = struct.unpack_from(f"{order}II", data, at + 20)
            yield _whole(path, data, at + 28, kept, length)
        elif kind == SIMPLE:
            (length,) = struct.unpack_from(f"{order}I", data, at + 8)
            yield _whole(path, data, at + 12, min(length, size - 16), length)
        at += size


def _check_link(path: str, link: int) -> None:
    if link != ETHERNET:
        raise Failed(f"{path}: link type {link} is not Ethernet")


def _whole(path: str, data: bytes, at: int, kept: int, length: int) -> bytes:
    if kept < length:
        raise Failed(f"{path}: a frame was cut to {kept} of {length} bytes; capture it whole (tcpdump -s 0)")
    if at + kept > len(data):
        raise Failed(f"{path}: it ends in the middle")
    return data[at : at + kept]
