"""Virtual machines' ports without a virtual machine: this process opens the device as a VMM would."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipvsw.client import ApiError, Client
from ipvsw.linux.devices import macvtap
from tests.netns.test_daemon import MASTER_MAC, ROOT, Daemon, daemon, home
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace, unique

__all__ = ["daemon", "home"]

MAC = bytes.fromhex(MASTER_MAC.replace(":", ""))
WIRE = "10.7.0.254"
GUEST = "10.7.0.9"
TUNSETOFFLOAD, TUNSETIFF, TUNGETIFF = 0x400454D0, 0x400454CA, 0x800454D2
EVERY_OFFLOAD = 0x01 | 0x02 | 0x04  # csum, tso4, tso6
SIOCGIFHWADDR = 0x8927

CLI = "import sys; from ipvsw.cli import main; sys.exit(main())"
KINDS = pytest.mark.parametrize("kind", ["macvtap", "tap"])


def lan(home: Namespace, *ports: str) -> str:
    head = f'[[switch]]\nname = "lan"\nmaster = "m0"\nnetns = "{home.name}"\n'
    return head + "".join(f"[[switch.port]]\n{port}\n" for port in ports)


def vm(kind: str, *more: str, name: str = "vm1") -> str:
    return "\n".join([f'name = "{name}"', f'kind = "{kind}"', f'addresses = ["{GUEST}/24"]', *more])


def ipv4(source: str, to: str, protocol: int, body: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, *map(socket.inet_aton, (source, to))
    )
    return head[:10] + struct.pack("!H", 0xFFFF & ~total(head)) + head[12:] + body


def total(data: bytes) -> int:
    found = sum(
        struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2) if len(data) % 2 == 0 else data[:-1])
    )
    if len(data) % 2:
        found += data[-1] << 8
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return found


class Machine:
    """The far end of a port, and as much of a guest as a test needs."""

    def __init__(self, fd: int, mac: bytes) -> None:
        self.fd = fd
        self.mac = mac
        os.set_blocking(fd, False)
        fcntl.ioctl(fd, TUNSETOFFLOAD, EVERY_OFFLOAD)

    def send(self, frame: bytes, header: bytes = bytes(10)) -> None:
        os.write(self.fd, header + frame)

    def receive(self, wanted: Callable[[bytes], bool], *, limit: float = LIMIT) -> tuple[bytes, bytes]:
        """virtio_net_hdr and frame of the first one that is wanted; ARP requests are answered meanwhile."""
        deadline = time.monotonic() + limit
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.fd], [], [], left)[0]:
                break
            data = os.read(self.fd, 1 << 17)
            header, frame = data[:10], data[10:]
            if wanted(frame):
                return header, frame
            self.answer(frame)
        pytest.fail("no such frame came")

    def answer(self, frame: bytes) -> None:
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == socket.inet_aton(GUEST):
            self.send(arp(2, GUEST, frame[28:32], frame[6:12], self.mac))

    def resolve(self, address: str) -> bytes:
        packed = socket.inet_aton(address)
        self.send(arp(1, GUEST, packed, b"\xff" * 6, self.mac))
        return self.receive(lambda frame: frame[12:14] == b"\x08\x06" and frame[28:32] == packed)[1][22:28]

    def ping(self, address: str) -> None:
        to = self.resolve(address)
        echo = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1) + b"hello"
        echo = echo[:2] + struct.pack("!H", 0xFFFF & ~total(echo)) + echo[4:]
        self.send(to + self.mac + b"\x08\x00" + ipv4(GUEST, address, 1, echo))
        self.receive(lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34] == 0)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def arp(operation: int, source: str, target: bytes, to: bytes, mac: bytes) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return to + mac + b"\x08\x06" + head + mac + socket.inet_aton(source) + to + target


@contextlib.contextmanager
def machine(running: Daemon, port: str = "vm1") -> Iterator[Machine]:
    handed, fds = running.client.hand_over(port)
    assert len(fds) == 1
    one = Machine(fds[0], bytes.fromhex(handed["mac"].replace(":", "")))
    try:
        running.until("up", port.rpartition("/")[2])
        yield one
    finally:
        one.close()


def idle(running: Daemon, *names: str) -> None:
    """Wait until the ports wait for a machine."""
    for name in names:
        until(lambda: running.port(name)["reason"] == "for a virtual machine", f"{name} waits")  # noqa: B023


@pytest.fixture
def running(home: Namespace, daemon: Callable[[str], Daemon]) -> Callable[..., Daemon]:
    def start(*ports: str) -> Daemon:
        started = daemon(lan(home, *ports)).start()
        idle(started, "vm1")
        return started

    return start


@KINDS
@pytest.mark.parametrize("mac", ["own", "master"])
def test_a_machine_talks_to_the_wire(running: Callable[..., Daemon], home: Namespace, kind: str, mac: str) -> None:
    lan = running(vm(kind, f'mac = "{mac}"'))
    assert lan.port("vm1")["kind"] == kind and "virtual machine" in lan.port("vm1")["reason"]
    assert [one["state"] for one in lan.port("vm1")["addresses"]] == ["down"]
    with machine(lan) as one:
        lan.until_owned("vm1", GUEST)
        assert lan.port("vm1")["addresses"][0]["source"] == "config"
        assert (one.mac == MAC) == (mac == "master")
        one.ping(WIRE)
        port = lan.port("vm1")
        assert (port["mac_source"], port["mac"]) == (mac, one.mac.hex(":"))
        if mac == "own":
            one.mac = bytes.fromhex("525400000012")
            one.ping(WIRE)
            assert lan.port("vm1")["mac"] == "52:54:00:00:00:12"
    idle(lan, "vm1")


@KINDS
def test_a_second_machine_waits_for_the_first_one_to_go(running: Callable[..., Daemon], kind: str) -> None:
    lan = running(vm(kind))
    for _ in range(3):
        with machine(lan) as one:
            with pytest.raises(ApiError, match="has it already") as refused:
                lan.client.hand_over("lan/vm1")
            assert refused.value.status == 409
            one.ping(WIRE)
        idle(lan, "vm1")


@KINDS
def test_a_machine_that_is_killed_leaves_the_port_to_the_next(running: Callable[..., Daemon], kind: str) -> None:
    lan = running(vm(kind))
    VMM = subprocess.Popen(
        [sys.executable, "-c", CLI, "--socket", str(lan.socket), "exec", "vm1", "--", "sleep", "1{fd}"],
        cwd=ROOT,
    )
    try:
        lan.until("up", "vm1")
    finally:
        VMM.send_signal(signal.SIGKILL)
        VMM.wait()
    idle(lan, "vm1")
    with machine(lan) as one:
        one.ping(WIRE)


@KINDS
def test_offloads_survive(
    running: Callable[..., Daemon], home: Namespace, netns: Callable[..., Namespace], kind: str
) -> None:
    """A TCP GSO frame with a partial checksum, to a sibling's stack and to the wire's."""
    box = netns()
    lan = running(vm(kind), f'name = "ipvl0"\nnetns = "{box.name}"\naddresses = ["10.7.0.2/24"]')
    lan.until("up", "ipvl0")
    with machine(lan) as one:
        lan.until_owned("vm1", GUEST)
        to = one.resolve("10.7.0.2")
        assert to == MAC
        frames: list[tuple[bytes, bytes]] = []

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
            sock.bind(("ipvl0", 3))
            sock.settimeout(LIMIT)
            return sock

        with box.inside(listen) as sniffer:
            body = os.urandom(8000)
            tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 0, 5 << 4, 0x10, 1000, 0, 0) + body
            addresses = socket.inet_aton(GUEST) + socket.inet_aton("10.7.0.2")
            partial = total(addresses + struct.pack("!HH", 6, len(tcp)))
            tcp = tcp[:16] + struct.pack("!H", partial) + tcp[18:]
            header = struct.pack("=BBHHHH", 1, 1, 54, 1448, 34, 16)
            packet = b"\x08\x00" + ipv4(GUEST, "10.7.0.2", 6, tcp)
            one.send(to + one.mac + packet, header)
            while not frames:
                data = sniffer.recv(1 << 17)
                if body in data:
                    frames.append((data[:10], data[10:]))
        assert frames == [(header, to + MAC + packet)]
        # And back: the sibling's own stack sends what is longer than the MTU.
        sender = box.start(
            sys.executable,
            "-c",
            "import socket, sys, time; s = socket.create_server(('10.7.0.2', 7)); c, _ = s.accept();"
            "c.sendall(b'x' * 20000); time.sleep(3600)",
        )
        syn = connect(one, to, 4242)
        header, _ = one.receive(lambda frame: len(frame) > 1600)
        assert header[0] == 1 and header[1] == 1 and struct.unpack_from("=H", header, 4)[0] <= 1460
        sender.kill()
        del syn


def connect(one: Machine, to: bytes, port: int) -> int:
    """A handshake by hand with port 7 of 10.7.0.2, which listens soon; the sequence number."""
    deadline = time.monotonic() + LIMIT
    while True:
        one.send(to + one.mac + b"\x08\x00" + segment(port, 100, 0, 0x02, b"\x02\x04\x05\xb4"))
        got = one.receive(lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 6)[1]
        if got[47] & 0x12 == 0x12:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    theirs = struct.unpack_from("!I", got, 38)[0]
    one.send(to + one.mac + b"\x08\x00" + segment(port, 101, theirs + 1, 0x10))
    return theirs


def segment(port: int, sequence: int, acknowledged: int, flags: int, options: bytes = b"") -> bytes:
    words = (20 + len(options)) // 4 << 4
    tcp = struct.pack("!HHIIBBHHH", port, 7, sequence, acknowledged, words, flags, 65000, 0, 0) + options
    pseudo = socket.inet_aton(GUEST) + socket.inet_aton("10.7.0.2") + struct.pack("!HH", 6, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", 0xFFFF & ~total(pseudo + tcp)) + tcp[18:]
    return ipv4(GUEST, "10.7.0.2", 6, tcp)


def test_the_host_sees_nothing_of_a_machine(running: Callable[..., Daemon], home: Namespace) -> None:
    """Neither kind has an address or answers; a macvtap isn't even there."""
    lan = running(vm("macvtap"))
    assert "vm1" not in home.ip("-br", "link") and "sw-" not in home.ip("-br", "link")
    lan.reload(globals()["lan"](home, vm("tap")))
    idle(lan, "vm1")
    home.ip("address", "add", "10.99.0.1/24", "dev", "lo")
    with machine(lan) as one:
        before = received(home, "vm1")
        one.send(arp(1, GUEST, socket.inet_aton("10.99.0.1"), b"\xff" * 6, one.mac))
        one.ping(WIRE)
        with pytest.raises(pytest.fail.Exception):
            one.receive(lambda frame: frame[12:14] == b"\x08\x06" and frame[28:32] == bytes([10, 99, 0, 1]), limit=0.3)
        assert received(home, "vm1") == before
    assert "inet6" not in home.ip("address", "show", "dev", "vm1")


