"""Namespaces and veth pairs for tests, gone with the test whatever its end."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support.spaces import Namespace, ip, unique


@pytest.fixture
def netns() -> Iterator[Callable[..., Namespace]]:
    """Factory: `netns()` makes a namespace, `netns(create=False)` only reserves the name of one."""
    with contextlib.ExitStack() as cleanup:

        def make(*, create: bool = True) -> Namespace:
            namespace = Namespace(unique())
            cleanup.callback(namespace.delete)
            if create:
                namespace.create()
            return namespace

        yield make


@pytest.fixture
def veth(netns: object) -> Iterator[Callable[..., tuple[str, str]]]:
    """Factory of veth pairs, both ends up: `veth(here, there)` puts the ends into these namespaces
    (None: the test's own) and returns their names."""
    with contextlib.ExitStack() as cleanup:

        def make(here: Namespace | None = None, there: Namespace | None = None) -> tuple[str, str]:
            ends = unique("iva"), unique("ivb")
            ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for namespace, end in zip((here, there), ends, strict=True):
                cleanup.callback(_delete_link, namespace, end)
                if namespace:
                    ip("link", "set", end, "netns", namespace.name)
                ip(*_in(namespace), "link", "set", end, "up")
            return ends

        yield make


def _in(namespace: Namespace | None) -> list[str]:
    return ["-n", namespace.name] if namespace else []


def _delete_link(namespace: Namespace | None, name: str) -> None:
    """One end takes the other along, and a namespace all that are in it."""
    for place in (namespace, None):
        with contextlib.suppress(subprocess.CalledProcessError):
            ip(*_in(place), "link", "del", name)
