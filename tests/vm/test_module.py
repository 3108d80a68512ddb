"""The optional kernel module, with Debian's kernel: built, loaded, used by the daemon, and gone without a trace.

The guest's kernel has no KASAN and no kmemleak (Debian builds none with either); its own complaints (WARNING, BUG,
refcount, "waiting for ... to become free") fail every run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import FACTOR, patient
from tests.vm import guest
from tests.vm.guest import Result, run_in_guest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kmod-shim" / "module"
SLOWER = 4  # times as slow as this machine a guest may be
LOADED = ("veth", "bridge", "bonding", "tun", "tap", "cls_bpf", "sch_ingress", "nf_tables", "8021q")


@pytest.fixture(scope="module")
def built(bootable: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module for the guest's kernel, made with every warning an error."""
    kernel = guest.newest_kernel()
    if not Path(f"/lib/modules/{kernel}/build/Makefile").exists():
        pytest.skip(f"the headers of kernel {kernel} are not installed (Debian: linux-headers-amd64)")
    out = tmp_path_factory.mktemp("module")
    done = subprocess.run(
        ["make", "-C", str(SOURCES), f"KERNEL={kernel}", f"OUT={out}"],
        capture_output=True,
        text=True,
        timeout=patient(120),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "warning" not in (done.stdout + done.stderr).lower()
    return out / "ipvsw.ko"


def in_guest(words: str) -> Result:
    """A command in the guest with the tests' own modules at hand. Its kernel must have nothing to say."""
    script = (
        f"cd {ROOT}\nexport PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1\n"
        f"export IPVSW_TEST_PATIENCE={SLOWER * FACTOR:g}\n"
        f"dmesg --clear\n{words}\nstatus=$?\n"
        "dmesg | grep -iE 'warn|bug:|leak|refcount|waiting for' >&2 && exit 9\nexit $status\n"
    )
    return run_in_guest(script, modules=LOADED)


def scenarios(module: Path, *names: str) -> dict[str, Any]:
    done = in_guest(f"{sys.executable} -m tests.vm.module {module} {' '.join(names)}")
    assert done.exit_code == 0, f"{done.stderr[-4000:]}\n--- console\n{done.console[-1500:]}"
    figures: dict[str, Any] = json.loads(done.stdout)
    print(figures)
    return figures


def test_traffic_and_a_daemon_that_dies_among_it(built: Path) -> None:
    figures = scenarios(built, "traffic", "restart")
    assert figures["traffic"]["offloads"][:2] == ["csum", "tso4"]


def test_devices_are_links_of_their_master(built: Path) -> None:
    scenarios(built, "semantics", "attributes")


def test_devices_that_go(built: Path) -> None:
    scenarios(built, "going", "cycles")


def test_a_bond_as_master(built: Path) -> None:
    scenarios(built, "bond")


def test_a_duplicate_address_is_refused(built: Path) -> None:
    scenarios(built, "duplicates")


def test_no_race_gives_two_devices_one_address(built: Path) -> None:
    figures = scenarios(built, "race")
    assert figures["race"]["rounds"] == 32 * 1024


def test_the_corpus_ends_where_the_kernels_driver_puts_it(built: Path) -> None:
    replay = f"{sys.executable} -m tests.conformance.run --links l2-bridge l3-bridge"
    done = in_guest(f"insmod {built} && {replay} && rmmod ipvsw")
    assert done.exit_code == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.count("196 of 196 cases agree") == 2, done.stdout
