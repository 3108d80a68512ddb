"""Frames as pcapng: one section, an interface block for each interface, and with each frame its direction, what became
of it as a comment, and as a verdict.

Sources: draft-ietf-opsawg-pcapng sections 4.1, 4.2, 4.3 and 3.5. Of the verdicts that it knows those of Linux's tc say
what is meant here: TC_ACT_OK, TC_ACT_SHOT, and TC_ACT_STOLEN for a frame that the daemon holds.
"""

from __future__ import annotations

import struct

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
END, COMMENT = 0, 1
USER_APPLICATION = 4  # of a section
IF_NAME, IF_DESCRIPTION, IF_TSRESOL = 2, 3, 9
FLAGS, DROPCOUNT, VERDICT = 2, 4, 7  # of a packet
ETHERNET = 1
INBOUND, OUTBOUND = 1, 2
UNICAST, MULTICAST, BROADCAST = 1 << 2, 2 << 2, 3 << 2
BY_TC = b"\x01"
OK, SHOT, STOLEN = 0, 2, 4

_PACKET = struct.Struct("<IIIIIII")
_LENGTH = struct.Struct("<I")


def option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + _LENGTH.pack(length)


def section(application: str) -> bytes:
    head = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    return block(SECTION, head + option(USER_APPLICATION, application.encode()) + option(END, b""))


def interface(name: str, description: str) -> bytes:
    """Its times are in nanoseconds."""
    options = option(IF_NAME, name.encode()) + option(IF_DESCRIPTION, description.encode()) + option(IF_TSRESOL, b"\t")
    return block(INTERFACE, struct.pack("<HHI", ETHERNET, 0, 0) + options + option(END, b""))


def packet_options(comment: str, flags: int, verdict: int | None) -> bytes:
    """Without their end, so that `packet` can add to them."""
    tail = b"" if verdict is None else option(VERDICT, BY_TC + struct.pack("<Q", verdict))
    return option(COMMENT, comment.encode()) + option(FLAGS, _LENGTH.pack(flags)) + tail


def packet(number: int, time: int, frame: bytes, options: bytes, lost: int = 0) -> bytes:
    """A frame of interface `number` (they count from 0); `lost` frames were lost before it."""
    if lost:
        options += option(DROPCOUNT, struct.pack("<Q", lost))
    size = len(frame)
    padding = -size % 4
    length = 36 + size + padding + len(options)
    head = _PACKET.pack(PACKET, length, number, time >> 32, time & 0xFFFFFFFF, size, size)
    return b"".join((head, frame, bytes(padding), options, b"\0\0\0\0", _LENGTH.pack(length)))
