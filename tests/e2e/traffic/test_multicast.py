"""Multicast groups: whose ports and machines listen to them, and in what frames their packets come."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.support.machine import MAC, idle, machine
from tests.support.patience import until
from tests.support.running import Daemon, switch
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER_MAC, WIRE4, WIRE6, WIRE_MAC, Lab, inside
from tests.support.wire import frames

GROUPS = {"224.0.0.251": frames.udp4, "ff02::fb": frames.udp6, "255.255.255.255": frames.udp4}


def joined(netns: str, device: str, group: str) -> socket.socket:
    """A socket in that namespace that listens to the group."""
    with inside(netns):
        if ":" in group:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            index = socket.if_nametoindex(device)
            member = socket.inet_pton(socket.AF_INET6, group) + index.to_bytes(4, "little")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        else:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            member = socket.inet_aton(group) + bytes(4) + socket.if_nametoindex(device).to_bytes(4, "little")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    return sock


@pytest.mark.parametrize("group", GROUPS)
def test_in_a_frame_for_the_masters_mac_address(lab: Lab, lan: Daemon, group: str) -> None:
    """RFC 6085, as access points send them: who listens to the group gets it, and the host as before."""
    make: Callable[..., bytes] = GROUPS[group]
    source = WIRE6 if ":" in group else WIRE4
    everybody = group == "255.255.255.255"
    listener = None if everybody else joined(lab.ports[0], "ipvl1", group)
    device = lab.execute(lab.ports[0], "ip", "maddr", "show", "dev", "ipvl1")
    assert everybody or group in device
    packet = make(source, group, b"to a group", to=MASTER_MAC, by=WIRE_MAC)
    reflected = make(source, group, b"reflected.", to=MASTER_MAC, by=MASTER_MAC)
    with (
        sniffing(lab.ports[0], "ipvl1") as one,
        sniffing(lab.ports[1], "ipvl2") as two,
        sniffing(lab.host, "m0") as host,
        raw(lab.wire, "w0") as wire,
    ):

        def arrives() -> bool:
            wire.send(reflected)
            wire.send(packet)
            return one.count(b"to a group") > 0

        until(arrives, "the packet arrives")
        until(lambda: host.count(b"to a group"), "the host has it too")
        assert not one.count(b"reflected.")
        if everybody:
            until(lambda: two.count(b"to a group"), "everybody gets it")
        else:
            assert not two.count(b"to a group")
    if listener is not None:
        listener.close()


def igmp(kind: int, group: str) -> bytes:
    """IGMPv2 (RFC 2236 section 2), from a machine without an address."""
    body = bytes((kind, 0, 0, 0)) + socket.inet_aton(group)
    body = body[:2] + frames.checksum(body).to_bytes(2, "big") + body[4:]
    head = b"\x46\0\0\x20\0\0\0\0\1\2\0\0" + bytes(4) + socket.inet_aton(group) + b"\x94\4\0\0"
    head = head[:10] + frames.checksum(head).to_bytes(2, "big") + head[12:]
    return bytes.fromhex("01005e0000fb") + MAC + b"\x08\0" + head + body


def mld(kind: int, group: str) -> bytes:
    """MLDv1 (RFC 2710 section 3)."""
    to = socket.inet_pton(socket.AF_INET6, group)
    ends = socket.inet_pton(socket.AF_INET6, "fe80::60") + to
    body = bytes((kind, 0, 0, 0)) + bytes(4) + to
    total = frames.checksum(frames.pseudo(ends[:16], ends[16:], frames.ICMP6, len(body)) + body)
    body = body[:2] + total.to_bytes(2, "big") + body[4:]
    head = b"\x60\0\0\0" + (8 + len(body)).to_bytes(2, "big") + b"\0\1" + ends
    return b"\x33\x33" + to[12:] + MAC + b"\x86\xdd" + head + bytes((58, 0, 5, 2, 0, 0, 1, 0)) + body


def test_what_a_machine_listens_to_is_set_on_the_master(lab: Lab) -> None:
    """And no longer than it does. It is asked as well: it may have joined before the switch was there."""
    ports = [{"name": "vm1", "kind": "tap", "addresses": ["10.1.0.60/16"], "guard": "off", "mac": "master"}]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1")

        def listens(*groups: str) -> bool:
            shown = lab.execute(lab.host, "ip", "maddr", "show", "dev", "m0")
            return [one in shown for one in ("01:00:5e:00:00:fb", "33:33:00:00:00:fb")] == [g in groups for g in "46"]

        assert listens()
        with machine(daemon) as guest:
            queries: set[bytes] = set()

            def asked(frame: bytes) -> bool:
                if frame[12:14] == b"\x08\0" and frame[38:39] == b"\x11":
                    queries.add(b"IGMP")
                if frame[12:14] == b"\x86\xdd" and frame[62:63] == b"\x82":
                    queries.add(b"MLD")
                return len(queries) == 2

            guest.receive(asked)
            guest.send(igmp(0x16, "224.0.0.251"))
            until(lambda: listens("4"), "it listens to an IPv4 group")
            guest.send(mld(131, "ff02::fb"))
            until(lambda: listens("4", "6"), "it listens to an IPv6 group")
            guest.send(igmp(0x17, "224.0.0.251"))
            until(lambda: listens("6"), "it has left the first")
        until(listens, "it is gone")


@pytest.mark.parametrize("version", [4, 6])
def test_a_machine_gets_the_groups_that_it_has_reported(lab: Lab, version: int) -> None:
    """And all before it has reported any, those of the other IP version, broadcast, and what nobody has to report."""
    ports = [
        {"name": f"vm{k}", "kind": "tap", "addresses": [f"10.1.0.6{k}/16"], "guard": "off", "mac": "master"}
        for k in (1, 2)
    ]
    if version == 4:
        mine, other, unreported = "239.1.1.1", "239.1.1.2", "224.0.0.77"
        report, ask = lambda group: igmp(0x16, group), igmp(0x11, "0.0.0.0")
    else:
        mine, other, unreported = "ff05::101", "ff05::102", "ff02::1"
        report, ask = lambda group: mld(131, group), mld(130, "::")
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon, raw(lab.wire, "w0") as wire:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1")

        def gets(*groups: str) -> set[str]:
            """Those of the groups whose packets arrive before one that is for everybody."""
            for group in (*groups, "255.255.255.255"):
                what = frames.udp4 if "." in group else frames.udp6
                wire.send(
                    what(
                        WIRE4 if "." in group else WIRE6, group, f"to {group}.".encode(), to=mac_of(group), by=WIRE_MAC
                    )
                )
            arrived: set[str] = set()

            def last(frame: bytes) -> bool:
                arrived.update(group for group in groups if f"to {group}.".encode() in frame)
                return b"to 255.255.255.255." in frame

            guest.receive(last)
            return arrived

        with machine(daemon) as guest:
            everything = (mine, other, unreported, "ff05::103" if version == 4 else "239.1.1.3")
            assert gets(*everything) == {*everything}, "it has reported none"
            guest.send(report(mine))
            until(lambda: gets(mine, other) == {mine}, "it gets its own alone")
            assert gets(*everything) == {*everything} - {other}
            guest.send(ask)
            until(lambda: gets(mine, other) == {mine, other}, "a router gets all")


def mac_of(group: str) -> str:
    """RFC 1112 section 6.4, RFC 2464 section 7."""
    if group == "255.255.255.255":
        return "ff:ff:ff:ff:ff:ff"
    if ":" in group:
        return "33:33:" + socket.inet_pton(socket.AF_INET6, group)[12:].hex(":")
    packed = socket.inet_aton(group)
    return "01:00:5e:" + bytes([packed[1] & 127, *packed[2:]]).hex(":")
