"""The doctor's checks that need another machine than this one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipvsw.doctor import checks
from ipvsw.doctor.checks import CAPABILITIES, examine
from ipvsw.doctor.facts import Host, Process, read_host

ROOT = Path(__file__).resolve().parents[3]
ALL = sum(1 << bit for bit in CAPABILITIES.values())


def host(capabilities: int = ALL, fds: int = 20) -> Host:
    return Host(uring_error=0, managers=(), process=Process(capabilities=capabilities, fds=fds, fds_max=1000))


def codes(seen: Host) -> list[str]:
    return [finding.code for finding in examine(seen, [])]


def test_every_code_has_its_section() -> None:
    source = Path(checks.__file__).read_text()
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
