"""Which frames are punted, and how they are reinjected."""

from __future__ import annotations

import struct

import pytest

from ipvsw._fast import ACCESS, FLAGS, MODES
from tests.native.interfaces import BROADCAST, FOREIGN, HEADER, MASTER, Lab, between, frame, ipv4, lab, v4, v6
from tests.support.patience import until

COOKIE = bytes((99, 130, 83, 99))
NEW4 = bytes((10, 0, 9, 9))
NEW6 = bytes.fromhex("fe80") + bytes(13) + b"\7"
CREDIT, FOR_DHCP = 32, 8
FROM_MASTER, FROM_HOST = -1, -3


def dhcp4(source: bytes, to: bytes = b"\xff" * 4, port: int = 67, size: int = 236, mac: bytes = BROADCAST) -> bytes:
    udp = struct.pack("!HHHH", 135 - port, port, 8 + size + 4, 0) + bytes(size) + COOKIE
    return frame(mac, MASTER, ipv4(source, to, udp))


def dhcp6(source: bytes, to: bytes, port: int = 547) -> bytes:
    udp = struct.pack("!HHHH", 1093 - port, port, 12, 0) + b"\1\0\0\1"
    return frame(FOREIGN, MASTER, struct.pack("!IHBB", 6 << 28, 12, 17, 1) + source + to + udp, 0x86DD)


def arp(sender: bytes, target: bytes) -> bytes:
    packet = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + MASTER + sender + bytes(6) + target
    return frame(BROADCAST, MASTER, packet, 0x0806)


def nd(kind: int, source: bytes, target: bytes) -> bytes:
    packet = struct.pack("!IHBB", 6 << 28, 24, 58, 255) + source + v6(99) + bytes([kind]) + bytes(7) + target
    return frame(FOREIGN, MASTER, packet, 0x86DD)


def snooper(it: Lab, port: int = 0) -> None:
    it.datapath.set_learning(it.numbers[port], True)
    it.datapath.commit()


