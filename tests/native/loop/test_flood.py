"""Multicast frames: who gets a copy, who waits, what is lost."""

from __future__ import annotations

import threading

import pytest

from ipvsw._fast import ACCESS, FLAGS, MODES
from tests.native.interfaces import (
    BROADCAST,
    FOREIGN,
    MASTER,
    MDNS,
    Interface,
    between,
    broadcast,
    frame,
    ipv4,
    lab,
    v4,
    v6,
)
from tests.support.patience import until

pytestmark = pytest.mark.usefixtures("io")
ALL_HOSTS = bytes.fromhex("01005e000001")


@pytest.mark.parametrize("flag", ["bridge", "private", "vepa"])
def test_a_flood_reaches_all_but_its_sender_and_then_the_wire(flag: str) -> None:
    with lab(4, flag=flag) as it:
        it.interfaces[1].send(broadcast(1))
        assert it.master[0].receive() == broadcast(1)  # after the last copy
        assert [interface.waiting() for interface in it.interfaces] == [
            [broadcast(1)],
            [],
            [broadcast(1)],
            [broadcast(1)],
        ]
        assert it.settled(1, 1).outcomes == {"to_ports": 1}
        assert it.host.waiting() == []


def test_a_flood_from_the_wire_does_not_go_back() -> None:
    with lab(3) as it:
        arrival = frame(BROADCAST, FOREIGN, ipv4(v4(50), b"\xff" * 4))
        it.master[0].send(arrival)
        assert [interface.receive() for interface in it.interfaces] == [arrival] * 3
        assert it.settled(None, 1).outcomes == {"to_ports": 1}
        assert it.master[0].waiting() == it.host.waiting() == []


def test_a_ports_own_flood_that_the_wire_reflects_is_not_repeated() -> None:
    with lab(3) as it:
        it.master[0].send(broadcast(0))
        assert it.settled(None, 1).outcomes == {"left_to_host": 1}
        it.master[0].send(frame(MASTER, FOREIGN, ipv4(v4(50), v4(2))))
        it.interfaces[2].receive()
        assert it.interfaces[1].waiting() == it.interfaces[2].waiting() == []


def test_groups_go_to_who_joined() -> None:
    with lab(5) as it:
        it.datapath.set_groups(1, [ALL_HOSTS, MDNS])
        it.datapath.set_groups(2, [ALL_HOSTS])
        it.datapath.set_groups(3, [], all_multicast=True)
        it.datapath.commit()
        to_all, mdns = (frame(group, MASTER, ipv4(v4(0), bytes([224, 0, 0, 1]))) for group in (ALL_HOSTS, MDNS))
        for sent in (to_all, mdns, broadcast(0)):
            it.interfaces[0].send(sent)
            assert it.master[0].receive() == sent
        heard = [interface.waiting() for interface in it.interfaces]
        assert heard[:2] == [[], [to_all, mdns, broadcast(0)]]
        assert heard[2:] == [[to_all, broadcast(0)], [to_all, mdns, broadcast(0)], [broadcast(0)]]
        it.datapath.set_groups(1, [])
        it.datapath.commit()
        it.interfaces[0].send(mdns)
        assert it.master[0].receive() == mdns
        assert it.interfaces[1].waiting() == []


def to_mdns(source: bytes, sender: bytes = v4(50)) -> bytes:
    return frame(MDNS, source, ipv4(sender, bytes([224, 0, 0, 251])))


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_in_l3_the_listed_groups_go_to_who_joined_and_on_the_wire(mode: str, flag: str) -> None:
    """There from the master's MAC address, whatever the port has sent from."""
    with lab(4, mode=mode, flag=flag) as it:
        it.datapath.set_mode(MODES[mode], FLAGS[flag], ACCESS["none"], [bytes([224, 0, 0, 251])])
        for k in (0, 2):
            it.datapath.set_groups(k, [MDNS])
        it.datapath.commit()
        spoofed = to_mdns(FOREIGN, v4(0))
        it.interfaces[0].send(spoofed)
        assert it.master[0].receive() == to_mdns(MASTER, v4(0))
        assert [interface.waiting() for interface in it.interfaces] == [[], [], [spoofed], []]
        assert it.settled(0, 1).outcomes == {"to_ports": 1}
        for other in (
            frame(MDNS, MASTER, ipv4(v4(0), bytes([224, 0, 0, 252]))),  # another group, to this one's MAC address
            frame(ALL_HOSTS, MASTER, ipv4(v4(0), bytes([224, 0, 0, 251]))),
            frame(MDNS, MASTER, ipv4(v4(0), bytes([224, 0, 0, 251])), tags=[b"\x81\0\0\7"]),
            broadcast(0),
        ):
            it.interfaces[0].send(other)
        assert it.settled(0, 5).outcomes == {"to_ports": 1, "drop_multicast": 4}
        it.datapath.set_mode(MODES[mode], FLAGS[flag])
        it.datapath.commit()
        it.interfaces[0].send(spoofed)
        assert it.settled(0, 6).outcomes == {"to_ports": 1, "drop_multicast": 5}
        assert it.master[0].waiting() == it.interfaces[2].waiting() == it.host.waiting() == []


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_in_l3_the_listed_groups_come_from_the_wire_and_do_not_go_back(mode: str) -> None:
    """Nor does what comes from the master's own MAC address go to any port: it has been there."""
    with lab(3, mode=mode) as it:
        it.datapath.set_mode(MODES[mode], FLAGS["bridge"], ACCESS["both"], [bytes([224, 0, 0, 251])])
        it.datapath.set_groups(1, [MDNS])
        it.datapath.commit()
        it.master[0].send(to_mdns(MASTER, v4(0)))
        it.master[0].send(to_mdns(MASTER))
        it.master[0].send(frame(MDNS, FOREIGN, ipv4(v4(50), bytes([224, 0, 0, 252]))))
        assert it.settled(None, 3).outcomes == {"left_to_host": 3}
        to_all, to_one = to_mdns(FOREIGN), frame(MASTER, FOREIGN, ipv4(v4(50), bytes([224, 0, 0, 251])))
        for arrival in (to_all, to_one):  # the latter as RFC 6085 has it
            it.master[0].send(arrival)
            assert it.interfaces[1].receive() == arrival
        assert it.settled(None, 5).outcomes == {"left_to_host": 3, "to_ports": 2}
        places = [*it.master, *it.interfaces, it.host]
        assert [place.waiting() for place in places] == [[]] * len(places)


