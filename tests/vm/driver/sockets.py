"""Sockets of a namespace: how they connect, what errors they tell, and datagrams that a raw one sends in fragments."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import Any

from tests.support.patience import patient
from tests.vm.driver.topology import NAME

Outcome = dict[str, Any]
ORIGIN = {1: "local", 2: "icmp", 3: "icmp6"}
CONNECT = patient(1.5)  # s: the first try and the second
LONGEST = patient(30)  # s for one action
TURN = 20  # ms that one look at the sockets takes
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def turns(seconds: float) -> int:
    """Of `poll` in so much time on an idle machine. On a busy one they take longer, as everything does."""
    return round(seconds * 1000 / TURN)


def come_to(one: socket.socket, address: Any) -> None:
    """Connect within the turns of CONNECT. Errors: OSError; TimeoutError where nobody says anything."""
    one.setblocking(False)
    error = one.connect_ex(address)
    if error == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(one, select.POLLOUT)
        if not any(poll.poll(TURN) for _ in range(turns(CONNECT))):
            raise TimeoutError
        error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def send(one: socket.socket, content: bytes, target: Any, errors: set[str]) -> None:
    try:
        one.sendto(content, target)
    except OSError as error:
        errors.add(word(error))


def told(errors: set[str]) -> list[str]:
    """An error counts once, by its more exact form: a socket has it in its queue and returns it from a call as well."""
    return sorted(error for error in errors if not any(other.startswith(f"{error}: ") for other in errors))


def errors_of(one: socket.socket) -> set[str]:
    """What is in a socket's error queue: origin, type and code, and who says so (struct sock_extended_err)."""
    found: set[str] = set()
    while True:
        try:
            _, ancillary, _, _ = one.recvmsg(1, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:
            return found
        for _, _, content in ancillary:
            number, origin, kind, code = struct.unpack_from("=IBBB", content)
            offender = ""
            if origin != 1 and len(content) >= 16 + 16:
                four = int.from_bytes(content[16:18], "little") == socket.AF_INET
                raw = content[20:24] if four else content[24:40]
                text = socket.inet_ntop(socket.AF_INET if four else socket.AF_INET6, raw)
                offender = f" by {NAME.get(text, text)}"
            found.add(f"{os.strerror(number)}: {ORIGIN.get(origin, origin)} {kind}/{code}{offender}")


def serve(server: socket.socket, said: Outcome) -> None:
    """Take one connection and, when all has come, send it back."""
    try:
        one, _ = server.accept()
        with one:
            one.settimeout(LONGEST)
            content = read(one)
            said["there"] = len(content)
            one.sendall(content)
    except OSError:
        pass


def read(one: socket.socket) -> bytes:
    """All of it, up to the end: so that neither end closes before it has heard that the other one does."""
    content = b""
    while more := one.recv(65536):
        content += more
    return content


def close(listeners: dict[socket.socket, str]) -> None:
    for one in listeners:
        one.close()


def word(error: OSError) -> str:
    """TCP gives up a little before our own limit or a little after it."""
    return os.strerror(error.errno) if error.errno not in (None, errno.ETIMEDOUT) else "timed out"


def datagram(family: int, source: str, target: str, port: int, size: int) -> list[bytes]:
    """The IP packets of a UDP datagram in fragments of 1024 bytes, in order; one packet if it is no longer."""
    ends = socket.inet_pton(FAMILY[family], source) + socket.inet_pton(FAMILY[family], target)
    udp = struct.pack("!HHHH", 1024, port, size + 8, 0) + bytes(size)
    pseudo = ends + (struct.pack("!BBH", 0, 17, len(udp)) if family == 4 else struct.pack("!IHBB", len(udp), 0, 0, 17))
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    packets = []
    for offset in range(0, len(udp), 1024):
        part = udp[offset : offset + 1024]
        more = offset + 1024 < len(udp)
        whole = offset == 0 and not more
        if family == 4:
            bits = 0 if whole else offset >> 3 | more << 13
            packets.append(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(part), port, bits, 64, 17, 0) + ends + part)
            continue
        extension = b"" if whole else struct.pack("!BBHI", 17, 0, offset | more, port)
        head = struct.pack("!IHBB", 0x60000000, len(extension) + len(part), 17 if whole else 44, 64)
        packets.append(head + ends + extension + part)
    return packets


def checksum(content: bytes) -> int:
    """RFC 1071."""
    content += bytes(len(content) % 2)
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
