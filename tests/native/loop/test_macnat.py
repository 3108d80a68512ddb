"""MAC NAT through the loop: whom endpoints with a MAC address of their own reach."""

from __future__ import annotations

import contextlib
import struct

import pytest

from tests.native.interfaces import BROADCAST, FOREIGN, MASTER, Interface, Lab, frame, ipv4, lab, v4, v6
from tests.native.macnat_frames import ARP, GUEST, IPV6, LIAR, OTHER, arp, nd, option, verified
from tests.reference.macnat import Offload, folded


@contextlib.contextmanager
def with_guests(*, mode: str = "l2", workers: int = 1) -> Lab:
    """Ports 0 and 1 use the master's MAC address, 2 and 3 their own: GUEST until they say another."""
    with lab(ports=2, mode=mode, workers=workers) as it:
        it.interfaces += [Interface(), Interface()]
        it.numbers += [it.add(it.interfaces[k], k, own=GUEST) for k in (2, 3)]
        it.datapath.commit()
        yield it


def test_own_mac_is_kept_as_long_as_the_port() -> None:
    with lab(ports=1) as it, contextlib.closing(Interface()) as interface:
        number = it.add(interface, 1, own=GUEST)
        it.datapath.commit()
        assert it.datapath.own_mac(number) == GUEST
        assert it.datapath.own_mac(it.numbers[0]) is None
        it.datapath.unbind(v4(1))
        it.datapath.unbind(v6(1))
        it.datapath.detach_port(number)
        assert it.add(interface, 1) == number
        it.datapath.commit()
        assert it.datapath.own_mac(number) is None


@pytest.mark.parametrize("workers", [1, 3])
def test_endpoints_talk_to_each_other_to_siblings_and_to_the_wire(workers: int) -> None:
    with with_guests(workers=workers) as it:
        a, b, plain = it.interfaces[2], it.interfaces[3], it.interfaces[0]
        a.send(frame(MASTER, OTHER, ipv4(v4(2), v4(3))))
        assert b.receive() == frame(GUEST, MASTER, ipv4(v4(2), v4(3)))
        b.send(frame(MASTER, LIAR, ipv4(v4(3), v4(2))))
        assert a.receive() == frame(OTHER, MASTER, ipv4(v4(3), v4(2)))
        a.send(frame(MASTER, OTHER, ipv4(v4(2), v4(0))))
        assert plain.receive() == frame(MASTER, MASTER, ipv4(v4(2), v4(0)))
        plain.send(frame(MASTER, MASTER, ipv4(v4(0), v4(2))))
        assert a.receive() == frame(OTHER, MASTER, ipv4(v4(0), v4(2)))
        a.send(frame(FOREIGN, OTHER, ipv4(v4(2), v4(9))))
        assert it.master[it.numbers[2] % workers].receive() == frame(FOREIGN, MASTER, ipv4(v4(2), v4(9)))
        it.master[0].send(frame(MASTER, FOREIGN, ipv4(v4(9), v4(3))))
        assert b.receive() == frame(LIAR, FOREIGN, ipv4(v4(9), v4(3)))
        assert it.datapath.own_mac(it.numbers[2]) == OTHER
        assert it.settled(it.numbers[2], 3).outcomes == {"to_port": 2, "to_master": 1}


def test_a_multicast_frame_reaches_all_as_it_is() -> None:
    with with_guests() as it:
        asked = frame(BROADCAST, OTHER, arp(OTHER, v4(2), bytes(6), v4(3)), ARP)
        it.interfaces[2].send(asked)
        for interface in (it.interfaces[0], it.interfaces[1], it.interfaces[3], it.master[0]):
            assert interface.receive() == asked.replace(OTHER, MASTER)
        asked = frame(BROADCAST, FOREIGN, arp(FOREIGN, v4(9), MASTER, v4(3)), ARP)
        it.master[0].send(asked)
        assert [interface.receive() for interface in it.interfaces] == [asked] * 4


def test_what_goes_to_many_though_it_is_for_one_mac_address() -> None:
    """As the host's answer to a DHCP client."""
    with with_guests() as it, contextlib.closing(Interface()) as host:
        from ipvsw._fast import ACCESS, FLAGS, MODES

        it.datapath.set_mode(MODES["l2"], FLAGS["bridge"], ACCESS["both"])
        it.datapath.attach_host(host.inside.fileno())
        it.interfaces[3].send(frame(FOREIGN, OTHER, ipv4(v4(3), v4(9))))
        it.master[0].receive()
        it.datapath.commit()
        udp = struct.pack("!HHHH", 67, 68, 8, 0)
        reply = bytes.fromhex("4500001c00000000401100000a0000630a0000c8") + udp
        host.send(frame(MASTER, MASTER, reply))
        wanted = [MASTER, MASTER, GUEST, OTHER]
        assert [interface.receive() for interface in it.interfaces] == [frame(mac, MASTER, reply) for mac in wanted]
        it.datapath.detach_host()
        it.datapath.commit()


def test_what_can_not_be_put_right_is_counted_and_goes_nowhere() -> None:
    with with_guests() as it:
        it.interfaces[2].send(frame(BROADCAST, OTHER, nd(135, b"\1\0" + bytes(6)), IPV6))
        it.interfaces[2].send(frame(FOREIGN, OTHER, ipv4(v4(2), v4(9))), Offload(1, 0, 0, 8).packed())
        last = frame(BROADCAST, OTHER, ipv4(v4(2), v4(9)))
        it.interfaces[2].send(last)
        assert it.master[0].receive() == last.replace(OTHER, MASTER)
        assert it.settled(it.numbers[2], 3).outcomes == {"drop_macnat": 1, "drop_bad_header": 1, "to_ports": 1}


