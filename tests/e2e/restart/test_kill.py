"""Ports outlive a daemon that was killed: nothing is seen of it in their namespaces, and the next one goes on."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from ipvsw.linux.devices import tap
from tests.support import leftovers
from tests.support.outage import LinkEvents, Numbered
from tests.support.patience import LIMIT, patient, until
from tests.support.running import ROOT, Daemon, again, port, refused, switch
from tests.support.topology import WIRE4, Lab, exec_in, port4, port6, run
from tests.support.traffic import Stream

KILLS = 30
OUTAGE = patient(5)  # seconds from a kill until frames arrive again; on an idle machine less than one


def index(lab: Lab, netns: str, device: str) -> int:
    link = lab.link(netns, device)
    assert link is not None
    return int(link["ifindex"])


def test_nothing_is_seen_of_it_in_the_namespaces(lab: Lab, lan: Daemon) -> None:
    netns, target = lab.ports
    lab.ip(netns, "addr", "add", "10.1.77.7/16", "dev", "ipvl1")
    lab.ip(netns, "route", "add", "10.99.0.0/16", "via", WIRE4, "dev", "ipvl1")
    lab.ip(netns, "neigh", "add", "10.1.88.8", "lladdr", "02:00:00:00:00:88", "dev", "ipvl1")
    before = index(lab, netns, "ipvl1"), lab.ip(netns, "-4", "route"), lab.ip(netns, "-6", "route")
    with (
        LinkEvents(lab, netns) as events,
        Stream(netns, target, port4(2)) as stream,
        Numbered(netns, target, port4(2)) as between,
        Numbered(lab.wire, netns, port6(1), rate=200) as inwards,
    ):
        stream.flows()
        for _ in range(2):
            again(lan)
            between.goes_on()
            inwards.goes_on()
            stream.flows()
        assert events.disturbances() == []
    assert between.gap < OUTAGE
    assert inwards.gap < OUTAGE
    assert inwards.lost == 0, "they wait in the master's ring"
    print(f"gap {between.gap:.3f} s with {between.lost} lost, from the wire {inwards.gap:.3f} s")
    assert (index(lab, netns, "ipvl1"), lab.ip(netns, "-4", "route"), lab.ip(netns, "-6", "route")) == before
    assert "02:00:00:00:00:88" in lab.ip(netns, "neigh", "show", "10.1.88.8")
    lab.reachable(lab.wire, "10.1.77.7")


def test_frames_have_room_to_wait_in_every_device_that_the_daemon_reads(lab: Lab) -> None:
    first, second = lab.ports
    ports = [
        port("plain", first, [f"{port4(1)}/16"]),
        port("fast", second, [f"{port4(2)}/16"], device="veth"),
        {"name": "vm", "kind": "macvtap", "netns": second},
    ]
    with Daemon(switch("m0", lab.host, ports, mode="l3", host_access="both"), home=lab.home) as daemon:
        daemon.wait(states=("up", "waiting"))
        found = {
            link["ifname"]: link["txqlen"]
            for netns in (lab.host, first, second)
            for link in lab.links(netns)
            if link["ifname"].startswith(("plain", "st-", "sw-", "ipvsw-"))
        }
        assert len(found) == 4
        assert set(found.values()) == {tap.QUEUE}


def test_counting_goes_on(lab: Lab, lan: Daemon) -> None:
    lab.ping(lab.ports[0], port4(2), 20)
    lab.ping(lab.ports[0], WIRE4, 20)
    before = lan.stats()[0]
    again(lan)
    after = lan.stats()[0]
    for name in ("ipvl1", "ipvl2"):
        assert after["ports"][name]["rx_frames"] >= before["ports"][name]["rx_frames"] >= 20
        for outcome, count in before["ports"][name]["outcomes"].items():
            assert after["ports"][name]["outcomes"][outcome] >= count
    assert after["master"]["rx_frames"] >= before["master"]["rx_frames"] >= 20


def test_counters_are_written_while_nobody_looks(lab: Lab, lan: Daemon) -> None:
    before = lan.stats()[0]["ports"]["ipvl1"]["rx_frames"]
    lab.ping(lab.ports[0], WIRE4, 20)
    time.sleep(2.5)  # they are looked at once a second
    again(lan)
    assert lan.stats()[0]["ports"]["ipvl1"]["rx_frames"] >= before + 20


def test_what_the_command_line_has_done_is_kept(lab: Lab, lan: Daemon) -> None:
    lab.add(f"{lab.prefix}-p3")
    words = f"link add link m0 name ipvl3 netns {lab.prefix}-p3 type ipvlan address {port4(3)}/16"
    lan.cli(*words.split())
    lan.cli(*["link", "set", "ipvl3", "type", "ipvlan", "mode", "l2", "private"])
    lab.ip(f"{lab.prefix}-p3", "addr", "add", "10.1.33.3/16", "dev", "ipvl3")
    lab.reachable(lab.wire, "10.1.33.3")
    was = index(lab, f"{lab.prefix}-p3", "ipvl3")
    again(lan)
    assert lan.show()[0]["flag"] == "private"
    assert index(lab, f"{lab.prefix}-p3", "ipvl3") == was
    lab.reachable(lab.wire, "10.1.33.3")
    lan.cli("link", "del", "ipvl3")
    again(lan)
    assert [one["name"] for one in lan.show()[0]["ports"]] == ["ipvl1", "ipvl2"]
    assert lab.link(f"{lab.prefix}-p3", "ipvl3") is None


def test_the_file_that_was_changed_meanwhile_is_followed(lab: Lab, lan: Daemon) -> None:
    was = index(lab, lab.ports[0], "ipvl1")
    text = lan.config.read_text().replace(f"{port4(1)}/16", "10.1.44.4/16")
    lan.kill()
    lan.config.write_text(text[: text.rindex("[[switch.port]]")])
    lan.start()
    lan.wait()
    assert [one["name"] for one in lan.show()[0]["ports"]] == ["ipvl1"]
    until(lambda: lab.link(lab.ports[1], "ipvl2") is None, "the port that left the file is gone")
    assert index(lab, lab.ports[0], "ipvl1") == was
    lab.reachable(lab.wire, "10.1.44.4")
    assert not any(one["local"] == port4(1) for one in lab.addresses(lab.ports[0], "ipvl1"))


def test_another_interface_name_is_made_anew(lab: Lab, lan: Daemon) -> None:
    lan.kill()
    lan.config.write_text(lan.config.read_text().replace('name = "ipvl1"', 'name = "ipvl1"\nifname = "eth7"'))
    lan.start()
    lan.wait()
    until(lambda: lab.link(lab.ports[0], "ipvl1") is None, "the old device is gone")
    lab.reachable(lab.ports[0], WIRE4)
    assert lab.link(lab.ports[0], "eth7")


def test_a_namespace_that_was_replaced_meanwhile_gets_a_new_device(lab: Lab, lan: Daemon) -> None:
    lan.kill()
    run("ip", "netns", "del", lab.ports[0])
    lab.add(lab.ports[0])
    lan.start()
    lan.wait()
    lab.reachable(lab.ports[0], port4(2))


def test_several_queues_are_kept(lab: Lab) -> None:
    ports = [port(f"ipvl{k}", n, [f"{port4(k)}/16"], queues=2) for k, n in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home, workers=2) as daemon:
        daemon.wait()
        with (
            LinkEvents(lab, lab.ports[0]) as events,
            Stream(lab.ports[0], lab.ports[1], port4(2)) as stream,
        ):
            was = index(lab, lab.ports[0], "ipvl1")
            again(daemon)
            stream.flows()
            assert events.disturbances() == []
        assert index(lab, lab.ports[0], "ipvl1") == was
        daemon.kill()
        daemon.config.write_text(daemon.config.read_text().replace("workers = 2", "workers = 1"))
        daemon.start()
        daemon.wait()
        assert "2 queues" in daemon.said()
        lab.reachable(lab.ports[0], port4(2))


def keeper(daemon: Daemon) -> int | None:
    """The process that holds the daemon's descriptors."""
    return next(iter(_keepers(daemon)), None)


