"""Who on the LAN has an IPv4 address: ARP probes (RFC 5227), which name no sender and change no neighbour table."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

ETH_P_ARP = 0x0806
ARP = struct.Struct("!HHBBH6s4s6s4s")
REQUEST, REPLY = 1, 2
PATIENCE = 0.5  # seconds: on a LAN answers take a millisecond
PROBES = 256  # addresses of one master that are asked for
COMPLETE = 0x2  # ATF_COM, linux/if_arp.h


def ask(device: str, mac: bytes, addresses: Iterable[str]) -> dict[str, set[str]]:
    """MAC addresses that answer on the device for each address, in the thread's namespace. Errors: OSError."""
    wanted = {IPv4Address(address).packed: address for address in [*addresses][:PROBES]}
    found: dict[str, set[str]] = {address: set() for address in wanted.values()}
    if not wanted:
        return found
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as sock:
        sock.bind((device, ETH_P_ARP))
        with contextlib.suppress(OSError):  # the device is down
            for packed in wanted:
                sock.send(_probe(mac, packed))
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
            frame = sock.recv(64)
            if len(frame) >= 14 + ARP.size:
                *_, operation, sender, address, _, _ = ARP.unpack_from(frame, 14)
                if operation == REPLY and address in wanted:
                    found[wanted[address]].add(sender.hex(":"))
    return found


def _probe(mac: bytes, address: bytes) -> bytes:
    header = b"\xff" * 6 + mac + ETH_P_ARP.to_bytes(2, "big")
    return header + ARP.pack(1, 0x0800, 6, 4, REQUEST, mac, bytes(4), bytes(6), address)


def gateways(device: str) -> Iterator[tuple[str, str]]:
    """The thread's namespace's gateways on the device, with the MAC address that its neighbour table has, or ""."""
    known = {
        address: mac
        for address, _, flags, mac, _, on in _rows("/proc/thread-self/net/arp")
        if on == device and int(flags, 16) & COMPLETE
    }
    for on, destination, gateway, *_ in _rows("/proc/thread-self/net/route"):
        if on == device and int(destination, 16) == 0 and int(gateway, 16):
            address = str(IPv4Address(struct.pack("=I", int(gateway, 16))))
            yield address, known.get(address, "")


def _rows(path: str) -> list[list[str]]:
    return [line.split() for line in Path(path).read_text().splitlines()[1:]]
