"""Virtual machines' ports that are unix sockets: this process speaks as a VMM would."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvsw.client import ApiError
from tests.netns.daemons import ROOT, Daemon
from tests.netns.vm import machines
from tests.netns.vm.machines import CLI, GUEST, WIRE, Machine, idle, lan, vm
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace


class Speaker(Machine):
    """A VMM by its socket, and as much of a guest as a test needs."""

    def __init__(self, sock: socket.socket, mac: str) -> None:
        self.sock, self.fd, self.mac = sock, sock.fileno(), bytes.fromhex(mac.replace(":", ""))
        self.streams = sock.type == socket.SOCK_STREAM
        self.kept = b""

    def send(self, frame: bytes, header: bytes = bytes(10)) -> None:
        self.sock.sendall(len(frame).to_bytes(4, "big") + frame if self.streams else frame)

    def receive(self, wanted: Callable[[bytes], bool], *, limit: float = LIMIT) -> tuple[bytes, bytes]:
        while True:
            frame = self.next(limit)
            if wanted(frame):
                return b"", frame
            self.answer(frame)

    def next(self, limit: float = LIMIT) -> bytes:
        while not self.streams or len(self.kept) < 4 or len(self.kept) < 4 + int.from_bytes(self.kept[:4], "big"):
            if not select.select([self.sock], [], [], limit)[0]:
                pytest.fail("no such frame came")
            data = self.sock.recv(1 << 17)
            assert data, "the switch has closed the socket"
            if not self.streams:
                return data
            self.kept += data
        length = int.from_bytes(self.kept[:4], "big")
        frame, self.kept = self.kept[4 : 4 + length], self.kept[4 + length :]
        return frame

    def close(self) -> None:
        self.sock.close()


class Monitors:
    """Four ways to come to a port."""

    def __init__(self, way: str, directory: Path) -> None:
        self.way, self.directory = way, directory
        self.ours, self.theirs = str(directory / "vm.sock"), str(directory / "switch.sock")
        keys = {
            "listen": ["stream", f'path = "{self.theirs}"'],
            "connect": ["stream", f'connect = "{self.ours}"'],
            "stream-fd": ["stream"],
            "dgram-fd": ["dgram"],
            "dgram": ["dgram", f'local = "{self.theirs}"', f'remote = "{self.ours}"'],
        }
        self.config = vm(*keys[way])

    @contextlib.contextmanager
    def come(self, running: Daemon) -> Iterator[Speaker]:
        sock = self.reach(running)
        one = Speaker(sock, running.port("vm1")["mac"])
        try:
            running.until("up", "vm1")
            yield one
        finally:
            one.close()

    def reach(self, running: Daemon) -> socket.socket:
        if self.way == "listen":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(self.theirs)
            return sock
        if self.way.endswith("fd"):
            handed, fds = running.client.hand_over("vm1")
            assert handed["kind"] == self.way.removesuffix("-fd") and len(fds) == 1
            sock = socket.socket(fileno=fds[0])
            sock.setblocking(True)
            return sock
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.ours)
        if self.way == "dgram":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sock.bind(self.ours)
            running.until("up", "vm1")
            sock.connect(self.theirs)
            return sock
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.ours)
            listener.listen(1)
            listener.settimeout(LIMIT)
            sock, _ = listener.accept()
        sock.setblocking(True)
        return sock


@pytest.fixture(params=["listen", "connect", "stream-fd", "dgram-fd", "dgram"])
def VMMs(request: pytest.FixtureRequest, tmp_path: Path) -> Monitors:
    return Monitors(request.param, tmp_path)


def test_machines_come_and_go(running: Callable[..., Daemon], VMMs: Monitors) -> None:
    lan = running(VMMs.config)
    assert lan.port("vm1")["kind"] == VMMs.config.split('kind = "')[1].split('"')[0]
    assert [one["state"] for one in lan.port("vm1")["addresses"]] == ["down"]
    for turn in range(3):
        with VMMs.come(lan) as one:
            lan.until_owned("vm1", GUEST)
            one.ping(WIRE)
            if VMMs.way.endswith("fd"):
                with pytest.raises(ApiError, match="has it already"):
                    lan.client.hand_over("vm1")
        idle(lan, "vm1")
        assert lan.client.stats()[0]["ports"]["vm1"]["rx_frames"] == 2 * (turn + 1), "counters outlive connections"


def test_what_a_sibling_sends_is_cut_and_complete(
    running: Callable[..., Daemon], netns: Callable[..., Namespace], VMMs: Monitors
) -> None:
    """A namespace's kernel, which has a TAP with every offload, and a guest without any."""
    box = netns()
    lan = running(VMMs.config, f'name = "ipvl0"\nnetns = "{box.name}"\naddresses = ["10.7.0.2/24"]')
    lan.until("up", "ipvl0")
    with VMMs.come(lan) as one:
        lan.until_owned("vm1", GUEST)
        one.ping("10.7.0.2")
        code = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            "s.setsockopt(socket.SOL_UDP, 103, 1000);"  # UDP_SEGMENT: the device gets one frame of it
            f"s.bind(('10.7.0.2', 7)); s.sendto(bytes(range(256)) * 39 + b'the end', ('{GUEST}', 9))"
        )
        box.run(sys.executable, "-c", code)
        data = b""
        while not data.endswith(b"the end"):
            packet = one.receive(lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 17)[1][14:]
            assert checked(packet) and len(packet) <= 1028
            data += packet[28:]
        assert data == bytes(range(256)) * 39 + b"the end"


