"""Ports of kind tap and macvtap: who may open them, what outlives whom."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipvsw.client import ApiError, Client
from ipvsw.linux.devices import macvtap
from tests.netns.daemons import MASTER_MAC, ROOT, Daemon
from tests.netns.vm import machines
from tests.netns.vm.machines import CLI, GUEST, KINDS, TUNGETIFF, TUNSETIFF, WIRE, idle, lan, machine, vm
from tests.support.patience import until
from tests.support.spaces import Namespace, unique


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
        text = machines.lan(home, vm(kind, "mtu = 1400").replace(f"{GUEST}/24", "10.7.0.19/24"))
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
