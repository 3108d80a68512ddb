"""Topologies for tests: namespaces and veth pairs, made and removed with iproute2.

    netns wire            netns host               netns p1, p2, ...
    w0 (the wire)  <veth> m0 (the master)          (the daemon puts its ports here)

    m0  02:00:00:00:00:01  10.1.0.1/24    fd00:1::1/64
    w0  02:00:00:00:00:fe  10.1.0.254/24  fd00:1::254/64

The daemon runs in `home`, a namespace of its own, so that whatever it leaves behind is seen exactly.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.patience import LIMIT, until

MASTER_MAC, WIRE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:fe"
MASTER4, MASTER6 = "10.1.0.1", "fd00:1::1"
WIRE4, WIRE6 = "10.1.0.254", "fd00:1::254"
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def port4(k: int) -> str:
    """The IPv4 address of port number `k` (from 1)."""
    return f"10.1.{k // 200}.{10 + k % 200}"


def port6(k: int) -> str:
    return f"fd00:1::1:{k:x}"


def run(*command: str, check: bool = True, text: str | None = None, timeout: float = 2 * LIMIT) -> str:
    """A command's output. Errors: CalledProcessError with its words in the message."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def batch(lines: Iterable[str], netns: str | None = None, force: bool = False) -> None:
    """Many `ip` commands in one process."""
    where = ["-n", netns] if netns else []
    run("ip", *(["-force"] if force else []), *where, "-batch", "-", text="\n".join(lines) + "\n", check=not force)


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Sockets that this thread makes in the body belong to another namespace, for good."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        target = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        try:
            _setns(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def exec_in(netns: str, *command: str) -> list[str]:
    """The words that run a command in a namespace (without a mount namespace of its own)."""
    return ["nsenter", f"--net=/run/netns/{netns}", *command]


class Lab:
    """The topology above with `ports` empty namespaces for ports. A context manager."""

    def __init__(self, ports: int = 2, *, dad: bool = False) -> None:
        self.prefix = f"ivt{os.getpid()}{uuid.uuid4().hex[:4]}"
        self.home, self.host, self.wire = (f"{self.prefix}-{role}" for role in ("home", "host", "wire"))
        self.ports = [f"{self.prefix}-p{k}" for k in range(1, ports + 1)]
        self.dad = dad
        self.children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Lab:
        try:
            self.add(self.home, self.host, self.wire, *self.ports)
            self.make_master()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
        self.children.clear()
        left = [name for name in os.listdir("/run/netns") if name.startswith(self.prefix)]
        batch((f"netns del {name}" for name in left), force=True)

    def add(self, *names: str) -> None:
        """Quiet namespaces: no router solicitations, and no duplicate detection unless asked for."""
        batch(f"netns add {name}" for name in names)
        for name in names:
            with inside(name):
                self._sysctl("net/ipv6/conf/default/router_solicitations", "0")
                if not self.dad:
                    self._sysctl("net/ipv6/conf/default/accept_dad", "0")
                    self._sysctl("net/ipv6/conf/default/dad_transmits", "0")
                self._sysctl("net/ipv4/ping_group_range", "0 2147483647")
        if len(names) < 50:
            for name in names:
                self.ip(name, "link", "set", "lo", "up")

    def make_master(self, name: str = "m0", peer: str = "w0") -> None:
        """The veth pair, up and with its addresses."""
        self.ip(
            self.host,
            "link",
            "add",
            name,
            "address",
            MASTER_MAC,
            "type",
            "veth",
            "peer",
            "name",
            peer,
            "netns",
            self.wire,
            "address",
            WIRE_MAC,
        )
        for netns, device, v4, v6 in ((self.host, name, MASTER4, MASTER6), (self.wire, peer, WIRE4, WIRE6)):
            batch(
                [f"link set {device} up", f"addr add {v4}/16 dev {device}", f"addr add {v6}/64 dev {device} nodad"],
                netns,
            )

    def ip(self, netns: str, *words: str, check: bool = True) -> str:
        return run("ip", "-n", netns, *words, check=check)

    def links(self, netns: str) -> list[dict[str, Any]]:
        links: list[dict[str, Any]] = json.loads(run("ip", "-n", netns, "-d", "-j", "link", "show"))
        return links

    def link(self, netns: str, name: str) -> dict[str, Any] | None:
        return next((link for link in self.links(netns) if link["ifname"] == name), None)

    def addresses(self, netns: str, name: str) -> list[dict[str, Any]]:
        shown = json.loads(run("ip", "-n", netns, "-j", "addr", "show", "dev", name))
        return [address for link in shown for address in link.get("addr_info", [])]

    def execute(self, netns: str, *command: str, check: bool = True, timeout: float = 2 * LIMIT) -> str:
        return run(*exec_in(netns, *command), check=check, timeout=timeout)

    def spawn(self, netns: str, *command: str) -> subprocess.Popen[str]:
        """A process in a namespace; killed with the lab if it still runs."""
        child = subprocess.Popen(exec_in(netns, *command), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.children.append(child)
        return child

    def sysctl(self, netns: str, key: str, value: str) -> None:
        with inside(netns):
            self._sysctl(key, value)

    def read(self, netns: str, path: str) -> str:
        """A file under /proc/net of the namespace."""
        with inside(netns):
            return Path("/proc/thread-self/net", path).read_text()

    def ping(self, netns: str, address: str, count: int = 1, wait: float = LIMIT, interval: float = 0.01) -> int:
        """Answers that came, of `count`; `wait`: for the last of them, s."""
        out = run(
            *exec_in(netns, "ping", "-n", "-q", "-c", str(count), "-i", str(interval), "-W", str(wait), address),
            check=False,
            timeout=count * interval + wait + LIMIT,
        )
        received = [part for part in out.split(",") if "received" in part]
        return int(received[0].split()[0]) if received else 0

    def reachable(self, netns: str, address: str) -> None:
        until(lambda: self.ping(netns, address, wait=0.2), f"{netns} reaches {address}")

    def offloads(self, netns: str, device: str, on: bool) -> None:
        """Transmit checksums and segmentation by the device, or all by its stack; arriving frames stay apart."""
        word = "on" if on else "off"
        for feature, state in (("tx", word), ("tso", word), ("gso", word), ("sg", word), ("gro", "off")):
            self.execute(netns, "ethtool", "-K", device, feature, state, check=False)
        shown = self.execute(netns, "ethtool", "-k", device)
        state = next(line.split()[1] for line in shown.splitlines() if line.startswith("tx-checksumming:"))
        assert state == word, f"{device}: tx-checksumming is {state}"

    @staticmethod
    def _sysctl(key: str, value: str) -> None:
        Path("/proc/sys", key).write_text(value)
