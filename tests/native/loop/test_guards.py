"""Guards over socket pairs: what an attacker tries, hidden in every way, towards everybody; and what is honest."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from ipvsw._fast import ACCESS, EVENT_GUARD, FLAGS, GUARDS, MODES
from tests.native.interfaces import BROADCAST, FOREIGN, HEADER, MASTER, Lab, frame, ipv4, lab, until, v4, v6
from tests.support.wire.attacks import (
    ALL_NODES,
    ALL_ROUTERS,
    ARP,
    ATOMIC,
    FIRST,
    HOP_BY_HOP,
    IPV6,
    LATER,
    NONE6,
    Attack,
    Who,
    arp,
    attacks,
    behind,
    hidden,
    ipv6,
    link_layer,
    nd,
    tagged,
    udp,
)
from tests.support.wire.frames import NEEDS_CSUM

STRICT = sum(GUARDS.values())
GATEWAY4, GATEWAY6 = v4(50), v6(50)
HOST4, HOST6 = v4(60), v6(60)
NEW4, NEW6 = v4(70), v6(70)
ATTACKS = attacks(Who(v4(0), v4(1), HOST4, GATEWAY4, v4(9), v6(0), v6(1), HOST6, GATEWAY6, v6(9)))


@pytest.fixture
def it(io: str) -> Iterator[Lab]:
    """Port 0 is guarded; 1 is its sibling, 2 has no guards."""
    with lab(3) as it:
        it.datapath.set_guards(it.numbers[0], STRICT)
        for address in (HOST4, HOST6):
            it.datapath.bind_host(address)
        for address in (GATEWAY4, GATEWAY6):
            it.datapath.bind_gateway(address)
        it.datapath.commit()
        yield it


TARGETS = {"wire": FOREIGN, "sibling or host": MASTER, "all": BROADCAST}


def ended_since(before: dict[str, int], now: dict[str, int]) -> set[str]:
    return {name for name, count in now.items() if count != before.get(name, 0)}


def everywhere(it: Lab) -> list[bytes]:
    """What has come out at the siblings, on the wire or at the host."""
    return [one for interface in (*it.interfaces[1:], *it.master, it.host) for one in interface.waiting()]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_every_attack_is_dropped_and_counted(it: Lab, attack: Attack, target: bytes) -> None:
    """Behind whatever tags and headers it stands."""
    before: dict[str, int] = {}
    for sent, ((_, chain), (tags, packet)) in enumerate(hidden(attack).items(), 1):
        it.interfaces[0].send(frame(target, MASTER, packet, attack.ethertype, tags))
        met, before = ended_since(before, it.settled(0, sent).outcomes), it.counted(0).outcomes
        # What hides in a fragment, or behind too many headers, is taken for neighbour discovery.
        assert met <= (attack.outcomes if chain == "plain" else attack.outcomes | {"guard_nd"}), chain
        assert met == {min(attack.outcomes)} or chain != "plain"
    assert everywhere(it) == []


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_another_mac_and_another_vlan(it: Lab, target: bytes) -> None:
    honest = ipv4(v4(0), v4(1))
    it.interfaces[0].send(frame(target, FOREIGN, honest))
    it.interfaces[0].send(frame(target, BROADCAST, honest))
    for tags in ([tagged(7)], [tagged(0), tagged(7)], [tagged(7, 0x9100)], [tagged(0)] * 3):
        it.interfaces[0].send(frame(target, MASTER, honest, tags=tags))
    it.interfaces[0].send(frame(target, MASTER, b"", 0x8100))
    assert it.settled(0, 7).outcomes == {"guard_mac": 2, "guard_vlan": 5}
    assert everywhere(it) == []


def test_nothing_reaches_the_host_that_host_access_does_not_let(it: Lab) -> None:
    to_host = [
        frame(MASTER, MASTER, ipv4(v4(0), HOST4)),
        frame(MASTER, MASTER, ipv4(v4(0), v4(99))),
        frame(MASTER, MASTER, arp(v4(0), HOST4), ARP),
        frame(MASTER, MASTER, ipv6(v6(0), HOST6, udp(5, 6)), IPV6),
        frame(MASTER, MASTER, ipv4(v4(0), HOST4), tags=[tagged(0)]),
        frame(MASTER, MASTER, bytes(46), 0x88B5),
    ]
    for one in to_host:
        it.interfaces[0].send(one)
    assert it.settled(0, 6).outcomes == {"guard_host": 6}
    it.datapath.set_mode(MODES["l2"], FLAGS["bridge"], ACCESS["to-host"])
    it.datapath.commit()
    for one in to_host:
        it.interfaces[0].send(one)
    assert it.settled(0, 12).outcomes == {"guard_host": 9, "to_host": 3}
    assert [it.host.receive() for _ in range(3)] == [to_host[0], to_host[2], to_host[3]]
    assert everywhere(it) == []


HONEST = {
    "ipv4 to a sibling": frame(MASTER, MASTER, ipv4(v4(0), v4(1))),
    "ipv4 outside": frame(FOREIGN, MASTER, ipv4(v4(0), v4(99))),
    "to the gateway": frame(FOREIGN, MASTER, ipv4(v4(0), GATEWAY4)),
    "priority tag": frame(FOREIGN, MASTER, ipv4(v4(0), v4(99)), tags=[tagged(0x6000)]),
    "later fragment": frame(FOREIGN, MASTER, ipv4(v4(0), v4(99))[:6] + b"\0\5" + ipv4(v4(0), v4(99))[8:]),
    "arp request": frame(BROADCAST, MASTER, arp(v4(0), v4(1)), ARP),
    "arp probe": frame(BROADCAST, MASTER, arp(bytes(4), v4(1)), ARP),
    "arp reply": frame(FOREIGN, MASTER, arp(v4(0), v4(99), opcode=2), ARP),
    "moved guest": frame(BROADCAST, MASTER, arp(bytes(4), bytes(4), opcode=3), 0x8035),
    "igmp": frame(BROADCAST, MASTER, ipv4(bytes(4), bytes([224, 0, 0, 22]), bytes(8), 2)),
    "dhcp client": frame(BROADCAST, MASTER, ipv4(bytes(4), b"\xff" * 4, udp(68, 67))),
    "dhcp renewal": frame(FOREIGN, MASTER, ipv4(v4(0), v4(99), udp(68, 67))),
    "ipv6": frame(FOREIGN, MASTER, ipv6(v6(0), v6(99), udp(5, 6)), IPV6),
    "ipv6 behind headers": frame(FOREIGN, MASTER, behind(ipv6(v6(0), v6(99), udp(5, 6)), HOP_BY_HOP, ATOMIC), IPV6),
    "later ipv6 fragment": frame(FOREIGN, MASTER, behind(ipv6(v6(0), v6(99), udp(547, 546)), LATER), IPV6),
    "dad": frame(BROADCAST, MASTER, nd(135, NONE6, ALL_NODES, NEW6, b"\x0e\1" + bytes(6)), IPV6),
    "router solicitation": frame(BROADCAST, MASTER, ipv6(NONE6, ALL_ROUTERS, b"\x85" + bytes(7), 58), IPV6),
    "solicitation": frame(BROADCAST, MASTER, nd(135, v6(0), ALL_NODES, v6(99), link_layer(1, MASTER)), IPV6),
    "advertisement": frame(FOREIGN, MASTER, nd(136, v6(0), v6(99), v6(0), link_layer(2, MASTER)), IPV6),
    "mld": frame(BROADCAST, MASTER, behind(ipv6(NONE6, ALL_NODES, b"\x8f" + bytes(7), 58), HOP_BY_HOP), IPV6),
    "dhcpv6 client": frame(BROADCAST, MASTER, ipv6(v6(0), ALL_ROUTERS, udp(546, 547)), IPV6),
    "ping of many fragments": frame(FOREIGN, MASTER, behind(ipv6(v6(0), v6(99), b"\x80" + bytes(63), 58), FIRST), IPV6),
    "esp": frame(FOREIGN, MASTER, ipv6(v6(0), v6(99), bytes(32), 50), IPV6),
    "lldp": frame(bytes.fromhex("0180c200000e"), MASTER, bytes(46), 0x88CC),
}


@pytest.mark.parametrize("honest", HONEST.values(), ids=HONEST)
def test_what_is_honest_passes(it: Lab, honest: bytes) -> None:
    it.interfaces[0].send(honest)
    until(lambda: it.datapath.punted() or it.counted(0).outcomes, "it passes, or is DHCP and waits")
    assert not [name for name in it.counted(0).outcomes if name.startswith("guard_")]


def test_a_port_without_guards_sends_what_it_likes(it: Lab) -> None:
    for attack in ATTACKS.values():
        it.interfaces[2].send(frame(BROADCAST[:5] + b"\1", FOREIGN, attack.packet, attack.ethertype, [tagged(7)]))
    assert it.settled(2, len(ATTACKS)).outcomes == {"to_ports": len(ATTACKS)}


def test_each_guard_can_be_on_alone_and_off_again(it: Lab) -> None:
    sent = 0
    for name in GUARDS:
        it.datapath.set_guards(0, GUARDS[name])
        it.datapath.commit()
        for what, attack in ATTACKS.items():
            if "dhcpv6" in what:
                continue  # where no guard stops it, it waits for the snooper
            it.interfaces[0].send(frame(FOREIGN, MASTER, attack.packet, attack.ethertype))
            sent += 1
        it.settled(0, sent)
        it.master[0].waiting()  # room for the next
    ended = it.counted(0).outcomes
    assert ended.pop("to_master") == sent - sum(ended.values())
    assert set(ended) == {"guard_" + one for one in ("ip_source", "arp", "nd", "ra", "dhcp_server", "gateway")}
    it.datapath.set_guards(0, 0)
    it.datapath.commit()
    it.interfaces[0].send(frame(FOREIGN, BROADCAST[:5] + b"\2", ipv4(v4(1), v4(9)), tags=[tagged(7)]))
    assert it.settled(0, sent + 1).outcomes["to_master"] == sent - sum(ended.values()) + 1
    with pytest.raises(ValueError, match="no guards 0x200"):
        it.datapath.set_guards(0, STRICT + 1)


def partial(place: int, gso: int = 0) -> bytes:
    """A virtio_net_hdr: the checksum from byte 20 on is to be written there."""
    return struct.pack("=BBHHHH", NEEDS_CSUM, gso, 0, 1000 * (gso > 0), 20, place - 20)


UDP4, UDP6 = ipv4(v4(0), v4(9), udp(5, 6)), ipv6(v6(0), v6(9), udp(5, 6))
TCP4 = ipv4(v4(0), v4(9), bytes(12) + b"\x50" + bytes(2007), 6)
CHANGED = {
    "ipv4 source": (frame(FOREIGN, MASTER, UDP4), 28),
    "ipv4 protocol": (frame(FOREIGN, MASTER, UDP4), 22),
    "udp ports": (frame(FOREIGN, MASTER, UDP4), 36),
    "a gso frame's source": (frame(FOREIGN, MASTER, TCP4), 26),
    "behind a tag": (frame(FOREIGN, MASTER, UDP4, tags=[tagged(0)]), 30),
    "arp sender": (frame(BROADCAST, MASTER, arp(v4(0), v4(1)), ARP), 28),
    "arp sender's mac": (frame(BROADCAST, MASTER, arp(v4(0), v4(1)), ARP), 22),
    "behind arp": (frame(BROADCAST, MASTER, arp(v4(0), v4(1)) + bytes(18), ARP), 56),
    "ipv6 source": (frame(FOREIGN, MASTER, UDP6, IPV6), 36),
    "extension header": (frame(FOREIGN, MASTER, behind(UDP6, HOP_BY_HOP), IPV6), 54),
    "udp ports behind it": (frame(FOREIGN, MASTER, behind(UDP6, HOP_BY_HOP), IPV6), 62),
    "nd target": (frame(FOREIGN, MASTER, nd(136, v6(0), v6(9), v6(0)), IPV6), 76),
    "icmpv6 type": (frame(FOREIGN, MASTER, nd(136, v6(0), v6(9), v6(0)), IPV6), 54),
    "no ip": (frame(FOREIGN, MASTER, bytes(46), 0x88B5), 30),
}
FILLED = {
    "udp": (frame(FOREIGN, MASTER, UDP4), 40),
    "udp behind a tag": (frame(FOREIGN, MASTER, UDP4, tags=[tagged(0)]), 44),
    "udp over ipv6": (frame(FOREIGN, MASTER, behind(UDP6, HOP_BY_HOP), IPV6), 68),
    "tcp": (frame(FOREIGN, MASTER, TCP4), 50),
    "in a tunnel": (frame(FOREIGN, MASTER, ipv4(v4(0), v4(9), udp(5, 4789) + bytes(60))), 90),
    "icmpv6": (frame(FOREIGN, MASTER, nd(136, v6(0), v6(9), v6(0)), IPV6), 56),
    "nothing": (frame(FOREIGN, MASTER, UDP4), 0),
}


@pytest.mark.parametrize(("sent", "place"), CHANGED.values(), ids=CHANGED)
def test_no_checksum_is_written_over_what_a_guard_looks_at(it: Lab, sent: bytes, place: int) -> None:
    header = partial(place, int(sent == CHANGED["a gso frame's source"][0]))
    it.interfaces[0].send(sent, header)
    assert it.settled(0, 1).outcomes == {"drop_bad_header": 1}
    assert everywhere(it) == []
    it.interfaces[2].send(sent, header)  # who has no guards may
    assert not it.settled(2, 1).outcomes.get("drop_bad_header")


@pytest.mark.parametrize(("sent", "place"), FILLED.values(), ids=FILLED)
def test_a_checksum_where_it_belongs_is_left_to_the_device(it: Lab, sent: bytes, place: int) -> None:
    header = partial(place) if place else HEADER
    it.interfaces[0].send(sent, header)
    assert it.settled(0, 1).outcomes == {"to_master": 1}
    assert it.master[0].outside.recv(9000) == header + sent


def test_an_endpoint_behind_mac_nat_is_guarded_by_what_it_becomes(it: Lab) -> None:
    guest = bytes.fromhex("0200000000aa")
    it.datapath.unbind(v4(2))
    it.datapath.detach_port(2)
    it.datapath.commit()
    number = it.add(it.interfaces[2], 2, own=guest)
    it.datapath.set_guards(number, STRICT)
    it.datapath.commit()
    it.interfaces[2].send(frame(FOREIGN, guest, ipv4(v4(2), v4(9))))
    it.interfaces[2].send(frame(FOREIGN, guest, arp(v4(2), v4(9), mac=guest), ARP))
    it.interfaces[2].send(frame(FOREIGN, guest, arp(v4(1), v4(9), mac=guest), ARP))
    assert it.settled(number, 3).outcomes == {"to_master": 2, "guard_arp": 1}


# ---------------------------------------------------------------------------- addresses that nobody owns yet


UNKNOWN = {
    "ipv4": (frame(FOREIGN, MASTER, ipv4(NEW4, v4(99))), NEW4, "guard_ip_source"),
    "arp": (frame(FOREIGN, MASTER, arp(NEW4, v4(99)), ARP), NEW4, "guard_arp"),
    "ipv6": (frame(FOREIGN, MASTER, ipv6(NEW6, v6(99), udp(5, 6)), IPV6), NEW6, "guard_ip_source"),
    "advertisement": (frame(FOREIGN, MASTER, nd(136, v6(0), v6(99), NEW6), IPV6), NEW6, "guard_nd"),
}


@pytest.mark.parametrize(("sent", "address", "outcome"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_new_address_waits_and_is_checked_once_more(it: Lab, sent: bytes, address: bytes, outcome: str) -> None:
    it.datapath.set_guards(0, STRICT, holds=True)
    it.datapath.commit()
    for bound in (False, True):
        it.interfaces[0].send(sent)
        waiting: list[tuple[int, bytes]] = []
        until(lambda: waiting.extend(it.datapath.punted()) or waiting, "it waits")  # noqa: B023
        assert waiting == [(0, HEADER + sent)]
        if bound:
            it.datapath.bind(address, 0)
        it.datapath.reinject(*waiting[0])
        it.datapath.commit()
        it.settled(0, 1 + bound)
    assert it.counted(0).outcomes == {outcome: 1, "to_master": 1}
    assert it.master[0].receive() == sent


def test_only_so_many_wait_and_none_that_is_at_fault_besides(it: Lab) -> None:
    it.datapath.set_guards(0, STRICT, holds=True)
    it.datapath.commit()
    for wrong in (
        frame(FOREIGN, FOREIGN, ipv4(NEW4, v4(9))),
        frame(FOREIGN, MASTER, ipv4(NEW4, v4(9), udp(67, 68))),
        frame(FOREIGN, MASTER, ipv4(NEW4, v4(9)), tags=[tagged(0)]),
        frame(FOREIGN, MASTER, nd(136, v6(1), v6(9), NEW6), IPV6),
        frame(FOREIGN, MASTER, ipv6(bytes(15) + b"\1", v6(9), udp(5, 6)), IPV6),
    ):
        it.interfaces[0].send(wrong)
    it.settled(0, 5)
    assert it.datapath.punted() == []
    for _ in range(40):
        it.interfaces[0].send(UNKNOWN["ipv4"][0])
    credit = 24  # of a port's 32; the others are for DHCP
    until(lambda: it.counted(0).rx_frames == 45, "all are read")
    until(lambda: it.counted(0).outcomes["guard_ip_source"] == 3 + 40 - credit, "what has no credit is dropped")
    assert len(it.datapath.punted()) == credit


# ---------------------------------------------------------------------------- for the log


def test_the_first_offence_is_told_and_the_next_when_asked_for(it: Lab) -> None:
    assert it.datapath.offence(0) is None
    it.interfaces[0].send(frame(FOREIGN, FOREIGN, ipv4(v4(1), v4(9))))
    until(lambda: (0, EVENT_GUARD) in it.datapath.events(), "the event")
    for _ in range(3):
        it.interfaces[0].send(frame(FOREIGN, MASTER, arp(GATEWAY4, v4(9)), ARP))
    it.settled(0, 4)
    assert it.datapath.events() == []
    assert it.datapath.offence(0) == ("guard_mac", FOREIGN, ip_address(v4(1)))
    it.datapath.await_offence(0)
    assert it.datapath.offence(0) is None
    it.interfaces[0].send(frame(FOREIGN, MASTER, arp(GATEWAY4, v4(9)), ARP))
    until(lambda: (0, EVENT_GUARD) in it.datapath.events(), "the next event")
    assert it.datapath.offence(0) == ("guard_gateway", MASTER, ip_address(GATEWAY4))
    it.datapath.await_offence(0)
    it.interfaces[0].send(frame(MASTER, MASTER, bytes(46), 0x88B5))
    until(lambda: (0, EVENT_GUARD) in it.datapath.events(), "the last event")
    assert it.datapath.offence(0) == ("guard_host", MASTER, None)
    assert it.datapath.offence(2) is None


def test_a_gateway_is_nobody_for_all_but_the_guards(it: Lab) -> None:
    """Neither is it delivered to, nor does it keep a port from having the address later."""
    it.master[0].send(frame(MASTER, FOREIGN, ipv4(v4(99), GATEWAY4)))
    assert it.settled(None, 1).outcomes == {"left_to_host": 1}
    it.interfaces[2].send(frame(MASTER, MASTER, ipv4(v4(2), GATEWAY4)))
    assert it.settled(2, 1).outcomes == {"to_host": 1}
    it.datapath.unbind(GATEWAY4)
    it.datapath.commit()
    it.interfaces[0].send(frame(FOREIGN, MASTER, ipv4(GATEWAY4, v4(9))))
    assert it.settled(0, 1).outcomes == {"guard_ip_source": 1}
    it.datapath.bind(GATEWAY4, 0)
    it.datapath.commit()
    it.interfaces[0].send(frame(FOREIGN, MASTER, ipv4(GATEWAY4, v4(9))))
    assert it.settled(0, 2).outcomes == {"guard_ip_source": 1, "to_master": 1}


def test_what_a_port_has_just_lost_is_its_own_for_its_guards_alone(it: Lab) -> None:
    """Its last frames pass; nobody is delivered to, and no sibling may claim it."""
    it.datapath.set_guards(2, STRICT)
    for address in (v4(0), v6(0)):
        it.datapath.unbind(address)
        it.datapath.bind_former(address, 0)
    it.datapath.commit()
    late = [
        frame(FOREIGN, MASTER, ipv4(v4(0), v4(99))),
        frame(BROADCAST, MASTER, arp(v4(0), v4(99)), ARP),
        frame(FOREIGN, MASTER, ipv6(v6(0), v6(99), udp(5, 6)), IPV6),
        frame(FOREIGN, MASTER, nd(136, v6(0), v6(99), v6(0), link_layer(2, MASTER)), IPV6),
    ]
    for one in late:
        it.interfaces[0].send(one)
        it.interfaces[2].send(one)
    assert it.settled(0, 4).outcomes == {"to_master": 3, "to_ports": 1}
    assert it.settled(2, 4).outcomes == {"guard_ip_source": 3, "guard_arp": 1}
    it.master[0].send(frame(MASTER, FOREIGN, ipv4(v4(99), v4(0))))
    assert it.settled(None, 1).outcomes == {"left_to_host": 1}
    for address in (v4(0), v6(0)):
        it.datapath.unbind(address)
    it.datapath.commit()
    for one in late:
        it.interfaces[0].send(one)
    ended = {"guard_ip_source": 3, "guard_arp": 1}
    assert it.settled(0, 8).outcomes == {"to_master": 3, "to_ports": 1, **ended}


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_what_the_host_routes_to_itself_is_kept_from_it_too(io: str, mode: str) -> None:
    with lab(2, mode=mode) as it:
        it.datapath.set_route(HOST4, stack=True, local=True)
        it.datapath.set_route(v4(99), stack=True)
        it.datapath.commit()
        outcomes = []
        for guards in (0, GUARDS["host"]):
            it.datapath.set_guards(0, guards)
            it.datapath.commit()
            assert it.datapath.guards(0) == (("host",) if guards else ())
            for to in (HOST4, v4(99)):
                before = it.counted(0).outcomes
                it.interfaces[0].send(frame(FOREIGN, MASTER, ipv4(v4(0), to)))
                outcomes.append(ended_since(before, it.settled(0, len(outcomes) + 1).outcomes))
        assert outcomes[0] == outcomes[1] == outcomes[3]  # as the stack takes it: there is none here
        assert outcomes[2] == {"guard_host"}
        assert it.datapath.guards(7) == ()
