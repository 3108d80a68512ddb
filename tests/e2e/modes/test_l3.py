"""Mode l3 on a routed topology: packets of ports go where the host's routing sends them, and follow it at once."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.modes.counted import drops, outcomes
from tests.support import running, traffic
from tests.support.patience import until
from tests.support.routed import (
    FAR,
    FAR4,
    FAR6,
    HOST4,
    HOST6,
    OTHER_MAC,
    ROUTER4,
    ROUTER6,
    ROUTER_MAC,
    SIDE_MAC,
    Flow,
    Routed,
    change,
    inner,
    inner4,
    inner6,
)
from tests.support.sniff import sniffing
from tests.support.topology import inside
from tests.support.wire import frames

FAMILIES = pytest.mark.parametrize("version", [4, 6])


def via(router: int, version: int) -> str:
    return (ROUTER4 if version == 4 else ROUTER6)[router]


def far(version: int) -> str:
    return FAR4 if version == 4 else FAR6


# ---------------------------------------------------------------------------- there and back


def test_everything_is_reached(lab: Routed) -> None:
    first = lab.ports[0]
    for address in (inner4(2), inner6(2), ROUTER4[1], ROUTER6[1], ROUTER4[2], ROUTER6[2], *FAR):
        lab.reachable(first, address)
        assert lab.ping(first, address, 5) == 5, address
    for address in (inner4(1), inner6(1)):
        lab.reachable(lab.far, address)
        assert lab.ping(lab.far, address, 5) == 5, address


@FAMILIES
def test_streams(lab: Routed, daemon: running.Daemon, version: int) -> None:
    """GSO frames cross whole, and nothing of them is dropped."""
    traffic.send_gso_frames(lab, lab.ports[0], lab.far)
    before, dropped = outcomes(daemon), drops(daemon)
    read = daemon.stats()[0]["ports"]["ipvl1"]
    traffic.tcp(lab.ports[0], lab.far, far(version), size=20_000_000)
    shown = daemon.stats()[0]["ports"]["ipvl1"]
    frames_read = shown["rx_frames"] - read["rx_frames"]
    assert (shown["rx_bytes"] - read["rx_bytes"]) / frames_read > 5000, "the frames were cut"
    assert drops(daemon) == dropped
    assert outcomes(daemon)["to_slowpath"] - before["to_slowpath"] < 50


@FAMILIES
def test_between_ports(lab: Routed, version: int) -> None:
    traffic.tcp(lab.ports[0], lab.ports[1], inner(2, version))
    traffic.udp(lab.ports[0], lab.ports[1], inner(2, version), (1, 1400, 20000))


@FAMILIES
def test_long_datagrams(lab: Routed, version: int) -> None:
    """The port's stack fragments them, each fragment finds its way, and the far end has the whole."""
    traffic.udp(lab.ports[0], lab.far, far(version), (1, 1472, 1473, 9000, 60000))
    traffic.tcp(lab.ports[0], lab.far, far(version))
    traffic.tcp(lab.far, lab.ports[0], inner(1, version))


# ---------------------------------------------------------------------------- the next packet goes the new way


@FAMILIES
def test_route_is_changed(lab: Routed, version: int) -> None:
    with Flow(lab, lab.ports[0], far(version)) as flow:
        flow.at("r1")
        flow.turn("r2", f"route replace default via {via(2, version)}")
        flow.turn("r1", f"route add {far(version)} via {via(1, version)}")
        flow.turn("r2", f"route del {far(version)}")


