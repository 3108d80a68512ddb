"""Guests outlive the daemon: each kind of port goes on with the next one, after a take-over and after a kill."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import LIMIT, until
from tests.support.running import Daemon, again, port, switch, take_over
from tests.support.topology import WIRE4, Lab, port4
from tests.vm.guest import Guest, booted
from tests.vm.ports.test_qemu import GUEST4, GUEST6, NIC, by_descriptor, configure
from tests.vm.ports.test_socket import Way

pytestmark = pytest.mark.usefixtures("bootable")

INTERVAL = 0.05  # seconds between two of the guest's pings
NOTICES = "dmesg | grep -E 'eth0|virtio|NETDEV'; cat /sys/class/net/eth0/carrier_changes"  # not of a clock that lags


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(1) as made:
        yield made


class Pings:
    """What the guest sends all the time to the wire, and how each ended."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        guest.run(f"ping -n -D -i {INTERVAL} {WIRE4} >/tmp/pings 2>&1 & echo $! >/tmp/pinging")
        self.go_on()

    def answered(self) -> list[tuple[float, int]]:
        """When, and which."""
        found = re.findall(r"^\[(\d+\.\d+)\].*icmp_seq=(\d+) .*time=", self._guest.run("cat /tmp/pings"), re.MULTILINE)
        return [(float(when), int(which)) for when, which in found]

    def go_on(self) -> None:
        had = len(self.answered())
        until(lambda: len(self.answered()) > had + 5, "the guest's pings are answered", every=0.2)

    def end(self) -> tuple[int, int, float]:
        """How many were lost, of how many, and seconds between two answers at most."""
        self._guest.run("kill -INT $(cat /tmp/pinging)")
        answered = self.answered()
        numbers = [which for _, which in answered]
        gap = max(later - earlier for (earlier, _), (later, _) in itertools.pairwise(answered))
        return max(numbers) - len(set(numbers)), max(numbers), gap


def settled(guest: Guest) -> bool:
    """The kernel says that a link is ready some time after the first IPv4 packet may have passed."""
    addresses = guest.run("ip -6 addr show dev eth0 scope link")
    return "fe80:" in addresses and "tentative" not in addresses


@pytest.mark.parametrize("name", ["macvtap", "tap", "qemu-listens", "dgram"])
def test_a_guest_goes_on_and_its_kernel_notices_nothing(lab: Lab, tmp_path: Path, name: str) -> None:
    if name in ("macvtap", "tap"):
        vm = {"name": "vm1", "kind": name}
        words = ["-netdev", "tap,id=n0,fd={fd}", "-device", NIC]
    else:
        way = Way(name, tmp_path)
        vm, words = way.port, way.words
    ports = [port("ipvl1", lab.ports[0], [f"{port4(1)}/16"]), {**vm, "addresses": [f"{GUEST4}/16", f"{GUEST6}/64"]}]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as lan:
        lan.wait(states=("up", "waiting"))
        prefix = by_descriptor(lan) if name in ("macvtap", "tap") else []
        with booted(*words, modules=["virtio_net"], prefix=prefix) as guest:
            lan.wait()
            configure(guest)
            guest.run(f"ping -n -q -c 1 -W {LIMIT:g} {WIRE4}")
            until(lambda: settled(guest), "IPv6 has seen that the guest's link is ready", every=0.2)
            noticed = guest.run(NOTICES)
            for what, happen in (("take-over", take_over), ("kill -9", again)):
                pings = Pings(guest)
                happen(lan)
                pings.go_on()
                lost, sent, gap = pings.end()
                print(f"{name}, {what}: {lost} of {sent} pings lost, gap {gap:.3f} s")
                lab.reachable(lab.wire, GUEST4)
                lab.reachable(lab.ports[0], GUEST4)
                if name in ("macvtap", "tap"):
                    assert lost <= 1, "they wait in the device"
            assert guest.run(NOTICES) == noticed
            guest.kill()
