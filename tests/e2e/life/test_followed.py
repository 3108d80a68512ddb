"""Ports that go with their device: given away to a runtime that moves and renames it, or in a namespace that came as a
descriptor; and paths on which another namespace is mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvsw.client import ApiError, Client
from tests.e2e.life.test_attachments import add, again, names, shown
from tests.support.patience import until
from tests.support.running import ROOT, Daemon, port, switch, words
from tests.support.spaces import Sleeper
from tests.support.topology import WIRE4, Lab, port4, port6, run

ADDRESSES = [f"{port4(2)}/16", f"{port6(2)}/64"]


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    with Daemon(switch("m0", lab.host), home=lab.home, keeps=True) as daemon:
        yield daemon.wait()


def links(lab: Lab, netns: str) -> list[str]:
    return [link["ifname"] for link in lab.links(netns) if link["ifname"] not in ("lo", "tunl0", "sit0")]


def take(lab: Lab, netns: str, name: str, renamed: str = "eth0", origin: str = "") -> None:
    """As a runtime takes a device: moved, renamed, up."""
    lab.ip(origin or lab.home, "link", "set", name, "netns", netns, "name", renamed)
    lab.ip(netns, "link", "set", renamed, "up")


def works(lab: Lab, lan: Daemon, name: str = "x") -> None:
    until(lambda: lan.port(name)["state"] == "up", f"{name} is up")
    lab.reachable(lab.wire, port4(2))
    lab.reachable(lab.wire, port6(2))


def test_a_runtime_moves_and_renames_the_device(lab: Lab, lan: Daemon) -> None:
    given = add(lan, "x", "follow", addresses=ADDRESSES, gateway=[WIRE4])
    assert (given["state"], given["ifname"]) == ("down", "x")
    assert not lab.addresses(lab.home, "x")
    first, second = lab.ports
    take(lab, first, "x")
    works(lab, lan)
    assert lan.port("x")["ifname"] == "eth0"
    until(lambda: "default via" in lab.ip(first, "route"), "it has its gateway")
    lab.ip(first, "link", "set", "eth0", "down")
    lab.ip(first, "link", "set", "eth0", "name", "net7", "up")
    works(lab, lan)
    until(lambda: lan.port("x")["ifname"] == "net7", "the name is seen")
    take(lab, second, "net7", "eth1", first)
    works(lab, lan)
    lab.ip(second, "link", "set", "eth1", "netns", str(os.getpid()), "name", "back0")  # and on, to where no name is
    run("ip", "link", "set", "back0", "netns", first)
    lab.ip(first, "link", "set", "back0", "up")
    works(lab, lan)
    mac = lab.link(first, "back0")
    assert mac is not None and mac["address"] == lan.port("x")["mac"]
    run("ip", "netns", "del", first)
    until(lambda: "x" not in names(lan), "the port has gone with its namespace")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_it_is_still_there_for_the_next_daemon(lab: Lab, lan: Daemon, how: str) -> None:
    with Sleeper() as process:
        add(lan, "x", "follow", addresses=ADDRESSES)
        run("nsenter", f"--net=/run/netns/{lab.home}", "ip", "link", "set", "x", "netns", str(process.pid))
        inside = ("nsenter", "-n", "-t", str(process.pid), "ip", "link", "set")
        run(*inside, "x", "name", "eth0")
        run(*inside, "eth0", "up")
        works(lab, lan)
        if how == "stopped":
            again(lan)
        else:
            lan.kill()
            lan.start()
            until(lambda: bool(shown(lan)), "it serves")
        works(lab, lan)
        assert process.links() == ["lo", "eth0"]
    until(lambda: "x" not in names(lan), "it has gone with the process")


def test_moved_while_no_daemon_was_there(lab: Lab, lan: Daemon) -> None:
    add(lan, "x", "follow", addresses=ADDRESSES)
    lan.kill()
    take(lab, lab.ports[0], "x")
    lan.start()
    until(lambda: bool(shown(lan)), "it serves")
    works(lab, lan)
    assert lan.port("x")["ifname"] == "eth0"


def test_a_port_of_the_file_is_made_anew(lab: Lab) -> None:
    with Daemon(switch("m0", lab.host, [port("x", "follow", ADDRESSES)]), home=lab.home) as lan:
        lan.wait(states=("down",))
        for netns in lab.ports:
            until(lambda: "x" in links(lab, lab.home), "it is there to be taken")
            take(lab, netns, "x")
            works(lab, lan)
            assert "nothing" in lan.cli("reload") or lan.port("x")["state"] == "up"
            run("ip", "netns", "del", netns)
        until(lambda: "x" in links(lab, lab.home), "it is made anew")


def test_a_namespace_comes_as_a_descriptor(lab: Lab, lan: Daemon) -> None:
    """One that has no name, and then no process: the port goes with it."""
    client = Client(str(lan.socket))
    with Sleeper() as process:
        fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)
        added = client.add_port(master="m0", name="x", ifname="eth0", addresses=ADDRESSES, netns_fd=fd)
        os.close(fd)
        assert (added["state"], added["ifname"]) == ("up", "eth0")
        assert process.links() == ["lo", "eth0"]
        works(lab, lan)
        again(lan)
        works(lab, lan)
    until(lambda: "x" not in names(lan), "the port has gone")
    until(lambda: not lan.state.exists(), "nothing is to be kept")


def test_the_command_line_takes_a_descriptor(lab: Lab, lan: Daemon) -> None:
    with open(f"/run/netns/{lab.ports[0]}") as netns:
        asked = ["--socket", str(lan.socket), "link", "add", "link", "m0", "name", "x", "netns", f"fd:{netns.fileno()}"]
        command = [*words("IPVSW", "ipvsw.cli"), *asked, "type", "ipvlan"]
        subprocess.run(command, cwd=ROOT, pass_fds=[netns.fileno()], check=True)
    assert lan.port("x")["state"] == "up"
    assert links(lab, lab.ports[0]) == ["x"]
    lan.cli("link", "delete", "x")


def test_what_is_no_namespace_is_refused(lab: Lab, lan: Daemon, tmp_path: Path) -> None:
    client, before = Client(str(lan.socket)), lan.fds()
    asked: dict[str, Any] = {"master": "m0", "name": "x"}
    with (tmp_path / "file").open("w") as file, open("/proc/self/ns/mnt") as mounts:
        for one in (file, mounts):
            with pytest.raises(ApiError, match="is not a network namespace's"):
                client.add_port(**asked, netns_fd=one.fileno())
    with open(f"/run/netns/{lab.ports[0]}") as netns:
        for more, said in (({"netns": lab.ports[0]}, "came as a descriptor"), ({"device": "veth"}, "device tap")):
            with pytest.raises(ApiError, match=said):
                client.add_port(**asked, **more, netns_fd=netns.fileno())
    with pytest.raises(ApiError, match="device tap"):
        client.add_port(**asked, netns="follow", device="veth")
    until(lambda: lan.fds() == before, "no descriptor is left")


def test_another_namespace_is_mounted_over_a_path(lab: Lab, lan: Daemon, tmp_path: Path) -> None:
    """The path has been there all the time: nothing in its directory changes."""
    path = tmp_path / "netns"
    path.touch()
    add(lan, "x", str(path), addresses=ADDRESSES)
    try:
        for netns in lab.ports:
            run("mount", "--bind", f"/run/netns/{netns}", str(path))
            until(lambda netns=netns: "x" in links(lab, netns), "it is where the path leads")  # type: ignore[misc]
            works(lab, lan)
        run("umount", str(path))
        until(lambda: "x" in links(lab, lab.ports[0]), "it is back where the path led before")
    finally:
        while subprocess.run(["umount", str(path)], capture_output=True).returncode == 0:
            pass
