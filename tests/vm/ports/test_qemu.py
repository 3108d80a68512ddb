"""Ports with real QEMU guests: every way in, hot-plug, sudden death, and users without privileges."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, Daemon, port, switch, words
from tests.support.sniff import sniffing
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, WIRE4, WIRE6, Lab, port4, port6
from tests.vm.guest import Guest, booted, programs
from tests.vm.wiretap import clean_wire

pytestmark = pytest.mark.usefixtures("bootable")

GUEST4, GUEST6 = "10.1.0.50", "fd00:1::50"
ANY_MAC = "52:54:00:12:34:56"  # which a guest may use without asking
NIC = "virtio-net-pci,netdev=n0,mac={mac}"
STREAM = 4_000_000  # bytes
ROOT_PORT = "pcie-root-port,id=rp0,chassis=1,slot=1"
UP = f"""
set -e
ip link set $1 up
ip addr add {GUEST4}/16 dev $1
ip addr add {GUEST6}/64 dev $1 nodad
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(1) as made:
        yield made


@pytest.fixture
def start(lab: Lab) -> Iterator[Callable[..., Daemon]]:
    """Starts the daemon with a namespace's port, ipvl1, and a virtual machine's, vm1."""
    daemons: list[Daemon] = []

    def make(kind: str, **more: Any) -> Daemon:
        vm = {"name": "vm1", "kind": kind, "addresses": [f"{GUEST4}/16", f"{GUEST6}/64"], **more}
        ports = [port("ipvl1", lab.ports[0], [f"{port4(1)}/16", f"{port6(1)}/64"]), vm]
        daemons.append(Daemon(switch("m0", lab.host, ports, host_access="both"), home=lab.home))
        lan = daemons[-1].wait(states=("up", "waiting"))
        until(lambda: lan.port("vm1")["reason"] == "for a virtual machine", "the port waits")
        return lan

    yield make
    for daemon in daemons:
        daemon.stop()
        daemon.close()


def by_descriptor(lan: Daemon) -> list[str]:
    return [*words("IPVSW", "ipvsw.cli"), "--socket", str(lan.socket), "exec", "vm1", "--"]


def configure(guest: Guest, device: str = "eth0") -> None:
    guest.run(f"set -- {device}\n{UP}")


def converse(lab: Lab, guest: Guest) -> None:
    """Everybody, both ways, both families."""
    for address in (port4(1), port6(1), WIRE4, WIRE6, MASTER4, MASTER6):
        guest.run(f"ping -n -q -c 3 -i 0.05 -W {LIMIT:g} {address}")
    for netns in (lab.ports[0], lab.wire, lab.host):
        for address in (GUEST4, GUEST6):
            lab.reachable(netns, address)


def stream(lab: Lab, guest: Guest, netns: str, address: str) -> None:
    """Some megabytes by TCP, out of the guest and into it."""
    server = lab.spawn(netns, "iperf3", "-s")
    try:
        until(lambda: ":1451" in lab.read(netns, "tcp") + lab.read(netns, "tcp6"), "iperf3 listens")
        for more in ("", "-R"):
            said = json.loads(guest.run(f"iperf3 -J -n {STREAM} -c {address} {more}"))
            assert said["end"]["sum_received"]["bytes"] > STREAM // 2, said["end"]
    finally:
        server.kill()
        server.wait()


def features(guest: Guest) -> dict[str, str]:
    lines = guest.run("ethtool -k eth0").splitlines()
    return {key.strip(): value.split()[0] for key, _, value in (line.partition(":") for line in lines) if value.strip()}