@FAMILIES
def test_rule_by_source(lab: Routed, daemon: running.Daemon, version: int) -> None:
    """A rule that looks at the source holds for that port alone."""
    one, two = (Flow(lab, netns, far(version)) for netns in lab.ports)
    with one, two:
        one.at("r1")
        two.at("r1")
    kind = "-6" if version == 6 else "-4"
    with Flow(lab, lab.ports[0], far(version)) as flow:
        flow.at("r1")
        flow.turn(
            "r2",
            f"{kind} route add default via {via(2, version)} table 100",
            f"{kind} rule add from {inner(1, version)} lookup 100 pref 100",
        )
        before = outcomes(daemon)["to_stack"]
        flow.at("r2", 5)
        assert outcomes(daemon)["to_stack"] - before >= 4, "past the host's output, where rules by source are asked"
        flow.turn("r1", f"{kind} rule del pref 100")
    change(lab.host, f"{kind} rule add from {inner(1, version)} lookup 100 pref 100")
    with Flow(lab, lab.ports[1], far(version)) as other:
        other.at("r1", 5)
        assert not other.seen("r2")


@FAMILIES
def test_rules_that_look_elsewhere(lab: Routed, daemon: running.Daemon, version: int) -> None:
    """By destination, mark or input device they are the same for every packet to one place: the cache stays."""
    kind = "-6" if version == 6 else "-4"
    with Flow(lab, lab.ports[0], far(version)) as flow:
        flow.at("r1")
        flow.turn(
            "r2",
            f"{kind} route add default via {via(2, version)} table 100",
            f"{kind} rule add to {far(version)} iif lo fwmark 0 lookup 100 pref 100",
            f"{kind} rule add iif m0 blackhole pref 90",
        )
        before = outcomes(daemon)
        flow.at("r2", 5)
        assert not (outcomes(daemon) - before)["to_stack"]


@FAMILIES
def test_neighbour_is_changed(lab: Routed, version: int) -> None:
    """By hand, to a MAC that is nobody's, and back."""
    router = via(1, version)
    with Flow(lab, lab.ports[0], far(version)) as flow:
        flow.at("r1")
        flow.turn("other", f"neigh replace {router} lladdr {OTHER_MAC} nud permanent dev m0")
        flow.turn("r1", f"neigh replace {router} lladdr {ROUTER_MAC[1]} nud permanent dev m0")


@FAMILIES
def test_router_has_another_mac(lab: Routed, version: int) -> None:
    """And says nothing. The entry is confirmed as long as it's in use, so this is found in the kernel's own time."""
    where = f"net/ipv{version}/neigh/m0"
    quick = {"base_reachable_time_ms": "1000", "delay_first_probe_time": "1", "retrans_time_ms": "200"}
    old = {}
    for key, value in quick.items():
        with inside(lab.host):
            old[key] = Path("/proc/sys", where, key).read_text().strip()
        lab.sysctl(lab.host, f"{where}/{key}", value)
    try:
        # What comes back comes by the other router: this one has no reason to ask for the host.
        change(lab.far, "route replace default via 10.9.2.1", "route replace default via fd09:2::1")
        change(lab.host, f"neigh del {via(1, version)} dev m0", force=True)
        with Flow(lab, lab.ports[0], far(version)) as flow:
            flow.at("r1")
            change(lab.routers[1], f"link set u0 address {OTHER_MAC}")
            flow.at("r1")
            flow.at("other", 5)
    finally:
        for key, value in old.items():
            lab.sysctl(lab.host, f"{where}/{key}", value)


@FAMILIES
def test_master_goes_down_and_up(lab: Routed, daemon: running.Daemon, version: int) -> None:
    with Flow(lab, lab.ports[0], far(version)) as flow:
        flow.at("r1")
        change(lab.host, "link set m0 down")
        until(lambda: not daemon.port("ipvl1")["carrier"], "the port has no carrier")
        had = len(flow.seen("r1"))
        time.sleep(0.3)
        assert len(flow.seen("r1")) == had
        lab.restore()
        flow.at("r1", 5)