def punted(it: Lab, count: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []

    def enough() -> bool:
        found.extend(it.datapath.punted())
        return len(found) >= count

    until(enough, f"{count} frames are punted")
    return found


NEW_ADDRESSES = {
    "ipv4": frame(FOREIGN, MASTER, ipv4(NEW4, v4(99))),
    "arp": arp(NEW4, v4(1)),
    "probe": arp(bytes(4), NEW4),
    "ipv6": nd(135, NEW6, v6(1)),
    "dad": nd(135, bytes(16), NEW6),
    "advertisement": nd(136, v6(0), NEW6),
    "anothers": frame(FOREIGN, MASTER, ipv4(v4(1), v4(99))),
}


@pytest.mark.parametrize("claim", NEW_ADDRESSES.values(), ids=NEW_ADDRESSES)
def test_a_new_address_is_punted_and_the_frame_forwarded_when_it_is_reinjected(claim: bytes) -> None:
    with lab(2) as it:
        snooper(it)
        it.interfaces[0].send(claim)
        assert punted(it, 1) == [(0, HEADER + claim)]
        assert it.counted(0).rx_frames == 1 and it.counted(0).outcomes == {}
        it.datapath.reinject(0, HEADER + claim)
        it.datapath.commit()
        assert it.master[0].receive() == claim
        outcome = "to_ports" if claim[0] & 1 else "to_master"
        assert it.settled(0, 1).outcomes == {outcome: 1}


OLD = {
    "own": frame(FOREIGN, MASTER, ipv4(v4(0), v4(99))),
    "own arp": arp(v4(0), v4(1)),
    "own dad": nd(135, bytes(16), v6(0)),
    "none": frame(FOREIGN, MASTER, b"\1\2", 0x88B5),
    "unspecified": frame(FOREIGN, MASTER, ipv4(bytes(4), v4(99))),
    "tagged": frame(FOREIGN, MASTER, ipv4(NEW4, v4(99)), tags=[b"\x81\0\0\7"]),
}


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_what_is_nothing_new_goes_on_at_once(old: bytes) -> None:
    with lab(2) as it:
        snooper(it)
        it.interfaces[0].send(old)
        it.interfaces[1].send(claim := NEW_ADDRESSES["ipv4"])  # doesn't learn
        assert {it.master[0].receive(), it.master[0].receive()} == {old, claim}
        assert it.datapath.punted() == []


def test_link_local_addresses_alone() -> None:
    site_local = bytes.fromhex("fec0") + bytes(13) + b"\7"
    others = [NEW_ADDRESSES["ipv4"], NEW_ADDRESSES["arp"], nd(135, site_local, v6(1))]
    claims = [NEW_ADDRESSES["ipv6"], NEW_ADDRESSES["dad"], NEW_ADDRESSES["advertisement"]]
    with lab(1) as it:
        it.datapath.set_learning(0, False, link_local=True)
        it.datapath.commit()
        for each in others:
            it.interfaces[0].send(each)
        it.settled(0, len(others))
        for claim in claims:
            it.interfaces[0].send(claim)
            assert punted(it, 1) == [(0, HEADER + claim)]
        it.datapath.bind(NEW6, 0)
        it.datapath.commit()
        for claim in claims:
            it.interfaces[0].send(claim)
        until(lambda: it.counted(0).rx_frames == len(others) + 2 * len(claims), "what is known goes on")
        assert it.datapath.punted() == [] and it.datapath.used(0, [NEW6]) == [NEW6]


def test_a_bound_address_is_new_no_more_and_is_in_use() -> None:
    with lab(1) as it:
        snooper(it)
        assert it.datapath.used(0, [v4(0), NEW4]) == []
        it.datapath.bind(NEW4, 0)
        it.datapath.commit()
        it.interfaces[0].send(NEW_ADDRESSES["ipv4"])
        assert it.master[0].receive() == NEW_ADDRESSES["ipv4"]
        assert it.datapath.used(0, [v4(0), NEW4]) == [NEW4]
        assert it.datapath.used(0, [v4(0), NEW4]) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flood_is_punted_in_part_and_nothing_of_it_is_lost(workers: int) -> None:
    """What a port keeps for DHCP is not spent on addresses, and others have credits of their own."""
    with lab(2, workers=workers) as it:
        snooper(it, 0)
        snooper(it, 1)
        flood = [frame(FOREIGN, MASTER, ipv4(bytes((10, 0, 8, k)), v4(99))) for k in range(100)]
        for each in flood:
            it.interfaces[0].send(each)
        unseen = 100 - (CREDIT - FOR_DHCP)
        until(lambda: it.counted(0).outcomes == {"to_master": unseen}, "the flood")
        it.interfaces[0].send(dhcp4(bytes(4)))
        it.interfaces[1].send(flood[0])
        seen = punted(it, CREDIT - FOR_DHCP + 2)
        assert sorted(seen)[-1] == (1, HEADER + flood[0])
        assert [each for source, each in seen if source == 0] == [
            HEADER + each for each in [*flood[:24], dhcp4(bytes(4))]
        ]
        for source, each in seen:
            it.datapath.reinject(source, each)
        it.datapath.commit()
        assert it.settled(0, 101).outcomes == {"to_master": 100, "to_ports": 1}
        it.datapath.give_credit(0)
        for each in flood:
            it.interfaces[0].send(each)
        more = CREDIT // 4 - 1
        until(lambda: it.counted(0).outcomes["to_master"] == 200 - more, "the second flood")
        assert len(punted(it, more)) == more


def test_dhcp_is_punted_from_every_interface_and_goes_to_its_addressee() -> None:
    with lab(3) as it:
        it.interfaces[1].send(ask := dhcp4(bytes(4)))
        assert punted(it, 1) == [(1, HEADER + ask)]
        changed = ask[:-1] + b"!"
        it.datapath.reinject(1, HEADER + changed)
        it.datapath.commit()
        assert {it.interfaces[0].receive(), it.interfaces[2].receive(), it.master[0].receive()} == {changed}
        it.master[0].send(answer := dhcp4(v4(99), port=68))
        assert punted(it, 1) == [(FROM_MASTER, HEADER + answer)]
        it.datapath.reinject(FROM_MASTER, HEADER + answer, 1)
        it.datapath.reinject(FROM_MASTER, HEADER + changed)
        it.datapath.commit()
        assert it.interfaces[1].receive() == answer
        assert {it.interfaces[k].receive() for k in range(3)} == {changed}
        until(lambda: it.counted(None).outcomes == {"to_port": 1, "to_ports": 1}, "both are counted")


def test_what_the_wire_asks_is_nobodys_business() -> None:
    with lab(1) as it:
        for each in (dhcp4(v4(50)), dhcp6(v6(50), v6(0)), dhcp4(v4(50), port=69)):
            it.master[0].send(each)
            assert it.interfaces[0].receive() == each
        it.interfaces[0].send(short := dhcp4(v4(0), size=235))
        it.interfaces[0].send(other := dhcp4(v4(0), port=69))
        assert {it.master[0].receive(), it.master[0].receive()} == {short, other}
        assert it.datapath.punted() == []


def test_dhcp_for_ipv6() -> None:
    with lab(1) as it:
        it.interfaces[0].send(ask := dhcp6(v6(0), v6(99)))
        it.master[0].send(answer := dhcp6(v6(99), v6(0), 546))
        assert sorted(punted(it, 2)) == [(FROM_MASTER, HEADER + answer), (0, HEADER + ask)]


def test_dhcp_with_a_priority_tag() -> None:
    """And with no other: a VLAN's is the VLAN's."""
    with lab(1) as it:
        for tag in (b"\x81\0\0\0", b"\x81\0\xa0\0"):
            tagged = (plain := dhcp4(v4(99), port=68))[:12] + tag + plain[12:]
            it.master[0].send(tagged)
            assert punted(it, 1) == [(FROM_MASTER, HEADER + tagged)]
            it.datapath.reinject(FROM_MASTER, HEADER + tagged, 0)
            it.datapath.commit()
            assert it.interfaces[0].receive() == tagged
            it.interfaces[0].send(tagged := (plain := dhcp4(bytes(4)))[:12] + tag + plain[12:])
            assert punted(it, 1) == [(0, HEADER + tagged)]
        for tag in (b"\x81\0\0\7", b"\x88\xa8\0\0", b"\x81\0\0\0\x81\0\0\0"):
            tagged = (plain := dhcp4(bytes(4)))[:12] + tag + plain[12:]
            it.interfaces[0].send(tagged)
            assert it.master[0].receive() == tagged
        assert it.datapath.punted() == []


def arp_reply(sender: bytes, target: bytes, to: bytes = MASTER) -> bytes:
    packet = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + MASTER + sender + MASTER + target
    return frame(to, MASTER, packet, 0x0806)


def test_probes_and_the_replies_to_them() -> None:
    with lab(3) as it:
        it.interfaces[0].send(probe := arp(bytes(4), NEW4))
        assert punted(it, 1) == [(0, HEADER + probe)]
        it.datapath.reinject(0, HEADER + probe)
        it.datapath.commit()
        assert {it.interfaces[1].receive(), it.interfaces[2].receive(), it.master[0].receive()} == {probe}
        it.master[0].send(reply := arp_reply(NEW4, bytes(4)))
        assert punted(it, 1) == [(FROM_MASTER, HEADER + reply)]
        it.datapath.reinject(FROM_MASTER, HEADER + reply, 0)
        it.datapath.reinject(FROM_MASTER, HEADER + reply, 2, copy=True)
        it.datapath.commit()
        assert it.interfaces[0].receive() == it.interfaces[2].receive() == reply
        assert it.settled(None, 1).outcomes == {"to_port": 1}, "a copy is not counted"
        until(lambda: it.counted(2).tx_frames == 2, "nor lost")
        it.interfaces[1].send(reply)
        assert punted(it, 1) == [(1, HEADER + reply)]
        for each in (arp_reply(v4(0), v4(1)), arp_reply(NEW4, bytes(4), FOREIGN), arp(v4(0), v4(1))):
            it.interfaces[0].send(each)
        it.master[0].send(arp_reply(NEW4, bytes(4), FOREIGN))
        until(lambda: it.counted(None).rx_frames == 2, "the wire's is read")
        assert {it.interfaces[1].receive() for _ in range(2)} == {arp(v4(0), v4(1)), arp_reply(v4(0), v4(1))}
        assert it.datapath.punted() == []


def test_replies_to_probes_leave_dhcp_its_credit() -> None:
    with lab(1) as it:
        for _ in range(200):
            it.master[0].send(arp_reply(NEW4, bytes(4)))
        until(lambda: it.counted(None).rx_frames == 200, "they are read")
        it.master[0].send(answer := dhcp4(v4(99), port=68))
        assert punted(it, 65)[-1] == (FROM_MASTER, HEADER + answer)


@pytest.mark.parametrize(
    ("flag", "outcome"), [("bridge", "to_port"), ("private", "drop_private"), ("vepa", "to_master")]
)
def test_a_port_serves_its_sibling_as_the_flag_allows(flag: str, outcome: str) -> None:
    with lab(2, flag=flag) as it:
        it.interfaces[0].send(answer := dhcp4(NEW4, port=68, mac=MASTER))
        assert punted(it, 1) == [(0, HEADER + answer)]
        it.datapath.reinject(0, HEADER + answer, 1)
        it.datapath.reinject(0, HEADER + answer, 1, copy=True)
        it.datapath.commit()
        assert it.settled(0, 1).outcomes == {outcome: 1}
        place = {"bridge": it.interfaces[1], "vepa": it.master[0]}.get(flag)
        if place is not None:
            assert place.receive() == answer
        assert len(it.interfaces[1].waiting()) == (flag == "bridge")
        assert it.master[0].waiting() == []


def test_a_sibling_without_room() -> None:
    with lab(2) as it:
        it.datapath.set_port(1, up=True, mtu=200)
        it.datapath.commit()
        it.interfaces[0].send(answer := dhcp4(NEW4, port=68, mac=MASTER))
        punted(it, 1)
        it.datapath.reinject(0, HEADER + answer, 1)
        it.datapath.commit()
        assert it.settled(0, 1).outcomes == {"drop_too_big": 1}


REPORTS = {
    "igmp": frame(b"\1\0\x5e\0\0\x16", MASTER, ipv4(v4(0), bytes((224, 0, 0, 22)), bytes(16), protocol=2)),
    "mld": frame(
        b"\x33\x33\0\0\0\x16",
        MASTER,
        struct.pack("!IHBB", 6 << 28, 36, 0, 1) + v6(0) + v6(99) + bytes((58, 0, 5, 2, 0, 0, 1, 0)) + bytes(28),
        0x86DD,
    ),
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_membership_reports_of_a_port_that_gets_every_group(report: bytes) -> None:
    with lab(2) as it:
        it.interfaces[0].send(report)
        assert it.master[0].receive() == report, "another's are not of interest"
        it.datapath.set_groups(0, (), all_multicast=True)
        it.datapath.commit()
        it.interfaces[0].send(report)
        assert punted(it, 1) == [(0, HEADER + report)]
        it.datapath.reinject(0, HEADER + report)
        it.datapath.commit()
        assert it.master[0].receive() == report
        it.datapath.set_groups(0, (), all_multicast=False)
        it.datapath.commit()
        it.interfaces[0].send(report)
        assert it.master[0].receive() == report
        assert it.datapath.punted() == []


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_in_l3_reports_are_of_interest_where_groups_are_switched(mode: str, report: bytes) -> None:
    with lab(1, mode=mode) as it:
        it.datapath.set_groups(0, (), all_multicast=True)
        it.datapath.commit()
        it.interfaces[0].send(report)
        assert it.settled(0, 1).outcomes == {"drop_multicast": 1}
        it.datapath.set_mode(MODES[mode], FLAGS["bridge"], ACCESS["none"], [bytes((224, 0, 0, 251))])
        it.datapath.commit()
        it.interfaces[0].send(report)
        assert punted(it, 1) == [(0, HEADER + report)]
        it.datapath.reinject(0, HEADER + report)
        it.datapath.commit()
        assert it.settled(0, 2).outcomes == {"drop_multicast": 2}


def test_in_l3_only_addresses_are_of_interest() -> None:
    with lab(1, mode="l3") as it:
        snooper(it)
        it.interfaces[0].send(dhcp4(v4(0), v4(99), mac=FOREIGN))
        until(lambda: it.datapath.slow(), "it waits for its route")
        it.interfaces[0].send(NEW_ADDRESSES["ipv4"])
        assert punted(it, 1) == [(0, HEADER + NEW_ADDRESSES["ipv4"])]


def test_the_host_answers_too() -> None:
    with lab(1) as it:
        it.datapath.set_mode(MODES["l2"], FLAGS["bridge"], ACCESS["both"])
        it.datapath.attach_host(it.host.outside.fileno())
        it.datapath.commit()
        it.host.inside.send(HEADER + (answer := dhcp4(v4(99), port=68)))
        assert punted(it, 1) == [(FROM_HOST, HEADER + answer)]
        it.datapath.reinject(FROM_HOST, HEADER + answer, 0)
        it.datapath.commit()
        assert it.interfaces[0].receive() == answer
        assert it.settled("host", 1).outcomes == {"to_port": 1}


def test_a_port_that_left_meanwhile() -> None:
    with lab(2) as it:
        it.interfaces[0].send(dhcp4(bytes(4)))
        until(lambda: it.counted(0).rx_frames == 1, "it is read")
        for address in (v4(0), v6(0)):
            it.datapath.unbind(address)
        it.datapath.detach_port(0)
        it.datapath.commit()
        assert it.datapath.punted() == []
        for wrong in (-2, 0):
            with pytest.raises(ValueError, match="there is no"):
                it.datapath.reinject(wrong, HEADER + dhcp4(bytes(4)))
        with pytest.raises(ValueError, match="has not 9 bytes"):
            it.datapath.reinject(1, bytes(9))
        it.interfaces[1].send(between(1, 0))
        assert it.host.receive() == between(1, 0)


def test_frames_that_nobody_took_are_freed() -> None:
    with lab(1, start=False) as it:
        it.datapath.reinject(0, HEADER + between(0, 0))
        it.datapath.reinject(0, HEADER + between(0, 0))
        it.datapath.commit()
