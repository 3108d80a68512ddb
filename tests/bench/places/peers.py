"""What ipvsw is held against. Each function builds one place (see ground.Builder) with the path of its own name.

All are alive the whole time, idle while another is measured, with the offloads that they have by default.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path as File

from tests.bench.places.ground import Ground, Path, Unavailable
from tests.support.patience import LIMIT, until
from tests.support.topology import batch, run

JUMBO = 9000  # what inner devices are set to, so that the ends alone decide


def between(
    ground: Ground, netns: tuple[str, str], devices: tuple[str, str], network: str, pids: tuple[int, ...] = ()
) -> Path:
    """The path from the first to the second, whose devices are in their namespaces already."""
    ends = []
    for k, (where, device) in enumerate(zip(netns, devices, strict=True), 1):
        end = ground.end(where, device, f"{network}.{k}")
        ground.up(end)
        ends.append(end)
    ground.lab.reachable(netns[0], ends[1].address)
    return Path(ends[0], ends[1], pids)


def two(ground: Ground, name: str) -> tuple[str, str]:
    return ground.netns(f"{name}1"), ground.netns(f"{name}2")


# ---------------------------------------------------------------------------- the kernel's own


def veth(ground: Ground) -> Mapping[str, Path]:
    """One veth pair, nothing between."""
    first, second = two(ground, "v")
    ground.lab.ip(first, *f"link add v1 type veth peer name v2 netns {second}".split())
    return {"veth": between(ground, (first, second), ("v1", "v2"), "10.20.0")}


def bridge(ground: Ground) -> Mapping[str, Path]:
    """Two veth pairs and a bridge between."""
    where = two(ground, "b")
    middle = bridged(ground, "b", where, ("b1", "b2"))
    for netns, device in zip(where, ("b1", "b2"), strict=True):
        ground.lab.ip(netns, "link", "set", device, "mtu", str(JUMBO))
    ground.lab.ip(middle, "link", "set", "br0", "mtu", str(JUMBO))
    return {"bridge": between(ground, where, ("b1", "b2"), "10.21.0")}


def bridged(ground: Ground, name: str, where: tuple[str, ...], devices: tuple[str, ...]) -> str:
    """A bridge in a namespace of its own, and a veth pair from it to each of the devices. Returns the namespace."""
    middle = ground.netns(f"{name}r")
    lines = ["link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0", "link set br0 up"]
    for netns, device in zip(where, devices, strict=True):
        lines.append(f"link add h{device} mtu {JUMBO} type veth peer name {device} netns {netns}")
        lines.append(f"link set h{device} master br0 up")
    batch(lines, middle)
    return middle


def bare_host(ground: Ground) -> Mapping[str, Path]:
    """A host and its wire without the daemon: the veth pair that is a master elsewhere."""
    host, wire = two(ground, "n")
    ground.lab.ip(host, *f"link add m0 type veth peer name w0 netns {wire}".split())
    out = between(ground, (host, wire), ("m0", "w0"), "10.22.0")
    return {"bare-host out": out, "bare-host in": Path(out.sink, out.source)}


# ---------------------------------------------------------------------------- others in user space


def loop(ground: Ground) -> Mapping[str, Path]:
    """A C program that reads from one TAP and writes to the other, and nothing else, with epoll and every offload."""
    home, names = ground.netns("lr"), ("loop1", "loop2")
    child = ground.spawn(home, ground.tool("loop"), *names)
    assert child.stdout is not None and child.stderr is not None
    if child.stdout.readline() != "ready\n":
        raise Unavailable(f"no TAPs for the C loop: {child.stderr.read().strip()}")
    return {"loop": moved(ground, "l", home, names, "10.23.0", child.pid)}


def moved(ground: Ground, name: str, home: str, devices: tuple[str, str], network: str, pid: int) -> Path:
    """TAPs that a process has made in `home` go to namespaces of their own, which it doesn't mind."""
    where = two(ground, name)
    for netns, device in zip(where, devices, strict=True):
        ground.lab.ip(home, "link", "set", device, "netns", netns)
    return between(ground, where, devices, network, (pid,))


def vde(ground: Ground) -> Mapping[str, Path]:
    """vde_switch with two TAPs. It knows no offload header: every frame is one of the MTU, with its checksum."""
    if shutil.which("vde_switch") is None:
        raise Unavailable("vde_switch (Debian: vde2) is not installed")
    home, names = ground.netns("dr"), ("vde1", "vde2")
    taps = [word for name in names for word in ("-tap", name)]
    child = ground.spawn(home, "vde_switch", "-s", str(ground.directory / "vde"), *taps)

    def made() -> bool:
        if child.poll() is not None:
            raise Unavailable(f"vde_switch: {child.stderr and child.stderr.read().strip()}")
        return all(ground.lab.link(home, name) for name in names)

    until(made, "vde_switch has made its TAPs")
    return {"vde": moved(ground, "d", home, names, "10.24.0", child.pid)}


def ovs(ground: Ground) -> Mapping[str, Path]:
    """Open vSwitch's userspace datapath with two TAPs, as it comes: without offloads."""
    return {"ovs": open_vswitch(ground, "o", "10.25.0", tso=False)}


def ovs_tso(ground: Ground) -> Mapping[str, Path]:
    """The same with userspace-tso-enable."""
    return {"ovs-tso": open_vswitch(ground, "t", "10.26.0", tso=True)}


def open_vswitch(ground: Ground, name: str, network: str, *, tso: bool) -> Path:
    """A database, a daemon and a bridge of our own; the system's are left alone."""
    schema = File("/usr/share/openvswitch/vswitch.ovsschema")
    programs = ("ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl")
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise Unavailable(f"{missing[0]} (Debian: openvswitch-switch) is not installed")
    home, names = ground.netns(f"{name}r"), (f"{name}vs1", f"{name}vs2")
    where = File(ground.stack.enter_context(tempfile.TemporaryDirectory(prefix="ivt")))
    env = {f"OVS_{what}DIR": str(where) for what in ("RUN", "LOG", "DB")}
    socket, quietly = f"unix:{where}/db.sock", "-vconsole:off"

    def configure(*words: str) -> None:
        run(
            "env",
            *(f"{key}={value}" for key, value in env.items()),
            "ovs-vsctl",
            f"--db={socket}",
            *words,
            timeout=LIMIT,
        )

    run("ovsdb-tool", "create", f"{where}/conf.db", str(schema))
    words = (f"--remote=p{socket}", f"--unixctl={where}/db.ctl", quietly)
    ground.spawn(home, "ovsdb-server", f"{where}/conf.db", *words, env=env)
    until((where / "db.sock").exists, "ovsdb-server listens")
    configure("--no-wait", "init", "--", "set", "Open_vSwitch", ".", f"other_config:userspace-tso-enable={tso}".lower())
    child = ground.spawn(home, "ovs-vswitchd", socket, f"--unixctl={where}/vs.ctl", quietly, env=env)
    configure("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    for device in names:
        configure("add-port", "br0", device, "--", "set", "interface", device, "type=tap", f"mtu_request={JUMBO}")
    until(lambda: all(ground.lab.link(home, device) for device in names), "ovs-vswitchd has made its TAPs")
    assert os.path.exists(f"/proc/{child.pid}")
    return moved(ground, name, home, names, network, child.pid)