def test_in_l3_too_a_port_floods_no_more_than_its_limit() -> None:
    with lab(2, mode="l3") as it:
        it.datapath.set_mode(MODES["l3"], FLAGS["bridge"], ACCESS["none"], [bytes([224, 0, 0, 251])])
        it.datapath.set_limits(0, broadcast=1)
        it.datapath.commit()
        for _ in range(40):
            it.interfaces[0].send(to_mdns(MASTER, v4(0)))
        ends = it.settled(0, 40).outcomes
        assert ends.keys() == {"to_ports", "limit_broadcast"}
        assert ends["limit_broadcast"] > ends["to_ports"]


def test_no_more_groups_are_listed_than_there_is_room_for() -> None:
    with lab(1, mode="l3") as it, pytest.raises(ValueError, match="at most 16 groups, not 17"):
        it.datapath.set_mode(MODES["l3"], FLAGS["bridge"], 0, [bytes([239, 0, 0, n]) for n in range(17)])


def test_copies_above_a_siblings_mtu_are_lost_there_alone() -> None:
    with lab(3) as it:
        it.datapath.set_port(1, up=True, mtu=100)
        it.datapath.commit()
        sent = broadcast(0, bytes(500))
        it.interfaces[0].send(sent)
        assert it.interfaces[2].receive() == sent
        assert it.master[0].receive() == sent
        assert it.counted(1).tx_errors == 1
        assert it.interfaces[1].waiting() == []
        arrival = frame(BROADCAST, FOREIGN, ipv4(v4(50), b"\xff" * 4, bytes(500)))
        it.master[0].send(arrival)  # the wire's frames are not measured
        assert it.interfaces[1].receive() == arrival


def test_the_backlog_takes_a_thousand_of_an_interface_and_has_room_for_others() -> None:
    with lab(70, start=False) as it:
        flooder, other = 0, 1
        it.interfaces[flooder].room(1 << 22)
        for _ in range(1500):
            it.interfaces[flooder].send(broadcast(0))
        it.datapath.start()
        until(lambda: it.counted(flooder).outcomes.get("drop_backlog", 0) > 0, "the backlog is full")
        for _ in range(20):
            it.interfaces[other].send(broadcast(1))
        assert it.settled(other, 20).outcomes == {"to_ports": 20}
        ends = it.settled(flooder, 1500).outcomes
        assert ends["to_ports"] + ends["drop_backlog"] == 1500
        assert 1000 <= ends["to_ports"] <= 1150, "while all were read, only a few floods can have ended"


def test_a_backlog_that_has_emptied_takes_a_thousand_again() -> None:
    with lab(2, start=False) as it:
        it.datapath.start()
        it.interfaces[0].room(1 << 22)
        for turn in range(1, 4):
            for _ in range(900):
                it.interfaces[0].send(broadcast(0))
            assert it.settled(0, 900 * turn).outcomes == {"to_ports": 900 * turn}
            while it.interfaces[1].waiting():
                pass


def test_unicast_passes_between_the_slices_of_a_flood() -> None:
    with lab(80, start=False) as it:
        it.interfaces[0].room(1 << 22)
        it.interfaces[1].room(1 << 22)
        for _ in range(400):
            it.interfaces[0].send(broadcast(0))
        it.interfaces[0].send(between(0, 1))
        it.datapath.start()
        came = []
        while len(came) < 401:
            came.append(it.interfaces[1].receive())
        assert came.index(between(0, 1)) < 60, "one slice a round is less than one flood here"


def test_a_flood_ends_though_others_talk_without_end() -> None:
    floods, stop = 20, threading.Event()
    with lab(80) as it:

        def talk() -> None:
            while not stop.is_set():
                it.interfaces[1].send(between(1, 2))
                it.interfaces[2].receive()

        talker = threading.Thread(target=talk)
        talker.start()
        try:
            for _ in range(floods):
                it.interfaces[0].send(broadcast(0))
            for interface in it.interfaces[3:]:
                assert [interface.receive() for _ in range(floods)] == [broadcast(0)] * floods
        finally:
            stop.set()
            talker.join()


def test_a_new_port_hears_what_a_gone_one_of_its_number_had_sent() -> None:
    with lab(80, start=False) as it:
        it.interfaces[0].room(1 << 22)
        for n in range(900):
            it.interfaces[0].send(broadcast(0, n.to_bytes(8, "big")))
        it.datapath.start()
        it.interfaces[79].receive()  # most are waiting still
        it.datapath.unbind(v4(0))
        it.datapath.unbind(v6(0))
        it.datapath.detach_port(0)
        interface = Interface()
        try:
            assert it.add(interface, 0) == 0
            it.datapath.commit()
            assert interface.receive()[:6] == BROADCAST
        finally:
            it.datapath.detach_port(0)
            it.datapath.commit()
            interface.close()
