"""The same live traffic through the kernel's own ipvlan, in a guest, and through ipvsw: no difference that
docs/explanation/differences.md does not name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import FACTOR, patient, until
from tests.support.running import Daemon, port, switch
from tests.vm.driver import compare
from tests.vm.driver.plan import plan
from tests.vm.driver.topology import ADDRESS, DEVICE, PORTS, ip
from tests.vm.driver.traffic import rig_of
from tests.vm.guest import GuestError, Result, run_in_guest

PAIRS = tuple(f"{mode}-{flag}" for mode in ("l2", "l3", "l3s") for flag in ("bridge", "private", "vepa"))
SEED = int(os.environ.get("IPVSW_TRAFFIC_SEED", "1"))
ROOT = Path(__file__).resolve().parents[3]
DIFFERENCES = ROOT / "docs/explanation/differences.md"

Found = dict[str, Any]


def test_a_seed_is_a_plan() -> None:
    assert plan(1) == plan(1) != plan(2)


@pytest.mark.parametrize("known", compare.KNOWN, ids=lambda known: known.explains.__name__.strip("_"))
def test_known_differences_are_documented(known: compare.Known) -> None:
    assert compare.documented(DIFFERENCES.read_text(), known)


@pytest.fixture(scope="module")
def runs(bootable: None) -> Iterator[tuple[Found, Found]]:
    """The traffic of all pairs: with the kernel's driver, and with ipvsw. Both at the same time."""
    answer: list[Result | GuestError] = []

    def kernel() -> None:
        try:
            answer.append(run_in_guest(_script(), modules=("veth", "ipvlan")))
        except GuestError as error:
            answer.append(error)

    thread = threading.Thread(target=kernel)
    thread.start()
    try:
        ipvsw = through_ipvsw()
    finally:
        thread.join()
    if isinstance(answer[0], GuestError):
        raise answer[0]
    assert answer[0].exit_code == 0, answer[0].stderr
    yield json.loads(answer[0].stdout), ipvsw


@pytest.mark.parametrize("pair", PAIRS)
def test_live_traffic_is_as_with_the_kernels_driver(runs: tuple[Found, Found], pair: str) -> None:
    kernel, ipvsw = ({pair: run[pair]} for run in runs)
    left, _ = compare.unexplained(compare.compare(kernel, ipvsw), compare.KNOWN)
    assert not left, f"seed {SEED}, {len(left)} differences:\n" + "\n".join(map(str, left))
    answered = [outcome for outcome in ipvsw[pair]["outcomes"] if outcome.get("answers") or outcome.get("same")]
    assert len(answered) >= 5, "hardly anything came through: this compares nothing"


def _script() -> str:
    words = f"{sys.executable} -m tests.vm.driver.traffic ipvlan --seed {SEED} {' '.join(PAIRS)}"
    return f"cd {ROOT}\nexport PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 IPVSW_TEST_PATIENCE={FACTOR:g}\n{words}\n"


def through_ipvsw() -> Found:
    """All pairs in one daemon, which is in a namespace of its own."""
    prefix = f"ivt{os.getpid()}{uuid.uuid4().hex[:4]}"
    home = f"{prefix}-home"
    rigs = {pair: rig_of(prefix, pair) for pair in PAIRS}
    try:
        ip([f"netns add {home}"])
        switches = []
        for pair, rig in rigs.items():
            mode, flag = pair.split("-")
            rig.build(mode)
            ports = [port(DEVICE[place], rig.netns(place)) for place in PORTS]
            switches.append(switch("m0", rig.netns("host"), ports, name=pair, mode=mode, flag=flag))
        with Daemon(*switches, home=home) as daemon:
            daemon.wait(states=("up", "down"))
            for rig in rigs.values():
                rig.configure_ports()
            daemon.wait()
            _until_addresses_are_known(daemon)
            words = [
                sys.executable,
                "-m",
                "tests.vm.driver.traffic",
                "run",
                "--seed",
                str(SEED),
                "--prefix",
                prefix,
                *PAIRS,
            ]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=patient(900))
            assert done.returncode == 0, done.stderr
            found: Found = json.loads(done.stdout)
            return found
    finally:
        for rig in rigs.values():
            rig.remove()
        ip([f"netns del {home}"], force=True)


def _until_addresses_are_known(daemon: Daemon) -> None:
    wanted = {
        DEVICE[place]: {
            address for name in (place, f"{place}-routed", f"{place}-link") for address in ADDRESS[name].values()
        }
        for place in PORTS
    }

    def known() -> bool:
        ports = [one for each in daemon.show() for one in each["ports"]]
        return all({entry["address"] for entry in one["addresses"]} == wanted[one["name"]] for one in ports)

    until(known, "the daemon knows the ports' addresses, and no others")