@FAMILIES
def test_master_is_given_addresses(lab: Routed, version: int) -> None:
    """After the daemon began: an error comes from the address that there is now."""
    old, new = (HOST4 + "/24", "10.1.0.77") if version == 4 else (HOST6 + "/64", "fd01::77")
    size = "/24" if version == 4 else "/64"
    change(lab.host, f"addr del {old} dev m0", f"addr add {new}{size} dev m0")
    change(lab.host, f"route replace {far(version)} via {via(1, version)} mtu 1280")
    words = ("ping", "-n", "-c1", "-W0.1", "-s1400", "-Mdo", far(version))
    with sniffing(lab.ports[0], "ipvl1") as arriving:

        def answered() -> bool:
            change(lab.ports[0], "-4 route flush cache", "-6 route flush cache")  # it may have heard from the old one
            lab.execute(lab.ports[0], *words, check=False)
            return bool(arriving.count(frames.ip_address(new).packed))

        until(answered, f"an error from {new}")


@FAMILIES
def test_multipath(lab: Routed, version: int) -> None:
    """Each destination has one of the ways. For IPv4 all have the first: so the kernel chooses where the output
    device is named, as for its own ipvlan."""
    hops = " ".join(f"nexthop via {via(k, version)}" for k in (1, 2))
    change(lab.host, f"{'-6 ' if version == 6 else ''}route replace default {hops}")
    for k in (1, 2):
        lab.reachable(lab.host, via(k, version))
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(sniffing(lab.wire, "w0"))
        with inside(lab.ports[0]):
            sender = stack.enter_context(socket.socket(traffic.family(far(version)), socket.SOCK_DGRAM))
        targets = [f"203.0.113.{n}" if version == 4 else f"2001:db8:1::{n}" for n in range(1, 41)]
        for turn in range(2):
            for target in targets:
                sender.sendto(f"way {turn} {target}.".encode(), (target, 9))

        def ways(target: str) -> list[bytes]:
            needle = f" {target}.".encode()
            return [frame[:6] for _, frame in list(wire.frames) if needle in frame]

        until(lambda: all(len(ways(target)) == 2 for target in targets), "every packet arrives", every=0.1)
        chosen = [set(ways(target)) for target in targets]
        assert all(len(way) == 1 for way in chosen)
        wanted = {frames.mac(ROUTER_MAC[k]) for k in ((1, 2) if version == 6 else (1,))}
        assert set().union(*chosen) == wanted


# ---------------------------------------------------------------------------- other ways than the master's


def test_ipv6_by_another_device(lab: Routed) -> None:
    """The output device is only a preference there: the packet leaves where the route says, with that device's MAC."""
    with Flow(lab, lab.ports[0], FAR6) as flow:
        flow.at("r1")
        flow.turn("side", "route replace default via fd03::2 dev x0")
        frame = flow.requests("side")[-1][1]
        assert (frame[:6], frame[6:12]) == (frames.mac(SIDE_MAC["router"]), frames.mac(SIDE_MAC["host"]))


def test_by_another_device_of_a_smaller_mtu(lab: Routed) -> None:
    """What is too long for it is answered to the port, whose TCP goes on."""
    change(lab.host, "link set x0 mtu 1300", "route replace default via fd03::2 dev x0")
    change(lab.routers[2], "link set x0 mtu 1300")
    try:
        lab.reachable(lab.ports[0], FAR6)
        traffic.tcp(lab.ports[0], lab.far, FAR6)
    finally:
        change(lab.routers[2], "link set x0 mtu 1500")
        change(lab.host, "link set x0 mtu 1500")
        change(lab.ports[0], "-6 route flush cache", force=True)


@FAMILIES
def test_the_host_itself(lab: Routed, version: int) -> None:
    """Arrives through its lo, from the port's own address, also what is longer than the MTU."""
    address = HOST4 if version == 4 else HOST6
    with traffic.listen(lab.host, address, socket.SOCK_DGRAM) as server:
        with inside(lab.ports[0]):
            client = socket.socket(traffic.family(address), socket.SOCK_DGRAM)
        with client:
            for size in (1, 1000, 1472, 5000):
                client.sendto(bytes(size), server.getsockname()[:2])
                data, source = server.recvfrom(1 << 16)
                assert (len(data), source[0]) == (size, inner(1, version))
