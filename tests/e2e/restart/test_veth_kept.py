"""What belongs to a port that is a veth stays so: programs and devices beside the master, and its counters."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.outage import Numbered
from tests.support.patience import until
from tests.support.running import Daemon, port, take_over, toml
from tests.support.topology import WIRE4, Lab, port4, port6, run
from tests.support.veths import goes_by_kernel, table

SOON = 5.0  # seconds
HASHES = 1, 5  # BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_HASH of linux/bpf.h
MORE, TURNS = 50, int(os.environ.get("IPVSW_TURNS", "4"))  # ports that come and go, and how often


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(3) as made:
        yield made


@pytest.fixture
def lan(lab: Lab) -> Iterator[Daemon]:
    with Daemon(*table(lab), home=lab.home) as daemon:
        yield daemon.wait()


def beside(lab: Lab, prefix: str) -> dict[str, Any]:
    """The device beside the master of the first port."""
    links = lab.links(lab.host)
    return next(one for one in links if one["ifname"].startswith(prefix) and one.get("ifalias") == "ipvsw lan/ipvl1")


def programs(lab: Lab, name: str) -> str:
    return run("tc", "-n", lab.host, "filter", "show", "dev", name, "ingress")


def test_everything_is_put_back(lab: Lab, lan: Daemon) -> None:
    end, tap = (beside(lab, prefix)["ifname"] for prefix in ("se-", "st-"))

    def repaired(subject: str) -> int:
        return int(lan.stats()[0]["repaired"].get(subject, 0))

    def is_mended(subject: str, name: str, *words: str) -> None:
        before, mac = repaired(subject), beside(lab, "se-")["address"]
        run(*words)
        until(lambda: repaired(subject) > before, f"{words} is noticed", limit=SOON)
        until(lambda: "ipvsw" in programs(lab, name), f"{name} has its program", limit=SOON)
        link = lab.link(lab.host, name)
        assert link and (link["address"], "UP" in link["flags"]) == (mac, True)

    for name in (end, tap, "m0"):
        is_mended("filters", name, "tc", "-n", lab.host, "qdisc", "del", "dev", name, "clsact")
        is_mended("filters", name, "tc", "-n", lab.host, "filter", "del", "dev", name, "ingress")
        assert goes_by_kernel(lab, lan, lab.ports[0], WIRE4), name
    for name in (end, tap):
        is_mended("host_ends", name, "ip", "-n", lab.host, "link", "set", name, "down")
        is_mended("host_ends", name, "ip", "-n", lab.host, "link", "set", name, "address", "02:00:00:00:00:99")
    assert goes_by_kernel(lab, lan, lab.ports[0], port4(2))
    assert f"port lan/ipvl1: changed by others, put back: BPF program of {end}" in lan.said()
    assert (lan.port("ipvl1")["state"], lan.port("ipvl1")["reason"]) == ("up", "")


def test_what_can_not_be_put_back_is_shown(lab: Lab, lan: Daemon) -> None:
    end = beside(lab, "se-")["ifname"]

    def is_in_the_way() -> bool:
        """Unless the daemon was quicker."""
        change = f"qdisc del dev {end} clsact\nqdisc add dev {end} ingress\n"
        run("tc", "-n", lab.host, "-force", "-batch", "-", text=change, check=False)
        return "qdisc ingress" in run("tc", "-n", lab.host, "qdisc", "show", "dev", end)

    until(is_in_the_way, "another qdisc has the place")
    until(lambda: "in the way of clsact" in lan.port("ipvl1")["reason"], "that is shown")
    assert lan.port("ipvl1")["state"] == "degraded"
    run("tc", "-n", lab.host, "qdisc", "del", "dev", end, "ingress")
    until(lambda: lan.port("ipvl1")["state"] == "up", "the port is up again")
    assert goes_by_kernel(lab, lan, lab.ports[0], port4(2))


def sent_by(lab: Lab, netns: str, device: str) -> int:
    (link,) = json.loads(run("ip", "-n", netns, "-j", "-s", "link", "show", device))
    return int(link["stats64"]["tx"]["packets"])


def counted(daemon: Daemon, key: str) -> list[int]:
    """From the first port, the second one, and the wire."""
    stats = daemon.stats()[0]
    found = [stats["ports"]["ipvl1"], stats["ports"]["ipvl2"], stats["master"]]
    assert all(one["rx_frames"] == sum(one["outcomes"].values()) for one in found)
    return [int(one[key]) for one in found]


def test_nothing_is_missing_of_what_the_kernel_has_counted(lab: Lab, lan: Daemon) -> None:
    """Neither after a kill, with nobody there for a while, nor after a take-over."""
    netns, target = lab.ports[:2]
    lab.reachable(lab.wire, port6(1))
    with (
        Numbered(netns, target, port4(2)) as between,
        Numbered(target, lab.wire, WIRE4) as outwards,
        Numbered(lab.wire, netns, port6(1)) as inwards,
    ):
        every = (between, outwards, inwards)
        rx, by_kernel = counted(lan, "rx_frames"), counted(lan, "kernel_frames")
        before = [one.sent for one in every]
        lan.kill()
        for one in every * 2:
            one.goes_on()
        lan.start()
        lan.wait()
        for one in every * 2:
            one.goes_on()
        take_over(lan)
        for one in every:
            one.goes_on()
    assert [one.lost for one in every] == [0, 0, 0]
    for one, sent, first, last in zip(every, before, rx, counted(lan, "rx_frames"), strict=True):
        assert last - first >= one.sent - sent
    assert all(last > first for first, last in zip(by_kernel, counted(lan, "kernel_frames"), strict=True))
    assert counted(lan, "rx_frames")[0] <= sent_by(lab, netns, "ipvl1")


def entries(daemon: Daemon) -> int:
    """Of the maps that have a key for each device."""
    lib = ctypes.CDLL("libbpf.so.1")
    found = 0
    for number in daemon.bpf()[1]:
        fd = lib.bpf_map_get_fd_by_id(number)
        info, size = ctypes.create_string_buffer(16), ctypes.c_uint32(16)
        assert fd >= 0 and not lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size))
        kind, _, key_size, _ = struct.unpack("=4I", info.raw)  # struct bpf_map_info: type, id, sizes
        if kind in HASHES and key_size == 4:
            key, after = None, ctypes.create_string_buffer(4)
            while not lib.bpf_map_get_next_key(fd, key, after):
                key, found = after.raw, found + 1
        os.close(fd)
    return found


def test_ports_that_come_and_go_leave_nothing(lab: Lab, lan: Daemon) -> None:
    def look() -> tuple[object, ...]:
        devices = [lab.read(netns, "dev").count(":") for netns in (lab.host, lab.home, *lab.ports)]
        return devices, entries(lan), lan.fds(), tuple(map(len, lan.bpf()))

    tables = table(lab)
    few = toml(lan.socket, tables)
    ports = tables[0]["port"]
    many = [port(f"more{k}", ports[k % 3]["netns"], [f"10.1.7.{k + 1}/16"], device="veth") for k in range(MORE)]
    all_of_them = toml(lan.socket, [{**tables[0], "port": [*ports, *many]}])
    lan.config.write_text(few)
    lan.cli("reload")
    before = look()
    for _ in range(TURNS):
        for text in (all_of_them, few):
            lan.config.write_text(text)
            lan.cli("reload")
            lan.wait()
    until(lambda: look() == before, f"{before}, not {look()}", every=0.2)
    assert goes_by_kernel(lab, lan, lab.ports[0], port4(2))
