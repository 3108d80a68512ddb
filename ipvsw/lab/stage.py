"""The picture: three namespaces and a veth pair, made and unmade with iproute2."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

PICTURE = """\
 +------------------------ host -------------------------+
 |  +-- ns0 ------------+         +-- ns1 ------------+  |
 |  | ipvl0             |         | ipvl1             |  |
 |  | 10.0.0.2, fd00::2 |         | 10.0.0.3, fd00::3 |  |
 |  +---------+---------+         +---------+---------+  |
 |            +---------- ipvswd -----------+            |
 |                           |                           |
 |                     {master:^13}   one MAC address   |
 +---------------------------|---------------------------+
              +-- router ----+----------------------+
              | eth0  10.0.0.1, fd00::1             |
              | lo    198.51.100.1, 2001:db8::1     |
              +-------------------------------------+
"""

CONFIG = """\
[daemon]
socket = "{socket}"

[[switch]]
name = "lab"
master = "{master}"
mode = "l2"
flag = "bridge"

[[switch.port]]
name = "ipvl0"
netns = "ns0"
addresses = ["10.0.0.2/24", "fd00::2/64"]
gateway = ["10.0.0.1", "fd00::1"]

[[switch.port]]
name = "ipvl1"
netns = "ns1"
addresses = ["10.0.0.3/24", "fd00::3/64"]
gateway = ["10.0.0.1", "fd00::1"]
"""

NAMESPACES = ("router", "ns0", "ns1")


class LabError(Exception):
    """The lab can't go on: one line that says why."""


def build(undo: contextlib.AsyncExitStack) -> str:
    """The namespaces and the veth pair. Returns the master's name."""
    for name in NAMESPACES:
        if Path("/run/netns", name).exists():
            raise LabError(f'the namespace "{name}" exists already: the lab needs that name and leaves yours alone')
    master = next(name for name in (f"ipvsw-lab{n}" for n in range(1000)) if not link_exists(name))
    print(PICTURE.format(master=master))
    for name in NAMESPACES:
        make(undo, f"netns add {name}", f"netns del {name}")
        ip(f"-n {name} link set lo up")
    make(undo, f"link add {master} type veth peer name eth0 netns router", f"link del {master}")
    for address in ("10.0.0.1/24 dev eth0", "198.51.100.1/32 dev lo"):
        ip(f"-n router address add {address}")
    for address in ("fd00::1/64 dev eth0", "2001:db8::1/128 dev lo"):
        ip(f"-n router address add {address} nodad")
    ip("-n router link set eth0 up")
    ip(f"link set {master} up")
    return master


def make(undo: contextlib.AsyncExitStack, command: str, opposite: str) -> None:
    ip(command)
    undo.callback(ip, opposite, must=False)


def ip(command: str, *, must: bool = True) -> str:
    """Run iproute2's `ip`. Errors: LabError with its own words, unless it need not succeed."""
    done = subprocess.run(
        ["ip", *command.split()], stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True
    )
    if must and done.returncode != 0:
        raise LabError(f"ip {command}: {done.stderr.strip()}")
    return done.stdout


def link_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def leftovers() -> list[str]:
    """What of the lab is still there after its end."""
    return [f"namespace {name}" for name in NAMESPACES if Path("/run/netns", name).exists()]
