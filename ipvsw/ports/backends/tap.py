"""A persistent TAP that a VMM opens by name or gets descriptors of; the daemon has a packet socket on its netdev.

The packet socket keeps its namespace alive, so that the port is closed as soon as the namespace's name is gone. The
device outlives a daemon that was killed, and the next daemon takes it over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import msgspec

from ipvsw.linux.devices.packet import bound_to, open_far_end
from ipvsw.linux.devices.tap import create_persistent_tap, open_persistent_tap
from ipvsw.linux.namespaces import identity
from ipvsw.linux.netlink import INGRESS, Handle, Link
from ipvsw.linux.peercred import group_number, user_number
from ipvsw.linux.repair import Part
from ipvsw.linux.tracked import Snapshot
from ipvsw.model import Kind
from ipvsw.ports.addressing import GuestAddresses
from ipvsw.ports.backend import BackendPort, Holding, Settings
from ipvsw.ports.backends.device import DeviceBackend
from ipvsw.status import Subject

MUTED = Part(Subject.FILTERS, "", "BPF program that keeps the host from receiving")
NO_IPV6 = Part(Subject.SYSCTLS, "", "disable_ipv6")


class TapBackend(DeviceBackend):
    """That a VMM has the device is seen by its carrier."""

    __slots__ = ("_ifname", "_socket")

    kind = Kind.TAP
    addressing = GuestAddresses
    serves_vm = True
    offers_tap = True
    leaves_with_name = True

    def __init__(self, port: BackendPort) -> None:
        super().__init__(port)
        self._socket: socket.socket | None = None
        self._ifname = ""  # of the device while there is one

    @property
    def fd(self) -> int:
        return self._socket.fileno() if self._socket else -1

    @property
    def offloads(self) -> tuple[str, ...]:
        return ("csum", "tso4", "tso6", "uso4", "uso6") if self._socket else ()

    def _install(self, handle: Handle, settings: Settings) -> Snapshot:
        config, name = settings.config, settings.config.ifname
        link = handle.link(name)
        if link is not None and (link.kind != "tun" or handle.alias(link.index) != self._alias()):
            raise OSError(errno.EEXIST, f"{name}: there is such a device already")
        owner = None if config.owner is None else user_number(config.owner)
        group = None if config.group is None else group_number(config.group)
        try:
            create_persistent_tap(name, owner=owner, group=group, queues=config.queues)
        except OSError as error:
            if link is None or error.errno != errno.EBUSY:  # else its virtual machine has outlived a daemon
                raise
        link = handle.link(name)
        if link is None:
            raise OSError(errno.ENODEV, f"{name} is gone")
        self._ifname = name
        self._follow(link.index)
        handle.disable_ipv6(name)
        handle.set_link(link.index, mtu=settings.mtu, alias=self._alias())
        handle.mute(link.index, self.port.env.shim.mute_fd)
        self._socket = open_far_end(link.index)
        handle.set_link(link.index, up=True)
        snapshot = self._read_device(handle)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{name} is gone")
        return snapshot

    # ------------------------------------------------------------------------ for a successor

    @property
    def holding(self) -> Holding | None:
        """The socket: frames of the virtual machine wait in it. The device stays without it."""
        return Holding({"0": self._socket.fileno()}, self._index, self._place) if self._socket else None

    async def adopt(self, holding: Holding, settings: Settings) -> Snapshot | None:
        self._socket = socket.socket(fileno=holding.fds["0"])
        self._ifname = settings.config.ifname
        snapshot = await self._adopt_device(holding)
        if snapshot is not None and (snapshot.link.name, bound_to(self._socket)) != (self._ifname, self._ifname):
            raise OSError(errno.ESTALE, f"its device is not {self._ifname}")
        return snapshot

    # ------------------------------------------------------------------------ while it is open

    def _read_device(self, handle: Handle) -> Snapshot | None:
        snapshot = super()._read_device(handle)
        if snapshot is None:
            return None
        muted = INGRESS in handle.clsact_programs(self._index)  # also one of the last daemon's
        ipv6 = handle.sysctl(f"net/ipv6/conf/{snapshot.link.name}/disable_ipv6")
        return msgspec.structs.replace(snapshot, parts={MUTED: muted, NO_IPV6: ipv6 in (None, "1")})

    def _wanted(self, settings: Settings) -> dict[Part, object]:
        return {MUTED: True, NO_IPV6: True}

    def mend(self, handle: Handle, part: Part) -> None:
        if part == MUTED:
            handle.mute(self._index, self.port.env.shim.mute_fd)
        elif self.port.link is not None:
            handle.disable_ipv6(self.port.link.name)

    def is_taken(self, link: Link) -> bool:
        return link.carrier

    async def hand_over(self) -> list[int]:
        queues, name = self.port.config.queues, self._ifname
        fds = await self.port.env.runtime.run_in_netns(
            self.open_place, lambda handle: open_persistent_tap(name, queues)
        )
        if fds is None:
            raise OSError(errno.ENODEV, "the device is gone")
        return fds

    def _open_device_place(self) -> int | None:
        return self._find_place()

    def _push(self, handle: Handle, settings: Settings, had: Settings) -> None:
        if settings.mtu != had.mtu:
            handle.set_link(self._index, mtu=settings.mtu)

    async def _undo(self) -> None:
        end, self._socket = self._socket, None
        name, self._ifname = self._ifname, ""
        if name:
            index, place = self._index, self._place

            def open_place() -> int | None:
                fd = self._find_place()
                if fd is not None and identity(fd) != place:
                    os.close(fd)
                    return None
                return fd

            with contextlib.suppress(OSError):
                await self.port.env.runtime.run_in_netns(open_place, lambda handle: handle.delete_link(index))
        if end is not None:
            end.close()
