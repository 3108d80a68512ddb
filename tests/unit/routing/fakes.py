"""A kernel, a data plane, a wire and a monitor that the router's tests can look into."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from typing import Any, cast

from ipvsw.linux.netlink import NeighbourChanged, RouteAnswer, RoutesChanged
from ipvsw.model import Address
from ipvsw.routing.router import Router, RouterUplink
from tests.support.patience import LIMIT
from tests.support.wire.packets import UDP, Made

MASTER, GATEWAY_MAC, OTHER_MAC = (bytes.fromhex(text) for text in ("020000000001", "0200000000fe", "0200000000fd"))
INDEX, ELSEWHERE = 7, 9
GATEWAY, GATEWAY6 = ip_address("10.1.0.254"), ip_address("fe80::fe")
SOURCE, FAR, FARTHER = ip_address("10.1.0.11"), ip_address("192.0.2.1"), ip_address("198.51.100.1")
SOURCE6, FAR6 = ip_address("fd00:1::11"), ip_address("2001:db8::1")


def way(**changes: Any) -> RouteAnswer:
    """Out on the master by a gateway that is known."""
    usual = {"local": False, "index": INDEX, "via": GATEWAY, "mac": GATEWAY_MAC, "permanent": False, "mtu": 0}
    return RouteAnswer(**{**usual, **changes})


def frame(to: Address = FAR, payload: int = 8, field: int = 0) -> bytes:
    by = SOURCE if to.version == 4 else SOURCE6
    made = Made(to.version, UDP, bytes(payload), field=field, source=by.packed, destination=to.packed)
    return made.frame()


class Kernel:
    """`RouteLookup`: what the host's routing says, and what it was asked."""

    def __init__(self) -> None:
        self.ways: dict[Address, RouteAnswer | OSError | None] = {FAR: way(), FARTHER: way()}
        self.plain = True
        self.asked: list[tuple[Address, Address]] = []
        self.rules_read = 0
        self.confirmed: list[Address] = []
        self.trouble: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def destination_decides(self, version: int) -> bool:
        self.rules_read += 1
        if self.trouble is not None:
            raise self.trouble
        return self.plain

    def route_to(self, to: Address, by: Address, index: int) -> RouteAnswer | None:
        assert index == INDEX
        self.asked.append((to, by))
        self.may_answer.wait(5)
        if self.trouble is not None:
            raise self.trouble
        answer = self.ways[to]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def use_neighbour(self, index: int, address: Address) -> None:
        assert index == INDEX
        self.confirmed.append(address)


class Datapath:
    """The route cache, as the hot loop would see it, and the frames that it has for the router."""

    def __init__(self) -> None:
        self.datapath = self
        self.waiting: list[tuple[int, bytes]] = []
        self.routes: dict[Address, tuple[bytes, bool, int]] = {}
        self.used: set[Address] = set()
        self.guarded: dict[int, tuple[str, ...]] = {}  # by port number
        self._edits: list[Callable[[], object]] = []

    def set_route(self, address: bytes, *, mac: bytes, stack: bool, local: bool, mtu: int) -> None:
        self._edits.append(lambda: self.routes.update({ip_address(address): (mac, stack, mtu)}))

    def slow(self) -> list[tuple[int, bytes]]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def forget_route(self, address: bytes) -> None:
        self._edits.append(lambda: self.routes.pop(ip_address(address), None))

    def guards(self, port: int) -> tuple[str, ...]:
        return self.guarded.get(port, ())

    def clear_routes(self) -> None:
        self._edits.append(self.routes.clear)

    @contextmanager
    def batch(self) -> Iterator[Datapath]:
        """`Changes` as well: the edits are made at the end."""
        yield self
        for edit in self._edits:
            edit()
        self._edits = []

    def used_routes(self) -> set[Address]:
        used, self.used = self.used, set()
        return used


class Wire:
    """A socket that remembers."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.error: int = 0

    def send(self, data: bytes, version: int = 0) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.sent.append(data)


class Monitor:
    """Events as the event socket has them."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self.unread: list[RoutesChanged | NeighbourChanged] = []

    def fileno(self) -> int:
        return self._reader

    def tell(self, *events: RoutesChanged | NeighbourChanged) -> None:
        self.unread += events
        os.write(self._writer, b"!")

    def events(self) -> Iterator[RoutesChanged | NeighbourChanged]:
        os.read(self._reader, 100)
        unread, self.unread = self.unread, []
        yield from unread

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class Rig:
    def __init__(self) -> None:
        self.kernel, self.datapath, self.monitor = Kernel(), Datapath(), Monitor()
        self.wire, self.stack = Wire(), Wire()
        self.answers: list[tuple[int, bytes]] = []
        self.routes_changed = 0
        self.router = Router(
            cast(Any, self.datapath), lambda port, frame: self.answers.append((port, frame)), self._count_change
        )
        self.uplink = RouterUplink(
            index=INDEX,
            mac=MASTER,
            mtu=1500,
            ipv4=ip_address("10.1.0.1"),
            ipv6=ip_address("fd00:1::1"),
            frames=cast(Any, self.wire),
            stack=cast(Any, self.stack),
            monitor=cast(Any, self.monitor),
            lookup=cast(Any, self.kernel),
        )

    def _count_change(self, changes: Sequence[RoutesChanged]) -> None:
        self.routes_changed += len(changes)

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.router.counters)

    async def carry(self, *frames: bytes, port: int = 3) -> None:
        """Hands frames over and waits for the end of each."""
        before = self.router.counters.total()
        self.hand_over([(port, one) for one in frames])
        await until(lambda: self.router.counters.total() == before + len(frames))

    def hand_over(self, frames: list[tuple[int, bytes]]) -> None:
        self.datapath.waiting += frames
        self.router.wake()

    async def hear(self, *events: RoutesChanged | NeighbourChanged) -> None:
        self.monitor.tell(*events)
        await until(lambda: not self.monitor.unread)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.001)  # the thread that asks the kernel needs the interpreter, too


@asynccontextmanager
async def rig(*, exact: bool = False, uplink: bool = True) -> AsyncIterator[Rig]:
    it = Rig()
    it.router.start()
    it.router.set_mode(routes=True, exact=exact)
    if uplink:
        it.router.set_uplink(it.uplink)
    try:
        yield it
    finally:
        await it.router.stop()
        it.monitor.close()