def received(home: Namespace, device: str) -> int:
    """IPv4 packets that the stack has seen, of any device."""
    rows = [line.split() for line in home.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Ip:")]
    return int(rows[1][rows[0].index("InReceives")])


def test_tagged_frames_of_a_tap_are_dropped_and_counted(running: Callable[..., Daemon]) -> None:
    lan = running(vm("tap"))
    with machine(lan) as one:
        before = lan.client.stats()[0]["ports"]["vm1"]["rx_frames"]
        long = bytes.fromhex("4500") + bytes(1400)
        one.send(b"\xff" * 6 + one.mac + b"\x81\x00\x00\x05\x08\x06" + bytes(46))
        one.send(b"\xff" * 6 + one.mac + b"\x88\xa8\x00\x05\x08\x00" + long, struct.pack("=BBHHHH", 1, 0, 0, 0, 38, 6))
        one.ping(WIRE)
        port = lan.client.stats()[0]["ports"]["vm1"]
        assert port["rx_frames"] == before + 4 and port["outcomes"]["drop_runt"] == 2


def test_a_tap_is_opened_by_name_by_its_owner(running: Callable[..., Daemon], home: Namespace) -> None:
    nobody = pwd.getpwnam("nobody")
    lan = running(vm("tap", 'owner = "nobody"', 'ifname = "vt0"'))

    def by_name(name: str, uid: int) -> int:
        """Exit status of a process that opens the TAP: its errno."""
        code = (
            f"import fcntl, os, struct, sys\nos.setgid({nobody.pw_gid})\nos.setuid({uid})\n"
            "fd = os.open('/dev/net/tun', os.O_RDWR)\n"
            f"try: fcntl.ioctl(fd, {TUNSETIFF}, struct.pack('16sH22x', b'{name}', 0x5002))\n"
            "except OSError as error: sys.exit(error.errno)\n"
        )
        command = ["nsenter", f"--net=/run/netns/{home.name}", sys.executable, "-c", code]
        return subprocess.run(command, check=False).returncode

    assert by_name("vt0", nobody.pw_uid) == 0
    assert by_name("vt0", nobody.pw_uid + 1) == 1  # EPERM
    idle(lan, "vm1")


@KINDS
def test_several_queues(running: Callable[..., Daemon], kind: str) -> None:
    lan = running(vm(kind, "queues = 3"))
    handed, fds = lan.client.hand_over("vm1")
    assert handed["queues"] == len(fds) == 3
    lan.until("up", "vm1")
    for fd in fds[:2]:
        os.close(fd)
    with pytest.raises(ApiError, match="has it already"):
        lan.client.hand_over("vm1")
    os.close(fds[2])
    idle(lan, "vm1")
    for _ in range(3):
        VMM = subprocess.Popen(
            [sys.executable, "-c", CLI, "--socket", str(lan.socket), "exec", "vm1", "--", "sleep", "100"], cwd=ROOT
        )
        lan.until("up", "vm1")
        VMM.kill()
        VMM.wait()
        idle(lan, "vm1")


def test_a_tap_outlives_a_daemon_that_was_killed(running: Callable[..., Daemon], home: Namespace) -> None:
    lan = running(vm("tap"))
    with machine(lan) as one:
        one.ping(WIRE)
        lan.stop(signal.SIGKILL)
        lan.start()
        lan.until("up", "vm1")
        one.ping(WIRE)
    idle(lan, "vm1")
    assert lan.stop() == 0
    assert "vm1" not in home.ip("-br", "link")


def test_a_device_of_others_is_left_alone(running: Callable[..., Daemon], home: Namespace, daemon: Any) -> None:
    home.ip("tuntap", "add", "dev", "vm1", "mode", "tap")
    started = daemon(lan(home, vm("tap"))).start()
    started.until("failed", "vm1")
    assert "there is such a device already" in started.port("vm1")["reason"]
    assert started.stop() == 0
    assert "vm1" in home.ip("-br", "link")


def test_a_tap_in_a_namespace_that_is_deleted(
    daemon: Callable[[str], Daemon], home: Namespace, netns: Callable[..., Namespace]
) -> None:
    place = netns(create=False)
    started = daemon(lan(home, vm("tap", f'netns = "{place.name}"'))).start()
    for _ in range(2):
        place.create()
        idle(started, "vm1")
        with machine(started) as one:
            one.ping(WIRE)
        inode = os.stat(f"/run/netns/{place.name}").st_ino
        place.delete()
        until(lambda: "namespace" in started.port("vm1")["reason"], "the port has left")
        assert inode not in alive()


def alive() -> list[int]:
    shown = subprocess.run(["lsns", "-t", "net", "-n", "-o", "NS"], capture_output=True, text=True, check=True)
    return [int(line) for line in shown.stdout.split()]


@KINDS
def test_addresses_and_mtu_change_in_place(running: Callable[..., Daemon], home: Namespace, kind: str) -> None:
    lan = running(vm(kind))
    with machine(lan) as one:
        lan.until_owned("vm1", GUEST)
        text = globals()["lan"](home, vm(kind, "mtu = 1400").replace(f"{GUEST}/24", "10.7.0.19/24"))
        assert lan.reload(text) == [f"change port lan/vm1: address -{GUEST}/24, address +10.7.0.19/24, mtu 1400"]
        lan.until_owned("vm1", "10.7.0.19")
        until(lambda: lan.port("vm1")["mtu"] == 1400, "the MTU")
        home.ip("link", "set", "m0", "address", "02:00:00:00:00:07")
        until(lambda: lan.client.switches()[0]["mac"] == "02:00:00:00:00:07", "the master's MAC address")
        assert lan.port("vm1")["mac"] == one.mac.hex(":")
        assert os.fstat(one.fd)


def test_who_may_have_a_port(running: Callable[..., Daemon], tmp_path: Path) -> None:
    """An unprivileged user by the socket for everybody: by name, by group, not at all."""
    for directory in [tmp_path, *tmp_path.parents][:4]:
        if directory.owner() == "root" and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    nobody = pwd.getpwnam("nobody")
    lan = running(
        vm("macvtap"),
        'name = "vm2"\nkind = "macvtap"\nallow = ["nobody"]',
        f'name = "vm3"\nkind = "tap"\nallow = ["@{nobody.pw_gid}", "no-such-user"]',
    )
    idle(lan, "vm2", "vm3")

    def helper(name: str, uid: int, gid: int) -> tuple[int, str, list[int]]:
        """Becomes the user after it has been loaded: the interpreter may be out of a user's reach."""
        code = (
            "import gettext, locale, os, shutil, sys\nfrom ipvsw.vmm import qemu_helper\n"
            f"os.setgroups([])\nos.setgid({gid})\nos.setuid({uid})\nsys.exit(qemu_helper.main())"
        )
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-c", code, "--socket", f"{lan.socket}.fd", "--use-vnet"]
            done = subprocess.run(
                [*command, f"--fd={theirs.fileno()}", f"--br={name}"],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            theirs.close()
            _, fds, _, _ = socket.recv_fds(ours, 1, 4)
            return done.returncode, done.stderr, fds

    somebody, stranger = (nobody.pw_uid, nobody.pw_gid), (nobody.pw_uid - 1, nobody.pw_gid - 1)
    assert helper("vm1", *somebody)[:2] == (1, "ipvsw-qemu-helper: vm1: this user may not have the port\n")
    assert helper("vm2", *stranger)[0] == helper("lan", *stranger)[0] == 1
    held = []
    for name in ("vm2", "vm3"):
        status, said, fds = helper(name, *somebody)
        assert (status, said, len(fds)) == (0, "", 1)
        flags = struct.unpack_from("16sH", fcntl.ioctl(fds[0], TUNGETIFF, bytes(40)))[1]
        assert flags & 0x5002 == 0x5002, "a TAP with IFF_NO_PI and IFF_VNET_HDR"
        held += fds
        lan.until("up", name)
    assert helper("lan", *somebody)[1] == "ipvsw-qemu-helper: lan: the switch has no free port for a virtual machine\n"
    os.close(held[1])
    idle(lan, "vm3")
    status, said, fds = helper("lan", *somebody)
    assert status == 0, said
    lan.until("up", "vm3")
    os.close(fds[0])
    os.close(held[0])
    assert helper("ipvl9", 0, 0)[0] == 1
    with pytest.raises(ApiError, match="no such path"):
        Client(f"{lan.socket}.fd").switches()


def test_the_example_in_the_documents(running: Callable[..., Daemon]) -> None:
    lan = running(vm("macvtap"))
    text = (ROOT / "docs/howto/virtual-machines.md").read_text()
    code = next(part for part in text.split("```python\n")[1:] if "recv_fds" in part).split("```")[0]
    assert len(list(filter(None, code.splitlines()))) <= 5
    space: dict[str, Any] = {}
    exec(code.replace("/run/ipvsw/api.sock", str(lan.socket)), space)
    lan.until("up", "vm1")
    os.close(space["fds"][0])
    idle(lan, "vm1")


def test_who_reads_without_wanting_descriptors_gets_the_answer(running: Callable[..., Daemon]) -> None:
    lan = running(vm("macvtap"))
    url = "http://localhost/v1/ports/vm1/fd"
    said = subprocess.run(
        ["curl", "-sS", "--unix-socket", str(lan.socket), url], capture_output=True, text=True, check=True
    )
    assert json.loads(said.stdout)["mac"] == lan.port("vm1")["mac"] != MASTER_MAC
    idle(lan, "vm1")


def test_a_macvtap_without_dev(home: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no devtmpfs makes the node, it is made from what sysfs says."""
    home.ip("link", "add", "tap7", "type", "veth", "peer", "name", "peer7")
    name = unique("m")
    home.ip("link", "add", "link", "tap7", "name", name, "type", "macvtap", "mode", "passthru")
    index = next(link["ifindex"] for link in json.loads(home.ip("-j", "link")) if link["ifname"] == name)
    monkeypatch.setattr(macvtap, "_path", lambda index: f"/dev/no-such-tap{index}")
    node = home.inside(lambda: macvtap.open_node(index))
    try:
        fds = node.open(1)
        assert node.taken
        name_of = fcntl.ioctl(fds[0], TUNGETIFF, bytes(40))[:16].rstrip(b"\0")
        assert name_of == name.encode()
        os.close(fds[0])
        node.read_events()
        assert not node.taken
    finally:
        node.close()
