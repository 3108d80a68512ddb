"""The two devices beside the master of a port that is a veth: set up, followed, and looked after as its endpoint is."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ipvsw.linux.errors import is_gone
from ipvsw.linux.fastports import FastDevice
from ipvsw.linux.netlink import INGRESS, Handle, LinkEvent, RemovalEvent
from ipvsw.linux.repair import Part
from ipvsw.linux.runtime import DeviceEvent, Follower
from ipvsw.linux.tracked import RESYNC
from ipvsw.ports.backend import BackendPort, Settings
from ipvsw.status import Subject

SUBJECTS = (Subject.FILTERS, Subject.HOST_ENDS)


class Beside(Follower):
    """Of one port; `handle` is in the master's namespace. The port is read again when something happens to them."""

    __slots__ = ("_announced", "_devices", "_links", "_names", "_nsid", "_port", "_read", "_read_at", "_stale")

    def __init__(self, port: BackendPort, end_name: str, tap_name: str) -> None:
        self._port = port
        self._names = end_name, tap_name
        self._devices: FastDevice | None = None
        self._links: dict[int, tuple[bool, bytes]] = {}  # by index, what is set of it: up, MAC address
        self._announced: set[int] = set()  # of which this was announced: what differs from then on is another's doing
        self._read: dict[Part, object] = {}  # what `read` has found, at `_read_at`
        self._read_at = 0.0
        self._stale = True  # something of that may have changed
        self._nsid: int | None = None

    def run_programs(self, handle: Handle, devices: FastDevice, settings: Settings, *, adopted: bool) -> None:
        """From now on, instead of those of a daemon that was killed. What is not `adopted` has its MAC address."""
        shim = self._port.env.shim
        handle.mute(devices.end, shim.port_fd)
        handle.mute(devices.tap, shim.feed_fd)
        self._links = _links(devices, settings)
        self._announced = set(self._links) if adopted else set()
        for index, (up, mac) in self._links.items():
            handle.set_link(index, up=up, mac=mac if adopted else None)
        self._read, self._read_at, self._stale = self.wanted(settings), time.monotonic(), adopted

    def set_links(self, handle: Handle, devices: FastDevice, settings: Settings) -> None:
        """An endpoint has its carrier while its host end is up."""
        had, self._links = self._links, _links(devices, settings)
        self._announced = {index for index in self._announced if had[index] == self._links[index]}
        self._stale = True
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
        concerning = [event for event in events if self._concerns(event)]
        if concerning:
            self.mark_stale()

    def _concerns(self, event: DeviceEvent) -> bool:
        """What was announced before it was as it should be is how the daemon has made it so."""
        if not isinstance(event, LinkEvent) or event.gone:
            return isinstance(event, LinkEvent | RemovalEvent)
        if self._links.get(event.link.index) == (event.link.up, event.link.mac):
            self._announced.add(event.link.index)
            return False
        return event.link.index in self._announced

    def mark_stale(self) -> None:
        self._stale = True
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

    @property
    def known(self) -> dict[Part, object] | None:
        """What `read` would give, unless something may have changed since: with many ports reading is dear."""
        is_old = self._stale or time.monotonic() >= self._read_at + RESYNC
        return None if is_old else self._read

    def read(self, handle: Handle) -> dict[Part, object] | None:
        """None if one of them is gone. Errors: OSError."""
        self._stale, self._read_at = False, time.monotonic()
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
                found[program] = handle.clsact_programs(end.key, where=(INGRESS,)).get(INGRESS)
        except OSError as error:
            if is_gone(error):
                return None
            raise
        self._read = found
        return found

    def mend(self, handle: Handle, part: Part) -> None:
        self._stale = True
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
