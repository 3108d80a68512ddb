"""DHCP behind the one MAC address: whose an answer is, what follows from it, and what `ipvsw lease` says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvsw.snooping import dhcp4
from tests.support.machine import MAC, Machine, addresses, arp, idle, machine, serving, solicitation, udp, udp6
from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, Daemon, port, switch
from tests.support.topology import MASTER4, WIRE4, Lab, port4
from tests.support.wire.dhcp import bootp, said6, udp_is_right

CHADDR, OTHER = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
LEASED, ANOTHER = "10.1.9.1", "10.1.9.2"
LINK_LOCAL, LEASED6 = "fe80::60", "fd00:1::9:1"
SERVERS = bytes.fromhex("ff020000000000000000000000010002")


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    """Two namespaces that get their addresses by DHCP, and two machines' ports that learn. A machine is a server and
    talks nonsense in some tests, so no guard keeps its frames back."""
    ports: list[dict[str, Any]] = [port(f"ipvl{k}", netns) for k, netns in enumerate(lab.ports, 1)]
    ports += [{"name": f"vm{k}", "kind": "tap", "learn": True, "guard": "off"} for k in (1, 2)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        idle(daemon, "vm1", "vm2")
        yield daemon


def leases(lan: Daemon, name: str = "") -> dict[str, dict[str, Any]]:
    """Address -> the rest, of one port or of all."""
    return {one["address"]: one for one in json.loads(lan.cli("lease", "list", "--json", *name.split()))}


def message(frame: bytes) -> bytes:
    """The DHCP message in a frame without a virtio_net_hdr, or nothing."""
    where = dhcp4.datagram(bytes(10) + frame)
    return b"" if where is None else (bytes(10) + frame)[where.payload]


def reply(kind: int, xid: int) -> Callable[[bytes], bool]:
    return lambda frame: (
        (found := message(frame))[:1] == b"\2"
        and found[4:8] == xid.to_bytes(4, "big")
        and (bytes((53, 1, kind)) in found)
    )


def lease(server: Any, guest: Machine, address: str, *, xid: int = 7, seconds: int = 3600, **more: Any) -> None:
    """The last two steps of four, between a server and a guest that are this process."""
    guest.ask(3, xid=xid, **more)
    server.is_asked(xid, more.get("chaddr", b""))
    server.says(5, xid=xid, yiaddr=address, seconds=seconds, **more)
    guest.receive(reply(5, xid))


@pytest.fixture
def dnsmasq(lab: Lab, tmp_path: Path) -> Callable[..., None]:
    def start(*more: str) -> None:
        lab.spawn(
            *(lab.wire, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0"),
            *(f"--pid-file={tmp_path}/pid", f"--dhcp-leasefile={tmp_path}/leases", "--interface=w0", "--no-ping"),
            *("--bind-interfaces", "--dhcp-authoritative", "--dhcp-range=10.1.9.1,10.1.9.99,255.255.0.0,1h", *more),
        )
        until(lambda: (tmp_path / "pid").exists(), "dnsmasq runs")

    return start


def udhcpc(lab: Lab, k: int, tmp_path: Path, *more: str) -> list[str]:
    """The words of a client in the k-th port's namespace that sets what it is given. It takes nothing back: a release
    may still wait for the server's MAC address."""
    script = tmp_path / "bound"
    script.write_text('#!/bin/sh\n[ "$1" != bound ] || ip addr add "$ip/$mask" dev "$interface"\n')
    script.chmod(0o755)
    return ["busybox", "udhcpc", "-f", "-t20", "-T1", "-i", f"ipvl{k}", "-s", str(script), *more]


@pytest.mark.parametrize("flag", [[], ["-B"]], ids=["unicast", "broadcast"])
def test_a_namespace_leases(
    lab: Lab, lan: Daemon, dnsmasq: Callable[..., None], tmp_path: Path, flag: list[str]
) -> None:
    """Also if the server answers by unicast to an address that nobody has yet."""
    began = time.time()
    dnsmasq("--dhcp-host=id:00:aa:bb,10.1.9.77")
    with serving(lab) as wire:
        lab.execute(
            lab.ports[0], *udhcpc(lab, 1, tmp_path, "-n", "-q", "-x", "0x3d:00aabb", "-x", "hostname:one", *flag)
        )
        asked = message(wire.hears(b"c\x82Sc"))
        assert bool(asked[10] & 0x80) is bool(flag), "the namespace's own message leaves as it is"
    (found,) = leases(lan, "ipvl1").values()
    assert 3500 < found.pop("remaining") <= 3600
    assert began <= found.pop("ends") - 3600 <= time.time()
    expected = {
        "switch": "lan",
        "port": "ipvl1",
        "address": "10.1.9.77",
        "state": "owned",
        "client_id": "00:aa:bb",
        "mac": MAC.hex(":"),
        "hostname": "one",
        "server": WIRE4,
        "prefix": None,  # it is not the daemon that is the client
    }
    assert found | expected == found
    assert lan.port("ipvl1")["addresses"][0]["source"] == "netlink"
    lab.reachable(lab.wire, "10.1.9.77")
    assert "10.1.9.77  lan/ipvl1  owned" in lan.cli("lease")


