"""The two devices beside the master of a port that is a veth: set up, followed, and looked after as its endpoint is."""

from __future__ import annotations

from collections.abc import Sequence

from ipvsw.linux.errors import is_gone
from ipvsw.linux.fastports import FastDevice
from ipvsw.linux.netlink import INGRESS, Handle, LinkEvent, RemovalEvent
from ipvsw.linux.repair import Part
from ipvsw.linux.runtime import DeviceEvent, Follower
from ipvsw.ports.backend import BackendPort, Settings
from ipvsw.status import Subject

SUBJECTS = (Subject.FILTERS, Subject.HOST_ENDS)


class Beside(Follower):
    """Of one port; `handle` is in the master's namespace. The port is read again when something happens to them."""

    __slots__ = ("_devices", "_links", "_names", "_nsid", "_port")

    def __init__(self, port: BackendPort, end_name: str, tap_name: str) -> None:
        self._port = port
        self._names = end_name, tap_name
        self._devices: FastDevice | None = None
        self._links: dict[int, tuple[bool, bytes]] = {}  # by index, what is set of it: up, MAC address
        self._nsid: int | None = None

    def run_programs(self, handle: Handle, devices: FastDevice, settings: Settings) -> None:
        """From now on, instead of those of a daemon that was killed."""
        shim = self._port.env.shim
        handle.mute(devices.end, shim.port_fd)
        handle.mute(devices.tap, shim.feed_fd)
        self.set_links(handle, devices, settings)

    def set_links(self, handle: Handle, devices: FastDevice, settings: Settings) -> None:
        """An endpoint has its carrier while its host end is up."""
        self._links = _links(devices, settings)
        for index, (up, mac) in self._links.items():
            handle.set_link(index, up=up, mac=mac)

    # ------------------------------------------------------------------------ followed

    def follow(self, devices: FastDevice) -> None:
        runtime = self._port.env.runtime
        self._devices, self._nsid = devices, self._port.env.master.nsid
        runtime.interfaces += 1  # a reading of the port is two
        for index in (devices.end, devices.tap):
            runtime.enter(self._nsid, index, self)

    def leave(self) -> None:
        """Idempotent."""
        devices, self._devices = self._devices, None
        if devices is not None:
            runtime = self._port.env.runtime
            runtime.interfaces -= 1
            for index in (devices.end, devices.tap):
                runtime.leave(self._nsid, index, self)

    def handle_events(self, events: Sequence[DeviceEvent]) -> None:
        if any(map(self._concerns, events)):
            self.mark_stale()

    def _concerns(self, event: DeviceEvent) -> bool:
        if isinstance(event, LinkEvent):
            link = event.link
            return event.gone or self._links.get(link.index) != (link.up, link.mac)
        return isinstance(event, RemovalEvent)

    def mark_stale(self) -> None:
        self._port.mark_stale()

    def netns_changed(self) -> None:
        """The master follows its namespace."""

    # ------------------------------------------------------------------------ looked after

    def wanted(self, settings: Settings) -> dict[Part, object]:
        if self._devices is None:
            return {}
        shim, links = self._port.env.shim, _links(self._devices, settings)
        programs = zip(self._programs(self._devices), (shim.port_program, shim.feed_program), strict=True)
        return dict(programs) | dict(zip(self._ends(self._devices), links.values(), strict=True))

    def read(self, handle: Handle) -> dict[Part, object] | None:
        """None if one of them is gone. Errors: OSError."""
        devices = self._devices
        if devices is None:
            return None
        found: dict[Part, object] = {}
        try:
            for program, end in zip(self._programs(devices), self._ends(devices), strict=True):
                link = handle.link_at(end.key)
                if link is None:
                    return None
                found[end] = link.up, link.mac
                found[program] = handle.clsact_programs(end.key).get(INGRESS)
        except OSError as error:
            if is_gone(error):
                return None
            raise
        return found

    def mend(self, handle: Handle, part: Part) -> None:
        shim = self._port.env.shim
        if part.subject is Subject.FILTERS:
            is_end = self._devices is not None and part.key == self._devices.end
            handle.mute(part.key, shim.port_fd if is_end else shim.feed_fd)
        else:
            up, mac = self._links[part.key]
            handle.set_link(part.key, up=up, mac=mac)

    def _programs(self, devices: FastDevice) -> list[Part]:
        return self._parts(devices, Subject.FILTERS, "BPF program of ")

    def _ends(self, devices: FastDevice) -> list[Part]:
        return self._parts(devices, Subject.HOST_ENDS, "")

    def _parts(self, devices: FastDevice, subject: Subject, what: str) -> list[Part]:
        indices = devices.end, devices.tap
        return [Part(subject, index, what + name) for index, name in zip(indices, self._names, strict=True)]


def _links(devices: FastDevice, settings: Settings) -> dict[int, tuple[bool, bytes]]:
    return {devices.tap: (True, settings.mac), devices.end: (settings.carrier, settings.mac)}