def _keepers(daemon: Daemon) -> list[int]:
    return [
        int(entry.parent.name)
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if b"keeper.py" in entry.read_bytes() and _serves(int(entry.parent.name), daemon.keeper)
    ]


def _serves(pid: int, path: Path) -> bool:
    try:
        inode = re.search(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/0"))
        table = Path(f"/proc/{pid}/net/unix").read_text()
    except OSError:  # it has ended
        return False
    return inode is not None and any(f" {inode[1]} {path}" in line for line in table.splitlines())


def held_by(pid: int | None) -> list[str]:
    """What the keeper has open apart from its own sockets: devices, BPF objects and the daemon's record."""
    try:
        links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:  # it has ended, or closes one
        return []
    return sorted(link for link in links if not link.startswith(("socket:", "/dev/null")))


def test_a_keeper_that_was_killed_is_replaced(lab: Lab, lan: Daemon) -> None:
    first = keeper(lan)
    assert first is not None
    copies = held_by(first)
    assert copies
    os.kill(first, signal.SIGKILL)
    until(lambda: "another one is started" in lan.said(), "the daemon notices")
    until(lambda: keeper(lan) not in (None, first), "another keeper runs", every=0.05)
    until(lambda: held_by(keeper(lan)) == copies, "it has copies of everything", every=0.05)
    was = index(lab, lab.ports[0], "ipvl1")
    lab.reachable(lab.ports[0], WIRE4)
    again(lan)
    assert index(lab, lab.ports[0], "ipvl1") == was


def test_daemon_and_keeper_killed_together_leave_what_a_kill_has_always_left(lab: Lab, lan: Daemon) -> None:
    process = keeper(lan)
    assert process is not None
    lan.kill()
    os.kill(process, signal.SIGKILL)
    until(lambda: lab.link(lab.ports[0], "ipvl1") is None, "its devices are gone")
    lan.start()
    lan.wait()
    lab.reachable(lab.ports[0], WIRE4)


def test_a_second_daemon_at_the_same_socket_takes_nothing(lab: Lab, lan: Daemon) -> None:
    second = Daemon(switch("m1", lab.host, []), home=lab.home)
    second.config.write_text(lan.config.read_text())
    second.start()
    assert second.process is not None
    assert second.process.wait() == 2
    assert "already served by another ipvswd" in second.said()
    second.process = None
    second.close()
    lab.reachable(lab.ports[0], WIRE4)


def test_a_wrong_file_leaves_the_ports_to_the_next_attempt(lab: Lab, lan: Daemon) -> None:
    was, good = index(lab, lab.ports[0], "ipvl1"), lan.config.read_text()
    lan.kill()
    lan.config.write_text(good.replace('master = "m0"', 'master = "nothing"'))
    lan.start()
    assert lan.process is not None
    assert lan.process.wait() == 2
    assert index(lab, lab.ports[0], "ipvl1") == was
    lan.config.write_text(good)
    lan.start()
    lan.wait()
    assert index(lab, lab.ports[0], "ipvl1") == was


def test_kills_at_random_moments(lab: Lab) -> None:
    """Start and reload are among the moments. Every time the daemon recovers, and in the end nothing is left."""
    before, dice = leftovers.network(lab), random.Random(13)
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait()
        lab.ip(lab.ports[0], "addr", "add", "10.1.77.7/16", "dev", "ipvl1")
        was = index(lab, lab.ports[0], "ipvl1")
        with (
            LinkEvents(lab, lab.ports[0]) as events,
            Stream(lab.ports[0], lab.ports[1], port4(2)) as stream,
            Numbered(lab.ports[0], lab.ports[1], port4(2)) as numbered,
        ):
            for kill in range(KILLS):
                assert daemon.process is not None
                if kill % 2:
                    daemon.wait()
                    daemon.process.send_signal(signal.SIGHUP)
                time.sleep(dice.uniform(0, 1.0))
                daemon.kill()
                daemon.start()
            daemon.wait()
            numbered.goes_on()
            stream.flows()
            assert events.disturbances() == []
        print(f"{KILLS} kills: longest gap {numbered.gap:.3f} s, {numbered.lost} of {numbered.sent} lost")
        assert index(lab, lab.ports[0], "ipvl1") == was
        lab.reachable(lab.wire, "10.1.77.7")
        daemon.stop()
        until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)


