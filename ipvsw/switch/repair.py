"""What the daemon has set on the master and beside it, read again and compared: `linux/repair.py` says what follows.

Read after every event that may concern it, and every few seconds, since not everything has events.
"""

from __future__ import annotations

import socket
import time

from msgspec import Struct

from ipvsw.linux.bpf import Shim
from ipvsw.linux.devices import packet
from ipvsw.linux.netlink import EGRESS, INGRESS, Destination, Handle, Link
from ipvsw.linux.repair import Part, differences
from ipvsw.linux.tracked import RESYNC, Pace
from ipvsw.status import Subject
from ipvsw.switch.exports import ExportedRoutes
from ipvsw.switch.hostport import HostPort, HostRoute

INTERVAL = 2.0  # seconds between two readings without an event, one half of it to three


class Seen(Struct, frozen=True):
    """What was read, and what that took of a CPU, in seconds."""

    parts: dict[Part, object]
    seconds: float
    groups: tuple[bytes, ...] | None = None  # of the master; None: they were not read
    groups_seconds: float = 0.0
    routes: frozenset[HostRoute] | None = None  # of the host's interface
    exported: frozenset[Destination] | None = None
    routes_seconds: float = 0.0  # of both


class MasterRepair:
    """One master's."""

    def __init__(self, shim: Shim, host: HostPort, exports: ExportedRoutes) -> None:
        self.is_stale = True  # something may have changed
        self._shim = shim
        self._host = host
        self._exports = exports
        # The turn of the master decides, which comes a little earlier or later than the last one did.
        self._parts, self._groups, self._routes = Pace(INTERVAL / 2), Pace(INTERVAL / 2), Pace(RESYNC)
        self._missing_groups: frozenset[bytes] = frozenset()

    def is_due(self, now: float) -> bool:
        return self.is_stale or self._parts.is_due(now)

    def wanted(self, link: Link) -> dict[Part, object]:
        """Everything but groups and routes, of which there may be thousands."""
        filters = Part(Subject.FILTERS, link.index, f"BPF programs of {link.name}")
        return {filters: self._shim.programs} | self._host.wanted()

    def read(self, handle: Handle, link: Link, wanted: dict[Part, object], now: float) -> Seen:
        """In the master's namespace. Errors: OSError."""
        start = time.thread_time()
        parts = self._host.seen(handle, wanted)
        programs = handle.clsact_programs(link.index)
        for part in wanted:
            if part.subject is Subject.FILTERS:
                parts[part] = (programs.get(INGRESS), programs.get(EGRESS))
        parts_end = time.thread_time()
        groups = handle.groups(link.name) if self._groups.is_due(now) else None
        groups_end = time.thread_time()
        is_due = self._routes.is_due(now)
        routes = self._host.read_routes(handle) if is_due else None
        exported = self._exports.read() if is_due or self._exports.is_stale else None
        end = time.thread_time()
        return Seen(parts, parts_end - start, groups, groups_end - parts_end, routes, exported, end - groups_end)

    def compare(self, wanted: dict[Part, object], groups: frozenset[bytes], seen: Seen, now: float) -> list[Part]:
        """What is not as it should be; `groups` are those that the master is to listen to."""
        self._parts.spent(seen.seconds, now)
        if seen.groups is not None:
            self._groups.spent(seen.groups_seconds, now)
            self._missing_groups = groups.difference(seen.groups)
        if seen.routes is not None:
            self._routes.spent(seen.routes_seconds, now)
            self._host.compare_routes(seen.routes)
        if seen.exported is not None:
            self._exports.compare(seen.exported)
        missing = self._missing_groups & groups
        listening = [Part(Subject.GROUPS, group, f"group {group.hex(':')}") for group in missing]
        return [*differences(wanted, seen.parts), *listening, *self._host.missing_routes(), *self._exports.missing()]

    def mend(self, handle: Handle, part: Part, link: Link, listener: socket.socket) -> None:
        """Put it back; `listener` is the socket that has the device listen to groups. Errors: OSError."""
        if part.subject is Subject.FILTERS:
            handle.attach_clsact(link.index, self._shim.ingress_fd, self._shim.egress_fd)
        elif part.subject is Subject.GROUPS:
            packet.set_groups(listener, link.index, (), [part.key])
            packet.set_groups(listener, link.index, [part.key], ())
            self._missing_groups -= {part.key}
        elif part.subject is Subject.EXPORTS:
            self._exports.mend(part)
        else:
            self._host.mend(handle, part)
