"""`RouteLookup` beside what iproute2 says of the same namespace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest

from ipvsw.linux.netlink import NeighbourChanged, RouteAnswer, RouteLookup, RouteMonitor
from tests.support.patience import until
from tests.support.spaces import Namespace

GATEWAY_MAC = bytes.fromhex("0200000000fe")
SOURCE4, SOURCE6 = ip_address("10.2.0.11"), ip_address("fd02::11")
GATEWAY4, GATEWAY6 = ip_address("10.77.0.254"), ip_address("fd77::254")
FAR4, FAR6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")


class Host:
    """A namespace with two devices: `near` has the default routes, `side` those of 198.51.100.0/24."""

    def __init__(self, there: Namespace, near: str, side: str) -> None:
        self.there, self.near, self.side = there, near, side
        self.lookup = there.inside(RouteLookup)
        for words in (
            f"addr add 10.77.0.1/24 dev {near}",
            f"addr add fd77::1/64 dev {near} nodad",
            f"addr add 10.78.0.1/24 dev {side}",
            f"link set {side} mtu 1400",
            f"neigh add {GATEWAY4} lladdr {GATEWAY_MAC.hex(':')} dev {near}",
            f"neigh add {GATEWAY6} lladdr {GATEWAY_MAC.hex(':')} nud reachable dev {near}",
            f"route add default via {GATEWAY4}",
            f"-6 route add default via {GATEWAY6}",
            "route add 198.51.100.0/24 via 10.78.0.2",
            f"route add 203.0.113.0/24 via inet6 {GATEWAY6} dev {near}",
            f"route add 203.0.114.0/24 via {GATEWAY4} mtu 1280",
            "-6 route add unreachable 2001:db8:ffff::/48",
        ):
            there.ip(*words.split())

    def index(self, device: str) -> int:
        return int(self.there.inside(lambda: Path(f"/proc/thread-self/net/dev_snmp6/{device}").read_text()).split()[1])

    def ask(self, to: object) -> RouteAnswer | None:
        destination = ip_address(str(to))
        source = SOURCE4 if destination.version == 4 else SOURCE6
        return self.lookup.route_to(destination, source, self.index(self.near))


@pytest.fixture
def host(netns: Callable[..., Namespace], veth: Callable[..., tuple[str, str]]) -> Iterator[Host]:
    there = netns()
    near, _ = veth(there, netns())
    side, _ = veth(there, netns())
    made = Host(there, near, side)
    yield made
    made.lookup.close()


def test_answers(host: Host) -> None:
    near, side = host.index(host.near), host.index(host.side)
    assert host.ask(FAR4) == RouteAnswer(False, near, GATEWAY4, GATEWAY_MAC, True, 0)
    assert host.ask(FAR6) == RouteAnswer(False, near, GATEWAY6, GATEWAY_MAC, False, 0)
    assert host.ask("10.77.0.9") == RouteAnswer(False, near, ip_address("10.77.0.9"), None, False, 0)
    assert host.ask("fd77::9") == RouteAnswer(False, near, ip_address("fd77::9"), None, False, 0)
    assert host.ask("203.0.113.1") == RouteAnswer(False, near, GATEWAY6, GATEWAY_MAC, False, 0), "RTA_VIA"
    assert host.ask("203.0.114.1") == RouteAnswer(False, near, GATEWAY4, GATEWAY_MAC, True, 1280)
    assert host.ask("2001:db8:ffff::1") is None
    local = host.ask("10.77.0.1")
    assert local is not None and local.local
    group = host.ask("ff0e::1")
    assert group is not None and (group.mac, group.permanent) == (bytes.fromhex("333300000001"), True)
    elsewhere = host.lookup.route_to(ip_address("198.51.100.1"), SOURCE4, side)
    assert elsewhere == RouteAnswer(False, side, ip_address("10.78.0.2"), None, False, 0)


@pytest.mark.parametrize(
    ("rule", "decides"),
    [
        ("to 192.0.2.0/24 lookup main", True),
        ("iif lo lookup main", True),
        ("fwmark 7 lookup main", True),
        ("from 10.2.0.0/24 lookup main", False),
        ("tos 0x10 lookup main", False),
        ("ipproto tcp lookup main", False),
        ("sport 80 lookup main", False),
        ("uidrange 0-10 lookup main", False),
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_whether_the_destination_decides(host: Host, rule: str, decides: bool, version: int) -> None:
    if version == 6:
        rule = rule.replace("192.0.2.0/24", "2001:db8::/64").replace("10.2.0.0/24", "fd02::/64")
    assert host.lookup.destination_decides(version)
    host.there.ip(f"-{version}", "rule", "add", *rule.split(), "pref", "100")
    assert host.lookup.destination_decides(version) is decides
    assert host.lookup.destination_decides(10 - version), "the other version has rules of its own"


@pytest.mark.parametrize("address", ["10.77.0.7", "fd77::7"])
def test_a_neighbour_in_use_is_confirmed_and_one_set_by_hand_stays(host: Host, address: str) -> None:
    """Of an entry that is told to be in use the kernel drops PERMANENT, and with it the hardware address."""
    index = host.index(host.near)
    for state, afterwards in (("stale", {"DELAY", "PROBE", "FAILED"}), ("permanent", {"PERMANENT"})):
        host.there.ip("neigh", "replace", address, "lladdr", GATEWAY_MAC.hex(":"), "nud", state, "dev", host.near)
        host.lookup.use_neighbour(index, ip_address(address))
        assert host.there.ip("neigh", "show", address, "dev", host.near).split()[-1] in afterwards
    host.there.ip("neigh", "del", address, "dev", host.near)
    host.lookup.use_neighbour(index, ip_address(address))
    assert not host.there.ip("neigh", "show", address, "dev", host.near), "one that isn't known stays so"


def test_a_neighbour_that_does_not_answer_is_announced_as_failed(host: Host) -> None:
    address = ip_address("10.77.0.7")
    for key, value in (("mcast_solicit", "1"), ("retrans_time_ms", "10")):
        host.there.inside(lambda k=key, v=value: Path(f"/proc/sys/net/ipv4/neigh/{host.near}/{k}").write_text(v))
    monitor = host.there.inside(RouteMonitor)
    found: list[NeighbourChanged] = []

    def last() -> NeighbourChanged | None:
        events = [one for one in monitor.events() if isinstance(one, NeighbourChanged)]
        found.extend(one for one in events if one.address == address)
        return found[-1] if found else None

    try:
        ping = host.there.start("ping", "-c1", "-W1", str(address))
        until(lambda: (one := last()) and one.failed and one.mac is None, "it has failed")
        ping.wait()
        host.there.ip("neigh", "del", str(address), "dev", host.near)
        until(lambda: (one := last()) and not one.failed and one.mac is None, "it is forgotten")
    finally:
        monitor.close()


def test_threads_may_ask_at_once_and_a_closed_one_says_so(host: Host) -> None:
    wrong: list[object] = []

    def ask() -> None:
        for n in range(200):
            answer = host.lookup.route_to(ip_address("192.0.2.0") + n, SOURCE4, index)
            if answer is None or answer.via != GATEWAY4:
                wrong.append(answer)

    index = host.index(host.near)
    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    host.lookup.close()
    host.lookup.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        host.ask(FAR4)
