"""Guards of a namespace's port and of a virtual machine's, this process being the machine."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from tests.support.machine import addresses, arp, idle, machine, solicitation
from tests.support.patience import until
from tests.support.running import Daemon, port, switch, toml
from tests.support.sniff import PACKET_VNET_HDR, SOL_PACKET, raw, sniffing
from tests.support.topology import WIRE4, WIRE6, Lab, port4, port6
from tests.support.wire.frames import NEEDS_CSUM, udp4

VM4, VM6, LINK_LOCAL = "10.1.0.60", "fd00:1::60", "fe80::60"
FEW = 400  # frames: they fit into a device's queue, and no punt queue takes them all


def ports(lab: Lab, **more: Any) -> list[dict[str, Any]]:
    """A namespace's, its sibling and a virtual machine's."""
    own = [[f"{port4(k)}/16", f"{port6(k)}/64"] for k in (1, 2)]
    return [
        port("ipvl1", lab.ports[0], own[0], **more),
        port("ipvl2", lab.ports[1], own[1], guard="off"),
        {"name": "vm1", "kind": "tap", "mac": "master", "addresses": [f"{VM4}/16", f"{VM6}/64"]},
    ]


@pytest.fixture(params=["tap", "veth"])
def lan(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """The guarded namespace's port with either device."""
    table = ports(lab, guard="strict", device=request.param)
    with Daemon(switch("m0", lab.host, table), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1")
        yield daemon


def guarded(daemon: Daemon, name: str) -> dict[str, int]:
    """The counters of a port's guards."""
    outcomes = daemon.stats()[0]["ports"][name]["outcomes"]
    return {outcome: count for outcome, count in outcomes.items() if outcome.startswith("guard_") and count}


def test_honest_clients_meet_no_guard(lab: Lab, lan: Daemon) -> None:
    """With addresses that the namespace adds by itself, from the first frame on."""
    for target in (WIRE4, WIRE6, port4(2), port6(2)):
        lab.reachable(lab.ports[0], target)
    for k in range(5):
        lab.ip(lab.ports[0], "addr", "add", f"10.1.0.{100 + k}/16", "dev", "ipvl1")
        lab.execute(lab.ports[0], "ping", "-n", "-c1", "-W20", "-I", f"10.1.0.{100 + k}", WIRE4)
        lab.ip(lab.ports[0], "addr", "add", f"fd00:1::2:{k}/64", "dev", "ipvl1")
        lab.reachable(lab.ports[0], WIRE6)
    with machine(lan, "vm1") as guest:
        guest.send(arp(VM4, WIRE4))
        guest.receive(lambda frame: frame[20:22] == b"\0\2")
    assert guarded(lan, "ipvl1") == guarded(lan, "vm1") == {}


def test_the_last_frames_from_an_address_meet_no_guard(lab: Lab, lan: Daemon) -> None:
    """They wait in the device's queue while the namespace removes the address, or sets the device down."""
    late = "10.1.0.100"
    frame = udp4(late, WIRE4, b"late", to="02:00:00:00:00:fe")
    with raw(lab.ports[0], "ipvl1") as device:

        def counted() -> int:
            return int(lan.stats()[0]["ports"]["ipvl1"]["outcomes"]["to_master"])

        for words in 3 * [("addr", "del", f"{late}/16", "dev", "ipvl1"), ("link", "set", "ipvl1", "down")]:
            lab.ip(lab.ports[0], "link", "set", "ipvl1", "up")
            lab.ip(lab.ports[0], "addr", "replace", f"{late}/16", "dev", "ipvl1")
            until(lambda: addresses(lan, "ipvl1").get(late), "the port has the address")
            before = counted()
            os.kill(lan.pid, signal.SIGSTOP)
            try:
                for _ in range(FEW):
                    device.send(frame)
                lab.ip(lab.ports[0], *words)
            finally:
                os.kill(lan.pid, signal.SIGCONT)
            until(lambda: not addresses(lan, "ipvl1").get(late), "the port has it no more")
            until(lambda: counted() >= before + FEW or guarded(lan, "ipvl1"), "they are read")  # noqa: B023
            assert guarded(lan, "ipvl1") == {}
        lab.ip(lab.ports[0], "addr", "del", f"{late}/16", "dev", "ipvl1")
        lab.ip(lab.ports[0], "link", "set", "ipvl1", "up")
        until(lambda: device.send(frame) and guarded(lan, "ipvl1"), "later ones are dropped", every=0.1)


def test_no_checksum_is_filled_in_over_an_address(lab: Lab, lan: Daemon) -> None:
    """A master without that offload has the kernel fill it in, wherever a virtio_net_hdr says."""
    lab.offloads(lab.host, "m0", on=False)
    with (
        raw(lab.ports[0], "ipvl1") as device,
        machine(lan, "vm1") as guest,
        sniffing(lab.wire, "w0") as wire,
    ):
        device.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        for name, own, send in (("ipvl1", port4(1), device.send), ("vm1", VM4, lambda data: os.write(guest.fd, data))):
            frame = udp4(own, WIRE4, b"changed", to="02:00:00:00:00:fe")
            for start, offset in ((20, 6), (21, 7)):  # either half of the source
                send(struct.pack("=BBHHHH", NEEDS_CSUM, 0, 0, 0, start, offset) + frame)
            until(lambda: bad_headers(lan, name) == 2, f"they end, of {name}")  # noqa: B023
            send(bytes(10) + frame)
        wire.wait(b"changed", 2)
        assert {one[26:30] for _, one in wire.frames if b"changed" in one} == {
            ip_address(own).packed for own in (port4(1), VM4)
        }


def bad_headers(daemon: Daemon, name: str) -> int:
    return int(daemon.stats()[0]["ports"][name]["outcomes"]["drop_bad_header"])


@pytest.mark.parametrize("guard", ["strict", "off"])
def test_a_machine_with_pinned_addresses_has_its_link_local_one(lab: Lab, guard: str) -> None:
    """For neighbour discovery and router advertisements. Another of its own making it has not, nor a sibling's."""
    some = ports(lab)
    some[2] |= {"guard": guard}
    with Daemon(switch("m0", lab.host, some), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1")
        theirs = next(one["local"] for one in lab.addresses(lab.ports[0], "ipvl1") if one["scope"] == "link")
        with machine(daemon) as guest:
            guest.send(solicitation("::", LINK_LOCAL))
            guest.send(solicitation(LINK_LOCAL, WIRE6))
            answer = guest.receive(lambda frame: frame[12:14] == b"\x86\xdd" and frame[54] == 136)
            assert answer[38:54] == ip_address(LINK_LOCAL).packed
            assert addresses(daemon, "vm1").get(LINK_LOCAL) == "nd"
            assert guarded(daemon, "vm1") == {}
            guest.send(solicitation("fd00:1::61", WIRE6))
            guest.send(solicitation(theirs, WIRE6))
            drops = {"guard_ip_source": 2} if guard == "strict" else {}
            until(lambda: guarded(daemon, "vm1") == drops, f"dropped: {guarded(daemon, 'vm1')}")
            assert set(addresses(daemon, "vm1")) == {VM4, VM6, LINK_LOCAL}
        until(lambda: not addresses(daemon, "vm1"), "it is forgotten with the machine")


def test_a_guard_is_changed_in_place_and_shown(lab: Lab, lan: Daemon) -> None:
    assert len(lan.port("ipvl1")["guards"]) == len(lan.port("vm1")["guards"]) == 9
    assert lan.port("ipvl2")["guards"] == []
    assert "strict" in lan.cli("show")
    spoofed = udp4(port4(2), WIRE4, b"spoofed", to="02:00:00:00:00:fe")
    with raw(lab.ports[0], "ipvl1") as device, sniffing(lab.wire, "w0") as wire:
        device.send(spoofed)
        until(lambda: guarded(lan, "ipvl1") == {"guard_ip_source": 1}, "it is dropped")
        index = lab.link(lab.ports[0], "ipvl1")
        changed = ports(lab, guard=["arp", "nd"], device=lan.port("ipvl1")["device"])
        lan.config.write_text(toml(lan.socket, [switch("m0", lab.host, changed)]))
        lan.cli("reload")
        until(lambda: lan.port("ipvl1")["guards"] == ["arp", "nd"], "the guards are changed")
        device.send(spoofed)
        wire.wait(b"spoofed")
        device.send(arp(port4(2), WIRE4))
        until(lambda: guarded(lan, "ipvl1") == {"guard_ip_source": 1, "guard_arp": 1}, "ARP is guarded still")
        now = lab.link(lab.ports[0], "ipvl1")
        assert index is not None and now is not None and index["ifindex"] == now["ifindex"]
    assert next(one["guards"] for one in json.loads(lan.cli("show", "lan", "--json"))[0]["ports"]) == ["arp", "nd"]


def test_a_switch_sets_the_guards_of_its_ports(lab: Lab) -> None:
    some = [port("ipvl1", lab.ports[0]), port("ipvl2", lab.ports[1], guard="off"), {"name": "vm1", "kind": "tap"}]
    with Daemon(switch("m0", lab.host, some, guard=["mac"]), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        assert [daemon.port(name)["guards"] for name in ("ipvl1", "ipvl2", "vm1")] == [["mac"], [], ["mac"]]
        assert daemon.show()[0]["guard"] == ["mac"]
