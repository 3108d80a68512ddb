"""Mode l3 where there is no way, where checksums are to be completed, and for many neighbours."""

from __future__ import annotations

import os
import socket
from collections import Counter

import pytest

from tests.e2e.modes.counted import drops, outcomes
from tests.support import running, traffic
from tests.support.patience import LIMIT, until
from tests.support.routed import FAR, HOST4, ROUTER6, ROUTER_MAC, Flow, Routed, change, inner4, routed
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER_MAC, inside
from tests.support.wire import frames

NOWHERE4, NOWHERE6 = "198.51.100.7", "2001:db8:ffff::7"


def test_ipv4_without_a_route_is_on_link(lab: Routed) -> None:
    change(lab.host, "route del default")
    wanted = frames.ip_address(HOST4).packed, frames.ip_address(NOWHERE4).packed

    def asked(flow: Flow) -> bool:
        """ARP: sender's IP at 28, target's at 38."""
        arps = [frame for _, frame in list(flow.wire.frames) if frame[12:14] == b"\x08\x06"]
        return any((frame[28:32], frame[38:42]) == wanted for frame in arps)

    with Flow(lab, lab.ports[0], NOWHERE4) as flow:
        until(lambda: asked(flow), f"the host asks for {NOWHERE4}")
        change(lab.host, f"neigh replace {NOWHERE4} lladdr {ROUTER_MAC[1]} nud permanent dev m0")
        flow.at("r1")


@pytest.mark.parametrize("kind", ["nothing", "unreachable", "prohibit", "blackhole"])
def test_ipv6_without_a_route_is_dropped(lab: Routed, daemon: running.Daemon, kind: str) -> None:
    with Flow(lab, lab.ports[0], NOWHERE6) as flow:
        flow.at("r1")
        lines = ["-6 route del default"] if kind == "nothing" else [f"-6 route add {kind} {NOWHERE6}"]
        before = drops(daemon).get("drop_no_route", 0)
        flow.stops(*lines)
        assert drops(daemon).get("drop_no_route", 0) >= before + 5
        back = [f"-6 route add default via {ROUTER6[1]}"] if kind == "nothing" else [f"-6 route del {kind} {NOWHERE6}"]
        flow.turn("r1", *back)


def test_groups_and_other_protocols_are_dropped(lab: Routed, daemon: running.Daemon) -> None:
    before = outcomes(daemon)
    foreign = frames.mac(ROUTER_MAC[1]) + frames.mac(MASTER_MAC) + b"\x88\xb5" + bytes(50)
    group = frames.udp4(inner4(1), "239.1.2.3", b"x", to="01:00:5e:01:02:03")
    with sniffing(lab.wire, "w0") as wire, raw(lab.ports[0], "ipvl1") as sock:
        for _ in range(5):
            sock.send(foreign)
            sock.send(group)
        until(lambda: (outcomes(daemon) - before)["drop_not_ip"] >= 5, "not IP: counted")
        until(lambda: (outcomes(daemon) - before)["drop_multicast"] >= 5, "to a group: counted")
        assert not wire.count(b"\x88\xb5" + bytes(20))
        assert not wire.count(frames.mac("01:00:5e:01:02:03"))


def test_bulk_through_the_hosts_output_is_segmented_in_the_data_plane() -> None:
    """A hundred GSO frames and more, of which a few come before the route is known."""
    with routed("l3", l3_output="host") as (lab, daemon):
        for address in FAR:
            before = outcomes(daemon)
            traffic.tcp(lab.ports[0], lab.far, address, 8_000_000)
            ended = outcomes(daemon) - before
            assert ended["to_stack"] > 100
            assert ended["to_slowpath"] < 20


@pytest.mark.parametrize("slow", [False, True], ids=["fast", "through-the-host"])
@pytest.mark.parametrize("offloads", [True, False], ids=["partial", "complete"])
def test_checksums(lab: Routed, daemon: running.Daemon, slow: bool, offloads: bool) -> None:
    """Partial checksums of the port's stack are complete at the far end."""
    if slow:
        change(lab.host, "-4 rule add from 10.2.0.0/24 lookup main pref 90")
        change(lab.host, "-6 rule add from fd02::/64 lookup main pref 90")
    lab.offloads(lab.ports[0], "ipvl1", offloads)
    before = drops(daemon)
    try:
        for address in FAR:
            lab.reachable(lab.ports[0], address)
        with sniffing(lab.routers[1], "u0") as arriving:
            for address in FAR:
                traffic.udp(lab.ports[0], lab.far, address, (1, 2, 63, 1400, 1472, 3000, 20000))
                if offloads:
                    traffic.udp(lab.ports[0], lab.far, address, (12000,), segment=1200)
                traffic.tcp(lab.ports[0], lab.far, address)
                for size in (0, 1, 1400, 4000):
                    assert lab.execute(
                        lab.ports[0], "ping", "-n", "-q", "-c2", "-i0.01", f"-W{LIMIT}", f"-s{size}", address
                    )
        seen: Counter[str] = Counter()
        reassembly = frames.Reassembly()
        for header, frame in arriving.frames:
            assert not slow or not header[0] & frames.NEEDS_CSUM, f"partial checksum: {frame[:64].hex()}"
            fault = frames.wrong(frames.complete(header, frame), reassembly)
            assert fault is None, f"{fault}: {header.hex()} {frame[:96].hex()}"
            seen.update(frames.payloads(frame))
        for kind in ("udp4", "tcp4", "tcp6", "icmp4", "icmp6"):
            assert seen[kind] >= 3, f"{kind} was not seen arriving: {seen}"
        assert drops(daemon) == before
        for netns in (lab.far, lab.ports[0]):
            errors = traffic.checksum_errors(lab.read(netns, "snmp"), lab.read(netns, "snmp6"))
            assert not errors, f"{netns}: {errors}"
    finally:
        lab.offloads(lab.ports[0], "ipvl1", True)


def test_many_neighbours(lab: Routed, daemon: running.Daemon) -> None:
    """A thousand destinations on the link: one that comes or goes doesn't make the others be asked for anew."""
    change(
        lab.host,
        *[
            f"neigh replace 10.1.{n // 250}.{n % 250 + 1} lladdr {ROUTER_MAC[2]} nud permanent dev m0"
            for n in range(250, 1250)
        ],
    )
    change(lab.host, "route add 10.1.0.0/16 dev m0")
    targets = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(250, 1250)]
    with inside(lab.ports[0]):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, sniffing(lab.routers[2], "u0") as arriving:

        def send(mark: bytes) -> None:
            for number, target in enumerate(targets):
                sender.sendto(mark, (target, 9))
                if number % 100 == 99:
                    arriving.wait(mark, number + 1)

        def slow() -> int:
            return outcomes(daemon)["to_slowpath"]

        def all_known() -> bool:
            """What was told of the neighbours while the host was asked for them keeps an answer from being kept."""
            before = slow()
            send(os.urandom(12))
            return slow() == before

        until(all_known, "every destination is known")
        before = slow()
        change(lab.host, "neigh del 10.1.1.1 dev m0", f"neigh add 10.1.1.1 lladdr {ROUTER_MAC[2]} nud reachable dev m0")
        send(os.urandom(12))
        assert slow() == before