@pytest.mark.parametrize(
    ("kind", "by_name", "mac_source"),
    [("macvtap", False, "own"), ("macvtap", False, "master"), ("tap", False, "own"), ("tap", True, "own")],
    ids=["macvtap", "macvtap-master", "tap-fd", "tap-name"],
)
def test_a_guest_on_the_lan(lab: Lab, start: Callable[..., Daemon], kind: str, by_name: bool, mac_source: str) -> None:
    lan = start(kind, mac=mac_source)
    if by_name:
        netdev, mac = "tap,id=n0,ifname=vm1,script=no,downscript=no", ANY_MAC
        prefix = ["nsenter", f"--net=/run/netns/{lab.home}"]
    else:
        netdev, mac, prefix = "tap,id=n0,fd={fd}", "{mac}", by_descriptor(lan)
    nic = NIC.replace("{mac}", mac)
    with clean_wire(lab), booted("-netdev", netdev, "-device", nic, modules=["virtio_net"], prefix=prefix) as guest:
        lan.wait()
        configure(guest)
        converse(lab, guest)
        assert guest.run("cat /sys/class/net/eth0/address").strip() == lan.port("vm1")["mac"]
        assert (lan.port("vm1")["mac"] == MASTER_MAC) == (mac_source == "master")
        has = features(guest)
        assert has["tx-checksumming"] == has["tcp-segmentation-offload"] == has["rx-checksumming"] == "on"
        for netns, address in ((lab.wire, WIRE4), (lab.ports[0], port6(1))):
            stream(lab, guest, netns, address)
        guest.kill()
        until(lambda: lan.port("vm1")["state"] == "waiting", "the port waits")


def qmp_words(path: Path) -> list[str]:
    return ["-qmp", f"unix:{path},server=on,wait=off", "-device", ROOT_PORT]


@pytest.mark.parametrize("kind", ["macvtap", "tap"])
def test_hot_plug(lab: Lab, start: Callable[..., Daemon], tmp_path: Path, kind: str) -> None:
    lan = start(kind)
    path = tmp_path / "qmp"
    with clean_wire(lab), booted(*qmp_words(path), modules=["virtio_net"]) as guest:
        before = guest.run("ls /sys/class/net /sys/bus/pci/devices")
        for wrong, said in (
            (["--device", "no-such-nic"], "no-such-nic"),
            (["--bus", "no-such-bus"], "no-such-bus"),
            (["--bus", "rp0", "--mac", "nonsense"], "nonsense"),
        ):
            done = cli(lan, "attach", "vm1", "--qmp", str(path), *wrong)
            assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
            until(lambda: lan.port("vm1")["state"] == "waiting", "the port is as it was")
        assert guest.run("ls /sys/class/net /sys/bus/pci/devices") == before
        for _ in range(2):
            done = cli(lan, "attach", "vm1", "--qmp", str(path), "--bus", "rp0")
            assert done.returncode == 0, done.stderr
            lan.wait()
            guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done")
            assert guest.run("cat /sys/class/net/eth0/address").strip() == lan.port("vm1")["mac"] != MASTER_MAC
            configure(guest)
            converse(lab, guest)
            done = cli(lan, "detach", "vm1", "--qmp", str(path))
            assert done.returncode == 0, done.stderr
            assert guest.run("ls /sys/class/net /sys/bus/pci/devices") == before
            until(lambda: lan.port("vm1")["state"] == "waiting", "the port waits")


def cli(lan: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*words("IPVSW", "ipvsw.cli"), "--socket", str(lan.socket), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT)


@pytest.mark.parametrize("kind", ["macvtap", "tap"])
def test_qemu_is_killed_under_load(lab: Lab, start: Callable[..., Daemon], kind: str) -> None:
    lan = start(kind)
    extra = ("-netdev", "tap,id=n0,fd={fd}", "-device", NIC)
    with clean_wire(lab):
        for _ in range(2):
            with booted(*extra, modules=["virtio_net"], prefix=by_descriptor(lan)) as guest:
                lan.wait()
                configure(guest)
                guest.run("iperf3 -s -D")
                lab.reachable(lab.wire, GUEST4)
                load = lab.spawn(lab.wire, "iperf3", "-c", GUEST4, "-t", "3600")
                before = lan.stats()[0]["ports"]["vm1"]["tx_bytes"]
                until(lambda: lan.stats()[0]["ports"]["vm1"]["tx_bytes"] > before + 5_000_000, "load")  # noqa: B023
                guest.kill()
                until(lambda: lan.port("vm1")["state"] == "waiting", "the port waits")
                load.kill()
                load.wait()
                assert lab.ping(lab.wire, port4(1), 5) == 5, "a sibling is cut off"


