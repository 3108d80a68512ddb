"""The kernel module's devices: ports of the switches whose masters they were made on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ipvsw.linux.netlink import KmodAttrs
from ipvsw.linux.runtime import Runtime
from ipvsw.ports.backends.kmod import KmodDevice
from ipvsw.ports.discovery import Discovery
from ipvsw.ports.port import Port
from ipvsw.switch.switch import Switch


class KmodLinks:
    """Those of all `switches`, which are the caller's."""

    def __init__(self, runtime: Runtime, switches: Mapping[str, Switch]) -> None:
        self._switches = switches
        self._discovery = Discovery(runtime, self._wants, self._serve)
        self._leaving: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._discovery.start()

    async def stop(self) -> None:
        """No more are found."""
        await self._discovery.stop()

    async def gone(self) -> None:
        """Returns when those are removed whose devices are gone."""
        await asyncio.gather(*self._leaving)

    def forget(self, netns: str) -> None:
        """A device there is served no longer: if it still exists, it is to be found again."""
        self._discovery.forget(netns)

    def _wants(self, served: KmodAttrs) -> bool:
        return any(switch.has_master(served) for switch in self._switches.values())

    def _serve(self, found: KmodDevice) -> bool:
        return any(switch.add_link(found, self._lose) for switch in self._switches.values())

    def _lose(self, port: Port) -> None:
        name = port.config.name
        switch = next((each for each in self._switches.values() if each.links.get(name) is port), None)
        if switch is not None:
            task = asyncio.create_task(self._remove(switch, port))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _remove(self, switch: Switch, port: Port) -> None:
        await switch.remove_link(port)
        self._discovery.forget(port.config.netns)
