"""Limits of a namespace's port and of a virtual machine's: in effect, shown, counted, and changed while it is up."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.machine import idle, machine
from tests.support.patience import until
from tests.support.running import Daemon, port, switch, toml
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER_MAC, WIRE4, Lab, inside, port4, port6
from tests.support.wire.frames import mac, udp4

VM4 = "10.1.0.60"
ALL = "ff:ff:ff:ff:ff:ff"


def table(lab: Lab, **more: Any) -> list[dict[str, Any]]:
    own = [[f"{port4(k)}/16", f"{port6(k)}/64"] for k in (1, 2)]
    ports = [port("ipvl1", lab.ports[0], own[0], **more), port("ipvl2", lab.ports[1], own[1])]
    more.pop("max_groups", None)  # a namespace's alone
    return [switch("m0", lab.host, [*ports, {"name": "vm1", "kind": "tap", "addresses": [f"{VM4}/16"], **more}])]


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    with Daemon(*table(lab), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        until(lambda: all(daemon.port(name)["state"] == "up" for name in ("ipvl1", "ipvl2")), "both are up")
        yield daemon


def change(lab: Lab, daemon: Daemon, **more: Any) -> None:
    daemon.config.write_text(toml(daemon.socket, table(lab, **more)))
    daemon.cli("reload")


def counters(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = daemon.stats()[0]["ports"][name]
    return found


def outcome(daemon: Daemon, name: str, what: str) -> int:
    return int(counters(daemon, name)["outcomes"].get(what, 0))


def test_they_are_shown_and_changed_in_place(lab: Lab, lan: Daemon) -> None:
    assert lan.port("ipvl1")["limits"] == lan.port("vm1")["limits"] == {}
    assert "LIMITS" not in lan.cli("show")
    index = lab.link(lab.ports[0], "ipvl1")
    limits = {"rate": "1000mbit/100mbit", "packets": "200k", "broadcast": "off", "max_addresses": 8}
    change(lab, lan, **limits)
    wanted = {"rate": "1gbit/100mbit", "packets": "200k", "broadcast": "off", "max_addresses": 8}
    until(lambda: lan.port("ipvl1")["limits"] == lan.port("vm1")["limits"] == wanted, "the limits are changed")
    assert "rate=1gbit/100mbit,packets=200k,broadcast=off,max_addresses=8" in lan.cli("show")
    now = lab.link(lab.ports[0], "ipvl1")
    assert index is not None and now is not None and index["ifindex"] == now["ifindex"]
    lab.reachable(lab.ports[0], WIRE4)
    lan.config.write_text(toml(lan.socket, table(lab, rate="100mbps")))
    status, answer = lan.call("POST", "/v1/reload")
    assert status == 409, answer
    assert 'switch[0].port[0].rate: "100mbps" is not a rate such as "100mbit", nor "off"' in str(answer)
    assert lan.port("ipvl1")["limits"] == wanted


def send_for(device: socket.socket, frame: bytes, seconds: float) -> int:
    """How many frames were sent. Errors of a full queue are waited out."""
    sent, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            device.send(frame)
            sent += 1
        time.sleep(0.001)
    return sent


def test_a_namespace_gets_its_rate_and_its_sibling_is_untouched(lab: Lab, lan: Daemon) -> None:
    change(lab, lan, rate="2mbit/off")
    until(lambda: "rate" in lan.port("ipvl1")["limits"], "there is a limit")
    lab.reachable(lab.ports[0], WIRE4)
    frame = udp4(port4(1), WIRE4, bytes(1000), to="02:00:00:00:00:fe")
    before = counters(lan, "ipvl1")["outcomes"]["to_master"]
    with raw(lab.ports[0], "ipvl1") as device:
        start = time.monotonic()
        sent = send_for(device, frame, 1)
        assert lab.ping(lab.ports[1], WIRE4, 20) == 20
        until(
            lambda: sum(outcome(lan, "ipvl1", one) for one in ("limit_rate", "to_master")) >= before + sent,
            "all have ended",
        )
        lasted = time.monotonic() - start
    passed = counters(lan, "ipvl1")["outcomes"]["to_master"] - before
    assert 0.9 * 2_000_000 <= passed * 8 * len(frame) <= 2_000_000 * (lasted + 0.05) + 8 * len(frame)
    assert outcome(lan, "ipvl1", "limit_rate") >= sent - passed - 1
    assert outcome(lan, "ipvl2", "limit_rate") == 0


def test_what_a_port_gets_is_limited(lab: Lab, lan: Daemon) -> None:
    """The sibling that sends too much has the outcome, its receiver the errors."""
    change(lab, lan, packets="off/50")
    until(lambda: "packets" in lan.port("ipvl1")["limits"], "there is a limit")
    lab.reachable(lab.ports[1], WIRE4)
    with raw(lab.ports[1], "ipvl2") as device:
        sent = send_for(device, udp4(port4(2), port4(1), b"to a limited port", to=MASTER_MAC), 0.5)
    until(lambda: outcome(lan, "ipvl2", "limit_packets") >= sent - 60, "most are dropped")
    assert counters(lan, "ipvl1")["tx_errors"] >= sent - 60
    assert lab.ping(lab.ports[1], WIRE4, 20) == 20


@pytest.mark.parametrize("kind", ["namespace", "machine"])
def test_broadcast_is_limited_unless_it_is_said_otherwise(lab: Lab, lan: Daemon, kind: str) -> None:
    name, own = ("ipvl1", port4(1)) if kind == "namespace" else ("vm1", VM4)
    frame = udp4(own, "255.255.255.255", b"to all", to=ALL)
    if kind == "machine":
        idle(lan, "vm1")
        with machine(lan, "vm1") as guest:
            broadcasts(lab, lan, name, guest, frame[:6] + mac(lan.port("vm1")["mac"]) + frame[12:])
        return
    with raw(lab.ports[0], "ipvl1") as device:
        broadcasts(lab, lan, name, device, frame)


def broadcasts(lab: Lab, lan: Daemon, name: str, device: Any, frame: bytes) -> None:
    for k in range(2000):
        device.send(frame)
        if k % 20 == 19:
            time.sleep(0.002)  # so that no queue is full
    until(lambda: outcome(lan, name, "limit_broadcast") >= 200, "too many are dropped")
    assert outcome(lan, name, "to_ports") >= 1000
    assert outcome(lan, name, "drop_backlog") == 0
    change(lab, lan, broadcast="off")
    until(lambda: lan.port(name)["limits"] == {"broadcast": "off"}, "there is no limit any more")
    before = outcome(lan, name, "limit_broadcast")
    device.send(frame)
    to_ports = outcome(lan, name, "to_ports")
    until(lambda: outcome(lan, name, "to_ports") >= to_ports, "it passes")
    assert outcome(lan, name, "limit_broadcast") == before


def test_a_hundred_neighbours_at_once_are_no_broadcast_storm(lab: Lab, lan: Daemon) -> None:
    """A host that starts: each address is asked for by ARP, and by as many neighbour solicitations."""
    with inside(lab.ports[0]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for k in range(400):
            asking.sendto(b"hello", (f"10.1.2.{k % 250 + 1}" if k < 250 else f"10.1.3.{k - 249}", 9))
    with inside(lab.ports[0]), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        for k in range(400):
            asking.sendto(b"hello", (f"fd00:1::3:{k:x}", 9))
    until(lambda: outcome(lan, "ipvl1", "to_ports") >= 600, "they are asked for")
    assert outcome(lan, "ipvl1", "limit_broadcast") == 0


def test_groups_are_limited(lab: Lab, lan: Daemon) -> None:
    """A group beyond the limit is not delivered; those by which the port's own addresses are found always are."""
    wanted = struct.pack("4s4s", socket.inet_aton("239.7.7.7"), socket.inet_aton(port4(1)))
    with inside(lab.ports[0]):
        member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with member, raw(lab.ports[1], "ipvl2") as sender, sniffing(lab.ports[0], "ipvl1") as joined:

        def arrives() -> bool:
            marker = b"group %06d." % next(numbers)
            sender.send(bytes.fromhex("01005e070707") + mac(MASTER_MAC) + b"\x88\xb5" + marker.ljust(46, b"\0"))
            time.sleep(0.02)
            return joined.count(marker) > 0

        numbers = iter(range(10**6))
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted)
        until(arrives, "without a limit it arrives")
        change(lab, lan, max_groups=4)
        until(lambda: not arrives(), "with one it does not")
        lab.reachable(lab.ports[1], port6(1))
        change(lab, lan)
        until(arrives, "without one it does again")