def test_a_second_daemon_on_the_same_master_leaves_no_keeper(lab: Lab, lan: Daemon) -> None:
    others = len([entry for entry in Path("/proc").glob("[0-9]*/cmdline") if b"keeper.py" in entry.read_bytes()])
    refused(switch("m0", lab.host, []), home=lab.home)
    after = len([entry for entry in Path("/proc").glob("[0-9]*/cmdline") if b"keeper.py" in entry.read_bytes()])
    assert after == others
    lab.reachable(lab.ports[0], WIRE4)


def test_cleanup_removes_what_a_killed_one_has_left(lab: Lab) -> None:
    before = leftovers.network(lab)
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports, mode="l3s", host_access="both"), home=lab.home) as daemon:
        daemon.wait()
        rules = lab.ip(lab.host, "rule")
        assert cleanup(daemon)[0] == 1, "a daemon that runs is left alone"
        lab.reachable(lab.ports[0], port4(2))
        daemon.kill()
        assert lab.link(lab.ports[0], "ipvl1"), "the keeper has it"
        daemon.config.unlink()
        assert cleanup(daemon) == (0, ""), daemon.said()
        assert not daemon.keeper.exists()
        until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)
        assert lab.ip(lab.host, "rule") != rules
        assert "118:" not in lab.ip(lab.host, "rule")
        assert cleanup(daemon)[0] == 0, "there is nothing to do"
        assert not daemon.keeper.exists()


def cleanup(daemon: Daemon) -> tuple[int, str]:
    """`ipvswd --cleanup`: exit status, and warnings."""
    words = [sys.executable, "-m", "ipvsw.daemon.main", "--cleanup", "--socket", str(daemon.socket)]
    words += ["--log-level", "warning"]
    done = subprocess.run(exec_in(daemon.home or "", *words), capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)
    return done.returncode, done.stderr
