"""What must never be seen on the wire: foreign source MACs, ICMP redirects, wrong checksums."""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from collections.abc import Iterator

from tests.support.sniff import sniffing
from tests.support.topology import MASTER_MAC, WIRE_MAC, Lab

NEEDS_CSUM = 1
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
KNOWN = {bytes.fromhex(mac.replace(":", "")) for mac in (MASTER_MAC, WIRE_MAC)}


@contextlib.contextmanager
def clean_wire(lab: Lab) -> Iterator[None]:
    """Watches the wire, both ways, through the body. It must have been used."""
    with sniffing(lab.wire, "w0", outgoing=True) as wire:
        yield
    assert len(wire.frames) > 10, "nothing was seen"
    faults: Counter[str] = Counter()
    for header, frame in wire.frames:
        faults.update(_faults(header, frame))
    assert not faults, f"of {len(wire.frames)} frames: {dict(faults)}"


def _faults(header: bytes, frame: bytes) -> Iterator[str]:
    if frame[6:12] not in KNOWN:
        yield f"source MAC {frame[6:12].hex(':')}"
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and packet[0] == 0x45:
        protocol, content = packet[9], packet[20 : struct.unpack_from("!H", packet, 2)[0]]
        pseudo = packet[12:20] + struct.pack("!HH", protocol, len(content))
        if folded(packet[:20]) != 0xFFFF:
            yield "IPv4 header checksum"
        if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
            return  # a fragment
        if protocol == ICMP:
            pseudo = b""
            if content[0] == 5:
                yield "ICMP redirect"
    elif kind == b"\x86\xdd":
        protocol, content = packet[6], packet[40 : 40 + struct.unpack_from("!H", packet, 4)[0]]
        pseudo = packet[8:40] + struct.pack("!II", len(content), protocol)
        if protocol == ICMP6 and content[0] == 137:
            yield "ICMPv6 redirect"
    else:
        return
    if protocol not in (ICMP, TCP, UDP, ICMP6) or header[0] & NEEDS_CSUM:
        return
    if protocol == UDP and content[6:8] == b"\0\0":
        return
    if folded(pseudo + content) != 0xFFFF:
        yield f"checksum of protocol {protocol}"


def folded(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