def checked(packet: bytes) -> bool:
    """Whether an IPv4 packet's UDP checksum is right."""
    pseudo = packet[12:20] + bytes([0, 17]) + (len(packet) - 20).to_bytes(2, "big")
    data = pseudo + packet[20:] + bytes(len(packet) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    return total % 0xFFFF == 0 and packet[26:28] != b"\0\0"


def test_a_second_monitor_waits_for_its_turn(running: Callable[..., Daemon], tmp_path: Path) -> None:
    VMMs = Monitors("listen", tmp_path)
    lan = running(VMMs.config)
    with VMMs.come(lan) as first:
        second = Speaker(VMMs.reach(lan), lan.port("vm1")["mac"])
        first.ping(WIRE)
        assert not select.select([second.sock], [], [], 0.2)[0]
    until(lambda: accepted(lan) == 2, "the second one has its turn")
    second.ping(WIRE)
    second.close()
    idle(lan, "vm1")


def accepted(lan: Daemon) -> int:
    return lan.log.read_text().count("port lan/vm1: up")


def test_a_monitor_that_is_killed(running: Callable[..., Daemon], tmp_path: Path) -> None:
    lan = running(vm("stream"))
    for _ in range(2):
        VMM = subprocess.Popen(
            [sys.executable, "-c", CLI, "--socket", str(lan.socket), "exec", "vm1", "--", "sleep", "1{fd}"], cwd=ROOT
        )
        try:
            lan.until("up", "vm1")
        finally:
            VMM.send_signal(signal.SIGKILL)
            VMM.wait()
        idle(lan, "vm1")


@pytest.mark.parametrize("way", ["listen", "connect", "dgram"])
def test_the_daemon_is_killed(running: Callable[..., Daemon], tmp_path: Path, way: str) -> None:
    """Its socket's file stays, and is no obstacle."""
    VMMs = Monitors(way, tmp_path)
    lan = running(VMMs.config)
    with VMMs.come(lan) as one:
        one.ping(WIRE)
    lan.stop(signal.SIGKILL)
    lan.start()
    idle(lan, "vm1")
    with VMMs.come(lan) as one:
        one.ping(WIRE)
    idle(lan, "vm1")
    assert lan.stop() == 0
    assert not os.path.exists(VMMs.theirs)


def test_whose_file_it_is(running: Callable[..., Daemon], tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    path = tmp_path / "deep" / "vm.sock"
    more = f'path = "{path}"\nowner = "nobody"\ngroup = {nobody.pw_gid}'
    lan = running(vm("stream", more))
    found = path.lstat()
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o660
    assert (found.st_uid, found.st_gid) == (nobody.pw_uid, nobody.pw_gid)
    lan.reload(machines.lan(lan.home, vm("stream", f'path = "{path}2"')))
    idle(lan, "vm1")
    assert not path.exists() and stat.S_IMODE(Path(f"{path}2").stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["file", "served", "directory"])
def test_a_path_that_is_not_ours(daemon: Callable[[str], Daemon], home: Namespace, tmp_path: Path, what: str) -> None:
    path = tmp_path / "vm.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        if what == "file":
            path.write_text("precious")
        elif what == "directory":
            path.mkdir()
        else:
            other.bind(str(path))
            other.listen()
        started = daemon(lan(home, vm("stream", f'path = "{path}"'))).start()
        started.until("failed", "vm1")
        assert str(path) in started.port("vm1")["reason"]
        assert started.stop() == 0
        assert path.exists()


def test_a_port_with_a_path_is_not_handed_over(running: Callable[..., Daemon], tmp_path: Path) -> None:
    VMMs = Monitors("listen", tmp_path)
    lan = running(VMMs.config, vm("stream", name="vm2").replace(GUEST, "10.7.0.10"))
    idle(lan, "vm2")
    with pytest.raises(ApiError, match="comes by"):
        lan.client.hand_over("vm1")
    with pytest.raises(ApiError, match="no free port"):  # by a switch's name it is a TAP that is asked for
        lan.client.hand_over("lan")


def test_mtu_and_addresses_change_while_connected(running: Callable[..., Daemon], tmp_path: Path) -> None:
    VMMs = Monitors("listen", tmp_path)
    lan = running(VMMs.config)
    with VMMs.come(lan) as one:
        text = machines.lan(lan.home, VMMs.config.replace(f"{GUEST}/24", "10.7.0.19/24") + "\nmtu = 1400")
        assert lan.reload(text) == [f"change port lan/vm1: address -{GUEST}/24, address +10.7.0.19/24, mtu 1400"]
        lan.until_owned("vm1", "10.7.0.19")
        until(lambda: lan.port("vm1")["mtu"] == 1400, "the MTU")
        lan.reload(machines.lan(lan.home, VMMs.config))
        lan.until_owned("vm1", GUEST)
        one.ping(WIRE)


def test_a_hostile_speaker_harms_itself_alone(
    running: Callable[..., Daemon], netns: Callable[..., Namespace], tmp_path: Path
) -> None:
    box = netns()
    VMMs = Monitors("listen", tmp_path)
    lan = running(VMMs.config, f'name = "ipvl0"\nnetns = "{box.name}"\naddresses = ["10.7.0.2/24"]')
    lan.until("up", "ipvl0")
    noises = [
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b"".join(n.to_bytes(4, "big") + bytes(n) for n in range(1, 14)) + b"\0\0\0\0",
        (65553).to_bytes(4, "big") + bytes(65553) + b"\xff" * 4,
        os.urandom(100_000),
    ]
    for noise in noises:
        with VMMs.come(lan) as one:
            with contextlib.suppress(OSError):
                one.sock.sendall(noise)
            with contextlib.suppress(OSError):
                while one.sock.recv(1 << 16):
                    pass
            box.run("ping", "-c", "1", "-W", f"{LIMIT}", WIRE)
        idle(lan, "vm1")
    counted = lan.client.stats()[0]["ports"]["vm1"]
    assert counted["outcomes"]["drop_bad_header"] == len(noises)
    assert counted["outcomes"]["drop_runt"] >= 13
    assert counted["rx_frames"] == sum(counted["outcomes"].values())
    with VMMs.come(lan) as one:
        one.ping(WIRE)


def test_a_flood_and_a_reader_that_sleeps(
    running: Callable[..., Daemon], netns: Callable[..., Namespace], tmp_path: Path
) -> None:
    box = netns()
    VMMs = Monitors("listen", tmp_path)
    lan = running(VMMs.config, f'name = "ipvl0"\nnetns = "{box.name}"\naddresses = ["10.7.0.2/24"]')
    lan.until("up", "ipvl0")
    with VMMs.come(lan) as one:
        lan.until_owned("vm1", GUEST)
        one.ping("10.7.0.2")
        code = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"while True: s.sendto(bytes(1400), ('{GUEST}', 9))"
        )
        flood = box.start(sys.executable, "-c", code)
        try:
            until(lambda: lost(lan) > 100, "frames are lost")
            box.run("ping", "-c", "3", "-i", "0.1", "-W", f"{LIMIT}", WIRE)
        finally:
            flood.kill()
            flood.wait()
    idle(lan, "vm1")
    with VMMs.come(lan) as one:
        one.ping(WIRE)


def lost(lan: Daemon) -> int:
    return int(lan.client.stats()[0]["ports"]["ipvl0"]["outcomes"]["drop_full"])


def test_by_the_command_line(running: Callable[..., Daemon], tmp_path: Path) -> None:
    lan = running(vm("stream"))
    path = tmp_path / "vm2.sock"
    command = [sys.executable, "-c", CLI, "--socket", str(lan.socket), "link", "add", "link", "m0", "name", "vm2"]
    more = ["address", "10.7.0.10/24", "type", "ipvtap", "kind", "stream", "path", str(path)]
    done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    idle(lan, "vm2")
    assert path.is_socket()
    shown: Any = subprocess.run(
        [*command[:5], "link", "show", "vm2", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout)[0]["ifname"] == "vm2"
    subprocess.run([*command[:5], "link", "delete", "vm2"], cwd=ROOT, check=True)
    assert not path.exists()
