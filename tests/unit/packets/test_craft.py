"""Frames made of words, read back by other code than made them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ipvsw.packets.craft import KINDS, Words, craft, mac_for_all
from tests.support.wire.frames import Reassembly, wrong

SENDER, NEIGHBOUR = bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe")
ENDS = {4: ("10.1.0.11", "10.1.0.12"), 6: ("fd00:1::11", "fd00:1::12")}


def words(kind: str, version: int, **more: object) -> Words:
    source, destination = map(ip_address, ENDS[version])
    made = {"source": source, "destination": destination, "source_mac": SENDER, "destination_mac": NEIGHBOUR}
    return Words(kind=kind, **(made | {"destination_port": 80} | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ENDS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("arp", "ns")])
def test_every_checksum_is_right(kind: str, version: int) -> None:
    frame = craft(words(kind, version))
    assert wrong(frame, Reassembly()) is None, frame.hex()
    assert frame[6:12] == SENDER


@pytest.mark.parametrize("version", ENDS)
@pytest.mark.parametrize(("kind", "protocol"), [("tcp", 6), ("udp", 17)])
def test_addresses_and_ports_stand_in_their_place(kind: str, protocol: int, version: int) -> None:
    frame = craft(words(kind, version, source_port=7, destination_port=80))
    ip = frame[14:]
    header, at, size, where = (20, 12, 4, 9) if version == 4 else (40, 8, 16, 6)
    assert (frame[:6], ip[where]) == (NEIGHBOUR, protocol)
    assert [ip[at : at + size], ip[at + size : at + 2 * size]] == [ip_address(end).packed for end in ENDS[version]]
    assert ip[header : header + 4] == b"\0\7\0\x50"


def test_arp_asks_everybody() -> None:
    frame = craft(words("arp", 4))
    ends = [IPv4Address(end).packed for end in ENDS[4]]
    assert (
        frame == b"\xff" * 6 + SENDER + bytes.fromhex("0806 0001080006040001") + SENDER + ends[0] + bytes(6) + ends[1]
    )


def test_a_solicitation_goes_to_the_targets_group_and_a_probe_names_no_sender() -> None:
    asked, probe = craft(words("ns", 6)), craft(words("ns", 6, source=IPv6Address("::")))
    for frame in (asked, probe):
        assert frame[:6] == bytes.fromhex("3333ff000012")
        assert frame[54] == 135 and frame[62:78] == IPv6Address(ENDS[6][1]).packed and frame[21] == 255
        assert wrong(frame, Reassembly()) is None
    assert asked[78:] == b"\1\1" + SENDER and probe[78:] == b""


@pytest.mark.parametrize(
    ("address", "mac"),
    [
        ("255.255.255.255", "ffffffffffff"),
        ("224.128.0.1", "01005e000001"),
        ("ff02::1:ff00:12", "3333ff000012"),
        ("10.1.0.1", None),
        ("fd00::1", None),
    ],
)
def test_the_mac_address_of_a_group(address: str, mac: str | None) -> None:
    assert mac_for_all(ip_address(address)) == (None if mac is None else bytes.fromhex(mac))
