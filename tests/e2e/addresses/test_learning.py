"""A virtual machine's addresses, found out from what it sends; this process is the machine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from tests.support.machine import BROADCAST, addresses, arp, idle, machine, solicitation
from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import sniffing
from tests.support.topology import MASTER4, MASTER_MAC, WIRE4, WIRE6, Lab, port4, port6
from tests.support.wire.frames import udp4

GUEST4, GUEST6, LINK_LOCAL = "10.1.0.60", "fd00:1::60", "fe80::60"


def vm(name: str, kind: str = "tap", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "learn": True, "guard": "off"} | more


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    """A namespace with addresses, and two machines' ports that learn; the second pins one too. They claim what others
    have, which no guard keeps from the switch here."""
    ports = [
        port("ipvl1", lab.ports[0], [f"{port4(1)}/16", f"{port6(1)}/64"]),
        vm("vm1"),
        vm("vm2", "macvtap", max_learned=3, addresses=["10.1.0.70/16"]),
    ]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1", "vm2")
        yield daemon


def test_every_way_in_which_an_address_is_told(lab: Lab, lan: Daemon) -> None:
    with machine(lan) as guest:
        guest.send(arp("0.0.0.0", GUEST4))
        until(lambda: addresses(lan, "vm1", "tentative") == {GUEST4: "dad"}, "the probe is heard")
        guest.send(arp("10.1.0.61", WIRE4))
        guest.send(solicitation("::", LINK_LOCAL))
        guest.send(solicitation(LINK_LOCAL, WIRE6))
        guest.send(solicitation(GUEST6, WIRE6))
        guest.send(udp4("10.1.0.62", WIRE4, b"hello"))
        for nonsense in ("127.0.0.1", "224.0.0.9", "255.255.255.255"):
            guest.send(udp4(nonsense, WIRE4, b"nonsense"))
        owned = {"10.1.0.61": "arp", LINK_LOCAL: "nd", GUEST6: "nd", "10.1.0.62": "traffic"}
        until(lambda: addresses(lan, "vm1") == owned, "all are heard")
        found = owned | {GUEST4: "dad"}
        shown = json.loads(lan.cli("addr", "vm1", "--json"))
        assert {one["address"]: one["source"] for one in shown} == found
        assert "dad" in lan.cli("addr", "vm1")
        assert lan.stats()[0]["learned"] == {"learned": len(owned)}
    until(lambda: not lan.port("vm1")["addresses"], "what the machine had is forgotten")


def claims(frame: bytes, address: str) -> bool:
    """Whether the frame says that the address is at the master's MAC address."""
    packed = ip_address(address).packed
    if frame[6:12] != bytes.fromhex(MASTER_MAC.replace(":", "")):
        return False
    if frame[12:14] == b"\x08\x06":
        return frame[28:32] == packed
    return frame[12:14] == b"\x86\xdd" and frame[54] == 136 and frame[62:78] == packed


@pytest.mark.parametrize("version", [4, 6])
def test_a_question_takes_an_address_from_nobody(lab: Lab, lan: Daemon, version: int) -> None:
    """A LAN host has the address that the machine asks about: nobody announces it, and its peers keep to the owner."""
    taken = GUEST4 if version == 4 else GUEST6
    with machine(lan) as guest, sniffing(lab.wire, "w0") as wire:
        guest.send(arp("0.0.0.0", taken) if version == 4 else solicitation("::", taken))
        until(lambda: addresses(lan, "vm1", "tentative") == {taken: "dad"}, "the question is heard")
        lab.ip(lab.wire, "addr", "add", f"{taken}/{16 if version == 4 else 64}", "dev", "w0", "nodad")
        lab.reachable(lab.host, taken)
        assert [frame for frame, _ in wire.frames if claims(frame, taken)] == []
        guest.send(arp(taken, taken) if version == 4 else solicitation(taken, WIRE6))
        until(lambda: taken in addresses(lan, "vm1"), "the machine uses it: now it has it")
    lab.ip(lab.wire, "addr", "del", f"{taken}/{16 if version == 4 else 64}", "dev", "w0")


def test_the_frame_that_tells_is_answered(lab: Lab, lan: Daemon) -> None:
    """The first question in the name of an address: the answer to it arrives, for the address is known by then."""
    with machine(lan) as guest:
        for k in range(1, 9):
            own = f"10.1.0.{60 + k}"
            guest.send(arp(own, WIRE4))
            guest.receive(lambda frame: frame[20:22] == b"\0\2" and frame[38:42] == bytes((10, 1, 0, 60 + k)))  # noqa: B023
        lab.spawn(lab.wire, "ping", "-n", "-c1", "-W20", "10.1.0.61")
        guest.receive(lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34] == 8)


