"""These tests need root for namespaces, and QEMU with a kernel for the guests."""

from __future__ import annotations

import pytest

from tests.vm.guest import lacking


@pytest.fixture(scope="session")
def bootable() -> None:
    """The machine can run a guest; tests that ask for this are skipped where it can't."""
    if lack := lacking():
        pytest.skip(lack)