def test_a_release(lab: Lab, lan: Daemon, dnsmasq: Callable[..., None], tmp_path: Path) -> None:
    dnsmasq()
    client = lab.spawn(lab.ports[0], *udhcpc(lab, 1, tmp_path, "-R", "-x", "0x3d:00aabb"))
    until(lambda: any(one["state"] == "owned" for one in leases(lan).values()), "it leases")
    client.terminate()
    until(lambda: not leases(lan), "and releases")


def test_a_lease_that_has_ended_while_the_machine_slept_is_found(lab: Lab, lan: Daemon) -> None:
    """As it looks to the doctor when the wall clock has gone on without the daemon's."""

    def lapsed(ahead: int) -> list[tuple[str, str]]:
        clock = f"import sys, time; now = time.time; time.time = lambda: now() + {ahead}"
        words = [sys.executable, "-c", f"{clock}; from ipvsw.cli import main; sys.exit(main())"]
        words += ["--socket", str(lan.socket), "doctor", "--json"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        return [(one["where"], one["text"]) for one in json.loads(done.stdout) if one["code"] == "lease-clock"]

    with serving(lab) as server, machine(lan) as guest:
        lease(server, guest, LEASED, chaddr=CHADDR, seconds=7200)
        assert lapsed(0) == lapsed(7000) == []
        ((where, text),) = lapsed(6 * 3600)
        assert where == "lan/vm1" and f"the lease of {LEASED} ended 4 h ago" in text


def test_a_machine_learns_by_its_lease(lab: Lab, lan: Daemon) -> None:
    with serving(lab) as server, machine(lan) as guest:
        guest.ask(1, xid=5, chaddr=CHADDR)
        server.hears(CHADDR)
        server.says(2, xid=5, chaddr=CHADDR, yiaddr=LEASED, seconds=60)
        guest.receive(reply(2, 5))
        assert not lan.port("vm1")["addresses"], "an offer is no lease"
        lease(server, guest, LEASED, chaddr=CHADDR, hostname=b"guest")
        assert addresses(lan, "vm1") == {LEASED: "dhcp"}, "it is known when the guest hears of it"
        found = leases(lan, "vm1")[LEASED]
        assert (found["mac"], found["hostname"], found["server"], found["state"]) == (
            CHADDR.hex(":"),
            "guest",
            WIRE4,
            "owned",
        )
        lease(server, guest, ANOTHER, chaddr=CHADDR, xid=8)
        assert addresses(lan, "vm1") == {ANOTHER: "dhcp"}, "a client has one"
    assert not leases(lan)


def test_answers_go_to_whom_they_are_for(lab: Lab, lan: Daemon) -> None:
    """Both machines have chosen the same number."""
    with serving(lab) as server, machine(lan, "vm1") as one, machine(lan, "vm2") as two:
        one.ask(1, xid=5, chaddr=CHADDR)
        two.ask(1, xid=5, chaddr=OTHER)
        server.hears(CHADDR)
        server.hears(OTHER)
        for guest, chaddr, address in ((two, OTHER, ANOTHER), (one, CHADDR, LEASED)):
            server.says(2, xid=5, chaddr=chaddr, yiaddr=address, seconds=60)
            assert chaddr in guest.receive(reply(2, 5))
        server.says(2, xid=99, chaddr=CHADDR, yiaddr=LEASED, seconds=60)  # nobody has asked
        for guest in (one, two):
            found = [frame for frame in [guest.receive(reply(2, 99)), *guest.read()] if message(frame)]
            assert all(reply(2, 99)(frame) for frame in found), "nothing else was for this one"
        for guest, chaddr, address in ((one, CHADDR, LEASED), (two, OTHER, ANOTHER)):
            lease(server, guest, address, xid=6, chaddr=chaddr)
        assert addresses(lan, "vm1") == {LEASED: "dhcp"} and addresses(lan, "vm2") == {ANOTHER: "dhcp"}


def end_by_refusal(server: Any, guest: Machine) -> None:
    guest.ask(3, xid=20, chaddr=CHADDR, ciaddr=LEASED)
    server.is_asked(20)
    server.says(6, xid=20, chaddr=CHADDR)
    guest.receive(reply(6, 20))


def end_by_decline(server: Any, guest: Machine) -> None:
    guest.ask(4, xid=20, chaddr=CHADDR, requested=LEASED)


def end_by_release(server: Any, guest: Machine) -> None:
    guest.ask(7, xid=20, chaddr=CHADDR, ciaddr=LEASED)


def end_by_itself(server: Any, guest: Machine) -> None:
    """The lease was for two seconds."""


@pytest.mark.parametrize("end", [end_by_refusal, end_by_decline, end_by_release, end_by_itself])
def test_the_end_of_a_lease(lab: Lab, lan: Daemon, end: Callable[[Any, Machine], None]) -> None:
    with serving(lab) as server, machine(lan) as guest:
        lease(server, guest, LEASED, chaddr=CHADDR, seconds=2 if end is end_by_itself else 3600)
        end(server, guest)
        until(lambda: not lan.port("vm1")["addresses"], "the address is given up")
        assert not leases(lan)
        assert lan.stats()[0]["learned"] == {"learned": 1, "ended": 1}


def test_a_renewal_by_unicast(lab: Lab, lan: Daemon) -> None:
    """The lease is a longer one then; questions and answers go from address to address."""
    with serving(lab) as server, machine(lan) as guest:
        lease(server, guest, LEASED, chaddr=CHADDR, seconds=60)
        ask = udp(LEASED, WIRE4, 67, bootp(1, kind=3, xid=21, chaddr=CHADDR, ciaddr=LEASED))
        guest.send(bytes.fromhex("0200000000fe") + MAC + ask[12:])
        server.is_asked(21)
        answer = udp(
            WIRE4, LEASED, 68, bootp(2, kind=5, xid=21, chaddr=CHADDR, ciaddr=LEASED, yiaddr=LEASED, seconds=3600)
        )
        server.send(MAC + bytes.fromhex("0200000000fe") + answer[12:])
        guest.receive(reply(5, 21))
        assert leases(lan)[LEASED]["remaining"] > 3000
        until(lambda: lan.stats()[0]["ports"]["vm1"]["outcomes"]["to_master"] >= 1, "it went out")


def test_a_lease_gives_nobody_what_somebody_else_has(lab: Lab, lan: Daemon) -> None:
    lab.ip(lab.ports[0], "addr", "add", f"{port4(1)}/16", "dev", "ipvl1")
    until(lambda: addresses(lan, "ipvl1").get(port4(1)), "the namespace has it")
    with serving(lab) as server, machine(lan) as guest:
        for xid, taken in enumerate((port4(1), MASTER4), 30):
            lease(server, guest, taken, xid=xid, chaddr=CHADDR)
            assert leases(lan)[taken]["state"] is None
        assert {one["address"]: one["state"] for one in lan.port("vm1")["addresses"]} == {
            port4(1): "refused",
            MASTER4: "refused",
        }
        assert lan.stats()[0]["learned"] == {"refused": 2}


def test_an_answer_with_a_priority_tag(lab: Lab, lan: Daemon) -> None:
    """VID 0, as switches that know priorities send it, by unicast to an address that nobody has yet."""
    with serving(lab) as server, machine(lan) as guest:
        guest.ask(3, xid=8, chaddr=CHADDR)
        server.is_asked(8)
        answer = udp(WIRE4, LEASED, 68, bootp(2, kind=5, xid=8, chaddr=CHADDR, yiaddr=LEASED, seconds=60, server=WIRE4))
        server.send(MAC + bytes.fromhex("0200000000fe") + b"\x81\0\xc0\0" + answer[12:])
        guest.receive(reply(5, 8))
        assert addresses(lan, "vm1") == {LEASED: "dhcp"}


def test_a_guest_cannot_answer_itself(lab: Lab, lan: Daemon) -> None:
    with serving(lab) as server, machine(lan) as guest:
        guest.ask(3, xid=7, chaddr=CHADDR)
        server.hears(CHADDR)
        forged = bootp(2, kind=5, xid=7, chaddr=CHADDR, yiaddr=LEASED, seconds=60)
        guest.send(b"\xff" * 6 + MAC + udp("0.0.0.0", "255.255.255.255", 68, forged)[12:])
        server.hears(forged[:40])
        assert not leases(lan) and not lan.port("vm1")["addresses"]


def test_ipv6(lab: Lab, lan: Daemon) -> None:
    with serving(lab) as server, machine(lan) as guest:
        guest.send(solicitation("::", LINK_LOCAL))
        until(lambda: addresses(lan, "vm1", "tentative"), "its link-local address is known")
        macs = b"\x33\x33\0\1\0\2" + MAC

        def ask(kind: int, xid: int, given: dict[str, int]) -> None:
            guest.send(udp6(LINK_LOCAL, "ff02::1:2", 547, said6(kind, xid=xid, addresses=given), macs))
            server.hears(bytes([kind]) + xid.to_bytes(3, "big"))

        def hear(xid: int) -> None:
            guest.receive(lambda frame: frame[54:56] == b"\2\x23" and frame[63:66] == xid.to_bytes(3, "big"))

        ask(3, 0xABC, {})
        server.says6(LINK_LOCAL, 7, xid=0xABC, addresses={LEASED6: 3600})
        hear(0xABC)
        assert addresses(lan, "vm1") == {LINK_LOCAL: "traffic", LEASED6: "dhcp"}
        (found,) = leases(lan).values()
        assert (found["client_id"], found["server"]) == (b"\0\3\0\1abcdef".hex(":"), b"\0\1server".hex(":"))
        ask(5, 0xABD, {LEASED6: 0})
        server.says6(LINK_LOCAL, 7, xid=0xABD, addresses={LEASED6: 7200})
        hear(0xABD)
        assert leases(lan)[LEASED6]["remaining"] > 3600
        ask(8, 0xABE, {LEASED6: 0})
        until(lambda: addresses(lan, "vm1") == {LINK_LOCAL: "traffic"}, "it is released")


def test_a_namespace_leases_for_ipv6(lab: Lab, lan: Daemon, dnsmasq: Callable[..., None], tmp_path: Path) -> None:
    """By a client with a DUID of its own, and back again."""
    dnsmasq("--dhcp-range=fd00:1::9:1,fd00:1::9:99,64,1h")
    script = tmp_path / "bound"
    script.write_text(
        '#!/bin/sh\n[ "$reason" != BOUND6 ] || ip addr add "$new_ip6_address/64" dev "$interface" nodad\n'
    )
    script.chmod(0o755)
    until(lambda: any(a.startswith("fe80") for a in addresses(lan, "ipvl1")), "it has a link-local address")
    files = ["-cf", "/dev/null", "-lf", f"{tmp_path}/dhclient6", "-pf", f"{tmp_path}/dhclient6.pid", "-sf", str(script)]
    client = lab.spawn(lab.ports[0], "dhclient", "-6", "-N", "-d", "-D", "LL", *files, "ipvl1")
    until(lambda: any(one["state"] == "owned" for one in leases(lan, "ipvl1").values()), "it leases")
    ((address, found),) = leases(lan, "ipvl1").items()
    assert address.startswith("fd00:1::9:") and 3500 < found["remaining"] <= 3600
    assert found["client_id"] == f"00:03:00:01:{MAC.hex(':')}" and found["server"]
    lab.reachable(lab.wire, address)
    client.terminate()
    client.wait()
    lab.execute(lab.ports[0], "dhclient", "-6", "-N", "-r", "-D", "LL", *files, "ipvl1", timeout=LIMIT)
    until(lambda: not leases(lan, "ipvl1"), "and releases")


def test_a_machine_with_its_own_mac_asks_for_a_broadcast(lab: Lab, lan: Daemon) -> None:
    words = "link add link m0 name vm3 type ipvtap kind tap learn on mac own"
    lan.cli(*words.split())
    with serving(lab) as server, machine(lan, "vm3") as guest:
        asks = udp("0.0.0.0", "255.255.255.255", 67, bootp(1, kind=1, xid=77, chaddr=CHADDR))
        guest.send(b"\xff" * 6 + CHADDR + asks[12:])
        heard = server.hears(CHADDR + bytes(10))
        assert message(heard)[10] & 0x80 and udp_is_right(bytes(10) + heard)
        assert message(heard)[28:34] == CHADDR, "what the client calls itself stays"
        server.says(2, xid=77, chaddr=CHADDR, yiaddr=LEASED, seconds=60)
        guest.receive(reply(2, 77))


def test_nonsense_goes_on_as_it_is(lab: Lab, lan: Daemon) -> None:
    cookie = bytes(236) + b"c\x82Sc"
    with serving(lab) as server, machine(lan) as guest:
        for tail in (b"\x35", b"\x35\xff", b"\x3d\0", bytes(300), b"\x34\1\3" + b"\xff"):
            for to_port in (67, 68):
                body = cookie + tail + bytes([to_port])
                guest.send(udp("10.1.0.60", WIRE4, to_port, body))
                server.hears(body)
        guest.send(arp("10.1.0.60", WIRE4))
        until(lambda: addresses(lan, "vm1").get("10.1.0.60") == "traffic", "the switch goes on")
        assert "Traceback" not in lan.said(), lan.said()[-3000:]
