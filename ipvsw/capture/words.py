"""What became of a captured frame, and a line that describes it. Pure."""

from __future__ import annotations

import struct
import time
from ipaddress import ip_address

from ipvsw.capture.ring import HELD, TX, Captured
from ipvsw.capture.session import Session
from ipvsw.outcomes import is_drop

ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x8100: "VLAN", 0x88A8: "VLAN (802.1ad)"}


def gso_size(one: Captured) -> int:
    """Bytes of payload in each of a GSO frame's segments; 0: it is one packet."""
    return int(struct.unpack_from("=H", one.header, 4)[0]) if one.header[1] else 0


def fate(one: Captured, session: Session) -> str:
    """Of a frame that was read, what became of it; of one that was written, where it came from."""
    whole = f"; a GSO frame, of segments of {gso_size(one)} bytes" if one.header[1] else ""
    peer = session.name(one.peer)
    if one.direction == TX:
        return f"sent, from {peer}{whole}" if peer else f"sent: a copy, or made by the switch{whole}"
    again = "after the daemon has looked at it: " if one.again else ""
    if one.outcome == HELD:
        return f"held: the daemon looks at it before it goes on{whole}"
    name, reason = session.outcomes[one.outcome]
    to = f" {peer}" if peer else ""
    return f"{again}{'dropped' if is_drop(name) else 'delivered'}: {name}{to}: {reason}{whole}"


def line(one: Captured, session: Session) -> str:
    """Without Wireshark beside it."""
    clock = time.strftime("%H:%M:%S", time.localtime(one.time // 10**9))
    way = "out" if one.direction == TX else "in "
    return (
        f"{clock}.{one.time // 1000 % 10**6:06}  {session.name(one.interface)} {way}  {described(one.frame)}:"
        f" {fate(one, session)}"
    )


def described(frame: bytes) -> str:
    """Length, and what says for whom it is."""
    if len(frame) < 14:
        return f"{len(frame)} bytes"
    kind = int.from_bytes(frame[12:14], "big")
    known = ETHERTYPES.get(kind, f"ethertype {kind:#06x}")
    if kind == 0x0800 and len(frame) >= 34:
        ends = f"{ip_address(frame[26:30])} -> {ip_address(frame[30:34])}"
    elif kind == 0x86DD and len(frame) >= 54:
        ends = f"{ip_address(frame[22:38])} -> {ip_address(frame[38:54])}"
    elif kind == 0x0806 and len(frame) >= 42:
        ends = f"{ip_address(frame[28:32])} -> {ip_address(frame[38:42])}"
    else:
        ends = f"{frame[6:12].hex(':')} -> {frame[:6].hex(':')}"
    return f"{len(frame)} bytes, {known} {ends}"