def test_by_address_alone_in_l3() -> None:
    with with_guests(mode="l3") as it:
        it.interfaces[2].send(frame(OTHER, OTHER, ipv4(v4(2), v4(3))))
        assert it.interfaces[3].receive() == frame(GUEST, MASTER, ipv4(v4(2), v4(3)))
        it.interfaces[0].send(frame(FOREIGN, MASTER, ipv4(v4(0), v4(3))))
        assert it.interfaces[3].receive()[:6] == GUEST


def test_an_announcement_goes_where_the_ports_own_frame_would() -> None:
    with with_guests() as it:
        told = frame(BROADCAST, MASTER, arp(MASTER, v4(2), bytes(6), v4(2)), ARP)
        it.datapath.announce(it.numbers[2], bytes(10) + told)
        it.datapath.commit()
        for interface in (it.interfaces[0], it.interfaces[1], it.interfaces[3], it.master[0]):
            assert interface.receive() == told
        assert it.interfaces[2].waiting() == []
        assert it.counted(it.numbers[2]).rx_frames == 0
        for wrong in (bytes(10), bytes(80_000)):
            with pytest.raises(ValueError, match="bytes"):
                it.datapath.announce(it.numbers[2], wrong)


def asked6(target: bytes, source: bytes) -> bytes:
    """A neighbour solicitation with a source link-layer address, unless it is a probe."""
    options = option(1, OTHER) if any(source) else b""
    message = bytes([135, 0, 0, 0]) + bytes(4) + target + options
    to = bytes.fromhex("ff0200000000000000000001ff") + target[-3:]
    pseudo = source + to + struct.pack("!II", len(message), 58)
    message = message[:2] + (folded(pseudo + message) ^ 0xFFFF).to_bytes(2, "big") + message[4:]
    packet = struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + source + to + message
    return frame(b"\x33\x33\xff" + target[-3:], OTHER, packet, IPV6)


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_the_switch_answers_for_everybody_in_l3(mode: str) -> None:
    with with_guests(mode=mode) as it:
        interface, gateway = it.interfaces[2], v4(77)
        interface.send(frame(BROADCAST, OTHER, arp(OTHER, v4(2), bytes(6), gateway), ARP))
        assert interface.receive() == frame(OTHER, MASTER, arp(MASTER, gateway, OTHER, v4(2), 2), ARP)
        interface.send(frame(MASTER, OTHER, arp(OTHER, v4(2), MASTER, v4(0)), ARP))
        assert interface.receive() == frame(OTHER, MASTER, arp(MASTER, v4(0), OTHER, v4(2), 2), ARP)
        for target in (v6(77), v6(3)):
            interface.send(asked6(target, v6(2)))
            answer = interface.receive()
            assert answer[:14] == OTHER + MASTER + b"\x86\xdd"
            packet = answer[14:]
            assert packet[4:8] == bytes([0, 32, 58, 255]) and packet[8:40] == target + v6(2)
            assert packet[40] == 136 and packet[44] == 0xE0 and packet[48:64] == target
            assert packet[64:] == option(2, MASTER) and verified(packet)
        assert it.settled(it.numbers[2], 4).outcomes == {"answered": 4}
        assert it.master[0].waiting() == [] and it.interfaces[3].waiting() == []


def test_whether_an_address_is_free_is_answered_only_if_it_is_not() -> None:
    with with_guests(mode="l3") as it:
        interface = it.interfaces[2]
        it.datapath.bind_host(v4(66))
        it.datapath.commit()
        for own in (v4(2), v4(77)):  # its own, and nobody's
            interface.send(frame(BROADCAST, OTHER, arp(OTHER, bytes(4), bytes(6), own), ARP))
        interface.send(frame(BROADCAST, OTHER, arp(OTHER, v4(77), bytes(6), v4(77)), ARP))  # announced
        interface.send(frame(BROADCAST, OTHER, arp(OTHER, v4(2), bytes(6), v4(77), 2), ARP))  # an answer itself
        for own in (v6(2), v6(77)):
            interface.send(asked6(own, bytes(16)))
        assert it.settled(it.numbers[2], 6).outcomes == {"drop_multicast": 6}
        for taken in (v4(3), v4(0), v4(66)):
            interface.send(frame(BROADCAST, OTHER, arp(OTHER, bytes(4), bytes(6), taken), ARP))
            assert interface.receive() == frame(OTHER, MASTER, arp(MASTER, taken, OTHER, bytes(4), 2), ARP)
        interface.send(asked6(v6(3), bytes(16)))
        answer = interface.receive()
        assert answer[:14] == bytes.fromhex("333300000001") + MASTER + b"\x86\xdd"
        assert answer[38:54] == bytes.fromhex("ff02" + "00" * 13 + "01")
        assert answer[58] == 0x20 and verified(answer[14:])


def test_who_uses_the_masters_mac_address_is_not_answered() -> None:
    with with_guests(mode="l3") as it:
        it.interfaces[0].send(frame(BROADCAST, MASTER, arp(MASTER, v4(0), bytes(6), v4(77)), ARP))
        assert it.settled(0, 1).outcomes == {"drop_multicast": 1}
