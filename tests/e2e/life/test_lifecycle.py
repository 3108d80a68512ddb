"""The daemon leaves nothing behind, takes over what a killed one left, and has its master to itself."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import leftovers
from tests.support.patience import LIMIT, until
from tests.support.running import Daemon, port, refused, switch
from tests.support.sniff import sniffing
from tests.support.topology import MASTER4, MASTER_MAC, WIRE4, Lab, batch, port4, port6, run


def table(lab: Lab) -> dict[str, object]:
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"]) for k, netns in enumerate(lab.ports, 1)]
    return switch("m0", lab.host, ports)


def objects(lab: Lab, daemon: Daemon) -> tuple[set[int], set[int]]:
    """BPF programs and maps that are there because of the daemon; there must be some."""
    programs, maps = daemon.bpf()
    programs |= leftovers.tc_programs(lab.host, "m0")
    assert programs, "no BPF program found"
    return programs, maps


def alive(session: int) -> list[str]:
    """Processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.getsid(int(entry)) == session:
                    found.append(entry)
            except ProcessLookupError:
                continue
    return found


def test_a_clean_end_leaves_nothing(lab: Lab) -> None:
    before = leftovers.network(lab)
    for end in (signal.SIGTERM, signal.SIGINT):
        with Daemon(table(lab), home=lab.home) as daemon:
            daemon.wait()
            lab.reachable(lab.ports[0], WIRE4)
            assert leftovers.network(lab) != before
            programs, maps = objects(lab, daemon)
            pid = daemon.pid
            assert daemon.process is not None
            daemon.process.send_signal(end)
            assert daemon.process.wait(LIMIT) == 0, daemon.said()
            daemon.process = None
            assert not daemon.socket.exists()
            assert not alive(pid), "processes are left"
            until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)
            leftovers.gone(programs, maps)
    assert "Traceback" not in daemon_words(daemon)


@pytest.mark.parametrize("after", [0.0, 0.3, 0.6, 1.0])
def test_an_end_in_the_middle_of_the_beginning_leaves_nothing(after: float) -> None:
    with Lab(30) as lab:
        before = leftovers.network(lab)
        ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1)]
        with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
            # Python itself has to be told of signals first: until then SIGTERM simply kills it.
            until(lambda: signal_is_caught(daemon.pid), "SIGTERM is caught")
            time.sleep(after)
            daemon.stop()
        until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)


def signal_is_caught(pid: int) -> bool:
    caught = next(
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")
    )
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def daemon_words(daemon: Daemon) -> str:
    return daemon.log.read_text() if daemon.log.exists() else ""


def test_a_killed_daemon_is_succeeded(lab: Lab) -> None:
    before = leftovers.network(lab)
    with Daemon(table(lab), home=lab.home) as daemon:
        seen: list[tuple[set[int], set[int]]] = []
        for _ in range(3):
            daemon.wait()
            for netns, address in ((lab.ports[0], WIRE4), (lab.ports[0], port4(2)), (lab.wire, port6(1))):
                lab.reachable(netns, address)
            seen.append(objects(lab, daemon))
            assert lab.ping(lab.wire, MASTER4) == 1
            daemon.kill()
            assert daemon.socket.exists(), "the dead daemon's socket is there for its successor to find"
            daemon.start()
            until(lambda: "ipvl1" in daemon.cli("show", check=False), "the successor answers", every=0.1)
        daemon.wait()
        lab.sysctl(lab.host, "net/ipv4/ip_forward", "1")
        with sniffing(lab.ports[0], "ipvl1") as inside:
            assert lab.ping(lab.wire, port4(1), 10) == 10
            until(lambda: echo_requests(inside.frames) >= 10, "the requests are seen")
            assert echo_requests(inside.frames) == 10, "a duplicate"
        for programs, maps in seen:
            leftovers.gone(programs - objects(lab, daemon)[0], maps - objects(lab, daemon)[1])
        last = objects(lab, daemon)
        daemon.stop()
        until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)
        leftovers.gone(*last)


def echo_requests(frames: list[tuple[bytes, bytes]]) -> int:
    return sum(frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34] == 8 for _, frame in frames)


def test_a_killed_daemon_does_not_cut_the_host_off(lab: Lab, lan: Daemon) -> None:
    lan.kill()
    assert lab.ping(lab.wire, MASTER4, 3) == 3
    lan.start()
    until(lan.socket.exists, "the successor's socket")
    lan.wait()


def test_the_host_takes_over_an_address_of_a_killed_daemon(lab: Lab, lan: Daemon) -> None:
    lan.kill()
    batch([f"addr add {port4(1)}/16 dev m0", f"addr add {port6(1)}/64 dev m0 nodad"], lab.host)
    for address in (port4(1), port6(1)):
        lab.ip(lab.wire, "neigh", "replace", address, "lladdr", MASTER_MAC, "dev", "w0")
        lab.reachable(lab.wire, address)
    batch([f"addr del {port4(1)}/16 dev m0", f"addr del {port6(1)}/64 dev m0"], lab.host)
    lan.start()
    until(lan.socket.exists, "the successor's socket")
    lan.wait()
    for address in (port4(1), port6(1)):
        lab.reachable(lab.wire, address)


def test_a_second_daemon_on_the_same_master_is_refused(lab: Lab, lan: Daemon) -> None:
    network = leftovers.network(lab)
    status, said = refused(switch("m0", lab.host, []), home=lab.home)
    assert status in (1, 2), said
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1, said
    assert "m0" in lines[0], said
    assert leftovers.network(lab) == network, "it changed something"
    assert lab.ping(lab.wire, port4(1), 3) == 3


def test_a_wrong_configuration_changes_nothing(lab: Lab) -> None:
    before = leftovers.network(lab)
    status, said = refused(switch("m0", lab.host, [port("ipvl1", lab.ports[0], ["10.0.0.300/24"])]), home=lab.home)
    assert status == 2, said
    assert said.strip().count("\n") == 0, said
    assert 'switch[0].port[0].addresses[0]: "10.0.0.300/24" is not an IPv4 or IPv6 interface address' in said
    assert leftovers.network(lab) == before


def test_two_switches_in_one_daemon_do_not_mix(lab: Lab) -> None:
    with Lab(1) as other:
        first = table(lab)
        second = switch("m0", other.host, [port("ipvl1", other.ports[0], [f"{port4(1)}/16"])]) | {"name": "other"}
        with Daemon(first, second, home=lab.home) as daemon:
            daemon.wait()
            lab.reachable(lab.ports[0], WIRE4)
            other.reachable(other.ports[0], WIRE4)
            assert other.ping(other.ports[0], port4(2), wait=0.2) == 0
            run("ip", "netns", "del", other.ports[0])
            until(
                lambda: [p["state"] for s in daemon.show() if s["name"] == "other" for p in s["ports"]] == ["waiting"],
                "the other switch's port waits",
            )
            assert lab.ping(lab.ports[0], port4(2)) == 1