def test_nobody_gets_what_somebody_else_has(lab: Lab, lan: Daemon) -> None:
    taken = [port4(1), MASTER4, "10.1.0.70", GUEST4]
    with machine(lan, "vm1") as one, machine(lan, "vm2") as two:
        one.send(arp(GUEST4, WIRE4))
        until(lambda: addresses(lan, "vm1") == {GUEST4: "arp"}, "the first has it")
        for thief, goods in ((two, (port4(1), MASTER4, GUEST4)), (one, ("10.1.0.70",))):
            for address in goods:
                for _ in range(3):
                    thief.send(arp(address, WIRE4))
        until(lambda: lan.stats()[0]["learned"].get("refused", 0) >= len(taken), "it is refused")
        assert addresses(lan, "vm1") == {GUEST4: "arp"}
        assert addresses(lan, "vm2") == {"10.1.0.70": "config"}
        assert addresses(lan, "ipvl1").keys() >= {port4(1)}
        until(lambda: lan.stats()[0]["learned"]["refused"] == 3 * len(taken), "each time is counted")
        assert lan.said().count("is refused to port") == len(taken), "and told once"
        lab.reachable(lab.wire, port4(1))
    with machine(lan, "vm2") as two:  # and the first is gone
        two.send(arp(GUEST4, WIRE4))
        until(lambda: addresses(lan, "vm2").get(GUEST4) == "arp", "it moves to who has it now")


def test_the_cap_and_a_flood(lab: Lab, lan: Daemon) -> None:
    """What a machine makes up costs nobody else anything: its own frames go on unseen, others are heard."""
    with machine(lan, "vm1") as one, machine(lan, "vm2") as two:
        for k in range(4):
            two.send(arp(f"10.1.1.{k + 1}", WIRE4))
        until(lambda: lan.stats()[0]["learned"].get("refused") == 1, "one too many")
        assert len(addresses(lan, "vm2")) == 4, "three, and the pinned one"
        assert "has 3 already" in lan.said()
        for k in range(2000):
            with contextlib.suppress(BlockingIOError):
                two.send(udp4(f"10.2.{k >> 8}.{k & 255}", WIRE4, b"flood"))
        one.send(arp(GUEST4, WIRE4))
        until(lambda: addresses(lan, "vm1") == {GUEST4: "arp"}, "the other is heard")
        lab.reachable(lab.wire, port4(1))
        assert len(addresses(lan, "vm2")) == 4

        def all_ended() -> bool:
            traffic = lan.stats()[0]["ports"]["vm2"]
            return bool(traffic["rx_frames"] == sum(traffic["outcomes"].values()) > 100)

        until(all_ended, "every frame has ended in one outcome")


def test_learning_may_be_switched_on_and_off(lab: Lab, lan: Daemon) -> None:
    text = lan.config.read_text()
    with machine(lan, "vm1") as guest:
        guest.send(arp(GUEST4, WIRE4))
        until(lambda: addresses(lan, "vm1"), "it is heard")
        lan.config.write_text(text.replace('kind = "tap"\nlearn = true', 'kind = "tap"\nlearn = false'))
        assert "learn off" in lan.cli("reload")
        until(lambda: not addresses(lan, "vm1"), "it counts no more")
        guest.send(arp("10.1.0.61", WIRE4))
        lan.config.write_text(text)
        assert "learn on" in lan.cli("reload")
        guest.send(arp("10.1.0.62", WIRE4))
        until(lambda: "10.1.0.62" in addresses(lan, "vm1"), "it is heard again")
        assert "10.1.0.61" not in addresses(lan, "vm1")


def test_multicast_frames_for_a_learned_address_reach_the_master(lab: Lab, lan: Daemon) -> None:
    with machine(lan) as guest:
        guest.send(solicitation("::", "fd00:1::aa:bbcc"))
        until(lambda: "33:33:ff:aa:bb:cc" in lab.ip(lab.host, "maddr", "show", "dev", "m0"), "the group is set")
    until(lambda: "33:33:ff:aa:bb:cc" not in lab.ip(lab.host, "maddr", "show", "dev", "m0"), "and given up")


def test_a_port_on_the_command_line(lab: Lab, lan: Daemon) -> None:
    words = "link add link m0 name vm3 type ipvtap kind tap learn on max_learned 2"
    lan.cli(*words.split())
    with machine(lan, "vm3") as guest:
        guest.send(BROADCAST + arp(GUEST4, WIRE4)[6:])
        until(lambda: addresses(lan, "vm3") == {GUEST4: "arp"}, "it is heard")
