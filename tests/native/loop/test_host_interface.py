"""The host's own interface to the ports, and changes of mode under traffic."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ipvsw._fast import ACCESS, FLAGS, MODES
from tests.native.interfaces import (
    BROADCAST,
    FAR4,
    FOREIGN,
    GSO_HEADER,
    HEADER,
    MASTER,
    Interface,
    Lab,
    between,
    frame,
    ipv4,
    ipv6,
    lab,
    v4,
    v6,
)
from tests.native.random_frames import V4, V6, random_frame, seed_from_environment
from tests.native.rules.test_route import ROUTER
from tests.support.patience import until

pytestmark = pytest.mark.usefixtures("io")
STORM = 60_000


@contextmanager
def host_interface(it: Lab) -> Iterator[Interface]:
    interface = Interface()
    try:
        it.datapath.attach_host(interface.inside.fileno())
        it.datapath.commit()
        yield interface
    finally:
        it.datapath.detach_host()
        it.datapath.commit()
        interface.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flag", FLAGS)
def test_what_the_host_sends_is_for_the_ports(mode: str, flag: str) -> None:
    with lab(3, mode=mode, flag=flag, workers=2) as it, host_interface(it) as interface:
        unicast = frame(MASTER, FOREIGN, ipv4(FAR4, v4(1)))
        group = frame(BROADCAST, FOREIGN, ipv4(FAR4, b"\xff" * 4))
        it.datapath.set_mode(MODES[mode], FLAGS[flag], ACCESS["from-host"])
        it.datapath.commit()
        interface.send(unicast)
        assert it.interfaces[1].receive() == unicast
        interface.send(group)
        for port in it.interfaces:
            assert port.receive() == group
        interface.send(frame(MASTER, FOREIGN, ipv4(FAR4, v4(77))))
        interface.send(bytes(13))
        counted = it.settled("host", 4)
        assert counted.outcomes == {"to_port": 1, "to_ports": 1, "drop_no_route": 1, "drop_runt": 1}
        assert counted.rx_bytes == 2 * len(unicast) + len(group) + 13
        assert it.master[0].waiting() == it.master[1].waiting() == [], "nothing of it is the wire's"
        assert it.counted(None).rx_frames == 0


HOST4, HOST6 = bytes([10, 0, 9, 9]), bytes.fromhex("fd00" + "00" * 12 + "0909")


def udp(source: bytes, destination: bytes, ports: tuple[int, int] = (1000, 2000)) -> bytes:
    payload = ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big") + bytes(4)
    if len(source) == 4:
        return frame(MASTER, MASTER, ipv4(source, destination, payload))
    return frame(MASTER, MASTER, ipv6(source, destination, payload), 0x86DD)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("access", ["none", "to-host", "from-host", "both"])
@pytest.mark.parametrize(("host", "port"), [(HOST4, v4(0)), (HOST6, v6(0))], ids=["ipv4", "ipv6"])
def test_who_may_initiate_a_flow_is_a_setting_and_the_other_may_answer(
    mode: str, access: str, host: bytes, port: bytes
) -> None:
    to_host, from_host = access in ("to-host", "both"), access in ("from-host", "both")
    with lab(1, workers=2) as it, host_interface(it) as interface:
        for own in (HOST4, HOST6):
            it.datapath.bind_host(own)
        it.datapath.set_mode(MODES[mode], FLAGS["bridge"], ACCESS[access])
        it.datapath.commit()
        arrives_by = it.host if mode == "l2" else interface
        interface.send(udp(host, port))
        assert it.settled("host", 1).outcomes == {"to_port" if from_host else "drop_host_access": 1}
        it.interfaces[0].send(udp(port, host, (1, 2)))
        if access == "none":  # as the kernel's driver has it: up to the host, whose answer goes to the wire
            wanted = {"to_host" if mode == "l2" else "to_slowpath"}
        else:
            wanted = {"to_host" if to_host else "drop_host_access"}
        assert set(it.settled(0, 1).outcomes) == wanted
        if access == "none":
            return
        answer, beginning = udp(port, host, (2000, 1000)), udp(host, port, (2, 1))
        arrives_by.waiting()
        it.interfaces[0].waiting()
        it.interfaces[0].send(answer)
        interface.send(beginning)
        assert arrives_by.receive() == answer
        assert it.interfaces[0].receive() == beginning


@pytest.mark.parametrize("mode", MODES)
def test_the_host_hears_the_ports_multicast_frames_where_they_may_talk_to_it(mode: str) -> None:
    with lab(2, mode=mode) as it:
        group = frame(BROADCAST, MASTER, ipv4(v4(0), b"\xff" * 4))
        for access, heard in (("none", False), ("from-host", False), ("to-host", True), ("both", True)):
            it.datapath.set_mode(MODES[mode], FLAGS["bridge"], ACCESS[access])
            it.datapath.commit()
            it.interfaces[0].send(group)
            it.interfaces[0].send(between(0, 1))
            if mode == "l2":
                assert it.interfaces[1].receive() in (group, between(0, 1))
                assert it.master[0].receive() == group
            until(lambda: it.counted(0).rx_frames % 2 == 0, "both read")
            if heard:
                assert it.host.receive() == group
            assert it.host.waiting() == []


def test_a_dhcp_server_on_the_host_reaches_a_client_without_an_address() -> None:
    with lab(2, mode="l2") as it, host_interface(it) as interface:
        offer = frame(MASTER, MASTER, ipv4(HOST4, bytes([10, 0, 5, 5]), b"\0\x43\0\x44" + bytes(8)))
        it.datapath.bind_host(HOST4)
        it.datapath.set_mode(MODES["l2"], FLAGS["bridge"], ACCESS["to-host"])
        it.datapath.commit()
        interface.send(offer)
        assert it.interfaces[0].receive() == it.interfaces[1].receive() == offer
        assert it.settled("host", 1).outcomes == {"to_ports": 1}


def test_a_port_that_is_down_hears_nothing_from_the_host() -> None:
    with lab(2, mode="l3s") as it, host_interface(it) as interface:
        it.datapath.set_port(1, up=False, mtu=1500)
        it.datapath.commit()
        interface.send(frame(MASTER, FOREIGN, ipv4(FAR4, v4(1))))
        assert it.settled("host", 1).outcomes == {"drop_port_down": 1}
        assert it.interfaces[1].waiting() == []


def test_the_hosts_interface_may_leave_and_break() -> None:
    with lab(2, mode="l3s") as it:
        with host_interface(it) as interface:
            interface.send(frame(MASTER, FOREIGN, ipv4(FAR4, v4(1))))
            it.interfaces[1].receive()
            interface.outside.close()
            it.interfaces[0].send(between(0, 1))
            assert it.interfaces[1].receive() == between(0, 1)
        with host_interface(it) as interface:
            interface.send(frame(MASTER, FOREIGN, ipv4(FAR4, v4(0))))
            assert it.interfaces[0].receive() == frame(MASTER, FOREIGN, ipv4(FAR4, v4(0)))


@pytest.mark.parametrize("workers", [1, 3])
def test_what_all_modes_deliver_is_delivered_while_they_change(workers: int) -> None:
    modes = [(mode, flag) for mode in MODES.values() for flag in (FLAGS["bridge"],)]
    with lab(3, workers=workers) as it:
        for n in range(600):
            sent = between(0, 1, n.to_bytes(8, "big"))
            it.interfaces[0].send(sent)
            it.datapath.set_mode(*modes[n % 3])
            it.datapath.commit()
            assert it.interfaces[1].receive() == sent
        assert it.settled(0, 600).outcomes == {"to_port": 600}


@pytest.mark.parametrize("workers", [1, 3])
def test_in_a_storm_of_changes_every_frame_ends_in_one_counter(workers: int) -> None:
    rng = random.Random(seed_from_environment())
    ports = 4
    with lab(ports, workers=workers) as it, host_interface(it) as host:
        frames = [random_frame(rng) for _ in range(2000)]
        sent: dict[int | str | None, int] = dict.fromkeys([*range(ports), None, "host"], 0)
        for n in range(STORM):
            which = rng.choice(list(sent))
            interface = (
                host if which == "host" else rng.choice(it.master) if which is None else it.interfaces[int(which)]
            )
            interface.send(rng.choice(frames), HEADER if rng.random() < 0.8 else GSO_HEADER)
            sent[which] += 1
            if n % 64 == 0:
                for _ in range(rng.randrange(4)):
                    change(rng, it)
                it.datapath.commit()
                for out in (*it.interfaces, *it.master, it.host, host):
                    out.waiting()
        until(lambda: all(it.counted(which).rx_frames >= count for which, count in sent.items()), "all are read")
        until(lambda: not reinject(rng, it), "nothing waits for Python")
        met: set[str] = set()
        for which, count in sent.items():
            counted = it.settled(which, count)
            assert counted.rx_frames == count == sum(counted.outcomes.values())
            met |= set(counted.outcomes)
        assert met >= {"to_port", "to_ports", "to_master", "to_host", "to_slowpath", "drop_multicast", "drop_no_route"}


def reinject(rng: random.Random, it: Lab) -> bool:
    """Give back what was punted, by the rules or for a port. Whether there was any."""
    found = it.datapath.punted()
    for source, each in found:
        it.datapath.reinject(source, each, rng.choice([-1, 0, 1]))
        it.datapath.reinject(source, each, 2, copy=True)
    it.datapath.commit()
    return bool(found)


def change(rng: random.Random, it: Lab) -> None:
    """Anything that the control thread may do to a running switch."""
    datapath, address = it.datapath, rng.choice([*V4, *V6])
    port, mtu = rng.randrange(len(it.interfaces)), rng.choice([68, 1500])
    rng.choice(
        [
            lambda: datapath.set_mode(*(rng.choice(list(of.values())) for of in (MODES, FLAGS, ACCESS))),
            lambda: datapath.bind_host(address),
            lambda: datapath.set_port(port, up=rng.random() < 0.8, mtu=mtu),
            lambda: datapath.bind(address, port),
            lambda: datapath.unbind(address),
            lambda: datapath.set_route(address, mac=rng.choice([bytes(6), ROUTER]), mtu=mtu),
            datapath.clear_routes,
            datapath.used_routes,
            datapath.slow,
            lambda: reinject(rng, it),
        ]
    )()
