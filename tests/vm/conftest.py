"""These tests need root for namespaces, and QEMU with a kernel for the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm import guest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _missing()
    here = Path(__file__).parent
    for item in items:
        if reason and here in item.path.parents and "bootable" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root: namespaces, and the host's root file system in a guest"
    try:
        guest.programs()
        guest.newest_kernel()
    except guest.NoGuest as lack:
        return f"needs a guest: {lack}"
    return ""


@pytest.fixture(scope="session")
def bootable() -> None:
    """The machine can run a guest; tests that ask for this are skipped where it can't."""
