"""What the doctor looks at: the host, the daemon's process and the masters. Changes nothing. Errors: OSError."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from ipvsw._fast import uring_error
from ipvsw.doctor import card, neighbours
from ipvsw.linux.devices.ethtool import has_lro
from ipvsw.linux.namespaces import open_namespace
from ipvsw.linux.netlink import announces_groups, clsact, enter_namespace
from ipvsw.linux.netlink.lookup import RTM_GETLINK
from ipvsw.linux.netlink.messages import IFINFOMSG, attributes, read_link
from ipvsw.linux.netlink.questions import NLM_F_DUMP, Questions

Record = dict[str, Any]

IFF_ALLMULTI = 0x200  # linux/if.h
IFLA_LINK, IFLA_LINK_NETNSID, IFLA_XDP, IFLA_XDP_ATTACHED, IFLA_ALLMULTI = 5, 37, 43, 2, 61  # linux/if_link.h

# Who sets up devices by itself: where it says that it runs, where its files are that leave devices alone, their suffix.
MANAGERS = {
    "NetworkManager": ("run/NetworkManager", ("etc", "run", "usr/lib"), "NetworkManager/conf.d", ".conf"),
    "systemd-networkd": ("run/systemd/netif/state", ("etc", "run", "usr/lib"), "systemd/network", ".network"),
}


# How machines of clouds call themselves, in one of FIRMWARE (SMBIOS).
CLOUDS = ("Amazon EC2", "Google Compute Engine", "DigitalOcean", "Hetzner", "Alibaba Cloud", "OpenStack", "OracleCloud")
FIRMWARE = ("sys_vendor", "product_name", "chassis_asset_tag")


class Process(Struct, frozen=True, kw_only=True):
    """The daemon's."""

    capabilities: int  # bits
    fds: int
    fds_max: int
    memory: int = 0  # bytes
    memory_max: int = 0  # 0: there is no limit


class Daemon(Struct, frozen=True, kw_only=True):
    """What its API tells; nothing of one that doesn't answer."""

    switches: list[Record] = []
    stats: dict[str, Record] = {}  # by switch
    leases: list[Record] = []
    config: Record = {}  # what runs, as the tables of a configuration file
    now: float = 0.0  # by the wall clock, when it answered


class Host(Struct, frozen=True, kw_only=True):
    uring_error: int  # 0, or the errno with which the kernel refuses an io_uring
    managers: tuple[str, ...]  # that run, and that nobody has told to leave the daemon's devices alone
    process: Process | None  # None: it can't be seen from here
    jit: bool = True  # BPF programs are compiled
    announces_groups: bool = True  # it tells when a device joins a multicast group


class Master(Struct, frozen=True, kw_only=True):
    """What is on a switch's master besides the switch."""

    kind: str  # of the device, "" for hardware
    sysctls: dict[str, str]  # those below /proc/sys/net that the checks ask for
    xdp: bool
    filters: tuple[str, ...]  # "ingress", "egress": where others have tc filters
    uppers: dict[str, str]  # devices on top of it, with their kind
    all_multicast: bool = False  # somebody has it take the frames of every group
    groups: int = 0  # that it listens to
    group_limit: int = 0  # of those that it may listen to; 0: none is known
    lro: bool = False  # it merges TCP segments, without a way back
    wireless: bool = False
    cloud: str = ""  # whose network it is on, "" if that isn't known to be one
    others: dict[str, str] = {}  # addresses of ports that another machine answers for, with its MAC address
    # Of each: the MAC address that the host knows, those that answer.
    gateways: dict[str, tuple[str, tuple[str, ...]]] = {}


def read_host(pid: int | None, root: str = "/") -> Host:
    return Host(
        uring_error=uring_error(),
        managers=tuple(name for name in MANAGERS if _manages(name, Path(root))),
        process=None if pid is None else read_process(pid),
        jit=_sysctl(Path(root), "net/core/bpf_jit_enable") != "0",
        announces_groups=announces_groups(),
    )


def _sysctl(root: Path, path: str) -> str:
    """ "" if the kernel, or this namespace, has none of that name."""
    try:
        return (root / "proc/sys" / path).read_text().strip()
    except OSError:
        return ""


def _manages(name: str, root: Path) -> bool:
    running, places, below, suffix = MANAGERS[name]
    if not (root / running).exists():
        return False
    files = [file for place in places for file in (root / place / below).glob(f"*{suffix}")]
    return not any("ipvsw-*" in file.read_text(errors="replace") for file in files)


