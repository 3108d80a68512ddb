"""Places with ports that are unix sockets (kind stream), and VDE's way of doing the same.

A process at each socket carries frames to and from a TAP without offloads: what a VMM does with
its guest, and no more.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping

from tests.bench.places import ours
from tests.bench.places.ground import End, Ground, Path, Unavailable
from tests.bench.places.peers import moved
from tests.support.patience import until
from tests.support.running import Daemon
from tests.support.topology import MASTER_MAC

ENDS = ("s1", "s2")


def handed(daemon: Daemon, name: str) -> int:
    """The descriptor of a virtual machine's port. The caller closes it."""
    with socket.socket(socket.AF_UNIX) as api:
        api.connect(str(daemon.socket))
        api.sendall(f"GET /v1/ports/{name}/fd HTTP/1.1\r\nHost: ipvsw\r\n\r\n".encode())
        said, fds, _, _ = socket.recv_fds(api, 4096, 1)
    assert len(fds) == 1, said.decode(errors="replace")
    return fds[0]


def machine(k: int) -> dict[str, object]:
    """The table of a port for a virtual machine."""
    return {"name": f"vm{k}", "kind": "stream", "addresses": [f"{address(k)}/16"]}


def address(k: int) -> str:
    return ours.OURS4.format(50 + k)


def beside(ground: Ground) -> Mapping[str, Path]:
    """Two ports as ever, and a third that is a socket, to which everything goes cut and summed."""
    lab, daemon = ours.started(ground, 2, machine(1))
    ground.stack.callback(os.close, handed(daemon, "vm1"))
    until(lambda: daemon.port("vm1")["state"] == "up", "the socket's port is up")
    return {"beside-stream": Path(ours.end(lab, 1), ours.end(lab, 2), (daemon.pid,), daemon)}


def stream(ground: Ground) -> Mapping[str, Path]:
    """Two sockets of one switch, and a port of the usual kind."""
    lab, daemon = ours.started(ground, 1, machine(1), machine(2))
    ends, pids = [], [daemon.pid]
    for k, device in enumerate(ENDS, 1):
        netns, fd = ground.netns(f"s{k}"), handed(daemon, f"vm{k}")
        try:
            child = ground.spawn(netns, ground.tool("relay"), device, str(fd), pass_fds=(fd,))
        finally:
            os.close(fd)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        pids.append(child.pid)
        ends.append(End(netns, device, address(k), MASTER_MAC))
        ground.up(ends[-1], 16)
    lab.reachable(ends[0].netns, ends[1].address)
    lab.reachable(lab.ports[0], ends[1].address)
    return {
        "stream": Path(ends[0], ends[1], tuple(pids), daemon),
        "stream to": Path(ours.end(lab, 1), ends[1], tuple(pids), daemon),
    }


def vde_plugs(ground: Ground) -> Mapping[str, Path]:
    """vde_switch and two processes of VDE's own (vde_plug2tap), each with a TAP."""
    if missing := [name for name in ("vde_switch", "vde_plug2tap") if shutil.which(name) is None]:
        raise Unavailable(f"{missing[0]} (Debian: vde2) is not installed")
    home, where = ground.netns("er"), str(ground.directory / "plugs")
    switch = ground.spawn(home, "vde_switch", "-s", where)
    until(lambda: os.path.exists(f"{where}/ctl"), "vde_switch listens")
    plugs = [ground.spawn(home, "vde_plug2tap", "-s", where, name) for name in ENDS]
    until(lambda: all(ground.lab.link(home, name) for name in ENDS), "the TAPs are there")
    path = moved(ground, "e", home, ENDS, "10.28.0", switch.pid)
    return {"vde-plugs": Path(path.source, path.sink, (switch.pid, *(plug.pid for plug in plugs)))}
