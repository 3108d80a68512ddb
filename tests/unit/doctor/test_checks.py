"""The doctor's checks that need another machine than this one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ipvsw.doctor import checks
from ipvsw.doctor.checks import examine
from ipvsw.doctor.checks.host import CAPABILITIES
from ipvsw.doctor.facts import Host, Master, Process, read_cloud, read_host, read_memory

ROOT = Path(__file__).resolve().parents[3]
ALL = sum(1 << bit for bit in CAPABILITIES.values())


def host(capabilities: int = ALL, fds: int = 20) -> Host:
    return Host(uring_error=0, managers=(), process=Process(capabilities=capabilities, fds=fds, fds_max=1000))


def codes(seen: Host) -> list[str]:
    return [finding.code for finding in examine(seen, [])]


def test_every_code_has_its_section() -> None:
    source = "".join(file.read_text() for file in Path(checks.__file__).parent.glob("*.py"))
    page = (ROOT / "docs/reference/doctor.md").read_text()
    assert set(re.findall(r'code="([^"]+)"', source)) == set(re.findall(r"^### (.*)$", page, re.MULTILINE))


def test_a_capability_that_the_daemon_lacks_is_found() -> None:
    assert codes(host()) == []
    (found,) = examine(host(ALL & ~(1 << CAPABILITIES["net_raw"])), [])
    assert found.code == "capabilities" and "CAP_NET_RAW:" in found.text


@pytest.mark.parametrize(("fds", "found"), [(799, []), (800, ["few-fds"])])
def test_few_descriptors_are_those_that_are_left(fds: int, found: list[str]) -> None:
    assert codes(host(fds=fds)) == found


@pytest.mark.parametrize(
    ("running", "file", "name"),
    [
        ("run/NetworkManager", "etc/NetworkManager/conf.d/60.conf", "NetworkManager"),
        ("run/systemd/netif/state", "usr/lib/systemd/network/60.network", "systemd-networkd"),
    ],
)
def test_a_network_manager_is_found_until_it_is_told_to_leave_our_devices(
    running: str, file: str, name: str, tmp_path: Path
) -> None:
    assert read_host(None, str(tmp_path)).managers == ()
    (tmp_path / running).mkdir(parents=True)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("something else\n")
    seen = read_host(None, str(tmp_path))
    assert seen.managers == (name,)
    assert "network-manager" in codes(seen)
    suffix = "conf" if file.endswith(".conf") else "network"
    (tmp_path / file).write_text((ROOT / f"contrib/60-ipvsw-unmanaged.{suffix}").read_text())
    assert read_host(None, str(tmp_path)).managers == ()


@pytest.mark.parametrize(
    ("own", "tightest"), [("100 max", (950, 1000)), ("990 1000", (990, 1000)), ("100 1000", (950, 1000))]
)
def test_the_tightest_limit_of_memory_counts(own: str, tightest: tuple[int, int], tmp_path: Path) -> None:
    for place, text in {"system.slice": "950 1000", "system.slice/ipvswd.service": own}.items():
        (tmp_path / place).mkdir()
        for name, value in zip(("current", "max"), text.split(), strict=True):
            (tmp_path / place / f"memory.{name}").write_text(f"{value}\n")
    used, most = read_memory("0::/system.slice/ipvswd.service\n", tmp_path)
    assert (used, most) == tightest
    process = Process(capabilities=ALL, fds=1, fds_max=9, memory=used, memory_max=most)
    assert codes(Host(uring_error=0, managers=(), process=process)) == ["little-memory"]


def test_no_limit_of_memory_is_none(tmp_path: Path) -> None:
    assert read_memory("0::/\n", tmp_path) == (0, 0) and read_memory("", tmp_path) == (0, 0)


LAN = {"name": "lan", "master": "eth0", "state": "up", "carrier": True, "mode": "l2", "flag": "bridge", "mtu": 1500}
PORT = {"name": "a", "state": "up", "mtu": 1500, "addresses": [{"address": "192.0.2.9", "state": "owned"}]}


def of_master(**facts: Any) -> list[str]:
    master = Master(kind="", sysctls={}, xdp=False, filters=(), uppers={}, **facts)
    seen = Host(uring_error=0, managers=(), process=None)
    return [finding.code for finding in examine(seen, [({**LAN, "host_access": "none", "ports": [PORT]}, master)])]


def test_what_a_card_and_its_network_do() -> None:
    assert of_master() == []
    assert of_master(lro=True) == ["lro"]
    assert of_master(wireless=True) == ["wifi"]
    assert of_master(cloud="Amazon EC2") == ["cloud"]


@pytest.mark.parametrize(
    ("known", "answering", "found"),
    [
        ("02:00:00:00:00:01", ("02:00:00:00:00:01",), []),
        ("02:00:00:00:00:01", (), []),  # it may not answer probes
        ("", ("02:00:00:00:00:01",), []),
        ("02:00:00:00:00:01", ("02:00:00:00:00:02",), ["gateway-changed"]),
        ("", ("02:00:00:00:00:01", "02:00:00:00:00:02"), ["gateway-changed"]),
    ],
)
def test_a_gateway_is_one_machine(known: str, answering: tuple[str, ...], found: list[str]) -> None:
    assert of_master(gateways={"192.0.2.1": (known, answering)}) == found


def test_a_cloud_is_told_by_the_firmware(tmp_path: Path) -> None:
    assert read_cloud(tmp_path) == ""
    (tmp_path / "product_name").write_text("Google Compute Engine\n")
    assert read_cloud(tmp_path) == "Google Compute Engine"
