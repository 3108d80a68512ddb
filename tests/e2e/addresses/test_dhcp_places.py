"""Who serves DHCP from where, to which client behind the one MAC address: every pair leases, by common programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.topology import MASTER4, WIRE4, Lab, port4

POOL = "--dhcp-range=10.1.9.1,10.1.9.99,255.255.0.0,1h"
TAKEN = "10.1.9.77"
RELAY4, BEHIND4 = "10.77.0.1", "10.77.0.2"

Serve = Callable[[str, str], str]


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    """Two clients' ports, the second with a MAC address of its own, and one with an address, for a server."""
    lab.add(f"{lab.prefix}-p3", f"{lab.prefix}-behind")
    lab.ports.append(f"{lab.prefix}-p3")
    ports = [
        port("ipvl1", lab.ports[0]),
        port("ipvl2", lab.ports[1], mac="own"),
        port("ipvl3", lab.ports[2], [f"{port4(3)}/16"]),
    ]
    with Daemon(switch("m0", lab.host, ports, host_access="both"), home=lab.home) as daemon:
        yield daemon.wait()


@pytest.fixture
def serve(lab: Lab, tmp_path: Path) -> Serve:
    """Starts a server at a place; the address that it calls itself by."""

    def dnsmasq(netns: str, device: str, *words: str) -> None:
        pid = tmp_path / f"{device}.pid"
        lab.spawn(
            *(netns, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0"),
            *(f"--pid-file={pid}", f"--dhcp-leasefile={tmp_path}/{device}.leases", f"--interface={device}"),
            *("--bind-interfaces", "--no-ping", "--dhcp-authoritative", *words),
        )
        until(pid.exists, f"dnsmasq runs on {device}")

    def at_the_place(place: str, more: str = "--log-dhcp") -> str:
        if place == "relay":
            behind = f"{lab.prefix}-behind"
            lab.ip(lab.wire, *f"link add r0 type veth peer name b0 netns {behind}".split())
            for netns, device, address in ((lab.wire, "r0", RELAY4), (behind, "b0", BEHIND4)):
                lab.ip(netns, "addr", "add", f"{address}/24", "dev", device)
                lab.ip(netns, "link", "set", device, "up")
            lab.ip(behind, "route", "add", "default", "via", RELAY4)
            dnsmasq(behind, "b0", POOL, more)
            dnsmasq(lab.wire, "w0", f"--dhcp-relay={WIRE4},{BEHIND4}")
            return BEHIND4
        netns, device, address = {
            "wire": (lab.wire, "w0", WIRE4),
            "host": (lab.host, "m0", MASTER4),
            "sibling": (lab.ports[2], "ipvl3", port4(3)),
        }[place]
        dnsmasq(netns, device, POOL, more)
        return address

    return at_the_place


def lease(lab: Lab, lan: Daemon, tmp_path: Path, k: int, *words: str) -> tuple[str, str]:
    """The address that a client in the k-th port leases and sets, and the server's that gave it."""
    script = tmp_path / "bound"
    script.write_text('#!/bin/sh\n[ "$1" != bound ] || ip addr add "$ip/$mask" dev "$interface"\n')
    script.chmod(0o755)
    client = ["busybox", "udhcpc", "-f", "-n", "-q", "-t20", "-T1", "-i", f"ipvl{k}", "-s", str(script)]
    lab.execute(lab.ports[k - 1], *client, "-x", f"0x3d:00aabb0{k}", *words)

    def found() -> list[dict[str, str]]:
        listed: list[dict[str, str]] = json.loads(lan.cli("lease", "list", "--json", f"ipvl{k}"))
        return [one for one in listed if one["state"] == "owned"]

    until(found, "the lease is listed, and its address the port's")
    (one,) = found()
    return one["address"], one["server"]


@pytest.mark.parametrize("place", ["wire", "relay", "host", "sibling"])
@pytest.mark.parametrize(("client", "words"), [(1, ()), (1, ("-B",)), (2, ())], ids=["unicast", "broadcast", "own mac"])
def test_a_client_leases(
    lab: Lab, lan: Daemon, serve: Serve, tmp_path: Path, place: str, client: int, words: tuple[str, ...]
) -> None:
    server = serve(place, "--log-dhcp")
    address, by = lease(lab, lan, tmp_path, client, *words)
    assert by == server
    for netns in (lab.wire, lab.ports[2], lab.host):
        lab.reachable(netns, address)


@pytest.mark.parametrize("place", ["wire", "relay", "sibling"])
def test_an_offered_address_that_is_taken_is_declined(
    lab: Lab, lan: Daemon, serve: Serve, tmp_path: Path, place: str
) -> None:
    """By a client that asks whether it is: it gets another. The owner is a sibling, or a machine on the wire."""
    owner, device = (lab.wire, "w0") if place == "sibling" else (lab.ports[2], "ipvl3")
    lab.ip(owner, "addr", "add", f"{TAKEN}/32", "dev", device)
    serve(place, f"--dhcp-host=id:00:aa:bb:01,{TAKEN}")
    address, _ = lease(lab, lan, tmp_path, 1, "-a")
    assert address != TAKEN
    lab.reachable(lab.wire if owner != lab.wire else lab.ports[2], TAKEN)
