"""What is too long for its path: the port's stack learns how long it may be, wherever the narrow place is."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator

import pytest

from tests.support import running, traffic
from tests.support.patience import LIMIT, until
from tests.support.routed import FAR4, FAR6, HOST4, HOST6, ROUTER4, ROUTER6, Routed, change, routed
from tests.support.sniff import sniffing
from tests.support.topology import inside

NARROW = 1280
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO = 10, 23, 2


@pytest.fixture(scope="module", params=["l3", "l3s"])
def net(request: pytest.FixtureRequest) -> Iterator[tuple[Routed, running.Daemon]]:
    with routed(request.param) as made:
        yield made


def far(version: int) -> str:
    return FAR4 if version == 4 else FAR6


@pytest.fixture(params=["behind-the-router", "on-the-host", "by-a-rule"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def narrow(net: tuple[Routed, running.Daemon], place: str, version: int) -> Iterator[tuple[Routed, running.Daemon]]:
    """The path to `far` takes 1280 bytes at `place`, and the port doesn't know."""
    lab, daemon = net
    router = (ROUTER4 if version == 4 else ROUTER6)[1]
    if place == "behind-the-router":
        change(lab.routers[1], "link set d0 mtu 1280")
        back = "10.9.1.1" if version == 4 else "fd09:1::1"
        change(lab.far, f"route replace default via {back} mtu {NARROW} advmss 1400")
    else:
        change(lab.host, f"route replace {far(version)} via {router} mtu {NARROW}")
        if place == "by-a-rule":
            change(lab.host, "-4 rule add from 10.2.0.0/24 lookup main pref 90")
            change(lab.host, "-6 rule add from fd02::/64 lookup main pref 90")
    forget(lab)
    lab.reachable(lab.ports[0], far(version))
    yield lab, daemon
    lab.restore()
    forget(lab)


def forget(lab: Routed) -> None:
    """What the ends have learned of paths."""
    for netns in (lab.ports[0], lab.far, lab.host, lab.routers[1]):
        change(netns, "-4 route flush cache", "-6 route flush cache", force=True)


def learned(lab: Routed, netns: str, address: str) -> int:
    """The path's MTU by `ip route get`, 0 if it's the device's."""
    route = json.loads(lab.execute(netns, "ip", "-j", "route", "get", address))[0]
    for metrics in route.get("metrics", ()):
        if "mtu" in metrics:
            return int(metrics["mtu"])
    return 0


def test_udp_that_must_not_be_cut(narrow: tuple[Routed, running.Daemon], version: int) -> None:
    lab, _ = narrow
    address = far(version)
    assert learned(lab, lab.ports[0], address) == 0
    with inside(lab.ports[0]):
        sender = socket.socket(traffic.family(address), socket.SOCK_DGRAM)
    with sender, traffic.listen(lab.far, address, socket.SOCK_DGRAM) as server:
        level, option = (
            (socket.IPPROTO_IP, IP_MTU_DISCOVER) if version == 4 else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
        )
        sender.setsockopt(level, option, PMTUDISC_DO)
        sender.connect((address, server.getsockname()[1]))
        sender.send(bytes(1400))
        until(lambda: learned(lab, lab.ports[0], address) == NARROW, "the port's stack knows the path's MTU")

        def refused() -> bool:
            try:
                sender.send(bytes(1400))
            except OSError as error:
                return error.errno == errno.EMSGSIZE
            return False

        until(refused, "the sender is told")


def test_udp_that_may_be_cut(narrow: tuple[Routed, running.Daemon], version: int) -> None:
    """IPv4 without DF is cut on its way; IPv6 by the sender, once it knows."""
    lab, _ = narrow
    address = far(version)
    if version == 6:
        lab.execute(lab.ports[0], "ping", "-n", "-c1", f"-W{LIMIT}", "-s1400", address, check=False)
        until(lambda: learned(lab, lab.ports[0], address) == NARROW, "the port's stack knows the path's MTU")
    else:
        lab.sysctl(lab.ports[0], "net/ipv4/ip_no_pmtu_disc", "1")
    try:
        traffic.udp(lab.ports[0], lab.far, address, (1400, 1453, 8000, 60000))
    finally:
        lab.sysctl(lab.ports[0], "net/ipv4/ip_no_pmtu_disc", "0")


def test_tcp(narrow: tuple[Routed, running.Daemon], version: int) -> None:
    """GSO frames whose segments are too long: nothing of the stream is missing, and it doesn't creep."""
    lab, _ = narrow
    traffic.tcp(lab.ports[0], lab.far, far(version), size=4_000_000)
    assert learned(lab, lab.ports[0], far(version)) == NARROW


def test_who_answers(net: tuple[Routed, running.Daemon], version: int) -> None:
    """Where the host itself is narrow the error comes from the master's address, to the port and to nobody else."""
    lab, daemon = net
    router = (ROUTER4 if version == 4 else ROUTER6)[1]
    change(lab.host, f"route replace {far(version)} via {router} mtu {NARROW}")
    forget(lab)
    try:
        before = daemon.stats()[0]["routed"].get("answered", 0)
        with sniffing(lab.wire, "w0") as wire, sniffing(lab.ports[0], "ipvl1") as arriving:
            out = lab.execute(
                lab.ports[0], "ping", "-n", "-c1", f"-W{LIMIT}", "-s1400", "-Mdo", far(version), check=False
            )
            assert f"From {HOST4 if version == 4 else HOST6}" in out and "mtu" in out.lower(), out
            assert daemon.stats()[0]["routed"]["answered"] == before + 1
            until(lambda: arriving.frames, "the port has the error")
            assert not wire.count(bytes(range(0x10, 0x30)))
    finally:
        lab.restore()
        forget(lab)
