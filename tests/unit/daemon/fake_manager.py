"""A daemon without a switch: what the API asks of it is remembered, what it reports is made up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from ipvsw import client
from ipvsw.addresses.captures import Capture
from ipvsw.config.names import find_port, find_switch, has_label
from ipvsw.daemon.api.listener import Limits, open_sockets
from ipvsw.daemon.api.server import Server, serve
from ipvsw.daemon.events import Events
from ipvsw.linux.peercred import Peer
from ipvsw.model import Config, Flag, Kind, Mode, NotFound, PortConfig, Refused, SwitchConfig
from ipvsw.status import (
    AddressSource,
    AddressState,
    AddressStatus,
    CaptureAsked,
    CaptureStatus,
    HandedOver,
    LeaseStatus,
    PortState,
    PortStatus,
    States,
    SwitchStats,
    SwitchStatus,
    TraceAsked,
    TraceReceiver,
    TraceStatus,
    TraceStep,
    Traffic,
)
from tests.support.patience import LIMIT

T = TypeVar("T")


def _address(port: str, address: str, state: AddressState, source: AddressSource) -> AddressStatus:
    return AddressStatus(switch="lan", port=port, address=address, state=state, source=source)


LAN = SwitchStatus(
    name="lan",
    master="eth0",
    netns="",
    mode=Mode.L2,
    flag=Flag.BRIDGE,
    state=PortState.UP,
    index=2,
    mac="02:00:00:00:00:01",
    mtu=1500,
    carrier=True,
    ports=(
        PortStatus(
            name="ipvl0",
            ifname="ipvl0",
            netns="ns0",
            state=PortState.UP,
            index=5,
            mac="02:00:00:00:00:01",
            mtu=1500,
            carrier=True,
            offloads=("csum", "tso4", "tso6"),
            addresses=(
                _address("ipvl0", "10.0.0.2", AddressState.OWNED, AddressSource.CONFIG),
                _address("ipvl0", "fe80::1234", AddressState.OWNED, AddressSource.NETLINK),
            ),
        ),
        PortStatus(
            name="ipvl1",
            ifname="net0",
            netns="ns1",
            state=PortState.DOWN,
            index=7,
            mac="02:00:00:00:00:01",
            mtu=1400,
            label="cni:net:c1:net0",
            addresses=(_address("ipvl1", "10.0.0.2", AddressState.DUPLICATE, AddressSource.NETLINK),),
        ),
    ),
)
DMZ = SwitchStatus(
    name="dmz",
    master="eth1",
    netns="host1",
    mode=Mode.L2,
    flag=Flag.VEPA,
    state=PortState.WAITING,
    reason="there is no eth1 in host1",
    ports=(PortStatus(name="ipvl0", ifname="ipvl0", netns="ns9", state=PortState.WAITING, reason="there is no ns9"),),
)
PORTS = {one.name: [port.name for port in one.ports] for one in (LAN, DMZ)}
STATS = (
    SwitchStats(
        name="lan",
        master=Traffic(
            rx_frames=3, rx_bytes=180, tx_frames=1, tx_bytes=60, outcomes={"to_port": 2, "runt": 1, "vlan": 0}
        ),
        ports={
            "ipvl0": Traffic(rx_frames=1, rx_bytes=60, tx_frames=2, tx_bytes=120, outcomes={"to_master": 1, "runt": 0}),
            "ipvl1": Traffic(),
        },
        duplicates=4,
        repaired={"filters": 1},
    ),
    SwitchStats(name="dmz", master=Traffic(), ports={"ipvl0": Traffic()}),
)

CONFIG = Config(
    switches=(SwitchConfig(name="lan", master="eth0", ports=(PortConfig(name="ipvl0", ifname="ipvl0", netns="ns0"),)),)
)
LEASES = (
    LeaseStatus(
        switch="lan",
        port="ipvl1",
        address="10.0.0.2",
        state=AddressState.OWNED,
        client_id="01:02:00:00:00:00:01",
        mac="02:00:00:00:00:01",
        hostname="one",
        server="10.0.0.254",
        remaining=3600,
    ),
    LeaseStatus(switch="dmz", port="ipvl0", address="fd00::2", state=None, client_id="00:03", remaining=None),
)


TRACED = TraceStatus(
    switch="lan",
    at="",
    frame="",
    outcome="to_port",
    delivered=True,
    reason="it is for port ipvl1",
    steps=(TraceStep(stage="parse", text="60 bytes"), TraceStep(stage="decide", text="l2 bridge", outcome="to_port")),
    receivers=(TraceReceiver(to="lan/ipvl1", frame="00" * 14), TraceReceiver(to="wire", frame="00" * 14)),
)


class FakeManager:
    """Remembers calls in `calls`; raises `error`, once it is set, instead of changing anything."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.events = Events()
        self.captured: Capture | None = None

    def switches(self) -> tuple[SwitchStatus, ...]:
        return (LAN, DMZ)

    def switch(self, name: str) -> SwitchStatus:
        found = {one.name: one for one in self.switches()}
        if name not in found:
            raise NotFound(f'there is no switch "{name}"')
        return found[name]

    def labelled(self, label: str) -> tuple[SwitchStatus, ...]:
        found = (
            msgspec.structs.replace(one, ports=tuple(port for port in one.ports if has_label(port.label, label)))
            for one in self.switches()
        )
        return tuple(one for one in found if one.ports)

    async def delete_labelled(self, label: str) -> None:
        self._called("delete_labelled", label)

    def stats(self) -> tuple[SwitchStats, ...]:
        return STATS

    def states(self) -> dict[str, States]:
        return {
            one.name: States(master=one.state, ports={port.name: port.state for port in one.ports}, addresses=3)
            for one in (LAN, DMZ)
        }

    def leases(self) -> tuple[LeaseStatus, ...]:
        return LEASES

    async def add_port(self, master: str, port: PortConfig, mode: Mode | None, flag: Flag | None) -> PortStatus:
        self._called("add_port", master, port, mode, flag)
        return PortStatus(name=port.name, ifname=port.ifname, netns=port.netns, state=PortState.UP)

    def check_user(self, master: str, peer: Peer) -> None:
        self._called("check_user", master, peer)

    async def delete_port(self, name: str) -> None:
        self._called("delete_port", *find_port(name, PORTS))

    async def change_port(self, name: str, change: Callable[[PortConfig], PortConfig]) -> PortStatus:
        switch, port = find_port(name, PORTS)
        new = change(PortConfig(name=port, ifname=port, netns=""))
        self._called("change_port", switch, port, new.mtu)
        return self.switches()[0].ports[0]

    async def set_mode(self, name: str, mode: Mode | None, flag: Flag | None) -> SwitchStatus:
        switch = find_switch(name, PORTS, {one.name: one.master for one in (LAN, DMZ)})
        self._called("set_mode", switch, mode, flag)
        found = self.switch(switch)
        return msgspec.structs.replace(found, mode=mode or found.mode, flag=flag or found.flag)

    async def hand_over(self, name: str, peer: Peer) -> tuple[HandedOver, list[int]]:
        """A pipe's end with the name in it."""
        self._called("hand_over", name, peer)
        reading, writing = os.pipe()
        os.write(writing, name.encode())
        os.close(writing)
        return HandedOver(port=f"lan/{name}", kind=Kind.TAP, mac="02:00:00:00:00:01", mtu=1500, queues=1), [reading]

    async def reload(self) -> tuple[str, ...]:
        self._called("reload")
        return ("attach lan/ipvl2", "detach lan/ipvl1")

    async def trace(self, asked: TraceAsked) -> TraceStatus:
        self._called("trace", asked)
        return msgspec.structs.replace(TRACED, at=asked.at, frame=asked.frame)

    @contextlib.contextmanager
    def capture(self, asked: CaptureAsked) -> Iterator[Capture]:
        self._called("capture", asked)
        reading, writing = os.pipe()
        os.close(writing)
        self.captured = Capture(None)
        self.captured.descriptors = [reading]
        self.captured.put(CaptureStatus(event="interface", name="lan/ipvl0", tag=3, captured=True))
        try:
            yield self.captured
        finally:
            self.calls.append(("captured",))

    def end_streams(self) -> None:
        self.events.end()
        if self.captured is not None:
            self.captured.end()

    async def take_over(self, version: int) -> None:
        """Nothing of a fake one can be given away."""

    async def plan(self) -> tuple[str, ...]:
        self._called("plan")
        return ("attach lan/ipvl2",)

    def configuration(self) -> Config:
        return CONFIG

    def refuse(self, text: str) -> None:
        self.error = Refused(text)

    def _called(self, *call: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(call)


class Daemon:
    """An API that serves `manager` from a thread of its own. Errors: what `open_sockets` raises."""

    def __init__(
        self,
        path: Path,
        new_loop: Any = asyncio.new_event_loop,
        limits: Limits = Limits(),  # noqa: B008
    ) -> None:
        self.path = path
        self.manager = FakeManager()
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server: Server | None = None
        try:
            self._server = self.run(serve(self.manager, open_sockets(path, users=f"{path}.users"), limits))
        except BaseException:
            self.close()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def call_soon(self, call: Callable[[], None]) -> None:
        """In the API's thread."""
        self._loop.call_soon_threadsafe(call)

    def close(self) -> None:
        if self._server is not None:
            self.run(self._server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=LIMIT)
        self._loop.close()


def refused(api_client: client.Client, method: str, target: str, body: object = None) -> tuple[int, str]:
    """The status and the text of an answer that is an error."""
    with pytest.raises(client.ApiError) as caught:
        api_client.request(method, target, body)
    return caught.value.status, str(caught.value)
