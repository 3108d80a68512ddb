"""Which flows are told apart, and what they are called."""

from __future__ import annotations

import pytest

from ipvsw.capture.flows import MOST, Flow, Flows
from tests.support.wire.frames import udp4

MACS = bytes.fromhex("0200000000020200000000010800")
SIX = bytes.fromhex("02000000000202000000000186dd")


def ipv4(protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    head = bytes([0x45 + len(options) // 4, 0, 0, 60, 0, 0]) + fragment.to_bytes(2, "big") + bytes([64, protocol, 0, 0])
    return MACS + head + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + options + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    ends = bytes.fromhex("fd00" + "00" * 13 + "01" + "fd00" + "00" * 13 + "02")
    return SIX + bytes([0x60, 0, 0, 0, 0, 20, protocol, 64]) + ends + payload


PORTS = bytes([0, 80, 4, 0]) + bytes(16)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (ipv4(6, PORTS), "TCP 10.0.0.1:80 > 10.0.0.2:1024"),
        (ipv4(17, PORTS, options=bytes(8)), "UDP 10.0.0.1:80 > 10.0.0.2:1024"),
        (ipv4(17, PORTS, fragment=0x2000), "UDP 10.0.0.1:80 > 10.0.0.2:1024"),
        (ipv4(17, PORTS, fragment=185), "UDP 10.0.0.1 > 10.0.0.2"),
        (ipv4(6, b"\0"), "TCP 10.0.0.1 > 10.0.0.2"),  # it ends there
        (ipv4(1, PORTS), "ICMP 10.0.0.1 > 10.0.0.2"),
        (ipv4(99, b""), "protocol 99 10.0.0.1 > 10.0.0.2"),
        (ipv6(6, PORTS), "TCP [fd00::1]:80 > [fd00::2]:1024"),
        (ipv6(58, PORTS), "ICMPv6 fd00::1 > fd00::2"),
        (MACS[:12] + b"\x81\0\0\7" + ipv4(6, PORTS)[12:], "TCP 10.0.0.1:80 > 10.0.0.2:1024"),
        (MACS[:12] + b"\x08\x06" + bytes(28), "ARP 02:00:00:00:00:01 > 02:00:00:00:00:02"),
        (MACS[:12] + b"\x88\xcc", "0x88cc 02:00:00:00:00:01 > 02:00:00:00:00:02"),
        (MACS + bytes(19), "IPv4 02:00:00:00:00:01 > 02:00:00:00:00:02"),  # no whole header
        (b"\2\0", "no whole Ethernet header"),
    ],
)
def test_a_flow_has_a_name(frame: bytes, text: str) -> None:
    flows = Flows()
    flows.add("lan/a", frame)
    assert [(one.at, one.text) for one in flows.take(1.0, 5)] == [("lan/a", text)]


def test_the_busiest_is_the_first_and_only_since_the_last_reading() -> None:
    flows = Flows()
    small, large = udp4("10.0.0.1", "10.0.0.2", b""), udp4("10.0.0.3", "10.0.0.2", bytes(1000))
    for at, frame, times in (("lan/a", small, 6), ("lan/b", small, 2), ("lan/c", large, 2)):
        for _ in range(times):
            flows.add(at, frame)
    found = flows.take(2.0, 2)
    assert found == [
        Flow("lan/c", "UDP 10.0.0.3:1111 > 10.0.0.2:2222", 1.0, 8.0 * len(large)),
        Flow("lan/a", "UDP 10.0.0.1:1111 > 10.0.0.2:2222", 3.0, 24.0 * len(small)),
    ]
    assert flows.take(1.0, 2) == []


def test_so_many_are_told_apart() -> None:
    flows = Flows()
    for n in range(MOST + 10):
        flows.add("lan/a", udp4("10.0.0.1", "10.0.0.2", b"", ports=(n, 1)))
    found = flows.take(1.0, MOST + 10)
    assert len(found) == MOST + 1
    assert (found[0].at, found[0].text, found[0].frames) == ("", "all other flows", 10.0)
