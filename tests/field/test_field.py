"""What people put below, beside and above an interface, in a guest with Debian's kernel: ipvsw does what the best of
the kernel's drivers does, ipvlan or macvlan, in the same guest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.field.contest import DRIVERS, OURS
from tests.field.labs import LABS
from tests.support.patience import FACTOR
from tests.vm.guest import run_in_guest

ROOT = Path(__file__).resolve().parents[2]
SLOWER = 4  # times as slow as this machine a guest may be
CASES = [(lab, case.name) for lab, one in LABS.items() for group in one.groups for case in group.cases]
EXPECTED = {
    (case.name, contestant)
    for one in LABS.values()
    for group in one.groups
    for case in group.cases
    for contestant in case.contestants
}

Faults = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def faults(request: pytest.FixtureRequest, bootable: None) -> Faults:
    """Of all cases of a lab, by case and contestant."""
    script = (
        f"cd {ROOT}\nexport PYTHONPATH={ROOT} IPVSW_TEST_PATIENCE={SLOWER * FACTOR:g}\n"
        f"exec {sys.executable} -m tests.field {request.param}\n"
    )
    # One CPU: what is emulated takes no less time on two of them.
    done = run_in_guest(script, modules=LABS[request.param].modules, cpus=1)
    found = {(case, contestant): fault for case, contestant, fault in map(json.loads, done.stdout.splitlines())}
    assert done.exit_code == 0, f"{found}\n{done.stderr[-6000:]}\n--- console\n{done.console[-1500:]}"
    return found


@pytest.mark.parametrize(("faults", "case"), CASES, indirect=["faults"], scope="module")
def test_it_works_as_with_the_best_of_the_kernels_drivers(faults: Faults, case: str) -> None:
    ours, *drivers = (OURS, *(driver for driver in DRIVERS if (case, driver) in EXPECTED))
    for driver in drivers:
        assert not faults[case, driver], f"{driver} can't: the case asks for too much\n{faults[case, driver]}"
    assert not faults[case, ours], faults[case, ours]


def test_no_two_cases_have_the_same_name() -> None:
    assert len(CASES) == len({case for _, case in CASES})
