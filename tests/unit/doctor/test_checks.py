"""The doctor's checks that need another machine than this one."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest

from ipvsw.doctor import checks
from ipvsw.doctor.card import LIMITS, group_limit
from ipvsw.doctor.checks import examine
from ipvsw.doctor.checks.host import CAPABILITIES
from ipvsw.doctor.facts import Daemon, Host, Master, Process, Record, read_cloud, read_host, read_memory
from ipvsw.status import NO_VETH

ROOT = Path(__file__).resolve().parents[3]
ALL = sum(1 << bit for bit in CAPABILITIES.values())


def host(capabilities: int = ALL, fds: int = 20) -> Host:
    return Host(uring_error=0, managers=(), process=Process(capabilities=capabilities, fds=fds, fds_max=1000))


def codes(seen: Host, daemon: Daemon | None = None) -> list[str]:
    return [finding.code for finding in examine(seen, daemon or Daemon(), {})]


def test_every_code_has_its_section() -> None:
    source = "".join(file.read_text() for file in Path(checks.__file__).parent.glob("*.py"))
    page = (ROOT / "docs/reference/doctor.md").read_text()
    assert set(re.findall(r'code="([^"]+)"', source)) == set(re.findall(r"^### (.*)$", page, re.MULTILINE))


def test_a_capability_that_the_daemon_lacks_is_found() -> None:
    assert codes(host()) == []
    (found,) = examine(host(ALL & ~(1 << CAPABILITIES["net_raw"])), Daemon(), {})
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


LAN = {
    "name": "lan",
    "master": "eth0",
    "state": "up",
    "carrier": True,
    "mode": "l2",
    "flag": "bridge",
    "mtu": 1500,
    "host_access": "none",
    "io": "uring",
}
PORT = {
    "name": "a",
    "kind": "netns",
    "state": "up",
    "mtu": 1500,
    "ifname": "a0",
    "path": "",
    "offloads": ["uso4"],
    "addresses": [{"address": "192.0.2.9", "state": "owned"}],
}
HEALTHY = Host(uring_error=0, managers=(), process=None)


def daemon(port: Record = PORT, stats: Record | None = None, config: Record | None = None, **more: Any) -> Daemon:
    return Daemon(
        switches=[{**LAN, **more, "ports": [port]}], stats={"lan": stats} if stats else {}, config=config or {}
    )


def of_master(stats: Record | None = None, mode: str = "l2", **facts: Any) -> list[str]:
    master = Master(kind="", sysctls={}, xdp=False, filters=(), uppers={}, **facts)
    return [finding.code for finding in examine(HEALTHY, daemon(stats=stats, mode=mode), {"lan": master})]


def test_what_a_card_does() -> None:
    assert of_master() == []
    assert of_master(lro=True) == ["lro"]
    assert of_master(all_multicast=True) == ["allmulti"]
    assert of_master(mode="l3", all_multicast=True) == []  # there the data plane takes no multicast frames


@pytest.mark.parametrize(("groups", "limit", "found"), [(30, 30, []), (31, 30, ["group-limit"]), (31, 0, [])])
def test_a_card_may_have_a_limit_of_groups(groups: int, limit: int, found: list[str]) -> None:
    assert of_master(groups=groups, group_limit=limit) == found


def test_the_limit_of_groups_is_that_of_the_driver(tmp_path: Path) -> None:
    for name, driver in {"vf0": "ixgbevf", "pf0": "ixgbe"}.items():
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "device/driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    assert [group_limit(name, tmp_path) for name in ("vf0", "pf0", "lo")] == [LIMITS["ixgbevf"], 0, 0]


def traffic(sent: int, received: int = 0, from_wire: int = 0) -> Record:
    """What a port has sent to the network and received, and what came from there for any."""
    port = {"tx_frames": received, "outcomes": {"to_master": sent - sent // 2, "to_ports": sent // 2}}
    return {"master": {"outcomes": {"to_port": from_wire}}, "ports": {"a": port}}


@pytest.mark.parametrize("network", [{"wireless": True}, {"cloud": "Amazon EC2"}], ids=["wifi", "cloud"])
def test_a_network_that_answers_is_not_accused(network: dict[str, Any]) -> None:
    code = ["wifi" if "wireless" in network else "cloud"]
    assert of_master(**network) == of_master(traffic(0), **network) == of_master(traffic(19), **network) == []
    assert of_master(traffic(20), **network) == code
    assert of_master(traffic(20, received=5), **network) == code  # from siblings
    assert of_master(traffic(20, received=5, from_wire=1), **network) == []
    assert of_master(traffic(20, from_wire=1), **network) == code  # other ports get something
    assert of_master(traffic(20, received=5), mode="l3s", **network) == []  # by way of the host
    assert of_master(traffic(20)) == []


@pytest.mark.parametrize(
    ("port", "found"),
    [
        ({}, []),
        ({"path": NO_VETH}, ["no-veth"]),
        ({"path": "slow (guard)"}, []),
        ({"offloads": ["csum", "tso4", "tso6"]}, ["no-uso"]),
        ({"offloads": []}, []),  # it isn't there
        ({"kind": "tap", "offloads": ["csum"]}, []),  # the virtual machine's business
    ],
)
def test_what_the_kernel_lacks_for_a_port(port: Record, found: list[str]) -> None:
    assert codes(HEALTHY, daemon({**PORT, **port})) == found


@pytest.mark.parametrize(
    ("kind", "wanted", "found"), [("tap", "macvtap", ["no-macvtap"]), ("macvtap", "macvtap", []), ("tap", "tap", [])]
)
def test_a_port_that_is_another_than_was_asked_for(kind: str, wanted: str, found: list[str]) -> None:
    config = {"switch": [{"name": "lan", "port": [{"name": "a", "kind": wanted}]}]}
    assert codes(HEALTHY, daemon({**PORT, "kind": kind}, config=config)) == found


@pytest.mark.parametrize(
    ("io", "wanted", "error", "found"),
    [
        ("uring", "auto", errno.EPERM, []),  # the daemon has one, though we have not
        ("epoll", "auto", errno.EPERM, ["no-uring"]),
        ("epoll", "auto", 0, ["no-uring"]),
        ("epoll", "epoll", errno.EPERM, []),
    ],
)
def test_io_uring_is_missed_where_the_daemon_has_none(io: str, wanted: str, error: int, found: list[str]) -> None:
    seen = Host(uring_error=error, managers=(), process=None)
    assert codes(seen, daemon(config={"daemon": {"io": wanted}}, io=io)) == found


def test_a_host_without_a_daemon_is_still_looked_at() -> None:
    assert codes(Host(uring_error=errno.ENOSYS, managers=(), process=None)) == ["no-uring"]


def test_what_the_kernel_does_slowly() -> None:
    assert codes(Host(uring_error=0, managers=(), process=None, jit=False)) == ["no-jit"]
    deaf = Host(uring_error=0, managers=(), process=None, announces_groups=False)
    assert codes(deaf, daemon()) == ["no-group-events"]
    assert codes(deaf, daemon({**PORT, "kind": "tap"})) == []  # whose groups are snooped


@pytest.mark.parametrize(("text", "jit"), [("0\n", False), ("1\n", True), (None, True)])
def test_whether_bpf_programs_are_compiled(text: str | None, jit: bool, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "proc/sys/net/core").mkdir(parents=True)
        (tmp_path / "proc/sys/net/core/bpf_jit_enable").write_text(text)
    assert read_host(None, str(tmp_path)).jit is jit


@pytest.mark.parametrize(
    ("ends", "remaining", "found"),
    [
        (1000.0, 3600, []),
        (940.0, 3600, []),  # as far apart as clocks may be
        (930.0, 3600, ["lease-clock"]),
        (930.0, 0, []),  # it ends at once
        (None, None, []),  # never
        (None, 3600, []),  # granted under an older daemon
    ],
)
def test_a_lease_that_the_wall_clock_has_ended(ends: float | None, remaining: int | None, found: list[str]) -> None:
    lease = {"switch": "lan", "port": "a", "address": "192.0.2.9", "remaining": remaining, "ends": ends}
    assert codes(HEALTHY, Daemon(leases=[lease], now=1000.0)) == found


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
