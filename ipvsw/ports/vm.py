"""Ports whose endpoint is a virtual machine: a VMM has the other end of the device, and comes and goes.

What the guest does inside can't be seen: the configuration says which addresses are its own, or that they are to be
learned from what it sends. They are in the table while a VMM has the device open. Its MAC address is its own,
or the master's if the configuration says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from ipvsw.addresses.ownership import Claims
from ipvsw.linux.devices.macvtap import Node, free_index
from ipvsw.linux.devices.packet import open_far_end
from ipvsw.linux.devices.tap import Tap, create_persistent_tap, open_persistent_tap, open_tap
from ipvsw.linux.namespaces import identity, open_namespace
from ipvsw.linux.netlink import Handle, Link
from ipvsw.linux.peercred import group_number, user_number
from ipvsw.linux.tracked import Snapshot, read_device
from ipvsw.model import Address, AddressSource, HandedOver, Kind, PortState, Refused
from ipvsw.ports.port import DevicePort, MasterState, Port

ALL_NODES = bytes.fromhex("333300000001"), bytes.fromhex("01005e000001")


class VmPort(Port):
    """See `Port`. The kinds differ in what a VMM has of them."""

    _learned: Mapping[Address, AddressSource] = {}
    _sight: Snapshot | None = None

    @property
    def most(self) -> int:
        """Addresses that it may have besides those that the configuration pins to it."""
        return self.config.max_learned if self.config.learn else 0

    def set_learned(self, addresses: Mapping[Address, AddressSource]) -> None:
        """All that the machine is seen to have."""
        self._learned = addresses
        if self.link is not None and self._sight is not None:
            self._claim(self._sight)

    @property
    def free(self) -> bool:
        """Whether a VMM could have the device now."""
        return self.link is not None and not self._is_taken(self.link)

    async def hand_over(self) -> tuple[HandedOver, list[int]]:
        """Descriptors for a VMM, one for each queue; the caller closes them. Errors: Refused."""
        if self.link is None:
            raise Refused(f"{self.label}: {self.state} {self.reason}")
        if not self.free:
            raise Refused(f"{self.label}: a virtual machine has it already")
        words = HandedOver(
            port=f"{self._switch}/{self.config.name}",
            kind=self.kind,
            mac=self._wanted_uplink().mac.hex(":"),
            mtu=self.link.mtu,
            queues=self.config.queues,
        )
        try:
            return words, await self._open_far_end()
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Refused(f"{self.label}: a virtual machine has it already") from None
            raise Refused(f"{self.label}: {error.strerror or error}") from None

    @abstractmethod
    async def _open_far_end(self) -> list[int]:
        """Errors: OSError."""

    @abstractmethod
    def _is_taken(self, link: Link) -> bool:
        """Whether a VMM has the device."""

    def _mac(self, link: Link) -> bytes:
        return self._table.own_mac(self.config.name) or self._uplink.mac

    def _known(self) -> Mapping[Address, AddressSource]:
        return self._learned if self.config.learn else {}

    def _see(self, snapshot: Snapshot) -> None:
        self._sight = snapshot
        with self._table.change():
            self._table.set_learning(self.config.name, self.config.learn)
            super()._see(snapshot)

    def _claims(self, snapshot: Snapshot) -> Claims:
        pinned = {(one.ip, one.network.prefixlen): AddressSource.CONFIG for one in self.config.addresses}
        return {(address, address.max_prefixlen): source for address, source in self._known().items()} | pinned

    def _listens(self, snapshot: Snapshot) -> tuple[Iterable[bytes], bool]:
        """The port gets every multicast frame, as nobody knows what the guest has joined; those that it can't do
        without
        are set on the master too."""
        own = {*(one.ip for one in self.config.addresses), *self._known()}
        return {*ALL_NODES, *(_solicited(one) for one in own if one.version == 6)}, True

    def _judge(self, link: Link) -> tuple[PortState, str]:
        if not link.up:
            return PortState.DOWN, ""
        if not self._is_taken(link):
            return PortState.WAITING, "for a virtual machine"
        return PortState.UP, "; ".join(self._problems)


class VmDevicePort(VmPort, DevicePort):
    """One that a VMM reaches by a device."""

    def _push(self, handle: Handle, wanted: MasterState, had: MasterState, config: object, installed: object) -> None:
        if wanted.mtu != had.mtu:
            self._set_mtu(handle, wanted.mtu)

    @abstractmethod
    def _set_mtu(self, handle: Handle, mtu: int) -> None:
        """Of all that the device consists of. Errors: OSError."""

    def _alias(self) -> str:
        return f"ipvsw {self._switch}/{self.config.name}"


class MacvtapPort(VmDevicePort):
    """A macvtap in passthru mode on a TAP of the daemon's: two descriptors back to back, offloads and all.

    Without `netns` both are in a namespace that nobody else sees.
    """

    kind = Kind.MACVTAP
    _tap: Tap | None = None
    _node: Node | None = None
    _lower = 0  # the TAP's index

    @property
    def _fd(self) -> int:
        return self._tap.fd if self._tap else -1

    def _offloads(self) -> tuple[str, ...]:
        return self._tap.offloads if self._tap else ()

    def _find_place(self) -> int | None:
        return open_namespace(self.config.netns) if self.config.netns else self._runtime.open_hidden()

    def _create(self, handle: Handle, netns_fd: int) -> int | None:
        """Make the TAP and move it."""
        self._tap = open_tap()
        link = handle.link(self._tap.name)
        if link is None:
            raise OSError(errno.ENODEV, f"{self._tap.name} is gone")
        handle.set_link(
            link.index, mtu=self._pushed.mtu, alias=self._alias(), name=self._lower_name(), netns_fd=netns_fd
        )
        return super()._create(handle, netns_fd)

    def _lower_name(self) -> str:
        """As good as unique: sw- and 12 digits."""
        return "sw-" + blake2b(f"{self._switch}/{self.config.name}".encode(), digest_size=6).hexdigest()

    def _install(self, handle: Handle) -> Snapshot:
        lower, name = handle.link(self._lower_name()), self._installed.ifname
        if lower is None:
            raise OSError(errno.ENODEV, f"{self._lower_name()} is gone")
        self._lower = lower.index
        index = free_index()
        handle.add_macvtap(name, lower.index, index)
        for device in (lower.name, name):
            handle.set_sysctl(f"net/ipv6/conf/{device}/disable_ipv6", "1")
        self._enter(index)
        self._node = Node(index)
        handle.set_link(lower.index, up=True)
        handle.set_link(index, up=True, allmulti=True, alias=self._alias())
        snapshot = read_device(handle, index, groups=False)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{name} is gone")
        return snapshot

    def _arrive(self, snapshot: Snapshot) -> None:
        super()._arrive(snapshot)
        assert self._node is not None
        asyncio.get_running_loop().add_reader(self._node.fileno(), self._look_at_node)

    def _look_at_node(self) -> None:
        if self._node is not None and self.link is not None:
            self._node.look()
            self._see_link(self.link)

    @property
    def free(self) -> bool:
        self._look_at_node()
        return super().free

    async def _open_far_end(self) -> list[int]:
        assert self._node is not None and self.link is not None
        fds = self._node.open(self.config.queues)
        self._see_link(self.link)
        return fds

    def _is_taken(self, link: Link) -> bool:
        return self._node is not None and self._node.taken

    def _open_device_place(self) -> int | None:
        return self._tap.open_namespace() if self._tap else None

    def _set_mtu(self, handle: Handle, mtu: int) -> None:
        handle.set_link(self._lower, mtu=mtu)
        handle.set_link(self._index, mtu=mtu)

    async def _undo(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            asyncio.get_running_loop().remove_reader(node.fileno())
            node.close()
        tap, self._tap, self._lower = self._tap, None, 0
        if tap is not None:
            await self._runtime.run_blocking(tap.close)  # which takes the macvtap along


class TapPort(VmDevicePort):
    """A lasting TAP that the VMM opens by name or gets a descriptor of; the daemon has its netdev end.

    The packet socket there keeps its namespace alive, so that the port leaves as soon as its name is gone. The device
    outlives a daemon that was killed, and is taken over by the next one.
    """

    kind = Kind.TAP
    _end: socket.socket | None = None
    _name = ""  # of the device while there is one

    @property
    def _fd(self) -> int:
        return self._end.fileno() if self._end else -1

    def _offloads(self) -> tuple[str, ...]:
        return ("csum", "tso4", "tso6", "uso4", "uso6") if self._end else ()

    def _install(self, handle: Handle) -> Snapshot:
        config, name = self._installed, self._installed.ifname
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
        self._name = name
        self._enter(link.index)
        handle.set_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        handle.set_link(link.index, mtu=self._pushed.mtu, alias=self._alias())
        handle.mute(link.index, self._shim.mute_fd)
        self._end = open_far_end(link.index)
        handle.set_link(link.index, up=True)
        snapshot = read_device(handle, link.index, groups=False)
        if snapshot is None:
            raise OSError(errno.ENODEV, f"{name} is gone")
        return snapshot

    def _has_moved(self) -> bool:
        try:
            fd = self._find_place()
        except OSError:
            return True
        if fd is None:
            return True
        os.close(fd)
        return super()._has_moved()

    async def _open_far_end(self) -> list[int]:
        queues, name = self.config.queues, self._name
        fds = await self._runtime.run_in_netns(self._open_place, lambda handle: open_persistent_tap(name, queues))
        if fds is None:
            raise OSError(errno.ENODEV, "the device is gone")
        return fds

    def _is_taken(self, link: Link) -> bool:
        return link.carrier

    def _open_device_place(self) -> int | None:
        return self._find_place()

    def _set_mtu(self, handle: Handle, mtu: int) -> None:
        handle.set_link(self._index, mtu=mtu)

    async def _undo(self) -> None:
        end, self._end = self._end, None
        name, self._name = self._name, ""
        if name:
            index, place = self._index, self._place

            def open_place() -> int | None:
                fd = self._find_place()
                if fd is not None and identity(fd) != place:
                    os.close(fd)
                    return None
                return fd

            with contextlib.suppress(OSError):
                await self._runtime.run_in_netns(open_place, lambda handle: handle.delete_link(index))
        if end is not None:
            end.close()


def _solicited(address: Address) -> bytes:
    """The MAC of the group in which an IPv6 address is asked for: RFC 4291 section 2.7.1, RFC 2464 section 7."""
    return b"\x33\x33\xff" + address.packed[-3:]