@pytest.mark.parametrize("name", ["vm1", "lan"])
def test_an_unprivileged_user_gets_a_port_by_the_helper(
    lab: Lab, start: Callable[..., Daemon], library: Path, name: str
) -> None:
    """The ROM of the network card says DHCP by itself: no guest is needed."""
    nobody = pwd.getpwnam("nobody")
    interpreter = helper_interpreter(nobody, library)
    lan = start("macvtap", allow=["nobody"])
    os.chmod(lan.directory.name, 0o711)
    helper = f"{interpreter} -m ipvsw.vmm.qemu_helper --socket {lan.socket}.fd"
    command = [
        *("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"),
        *(programs()["qemu-system-x86_64"], "-M", "q35", "-accel", "tcg", "-m", "64", "-nographic", "-nodefaults"),
        *("-netdev", f"tap,id=n0,br={name},helper={helper}"),
        *("-device", f"virtio-net-pci,netdev=n0,bootindex=0,mac={ANY_MAC}"),
    ]
    with sniffing(lab.wire, "w0") as wire:
        qemu = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(library)}, stderr=subprocess.PIPE, cwd="/")
        try:
            until(lambda: lan.port("vm1")["state"] == "up" or qemu.poll() is not None, "QEMU has the port")
            assert qemu.poll() is None, qemu.stderr and qemu.stderr.read()
            wire.wait(b"PXEClient")
            assert lan.port("vm1")["mac"] == ANY_MAC
        finally:
            qemu.kill()
            qemu.wait()
            assert qemu.stderr
            qemu.stderr.close()
        assert {frame[6:12].hex(":") for _, frame in wire.frames} <= {MASTER_MAC}
    until(lambda: lan.port("vm1")["state"] == "waiting", "the port waits")


@pytest.fixture
def library() -> Iterator[Path]:
    """What the helper needs, where everybody may read it: root's home, with a clone in it, is closed to others."""
    with tempfile.TemporaryDirectory(prefix="ivt-library") as name:
        os.chmod(name, 0o755)
        for package in (ROOT / "ipvsw", Path(msgspec.__file__).parent):
            shutil.copytree(package, Path(name, package.name))
        yield Path(name)


def helper_interpreter(user: pwd.struct_passwd, library: Path) -> str:
    """One that this user may run."""
    user_words = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    for candidate in (sys.executable, "/usr/bin/python3"):
        done = subprocess.run(
            # By a shell: what setpriv executes itself, it executes with root's capabilities.
            [*user_words, "sh", "-c", f"{candidate} -c 'import ipvsw.vmm.qemu_helper'"],
            env=os.environ | {"PYTHONPATH": str(library)},
            check=False,
            cwd="/",
            capture_output=True,
        )
        if done.returncode == 0:
            return candidate
    pytest.skip("no Python that an unprivileged user may run")


def examples() -> Sequence[tuple[str, str]]:
    """Title and XML of each in the documents."""
    text = (ROOT / "docs/howto/virtual-machines.md").read_text()
    parts = text.split("```xml\n")[1:]
    return [(f"{number}", part.split("```")[0]) for number, part in enumerate(parts)]


DOMAIN = """<domain type='qemu'><name>vm</name><memory unit='MiB'>512</memory><os><type>hvm</type></os>
<devices>%s</devices></domain>"""


def test_libvirts_words_are_valid(tmp_path: Path) -> None:
    found = examples()
    assert len(found) >= 2
    for title, xml in found:
        file = tmp_path / f"{title}.xml"
        file.write_text(DOMAIN % xml)
        done = subprocess.run(["virt-xml-validate", str(file), "domain"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{xml}\n{done.stdout}{done.stderr}"
