"""Namespaces, veth pairs and daemons for tests, gone with the test whatever its end."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipvsw.linux.netlink import Netlink
from tests.netns.daemons import MASTER, MASTER_MAC, Daemon
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


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    opened = Netlink()
    yield opened
    opened.close()


@pytest.fixture
def home(netns: Callable[..., Namespace]) -> Namespace:
    """The master m0 and its other end, w0, with 10.7.0.254."""
    home, wire = netns(), netns()
    home.ip("link", "add", MASTER, "address", MASTER_MAC, "type", "veth", "peer", "name", "w0", "netns", wire.name)
    wire.ip("address", "add", "10.7.0.254/24", "dev", "w0")
    wire.ip("link", "set", "w0", "up")
    home.ip("link", "set", MASTER, "up")
    return home


@pytest.fixture
def daemon(home: Namespace, tmp_path: Path) -> Iterator[Callable[[str], Daemon]]:
    """Factory of daemons that are not started yet."""
    with contextlib.ExitStack() as cleanup:

        def make(text: str) -> Daemon:
            made = Daemon(home, tmp_path, text)
            cleanup.callback(made.close)
            return made

        yield make


def _in(namespace: Namespace | None) -> list[str]:
    return ["-n", namespace.name] if namespace else []


def _delete_link(namespace: Namespace | None, name: str) -> None:
    """One end takes the other along, and a namespace all that are in it."""
    for place in (namespace, None):
        with contextlib.suppress(subprocess.CalledProcessError):
            ip(*_in(place), "link", "del", name)
