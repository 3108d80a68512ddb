"""Mode and flag of a running switch are changed: nothing is taken away, and nothing is lost that both deliver."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import running, traffic
from tests.support.patience import LIMIT, until
from tests.support.sniff import sniffing
from tests.support.topology import MASTER_MAC, WIRE_MAC, Lab, inside, port4, port6

MODES, FLAGS = ("l2", "l3", "l3s"), ("bridge", "private", "vepa")
PAIRS = list(itertools.product(MODES, FLAGS))
FORGOTTEN = 5  # pings
CHANGES = 30
QUIET = 0.2  # seconds in which what must not come would have come
LOSSES = ("drop_full", "drop_error", "drop_bad_header", "drop_backlog", "drop_port_down", "drop_too_big")


def set_mode(daemon: running.Daemon, mode: str, flag: str = "bridge") -> None:
    status, answer = daemon.call("PATCH", "/v1/switches/lan", {"mode": mode, "flag": flag})
    assert status == 200, answer


def settled(lab: Lab, mode: str) -> bool:
    """Whether every port's device is as the mode has it."""
    links = [lab.link(netns, f"ipvl{k}") for k, netns in enumerate(lab.ports, 1)]
    return all(link is not None and ("NOARP" in link["flags"]) is (mode != "l2") for link in links)


def owned(lab: Lab) -> list[set[str]]:
    return [{one["local"] for one in lab.addresses(netns, f"ipvl{k}")} for k, netns in enumerate(lab.ports, 1)]


@pytest.fixture(scope="module")
def net() -> Iterator[tuple[Lab, running.Daemon]]:
    with Lab(2) as lab:
        ports = [
            running.port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"])
            for k, netns in enumerate(lab.ports, 1)
        ]
        with running.Daemon(running.switch("m0", lab.host, ports), home=lab.home) as daemon:
            yield lab, daemon.wait()


@pytest.fixture
def lan(net: tuple[Lab, running.Daemon]) -> Iterator[tuple[Lab, running.Daemon]]:
    lab, daemon = net
    for address in (port4(2), port6(2)):
        lab.reachable(lab.ports[0], address)
    yield lab, daemon
    set_mode(daemon, "l2")
    until(lambda: settled(lab, "l2"), "ports are back in l2")


@pytest.mark.parametrize("address", [port4(2), port6(2)], ids=["ipv4", "ipv6"])
def test_connection_survives_every_mode(lan: tuple[Lab, running.Daemon], address: str) -> None:
    """As users change it, with the words of `ip link`."""
    lab, daemon = lan
    addresses, indexes = owned(lab), [daemon.port(f"ipvl{k}")["index"] for k in (1, 2)]
    with traffic.Stream(lab.ports[0], lab.ports[1], address) as stream:
        stream.flows()
        for mode in ("l3", "l3s", "l2"):
            daemon.cli("link", "set", "ipvl1", "type", "ipvlan", "mode", mode)
            until(lambda mode=mode: settled(lab, mode), f"ports are as {mode} has them")
            stream.flows()
            assert owned(lab) == addresses
            assert [daemon.port(f"ipvl{k}")["index"] for k in (1, 2)] == indexes
            assert daemon.show()[0]["mode"] == mode


def test_every_pair(lan: tuple[Lab, running.Daemon]) -> None:
    """Private keeps ports apart, vepa sends what is for a sibling out; a connection outlives all of it."""
    lab, daemon = lan
    first, second = lab.ports
    addresses = owned(lab)
    # What goes out on behalf of the host's routing needs no answer to its ARP.
    lab.ip(lab.host, "neigh", "replace", port4(2), "lladdr", WIRE_MAC, "nud", "permanent", "dev", "m0")
    with traffic.Stream(first, second, port4(2)) as stream:
        for mode, flag in PAIRS:
            set_mode(daemon, mode, flag)
            until(lambda mode=mode: settled(lab, mode), f"ports are as {mode} has them")
            shown = daemon.show()[0]
            assert (shown["mode"], shown["flag"]) == (mode, flag)
            assert owned(lab) == addresses
            # Their neighbour entries are known, so that what is tried is the datagram itself.
            for netns, k, other in ((first, 1, 2), (second, 2, 1)):
                lab.ip(netns, "neigh", "replace", port4(other), "lladdr", MASTER_MAC, "dev", f"ipvl{k}")
            wanted = {"bridge": "port", "private": "nowhere", "vepa": "wire"}[flag]
            assert send(lab, f"{mode} {flag}".encode(), wanted) == wanted, f"{mode} {flag}"
            assert not stream.fault
        set_mode(daemon, "l2")
        for netns, k, other in ((first, 1, 2), (second, 2, 1)):
            lab.ip(netns, "neigh", "del", port4(other), "dev", f"ipvl{k}", check=False)
        stream.flows()


def send(lab: Lab, content: bytes, wanted: str) -> str:
    """Where a datagram for the sibling shows up: its port, the wire, or nowhere."""
    with sniffing(lab.wire, "w0") as wire, traffic.listen(lab.ports[1], port4(2), socket.SOCK_DGRAM) as receiver:
        with inside(lab.ports[0]):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            sender.sendto(content, receiver.getsockname())
        receiver.setblocking(False)

        def place() -> str:
            with contextlib.suppress(BlockingIOError):
                assert receiver.recv(1000) == content
                return "port"
            return "wire" if wire.count(content) else ""

        if wanted != "nowhere":
            return until(place, "the datagram")
        time.sleep(QUIET)
        return place() or "nowhere"


def test_nothing_is_lost(lan: tuple[Lab, running.Daemon]) -> None:
    """A ping every 2 ms through many changes, some in each mode."""
    lab, daemon = lan
    ping = lab.spawn(lab.ports[0], "ping", "-n", "-q", "-i", "0.002", port4(2))

    def passed() -> int:
        return int(daemon.stats()[0]["ports"]["ipvl1"]["outcomes"]["to_port"])

    for change in range(CHANGES):
        mode = MODES[change % 3]
        set_mode(daemon, mode)
        until(lambda mode=mode: settled(lab, mode), f"ports are as {mode} has them")
        before = passed()
        until(lambda before=before: passed() >= before + 5, f"pings go on in {mode}")
    ping.send_signal(signal.SIGINT)
    out, _ = ping.communicate(timeout=LIMIT)
    lab.children.remove(ping)
    for name, port in daemon.stats()[0]["ports"].items():
        assert not any(port["outcomes"][outcome] for outcome in LOSSES), f"{name}: {port}"
        assert port["tx_errors"] == 0, f"{name}: {port}"
    # What waits for a neighbour when its device gets NOARP, the port's own kernel forgets.
    counted = re.search(r"(\d+) packets transmitted, (\d+) received", out)
    assert counted and int(counted[2]) >= int(counted[1]) - FORGOTTEN, out


def test_new_neighbours_are_found_afterwards(lan: tuple[Lab, running.Daemon]) -> None:
    """Back in l2 ports ask for their neighbours again, the wire's too."""
    lab, daemon = lan
    for mode in ("l3", "l2"):
        set_mode(daemon, mode)
        until(lambda mode=mode: settled(lab, mode), f"ports are as {mode} has them")
    for address in (port4(2), port6(2), "10.1.0.254", "fd00:1::254"):
        lab.reachable(lab.ports[0], address)
