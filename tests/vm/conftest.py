"""These tests need root for namespaces, and QEMU with a kernel for the guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.guest import lacking


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = lacking()
    here = Path(__file__).parent
    for item in items:
        if reason and here in item.path.parents and "bootable" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def bootable() -> None:
    """The machine can run a guest; tests that ask for this are skipped where it can't."""
