"""l3: a port that looks for thousands of destinations costs its siblings and the administrator nothing."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.modes import scanner
from tests.support.patience import patient, until
from tests.support.routed import Routed, change, inner4, routed
from tests.support.running import Daemon
from tests.support.topology import exec_in, inside

LIMIT = patient(1)  # seconds that others may have to wait
MB = 1 << 20

FAR, DEAD = "198.18.0.0", "172.16.0.0"  # behind the gateway; on the link, where nobody answers


@pytest.fixture
def net() -> Iterator[tuple[Routed, Daemon]]:
    """Besides what `routed` has: 172.16.0.0/12 is on the link, and `far` has every address of 100.64.0.0/16."""
    with routed("l3") as (lab, daemon):
        change(lab.host, "route add 172.16.0.0/12 dev m0")
        change(lab.routers[1], f"route add blackhole {FAR}/15", "route add 100.64.0.0/16 via 10.9.1.2")
        change(lab.far, "route add local 100.64.0.0/16 dev lo")
        lab.add(f"{lab.prefix}-guest")
        yield lab, daemon


@contextlib.contextmanager
def scanning(lab: Routed, first: str, rate: int, seconds: float, payload: int = 0) -> Iterator[subprocess.Popen[str]]:
    """The first port sends to `rate` new destinations a second. See `scanner`."""
    words = [sys.executable, str(Path(scanner.__file__)), "ipvl1", inner4(1), first]
    words += [str(number) for number in (rate, seconds, payload)]
    with subprocess.Popen(exec_in(lab.ports[0], *words), text=True, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


class Sibling:
    """The second port sends to one new destination after the other. A context manager."""

    def __init__(self, lab: Routed) -> None:
        with inside(lab.ports[1]):
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with inside(lab.far):
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.bind(("", 9))
        self._receiver.settimeout(0.02)
        self._targets = (f"100.64.{n >> 8}.{n & 255}" for n in itertools.count(1))

    def __enter__(self) -> Sibling:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()
        self._receiver.close()

    def reach(self) -> float:
        """Seconds until something has arrived at a destination that was new."""
        target, start = next(self._targets), time.monotonic()

        def arrives() -> bool:
            self._sender.sendto(target.encode(), (target, 9))
            with contextlib.suppress(TimeoutError):
                return self._receiver.recv(100) == target.encode()
            return False

        until(arrives, f"something arrives at {target}")
        return time.monotonic() - start


def attach(daemon: Daemon, netns: str, name: str) -> float:
    """Seconds for `ipvsw link add`, as the daemon sees it."""
    start = time.monotonic()
    status, answer = daemon.call("POST", "/v1/ports", {"master": "m0", "name": name, "ifname": name, "netns": netns})
    assert status == 201, answer
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("first", "rate", "seconds", "payload"),
    [
        pytest.param(FAR, 2000, 4, 0, id="slow"),
        pytest.param(FAR, 120_000, 5, 0, id="fast"),
        pytest.param(FAR, 120_000, 5, 60_000, id="long-frames"),
        pytest.param(DEAD, 2000, 4, 0, id="dead-neighbours"),
    ],
)
def test_a_scan_costs_others_nothing(
    net: tuple[Routed, Daemon], first: str, rate: int, seconds: float, payload: int
) -> None:
    lab, daemon = net
    reached: list[float] = []
    attached: list[float] = []
    before = largest = daemon.rss()
    with Sibling(lab) as sibling, scanning(lab, first, rate, seconds, payload) as scan:
        while scan.poll() is None or len(attached) < 10:
            reached += [sibling.reach() for _ in range(5)]
            attached.append(attach(daemon, f"{lab.prefix}-guest", f"x{len(attached)}"))
            largest = max(largest, daemon.rss())
        assert int(scan.communicate()[0]) > min(rate, 4000) * seconds / 2, "it was busy"
    print(f"{max(reached):.3f} s, {max(attached):.3f} s, {(largest - before) / MB:.1f} MB")
    assert max(reached) < LIMIT, f"new destinations of a sibling: {reached}"
    assert max(attached) < LIMIT, f"links: {attached}"
    assert largest - before < 20 * MB, f"memory grew by {(largest - before) / MB:.1f} MB"


@pytest.mark.parametrize("first", [FAR, DEAD], ids=["far", "dead-neighbours"])
def test_what_a_scan_loses_is_counted_by_name_and_for_its_port(net: tuple[Routed, Daemon], first: str) -> None:
    lab, daemon = net
    with scanning(lab, first, 120_000, 1) as scan:
        scan.wait()

    def all_ended() -> bool:
        """Every frame that was read has an outcome, and every one of the slow path a counter of the router's."""
        [stats] = daemon.stats()
        ports = stats["ports"].values()
        slow = sum(one["outcomes"].get("to_slowpath", 0) for one in ports)
        return slow == sum(stats["routed"].values()) and all(
            sum(one["outcomes"].values()) == one["rx_frames"] for one in ports
        )

    until(all_ended, "every frame is counted")
    [stats] = daemon.stats()
    assert not stats["ports"]["ipvl2"]["outcomes"].get("drop_backlog")
    assert stats["ports"]["ipvl1"]["outcomes"]["drop_backlog"] + stats["routed"].get("drop_backlog", 0) > 0
    if first == DEAD:
        assert stats["routed"]["drop_unresolved"] > 0
