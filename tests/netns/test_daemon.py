"""ipvswd as a process: what it does about changes of its configuration and of the runtime.

The daemon runs in a namespace of its own, where the master is too, so that all it leaves is seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.daemons import MASTER, MASTER_MAC, Make, Spaces, attributes, devices, ping, port, switch
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace

# ------------------------------------------------------------------------------------ life


def test_ports_talk_and_a_clean_end_leaves_nothing(home: Namespace, netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    before = devices(home)
    running = daemon(switch(port("a", a, "10.7.0.1/24"), port("b", b, "10.7.0.2/24"))).start().until("up", "a", "b")
    ping(a, "10.7.0.2")
    ping(b, "10.7.0.254")
    assert attributes(a, "a")["address"] == MASTER_MAC
    assert attributes(a, "a")["ifalias"] == "ipvsw lan/a"
    assert running.stop() == 0
    assert devices(home) == before and devices(a) == devices(b) == {"lo"}
    assert "clsact" not in home.run("tc", "qdisc", "show", "dev", MASTER)
    assert not running.socket.exists()


def test_an_end_while_ports_are_coming_up(home: Namespace, netns: Spaces, daemon: Make) -> None:
    spaces = [netns() for _ in range(20)]
    running = daemon(switch(*(port(f"p{k}", space) for k, space in enumerate(spaces)))).start()
    assert running.stop() == 0
    assert all(devices(space) == {"lo"} for space in spaces)
    assert devices(home) == {"lo", MASTER}


def test_systemd_is_told(daemon: Make, tmp_path: Path) -> None:
    running = daemon(switch())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(LIMIT)
        running.start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert heard.recv(100) == b"READY=1"
        assert running.stop(signal.SIGINT) == 0
        assert heard.recv(100) == b"STOPPING=1"


def test_the_watchdog_hears_the_data_plane(daemon: Make, tmp_path: Path) -> None:
    """One thread of the data plane hangs, the loop does not: systemd hears nothing until it goes on."""
    running = daemon(switch())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(LIMIT)
        running.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="300000")
        assert [heard.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        assert running.process is not None
        with stopped(worker_of(running.process.pid)):
            time.sleep(0.3)  # what was sent before
            heard.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while heard.recv(100):
                    pass
            heard.settimeout(1.0)
            with pytest.raises(TimeoutError):
                heard.recv(100)
        heard.settimeout(LIMIT)
        assert heard.recv(100) == b"WATCHDOG=1"
        assert running.stop() == 0


def worker_of(pid: int) -> int:
    """The one thread besides the loop's that waits for descriptors: epoll_wait, epoll_pwait, epoll_pwait2 or
    io_uring_enter of x86-64."""

    def waiting() -> list[int]:
        calls = {int(each.name): (each / "syscall").read_text() for each in Path(f"/proc/{pid}/task").iterdir()}
        return [tid for tid, call in calls.items() if tid != pid and call.split()[0] in ("232", "281", "441", "426")]

    until(lambda: len(waiting()) == 1, "the worker sleeps")
    return waiting()[0]


@contextlib.contextmanager
def stopped(thread: int) -> Iterator[None]:
    """One thread of another process stands still (ptrace(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    seize, interrupt, detach = 0x4206, 0x4207, 17
    assert libc.ptrace(seize, thread, None, None) == 0, os.strerror(ctypes.get_errno())
    assert libc.ptrace(interrupt, thread, None, None) == 0
    os.waitpid(thread, 0x40000000)  # __WALL
    try:
        yield
    finally:
        libc.ptrace(detach, thread, None, None)


def test_what_happens_is_told(home: Namespace, netns: Spaces, daemon: Make) -> None:
    """To those who watch, and to the log as fields."""
    a = netns(create=False)
    running = daemon(switch(port("a", a))).start("--log-format=json")
    seen: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: seen.extend(running.client.events()))
    reader.start()

    def is_heard() -> bool:
        running.client.add_port(master=MASTER, name="b", netns="nowhere")
        running.client.delete_port("b")
        return bool(seen)

    until(is_heard, "the reader is connected")
    a.create()
    running.until("up", "a")
    a.run("ip", "addr", "add", "10.7.0.1/24", "dev", "a")
    running.until_owned("a", "10.7.0.1")
    a.run("ip", "addr", "del", "10.7.0.1/24", "dev", "a")
    running.until_owned("a")
    assert running.stop() == 0
    reader.join(LIMIT)
    assert [one.get("switch") for one in seen if one["event"] == "change"][:1] == ["lan"]
    told = [(one["event"], one.get("port"), one.get("address"), one.get("reason")) for one in seen]
    assert ("state", "a", None, "up") in told
    assert ("bound", "a", "10.7.0.1", None) in told
    assert ("unbound", None, "10.7.0.1", None) in told
    logged = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert [(one["switch"], one["reason"]) for one in logged if one.get("port") == "a"][:2] == [
        ("lan", f"waiting: for the namespace {a.name}"),
        ("lan", "up"),
    ]
    assert not any(one.get("event") == "bound" for one in logged)


def test_a_killed_daemon_is_replaced(home: Namespace, netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    running = daemon(switch(port("a", a, "10.7.0.1/24"), port("b", b, "10.7.0.2/24"))).start().until("up", "a", "b")
    running.stop(signal.SIGKILL)
    running.start().until("up", "a", "b")
    ping(a, "10.7.0.2")
    assert running.stop() == 0
    assert "clsact" not in home.run("tc", "qdisc", "show", "dev", MASTER)


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("more", [(), ("--check",)])
def test_what_the_machine_can_not_do(home: Namespace, netns: Spaces, daemon: Make, more: tuple[str, ...]) -> None:
    home.ip("link", "add", "br0", "type", "bridge")
    home.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
    home.ip("link", "set", "v0", "master", "br0")
    cases = {
        switch(master="nowhere"): "switch[0].master: nowhere does not exist",
        switch(master="v0"): "switch[0].master: v0 is part of another device, such as a bridge or a bond",
        switch(port("a", "none"), port("b", "none", ifname="c", mtu=9000)): (
            "switch[0].port[1].mtu: 9000 is larger than the master's 1500"
        ),
    }
    before = devices(home)
    for text, line in cases.items():
        status, lines = daemon(text).once(*more)
        assert (status, lines) == (2, [f"ipvswd: {line}"])
    assert devices(home) == before
    assert "clsact" not in home.run("tc", "qdisc", "show")


def test_a_good_configuration_is_only_looked_at(home: Namespace, netns: Spaces, daemon: Make) -> None:
    a = netns()
    assert daemon(switch(port("a", a, "10.7.0.1/24"))).once("--check") == (0, [])
    assert devices(a) == {"lo"}


def test_a_master_that_is_served_is_refused(daemon: Make) -> None:
    running = daemon(switch()).start()
    status, lines = running.once("--socket", f"{running.socket}2")
    assert (status, lines) == (2, ["ipvswd: switch[0].master: m0 is already served by another ipvswd"])
    assert running.once("--check", "--socket", f"{running.socket}2") == (0, [])
    assert running.switch()["state"] == "up"


# ------------------------------------------------------------------------------------ the runtime changes


def test_a_name_that_is_taken_fails_until_it_is_free(netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    a.ip("link", "add", "name", "a", "type", "bridge")
    running = daemon(switch(port("a", a), port("b", b))).start().until("failed", "a").until("up", "b")
    assert "exists" in running.port("a")["reason"].lower()
    a.ip("link", "del", "dev", "a")
    running.until("up", "a")


def test_a_port_is_made_again_for_the_namespace_that_has_the_name_now(netns: Spaces, daemon: Make) -> None:
    a = netns()
    running = daemon(switch(port("a", a, "10.7.0.1/24"))).start().until("up", "a")
    with a.opened():  # which keeps the old one alive
        a.delete()
        a.create()
        until(lambda: "a" in devices(a), "the port is in the new namespace")
        running.until("up", "a").until_owned("a", "10.7.0.1")
    ping(a, "10.7.0.254")


def test_a_device_that_is_deleted_inside_comes_back(netns: Spaces, daemon: Make) -> None:
    a = netns()
    running = daemon(switch(port("a", a, "10.7.0.1/24"))).start().until("up", "a")
    ping(a, "10.7.0.254")
    a.ip("link", "del", "dev", "a")
    until(lambda: "a" in devices(a), "the device is there again")
    running.until("up", "a").until_owned("a", "10.7.0.1")
    before = running.client.stats()[0]["ports"]["a"]["rx_frames"]
    assert before >= 2, "the counters of the first device are kept"
    ping(a, "10.7.0.254")


def test_a_device_that_is_renamed_is_followed(netns: Spaces, daemon: Make) -> None:
    a = netns()
    running = daemon(switch(port("a", a, "10.7.0.1/24"))).start().until("up", "a")
    a.ip("link", "set", "dev", "a", "down")
    running.until("down", "a")
    assert [one["state"] for one in running.port("a")["addresses"] if "." in one["address"]] == ["down"]
    a.ip("link", "set", "dev", "a", "name", "other")
    a.ip("link", "set", "other", "up")
    running.until("up", "a").until_owned("a", "10.7.0.1")
    assert running.port("a")["ifname"] == "other"
    a.ip("address", "add", "10.7.0.9/24", "dev", "other")
    running.until_owned("a", "10.7.0.1", "10.7.0.9")


def test_the_first_keeps_an_address_and_hands_it_over(netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    running = daemon(switch(port("a", a), port("b", b))).start().until("up", "a", "b")
    a.ip("address", "add", "10.7.0.1/24", "dev", "a")
    running.until_owned("a", "10.7.0.1")
    b.ip("address", "add", "10.7.0.1/24", "dev", "b")
    states = lambda: {one["address"]: one["state"] for one in running.port("b")["addresses"]}  # noqa: E731
    until(lambda: states().get("10.7.0.1") == "duplicate", "the second is refused")
    assert running.client.stats()[0]["duplicates"] == 1
    a.ip("address", "del", "10.7.0.1/24", "dev", "a")
    running.until_owned("b", "10.7.0.1")
    ping(b, "10.7.0.254")


def test_the_masters_attributes_are_followed(home: Namespace, netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    running = daemon(switch(port("a", a, "10.7.0.1/24"), port("b", b, mtu=1400))).start().until("up", "a", "b")
    home.ip("link", "set", MASTER, "address", "02:00:00:00:00:77")
    until(lambda: attributes(a, "a")["address"] == "02:00:00:00:00:77", "the MAC is followed")
    home.ip("link", "set", MASTER, "mtu", "1450")
    until(lambda: attributes(a, "a")["mtu"] == 1450, "the MTU is followed")
    assert attributes(b, "b")["mtu"] == 1400
    home.ip("link", "set", MASTER, "mtu", "1300")
    until(lambda: attributes(b, "b")["mtu"] == 1300, "the MTU is never above the master's")
    ping(a, "10.7.0.254")
    assert running.switch()["mac"] == "02:00:00:00:00:77"


def inodes(fds: Path) -> set[int]:
    """Of a process's descriptors, some of which may go meanwhile."""
    found = set()
    for fd in fds.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.stat(fd).st_ino)
    return found


def test_a_master_in_a_namespace_comes_goes_and_holds_nothing(netns: Spaces, daemon: Make) -> None:
    place, a = netns(create=False), netns()
    running = daemon(switch(port("a", a), netns=place.name)).start().until("waiting", "a")
    for _ in range(2):
        place.create()
        place.ip("link", "add", MASTER, "type", "veth", "peer", "name", "w1")
        place.ip("link", "set", "w1", "up")
        place.ip("link", "set", MASTER, "up")
        running.until("up", "a")
        until(lambda: running.port("a")["carrier"], "the port has a carrier")
        inode = os.stat(f"/run/netns/{place.name}").st_ino
        place.delete()
        until(lambda: running.switch()["state"] == "waiting", "the master is gone")
        until(lambda: not running.port("a")["carrier"], "the port has no carrier")
        assert running.process
        fds = Path(f"/proc/{running.process.pid}/fd")
        until(lambda fds=fds, inode=inode: inode not in inodes(fds), "no fd of the namespace is left")
        a.ip("link", "del", "dev", "a")
        running.until("waiting", "a")


def test_a_port_in_the_daemons_own_namespace(home: Namespace, daemon: Make) -> None:
    running = daemon(switch(port("a", f"/run/netns/{home.name}", "10.7.0.1/24"))).start().until("up", "a")
    running.until_owned("a", "10.7.0.1")
    home.ip("address", "add", "10.7.0.3/24", "dev", "a")
    running.until_owned("a", "10.7.0.1", "10.7.0.3")
