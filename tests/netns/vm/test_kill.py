"""Virtual machines outlive a daemon that was killed: this process has the device, or the socket, as a VMM would."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.daemons import Daemon
from tests.netns.vm.machines import GUEST, KINDS, WIRE, idle, machine, vm
from tests.netns.vm.test_socket import Monitors, Speaker
from tests.support.patience import until
from tests.support.spaces import Namespace

LEARNED = "10.7.0.33"


def again(lan: Daemon) -> None:
    lan.stop(signal.SIGKILL)
    lan.start()
    lan.until("up", "vm1")


@KINDS
@pytest.mark.parametrize("place", ["", "own"])
def test_a_machine_goes_on(
    running: Callable[..., Daemon], home: Namespace, netns: Callable[..., Namespace], kind: str, place: str
) -> None:
    where = netns() if place else None
    lan = running(vm(kind, *([f'netns = "{where.name}"'] if where else [])))
    with machine(lan) as one:
        one.ping(WIRE)
        index = lan.port("vm1")["index"]
        for _ in range(2):
            again(lan)
            assert lan.port("vm1")["index"] == index
            one.ping(WIRE)
            lan.until_owned("vm1", GUEST)
    idle(lan, "vm1")
    with machine(lan) as another:
        another.ping(WIRE)
    assert lan.stop() == 0
    for each in (home, *([where] if where else [])):
        assert "vm1" not in each.ip("-br", "link") and "sw-" not in each.ip("-br", "link")


@KINDS
def test_a_machine_that_left_meanwhile(running: Callable[..., Daemon], kind: str) -> None:
    lan = running(vm(kind))
    with machine(lan) as one:
        one.ping(WIRE)
        lan.stop(signal.SIGKILL)
    lan.start()
    idle(lan, "vm1")
    with machine(lan) as one:
        one.ping(WIRE)


@KINDS
def test_frames_that_come_meanwhile_wait(running: Callable[..., Daemon], home: Namespace, kind: str) -> None:
    lan = running(vm(kind))
    with machine(lan) as one:
        to = one.resolve(WIRE)
        before = lan.client.stats()[0]["ports"]["vm1"]["rx_frames"]
        lan.stop(signal.SIGKILL)
        for _ in range(500):
            one.send(to + one.mac + b"\x08\x00" + bytes(50))
        lan.start()
        lan.until("up", "vm1")
        until(lambda: lan.client.stats()[0]["ports"]["vm1"]["rx_frames"] == before + 500, "all have come")


@KINDS
def test_learned_addresses_are_known_without_a_frame(running: Callable[..., Daemon], kind: str) -> None:
    lan = running(f'name = "vm1"\nkind = "{kind}"\nlearn = true')
    with machine(lan) as one:
        one.send(b"\xff" * 6 + one.mac + b"\x08\x06" + bytes.fromhex("0001080006040001") + one.mac
                 + bytes([10, 7, 0, 33]) + bytes(6) + bytes([10, 7, 0, 254]))  # fmt: skip
        lan.until_owned("vm1", LEARNED)
        again(lan)
        lan.until_owned("vm1", LEARNED)
        assert [one["source"] for one in lan.port("vm1")["addresses"]] == ["arp"]
    idle(lan, "vm1")
    assert lan.port("vm1")["addresses"] == [], "it was the machine's that is gone"


@pytest.mark.parametrize("way", ["dgram", "dgram-fd"])
def test_sockets_that_keep_frames_apart_go_on(running: Callable[..., Daemon], tmp_path: Path, way: str) -> None:
    monitors = Monitors(way, tmp_path)
    lan = running(monitors.config)
    with monitors.come(lan) as one:
        one.ping(WIRE)
        for _ in range(2):
            again(lan)
            one.ping(WIRE)
    idle(lan, "vm1")
    assert lan.stop() == 0
    assert not Path(monitors.theirs).exists()


@pytest.mark.parametrize("way", ["listen", "connect"])
def test_a_stream_is_closed_and_made_anew(running: Callable[..., Daemon], tmp_path: Path, way: str) -> None:
    monitors = Monitors(way, tmp_path)
    lan = running(monitors.config)
    with monitors.come(lan) as one:
        one.ping(WIRE)
        one.sock.send(b"\0\0")  # half a length
        lan.stop(signal.SIGKILL)
        one.sock.settimeout(10)
        with contextlib.suppress(ConnectionResetError):  # it had not read everything
            assert one.sock.recv(1 << 16) == b""
        if way == "listen":
            waiting = monitors.reach(lan)  # the file is served all the time
            lan.start()
            lan.until("up", "vm1")
            other = Speaker(waiting, lan.port("vm1")["mac"])
            other.ping(WIRE)
            other.close()
        else:
            lan.start()
    with monitors.come(lan) as one:
        one.ping(WIRE)
    idle(lan, "vm1")
    assert lan.stop() == 0
    assert not Path(monitors.theirs).exists()
