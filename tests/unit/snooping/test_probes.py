"""ARP probes and the replies to them: which frames they are, and who is remembered for how long."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.snooping.probes import (
    QUESTIONS,
    TIMEOUT,
    Probes,
    as_from_another,
    comes_from_asker,
    probe_reply,
    probed_address,
)

SHARED, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
A, B, NOBODY = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), IPv4Address(0)


def arp(operation: int, sender: IPv4Address, target: IPv4Address, *, by: bytes = OTHER, to: bytes = SHARED) -> bytes:
    packet = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + by + sender.packed + to + target.packed
    return bytes(10) + to + by + b"\x08\x06" + packet


@pytest.mark.parametrize(
    ("frame", "probe", "reply"),
    [
        (arp(1, NOBODY, A), A, None),
        (arp(2, A, NOBODY), None, A),
        (arp(1, A, B), None, None),
        (arp(2, A, B), None, None),
        (arp(1, A, NOBODY), None, None),
        (arp(2, NOBODY, A), None, None),
        (arp(1, NOBODY, A)[:-1], None, None),
        (arp(1, NOBODY, A).replace(b"\x08\x06", b"\x80\x35"), None, None),
        (arp(1, NOBODY, A)[:24] + b"\0\6" + arp(1, NOBODY, A)[26:], None, None),
    ],
)
def test_what_they_are(frame: bytes, probe: IPv4Address | None, reply: IPv4Address | None) -> None:
    assert (probed_address(frame), probe_reply(frame)) == (probe, reply)


@given(st.binary(max_size=60))
def test_anything_is_read(frame: bytes) -> None:
    probed_address(frame)
    probe_reply(frame)


def test_all_that_have_asked_of_late() -> None:
    probes = Probes()
    probes.ask("one", A, 10.0)
    probes.ask("two", A, 12.0)
    probes.ask("two", B, 12.0)
    assert probes.askers(A, 13.0) == ["one", "two"] and probes.askers(B, 13.0) == ["two"]
    assert probes.askers(A, 10.0 + TIMEOUT) == ["two"]
    probes.ask("one", A, 15.0)
    assert probes.askers(A, 15.0 + TIMEOUT - 0.1) == ["one"]
    probes.forget("one")
    probes.forget("none")
    assert probes.askers(A, 15.0) == ["two"]


def test_a_port_asks_about_few_addresses() -> None:
    probes = Probes()
    probes.ask("other", A, 0.0)
    for k in range(100):
        probes.ask("one", A + k, 0.0)
    assert probes.askers(A, 1.0) == ["other"]
    assert [k for k in range(100) if "one" in probes.askers(A + k, 1.0)] == list(range(100 - QUESTIONS, 100))


@pytest.mark.parametrize("mac", ["020000000001", "0050560a0b0c", "fe54000000ff"])
def test_a_siblings_reply_comes_from_another_for_a_moment(mac: str) -> None:
    shared = bytes.fromhex(mac)
    frame = arp(2, A, NOBODY, by=shared, to=shared)
    assert comes_from_asker(frame) and not comes_from_asker(arp(2, A, NOBODY))
    reply, announcement = as_from_another(frame)
    assert probe_reply(reply) == A and reply[:32] == frame[:32] and reply[38:] == frame[38:]
    made_up = reply[32:38]
    assert made_up != shared and made_up[0] & 3 == 2, "locally administered, and one machine's"
    packet = b"\0\1\x08\0\6\4\0\1" + shared + A.packed + bytes(6) + A.packed
    assert announcement == bytes(10) + shared + shared + b"\x08\x06" + packet
