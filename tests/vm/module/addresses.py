"""No address on two ports of a master, however many ask for it at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import time
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import Any

from tests.support.topology import Lab, inside, run
from tests.vm.module.kernel import NLM_F_ACK, NLM_F_REQUEST, Module, attribute, index_of
from tests.vm.module.net import name

# linux/rtnetlink.h, linux/if_addr.h
RTM_NEWADDR, RTM_DELADDR = 20, 21
NLM_F_CREATE, NLM_F_EXCL = 0x400, 0x200
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x02
EADDRINUSE = 98

NAMESPACES, SHARED, ROUNDS = 32, 32, 1024
BATCH = 64  # rounds whose requests go out together
V4, V6 = ip_network("172.25.0.0/24"), ip_network("fc00::/64")


def duplicates(module: Module) -> dict[str, Any]:
    """Refused with the kernel's words and iproute2's exit status, until the first owner gives it up."""
    with Lab(2) as lab:
        one, two = lab.ports
        for k, netns in enumerate(lab.ports, 1):
            lab.ip(lab.host, "link", "add", "link", "m0", "name", name(k), "netns", netns, "type", "ipvsw")
            lab.ip(netns, "link", "set", name(k), "up")
        for address, other in (("10.1.0.9/24", "10.1.0.9/32"), ("fd00:1::9/64", "fd00:1::9/128")):
            assert _add(one, name(1), address) == (0, "")
            for netns, device, again in ((two, name(2), address), (two, name(2), other), (one, name(1), other)):
                status, error = _add(netns, device, again)
                # The IPv6 stack itself knows an address that the very device has.
                said = "File exists" if netns == one and ":" in again else "already assigned"
                assert status == 2 and said in error, (again, status, error)
            lab.ip(one, "link", "set", name(1), "down")
            if ip_address(address.split("/")[0]).version == 4:  # the stack keeps it, and so does its owner
                assert _add(two, name(2), address)[0] == 2
            lab.ip(one, "link", "set", name(1), "up")
            run("ip", "-n", one, "addr", "flush", "dev", name(1), "scope", "global")
            assert _add(two, name(2), address) == (0, "")
            assert _add(one, name(1), address)[0] == 2
            lab.ip(two, "addr", "del", address, "dev", name(2))
        # Its owner moves away, and has nothing there.
        assert _add(one, name(1), "10.1.0.9/24") == (0, "")
        lab.ip(one, "link", "set", name(1), "netns", lab.host)
        assert _add(two, name(2), "10.1.0.9/24") == (0, "")
        # Another master's devices are none of its business.
        lab.make_master("m1", "w1")
        lab.ip(lab.host, "link", "add", "link", "m1", "name", "ipvl9", "netns", one, "type", "ipvsw")
        assert _add(one, "ipvl9", "10.1.0.9/24") == (0, "")
        return {}


def race(module: Module) -> dict[str, Any]:
    """Each namespace adds and deletes shared addresses at random: each is on one device at most afterwards."""
    with Lab(NAMESPACES) as lab:
        for k, netns in enumerate(lab.ports, 1):
            lab.ip(lab.host, "link", "add", "link", "m0", "name", name(k), "netns", netns, "type", "ipvsw")
            lab.ip(netns, "link", "set", name(k), "up")
        began = time.monotonic()
        children = {os.fork() or _adds_and_deletes(lab.ports[k], name(k + 1), k): k for k in range(NAMESPACES)}
        results = [os.waitpid(pid, 0)[1] for pid in children]
        seconds = time.monotonic() - began
        assert not any(results), results
        owners: Counter[str] = Counter()
        for netns in lab.ports:
            shown = json.loads(run("ip", "-n", netns, "-j", "addr", "show", "scope", "global"))
            owners.update(each["local"] for link in shown for each in link.get("addr_info", []) if "local" in each)
        twice = {address: count for address, count in owners.items() if count > 1}
        assert not twice, f"on several devices: {twice}"
        assert len(owners) >= SHARED // 2, f"hardly any address is left: {len(owners)}"
        return {"rounds": NAMESPACES * ROUNDS, "seconds": round(seconds, 1), "left": len(owners)}


def _add(netns: str, device: str, address: str) -> tuple[int, str]:
    words = ["ip", "-n", netns, "addr", "add", address, "dev", device, *(["nodad"] if ":" in address else [])]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def _adds_and_deletes(netns: str, device: str, seed: int) -> int:
    """In a process of its own, whose exit status tells whether some were refused and some were not."""
    status = 1
    with contextlib.suppress(BaseException):
        chance, index, seen = random.Random(seed), index_of(netns, device), Counter[int]()
        with inside(netns):
            route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        route.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for _ in range(ROUNDS // BATCH):
            messages = [
                _message(kind, index, network[first + chance.randrange(SHARED)].packed, network.prefixlen)
                for _ in range(BATCH)
                for kind in (RTM_NEWADDR, RTM_DELADDR)
                for network, first in ((V4, 16), (V6, 1))
            ]
            route.send(b"".join(messages))
            answers = 0
            while answers < len(messages):
                data = route.recv(1 << 16)
                answers += 1
                seen[-struct.unpack_from("=i", data, 16)[0]] += 1
        status = 0 if seen[0] and seen[EADDRINUSE] else 2
    os._exit(status)


def _message(kind: int, index: int, address: bytes, prefix: int) -> bytes:
    flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWADDR else 0)
    six = len(address) == 16
    body = struct.pack(
        "=BBBBI", socket.AF_INET6 if six else socket.AF_INET, prefix, IFA_F_NODAD if six else 0, 0, index
    )
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body
