"""A veth into a namespace: known unicast is forwarded by BPF programs, everything else by the daemon.

Beside the master are the veth's host end and a TAP. What the kernel doesn't forward is redirected to the TAP, where the
daemon reads it as if the TAP were the endpoint; what the daemon writes is redirected to the endpoint. port.bpf.c in
kmod-shim/bpf has the programs.

A veth does not go with a descriptor, as a TAP does: its port deletes it, or the next daemon, which knows it by the TAP
that is gone. No descriptor leads to the endpoint's namespace without keeping that alive: the port is found there by the
namespace's name, and leaves with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgspec

from ipvsw.linux.devices.tap import MAX_MTU, QUEUE
from ipvsw.linux.errors import is_gone
from ipvsw.linux.fastports import FastDevice
from ipvsw.linux.namespaces import identity
from ipvsw.linux.netlink import Handle
from ipvsw.linux.repair import Part
from ipvsw.linux.teardown import PendingDelete
from ipvsw.linux.tracked import Snapshot
from ipvsw.model import Device
from ipvsw.ports.backend import BackendPort, Holding, Settings
from ipvsw.ports.backends.beside import SUBJECTS, Beside
from ipvsw.ports.backends.netns import NetnsBackend

END, TAP = "se-", "st-"  # how the names of the two devices beside the master begin
_END_NAME = re.compile(END + "[0-9a-f]{12}")


def delete_orphans(handle: Handle) -> None:
    """In a master's namespace: the pairs of ports that nobody has any more. A port's TAP is gone with the last of its
    descriptors, and its veth is not; that of a daemon that was killed while it made it has no alias yet."""
    links = {link.name: link for link in handle.links()}
    for name, link in links.items():
        is_alone = _END_NAME.fullmatch(name) and link.kind == "veth" and name.replace(END, TAP, 1) not in links
        if is_alone and (handle.alias(link.index) or "ipvsw ").startswith("ipvsw "):
            handle.delete_link(link.index)


class VethBackend(NetnsBackend):
    """`_tap` is the TAP beside the master, not the endpoint."""

    __slots__ = ("_beside", "_devices", "_home")

    device = Device.VETH
    leaves_with_name = True

    def __init__(self, port: BackendPort) -> None:
        super().__init__(port)
        self._devices: FastDevice | None = None
        self._home: tuple[int, int] | None = None  # the identity of the master's namespace
        self._beside = Beside(port, self._end_name, self._tap_name)

    @property
    def fast_device(self) -> FastDevice | None:
        return self._devices

    def _name(self, prefix: str) -> str:
        """As good as unique: a prefix and 12 digits."""
        name = f"{self.port.env.switch}/{self.port.config.name}"
        return prefix + blake2b(name.encode(), digest_size=6).hexdigest()

    @property
    def _end_name(self) -> str:
        return self._name(END)

    @property
    def _tap_name(self) -> str:
        return self._name(TAP)

    # ------------------------------------------------------------------------ opening

    def _open_home(self) -> int:
        """The master's namespace: redirections lead to devices of the same one. Errors: OSError."""
        fd = self.port.env.master.open_place()
        if fd is None:
            raise OSError(errno.ENODEV, "the master's namespace is gone")
        return fd

    def _create(self, handle: Handle, netns_fd: int, settings: Settings) -> int | None:
        """Make the TAP, and move it to the master. It is the endpoint that has the port's MTU."""
        index = self._open_tap(handle, settings)
        home = self._open_home()
        try:
            handle.set_link(
                index,
                mac=settings.mac,
                mtu=MAX_MTU,
                queue=QUEUE,
                alias=self._alias(),
                name=self._tap_name,
                netns_fd=home,
            )
        finally:
            os.close(home)
        return handle.nsid(netns_fd)

    async def _connect(self, netns_fd: int, settings: Settings) -> None:
        home = self._open_home()
        same_netns = identity(home) == identity(netns_fd)
        await self._take_devices(
            home, settings, lambda handle: self._pair(handle, netns_fd, settings, same_netns), adopted=False
        )

    async def _take_devices(
        self, home: int, settings: Settings, find: Callable[[Handle], FastDevice], *, adopted: bool
    ) -> None:
        """Those that `find` gives in the master's namespace, of which `home` is the caller's fd, and is closed. The
        maps know them before their programs run."""
        netlink = self.port.env.runtime.netlink
        self._home = identity(home)
        try:
            self._devices = await netlink.run(home, find)
            self.port.env.table.put_devices(self.port.config.name, self._devices, settings.mtu, adopted=adopted)
            self._beside.follow(self._devices)
            await netlink.run(home, lambda handle: self._run_programs(handle, settings, adopted=adopted))
        finally:
            os.close(home)

    def _pair(self, handle: Handle, netns_fd: int, settings: Settings, same_netns: bool) -> FastDevice:
        """In the master's namespace: make the veth. Nothing is up yet."""
        try:
            self._add_veth(handle, netns_fd, settings)
        except FileExistsError:
            left = handle.link(self._end_name)
            if left is None:  # it is the endpoint's name that is taken
                raise
            handle.delete_link(left.index)  # of a daemon that was killed
            self._add_veth(handle, netns_fd, settings)
        devices = self._find_devices(handle, same_netns)
        for name in (self._end_name, self._tap_name):
            handle.disable_ipv6(name)
        handle.set_link(devices.end, alias=self._alias())
        handle.set_noqueue(devices.tap)
        return devices

    def _add_veth(self, handle: Handle, netns_fd: int, settings: Settings) -> None:
        handle.add_veth(self._end_name, settings.config.ifname, netns_fd, settings.mac, (MAX_MTU, settings.mtu))

    def _find_devices(self, handle: Handle, same_netns: bool) -> FastDevice:
        return FastDevice(handle.index(self._end_name), handle.index(self._tap_name), same_netns)

    def _run_programs(self, handle: Handle, settings: Settings, *, adopted: bool) -> None:
        assert self._devices is not None
        self._beside.run_programs(handle, self._devices, settings, adopted=adopted)

    def _unset(self, settings: Settings) -> dict[str, Any]:
        return {"alias": self._alias(), "noarp": settings.noarp}

    # ------------------------------------------------------------------------ for a successor

    async def adopt(self, holding: Holding, settings: Settings) -> Snapshot | None:
        """The programs of the last daemon are replaced, and have forwarded until then."""
        tap = self._adopt_tap(holding, settings)
        if tap.name != self._tap_name:
            raise OSError(errno.ESTALE, f"its TAP is {tap.name}")
        home = tap.open_namespace()
        same_netns = identity(home) == holding.place
        await self._take_devices(home, settings, lambda handle: self._find_devices(handle, same_netns), adopted=True)
        return await self._adopt_device(holding)

    # ------------------------------------------------------------------------ while it is open

    def _open_device_place(self) -> int | None:
        return self._find_place()

    def _set_carrier(self, on: bool) -> None:
        """It is the host end's, see `_set_devices`."""

    async def update(self, settings: Settings, had: Settings) -> bool:
        if (settings.mac, settings.carrier) != (had.mac, had.carrier) and self._tap is not None:
            with contextlib.suppress(OSError):  # `read` finds out what is gone
                await self.port.env.runtime.run_in_netns(
                    self._tap.open_namespace, lambda handle: self._set_devices(handle, settings)
                )
        return await super().update(settings, had)

    def _set_devices(self, handle: Handle, settings: Settings) -> None:
        assert self._devices is not None
        self._beside.set_links(handle, self._devices, settings)

    async def read(self) -> Snapshot | None:
        snapshot = await super().read()
        if snapshot is None or self._tap is None:
            return None
        parts = self._beside.known
        if parts is None:
            try:
                parts = await self.port.env.runtime.run_in_netns(self._tap.open_namespace, self._beside.read)
            except OSError as error:
                if not is_gone(error):
                    raise
                return None
        return None if parts is None else msgspec.structs.replace(snapshot, parts={**snapshot.parts, **parts})

    def _wanted(self, settings: Settings) -> dict[Part, object]:
        return super()._wanted(settings) | self._beside.wanted(settings)

    def place_of(self, part: Part) -> Callable[[], int | None]:
        if part.subject in SUBJECTS and self._tap is not None:
            return self._tap.open_namespace
        return super().place_of(part)

    def mend(self, handle: Handle, part: Part) -> None:
        if part.subject in SUBJECTS:
            self._beside.mend(handle, part)
        else:
            super().mend(handle, part)

    async def _undo(self) -> None:
        tap, self._tap = self._tap, None
        devices, self._devices = self._devices, None
        if tap is None:
            return
        self._beside.leave()
        indices = () if devices is None else (devices.end, devices.tap)
        delete = PendingDelete(self._home, indices, tap.open_namespace, tap.close, stays=True)
        await self.port.env.runtime.leaving.leave(delete)
        if devices is not None:
            self.port.env.table.drop_devices(devices)
