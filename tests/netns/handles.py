"""Work on the netlink thread, in a namespace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ipvsw.linux.netlink import Handle, Netlink
from tests.support.spaces import Namespace

T = TypeVar("T")
Make = Callable[..., Namespace]
Pair = Callable[..., tuple[str, str]]


def run(netlink: Netlink, namespace: Namespace | None, work: Callable[[Handle], T]) -> T:
    if namespace is None:
        return asyncio.run(netlink.run(None, work))
    with namespace.opened() as fd:
        return asyncio.run(netlink.run(fd, work))


def index_of(netlink: Netlink, namespace: Namespace, name: str) -> int:
    link = run(netlink, namespace, lambda handle: handle.link(name))
    assert link
    return link.index
