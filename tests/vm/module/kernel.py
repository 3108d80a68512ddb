"""The module itself: loaded and unloaded, and what rtnetlink has for its kind that iproute2 has no words for."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from types import TracebackType

from tests.support.patience import until
from tests.support.topology import run

# linux/netlink.h, linux/rtnetlink.h, kmod-shim/module/ipvsw.h
RTM_NEWLINK = 16
NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA = 18, 1, 2
MODE, FLAGS = 1, 2

DEVICES = Path("/dev")
STATE = Path("/sys/module/ipvsw")


class Module:
    """Loaded for as long as the body lasts; it has to go without a trace after it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> Module:
        run("insmod", self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            # A namespace is taken down some time after its name.
            until(lambda: self.users() == 0, "nobody uses the module", every=0.1)
            run("rmmod", "ipvsw")
            assert not STATE.exists()
            assert not nodes(), f"character devices are left: {nodes()}"

    def users(self) -> int:
        return int((STATE / "refcnt").read_text())

    def refuses_to_go(self) -> bool:
        run("rmmod", "ipvsw", check=False)
        return STATE.exists()


def nodes() -> list[str]:
    """Names of the module's character devices."""
    return sorted(path.name for path in DEVICES.glob("ipvsw*"))


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def set_mode(index: int, mode: int, flags: int) -> int:
    """What `ip link set ... type ipvlan mode ...` does for that kind, in the caller's namespace: 0 or an errno."""
    data = attribute(MODE, struct.pack("=H", mode)) + attribute(FLAGS, struct.pack("=H", flags))
    info = attribute(IFLA_INFO_KIND, b"ipvsw\0") + attribute(IFLA_INFO_DATA, data)
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + attribute(IFLA_LINKINFO, info)
    return -request(RTM_NEWLINK, 0, body)


def request(kind: int, flags: int, body: bytes) -> int:
    """One acknowledged request: 0 or a negative errno."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0) + body)
        return int(struct.unpack_from("=i", route.recv(8192), 16)[0])


def index_of(netns: str, name: str) -> int:
    shown = run("ip", "-n", netns, "-o", "link", "show", "dev", name)
    return int(shown.split(":", 1)[0])


def descriptors(pid: int) -> list[str]:
    """The module's character devices that a process has open."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except FileNotFoundError:
            continue
    return sorted(path for path in found if path.startswith("/dev/ipvsw"))