def read_process(pid: int) -> Process | None:
    """None if it isn't ours to see."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        limits = Path(f"/proc/{pid}/limits").read_text()
        fds = len(os.listdir(f"/proc/{pid}/fd"))
        memory, memory_max = read_memory(Path(f"/proc/{pid}/cgroup").read_text(), Path("/sys/fs/cgroup"))
    except OSError:
        return None
    effective = re.search(r"^CapEff:\s+([0-9a-f]+)", status, re.MULTILINE)
    soft = re.search(r"^Max open files\s+(\d+)", limits, re.MULTILINE)
    if effective is None or soft is None:
        return None
    return Process(
        capabilities=int(effective[1], 16), fds=fds, fds_max=int(soft[1]), memory=memory, memory_max=memory_max
    )


def read_memory(groups: str, root: Path) -> tuple[int, int]:
    """What the process's control group uses, and the least that it or one above may (cgroups(7), version 2)."""
    found = re.search(r"^0::/(.*)$", groups, re.MULTILINE)
    group = root / found[1] if found else root
    tightest = 0, 0
    for place in (group, *group.parents):
        if place == root or root not in place.parents:
            break
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            used, most = (int((place / f"memory.{what}").read_text()) for what in ("current", "max"))
            if not tightest[1] or most - used < tightest[1] - tightest[0]:
                tightest = used, most
    return tightest


def daemon_pid(path: str) -> int | None:
    """The process that answers at the socket; None if it is of another PID namespace. Errors: OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        pid: int = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid or None


def read_master(switch: Record, pid: int | None) -> Master | None:
    """None if there is no such device now."""
    home = f"/proc/{pid}/ns/net" if pid is not None else ""
    with _inside(switch["netns"] or home) as there:
        return _read_master(switch) if there else None


@contextlib.contextmanager
def _inside(netns: str) -> Iterator[bool]:
    """With the thread in a namespace, if there is one of that name."""
    fd = open_namespace(netns)
    if fd is None:
        yield False
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_namespace(fd)
        yield True
    finally:
        enter_namespace(home)
        os.close(home)
        os.close(fd)


def _read_master(switch: Record) -> Master | None:
    kernel, name = Questions(), switch["master"]
    try:
        links = [_link(body) for body in kernel.ask(RTM_GETLINK, NLM_F_DUMP, IFINFOMSG.pack(0, 0, 0, 0, 0))]
        own = next((link for link in links if link["name"] == name), None)
        if own is None:
            return None
        hops = dict(neighbours.gateways(name))
        owned = _owned(switch)
        answers = neighbours.ask(name, own["mac"], [*hops, *owned]) if len(own["mac"]) == 6 else {}
        others = {address: answers.get(address, set()) - {own["mac"].hex(":")} for address in owned}
        return Master(
            kind=own["kind"],
            sysctls=dict(_sysctls(name)),
            xdp=own["xdp"],
            filters=clsact.used_by_others(kernel, own["index"]),
            uppers={one["name"]: one["kind"] for one in links if one["lower"] == own["index"] and one is not own},
            all_multicast=own["all_multicast"],
            groups=card.groups(name),
            group_limit=card.group_limit(name, Path("/sys/class/net")),
            lro=has_lro(name),
            wireless=Path("/sys/class/net", name, "phy80211").exists(),
            cloud="" if own["kind"] else read_cloud(Path("/sys/class/dmi/id")),
            others={address: ", ".join(sorted(macs)) for address, macs in others.items() if macs},
            gateways={hop: (mac, tuple(sorted(answers.get(hop, ())))) for hop, mac in hops.items()},
        )
    finally:
        kernel.close()


def _owned(switch: Record) -> list[str]:
    """The IPv4 addresses of ports."""
    every = [one for port in switch["ports"] for one in port["addresses"] if one["state"] == "owned"]
    return [one["address"] for one in every if ":" not in one["address"]]


def read_cloud(firmware: Path) -> str:
    said = ""
    for name in FIRMWARE:
        with contextlib.suppress(OSError):
            said += (firmware / name).read_text(errors="replace")
    return next((cloud for cloud in CLOUDS if cloud in said), "")


def _link(body: bytes) -> Record:
    link, found = read_link(body), attributes(body, IFINFOMSG.size)
    flags = IFINFOMSG.unpack_from(body)[3]
    lower = found.get(IFLA_LINK, b"") if IFLA_LINK_NETNSID not in found else b""
    return {
        "index": link.index,
        "name": link.name,
        "mac": link.mac,
        "kind": link.kind,
        "lower": int.from_bytes(lower, "little"),
        "all_multicast": bool(flags & IFF_ALLMULTI or any(found.get(IFLA_ALLMULTI, b""))),
        "xdp": any(attributes(found.get(IFLA_XDP, b""), 0).get(IFLA_XDP_ATTACHED, b"")),
    }


def _sysctls(master: str) -> Iterator[tuple[str, str]]:
    """By their paths below /proc/sys/net; those that the kernel has."""
    per_device = ("ipv4/conf/{}/proxy_arp", "ipv4/conf/{}/rp_filter", "ipv6/conf/{}/disable_ipv6")
    paths = [path.format(device) for path in per_device for device in ("all", master)]
    paths += [f"bridge/bridge-nf-call-{what}" for what in ("iptables", "ip6tables", "arptables")]
    for path in paths:
        with contextlib.suppress(OSError):
            yield path.replace(master, "MASTER"), Path("/proc/sys/net", path).read_text().strip()
