"""Which port has asked by ARP whether an address is free, so that the reply of its owner arrives. Pure: time is an
argument.

A machine that probes an address has none yet (RFC 5227 section 2.1.1): the reply is for 0.0.0.0, at the MAC address
that all ports share. Only who has asked tells whose it is. IPv6 needs no such memory: there the reply is multicast (RFC
4861 section 7.2.4).
"""

from __future__ import annotations

from ipaddress import IPv4Address

TIMEOUT = 5.0  # seconds that a reply may take; who asks waits for 2 at most (RFC 5227 section 1.1)
QUESTIONS = 16  # of a port that are remembered, the newest

_ARP = b"\x08\x06"
_ETHERNET_IPV4 = b"\0\1\x08\0\6\4"  # hardware and protocol (RFC 826)
_REQUEST, _REPLY = b"\0\1", b"\0\2"
_NOBODY = bytes(4)
_DESTINATION = slice(10, 16)
_ARP_AT = 24
_SENDER_MAC, _SENDER = slice(32, 38), slice(38, 42)


def probed_address(frame: bytes) -> IPv4Address | None:
    """The address that a frame, its virtio_net_hdr before it, asks about; None if it is no ARP probe."""
    return _between(frame, _REQUEST, 14, 24)


def probe_reply(frame: bytes) -> IPv4Address | None:
    """The address that a reply to a probe says is taken; None if the frame is no such reply."""
    return _between(frame, _REPLY, 24, 14)


def _between(frame: bytes, operation: bytes, nobody: int, address: int) -> IPv4Address | None:
    """The IPv4 address at one place of an ARP packet, if at the other there is none."""
    packet = frame[_ARP_AT:]
    if frame[22:24] != _ARP or len(packet) < 28 or packet[:8] != _ETHERNET_IPV4 + operation:
        return None
    if packet[nobody : nobody + 4] != _NOBODY:
        return None
    return IPv4Address(packet[address : address + 4])


def comes_from_asker(frame: bytes) -> bool:
    """Whether a reply to a probe has the MAC address that it is for as its sender's too, as a sibling's has."""
    return frame[_DESTINATION] == frame[_SENDER_MAC]


def as_from_another(frame: bytes) -> tuple[bytes, bytes]:
    """A sibling's reply to a probe in a form that is taken notice of, and an announcement right behind it.

    A machine that probes holds a reply with its own MAC address for an echo (RFC 5227 section 2.1.1), so this one has
    another as its sender's. The announcement (section 2.3) undoes that where the asker has the address in its
    neighbour table: it overrides at once, as no second reply does (`arp_process` in net/ipv4/arp.c)."""
    mac, address = frame[_SENDER_MAC], frame[_SENDER]
    reply = bytearray(frame)
    reply[_SENDER_MAC] = _another(mac)
    announcement = frame[: _ARP_AT + 6] + _REQUEST + mac + address + bytes(6) + address
    return bytes(reply), announcement


def _another(mac: bytes) -> bytes:
    """A locally administered MAC address (IEEE 802 section 8.4) that is nobody's."""
    return bytes((mac[0] & 0xFC | 2,)) + mac[1:5] + bytes((mac[5] ^ 1,))


class Probes:
    """The questions of one switch's ports."""

    def __init__(self) -> None:
        self._asked: dict[str, dict[IPv4Address, float]] = {}  # of each port: the address, and until when

    def ask(self, port: str, address: IPv4Address, now: float) -> None:
        questions = self._asked.setdefault(port, {})
        questions.pop(address, None)
        questions[address] = now + TIMEOUT
        if len(questions) > QUESTIONS:
            del questions[next(iter(questions))]

    def askers(self, address: IPv4Address, now: float) -> list[str]:
        """The ports that wait for a reply about the address."""
        return [port for port, questions in self._asked.items() if questions.get(address, now) > now]

    def forget(self, port: str) -> None:
        """Its machine is gone, and its questions with it."""
        self._asked.pop(port, None)
