"""The routes that a switch exports, made and removed in the master's namespace: `routing/export.py` says which.

They lie in a table of their own, which no rule of ours looks up: routing daemons read it. A route is removed before the
table lets go of its address, and added after. The kernel keeps them while no daemon runs, and the next one goes on with
them: what nobody owns any more goes when the ports are there again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Collection
from functools import partial

from ipvsw.addresses.table import Table
from ipvsw.changes import Changes
from ipvsw.linux.netlink import Destination, DeviceReader, export_routes, withdraw_routes
from ipvsw.linux.repair import Part
from ipvsw.linux.runtime import Runtime
from ipvsw.routing.export import Exports, to_prefix
from ipvsw.status import Subject

log = logging.getLogger("ipvsw")

AT_ONCE = 512  # routes that are added before the loop has its turn, and what has changed is seen


class ExportedRoutes:
    """One master's. Calls of `update` must not overlap."""

    def __init__(self, runtime: Runtime, table: Table, changes: Changes, label: str) -> None:
        """`label` is the master's in the log."""
        self.wanted = False
        self.is_stale = False  # others may have removed some
        self.keeps = False  # ports of the last daemon are not there again yet: none of its routes goes
        self._runtime = runtime
        self._table = table
        self._changes = changes
        self._label = label
        self._exports = Exports()
        self._kernel: DeviceReader | None = None  # while the master is served and routes are wanted
        self._index = 0
        self._cleaned = 0  # the index of the master that has no route of an earlier daemon's
        self._read = False  # what the last daemon has left is known
        changes.leaving, changes.arriving = self._leave, self._arrive

    def __len__(self) -> int:
        return len(self._exports)

    # ------------------------------------------------------------------------ what the table says

    def _arrive(self, addresses: Collection[bytes]) -> None:
        if self._read:
            wanted = {one for one in addresses if self._is_wanted(one)}
            self._exports.arrive(wanted)
            self._withdraw(self._exports.leave(one for one in addresses if one not in wanted))

    def _leave(self, addresses: Collection[bytes]) -> None:
        if self._read:
            going = self._exports.leave(addresses)
            self._withdraw(going + self._set_prefixes())

    def _is_wanted(self, address: bytes) -> bool:
        return address in self._changes.stolen and self._table.claims.may_export(address)

    def _set_prefixes(self) -> list[Destination]:
        """The routes that have to go."""
        used = map(to_prefix, self._table.claims.used_prefixes())
        return self._exports.set_prefixes(frozenset(one for one in used if one is not None))

    # ------------------------------------------------------------------------ kernel

    async def update(self, kernel: DeviceReader, index: int, *, up: bool) -> None:
        """Bring the routes of the master, which is up or down, to what the table says. Errors: OSError."""
        if not self.wanted:
            await self._clean(kernel, index)
            return
        if not self._read:
            present = await self._runtime.run_blocking(lambda: kernel.exported(index))
            self._kernel, self._index, self._cleaned, self._read = kernel, index, 0, True
            self._exports.begin(filter(self._is_wanted, self._changes.stolen), present)
        self._withdraw(self._set_prefixes())
        if not self.keeps:
            self._withdraw(self._exports.take_stale())
        if not up:
            self._exports.lose_all()
        while up and self._read and (some := self._exports.next_due(AT_ONCE)):
            refused = await self._runtime.run_blocking(partial(export_routes, kernel, index, some))
            if any(error.errno == errno.ENETDOWN for error in refused.values()):
                return  # that it is up again netlink announces
            for error in [*refused.values()][:1]:
                log.warning("%s: %s", self._label, error.strerror)
            self._withdraw(self._exports.added(some, refused))

    def _withdraw(self, going: list[Destination]) -> None:
        """Before this returns they are gone."""
        if going and self._kernel is not None:
            with contextlib.suppress(OSError):
                withdraw_routes(self._kernel, self._index, going)

    async def _clean(self, kernel: DeviceReader, index: int) -> None:
        """No route is left, not those of an earlier daemon either."""
        await self.close()
        if self._cleaned != index:
            self._cleaned = index
            if present := await self._runtime.run_blocking(lambda: kernel.exported(index)):
                await self._runtime.run_blocking(lambda: withdraw_routes(kernel, index, [*present]))

    async def close(self) -> None:
        """No route is left of the master, which is about to be closed. Idempotent."""
        kernel, index, exports = self._kernel, self._index, self._exports
        self._kernel, self._read, self._exports = None, False, Exports()
        if kernel is None:
            return
        going = exports.every()
        with contextlib.suppress(OSError):
            await self._runtime.run_blocking(lambda: withdraw_routes(kernel, index, going))

    # ------------------------------------------------------------------------ what others change

    def removed(self, destination: Destination) -> None:
        """A route was: maybe by us, before it was added again."""
        self.is_stale |= self._exports.is_there(destination)

    def read(self) -> frozenset[Destination] | None:
        """All that there are; None if none are wanted. From any thread. Errors: OSError."""
        kernel = self._kernel
        return None if kernel is None else kernel.exported(self._index)

    def compare(self, present: frozenset[Destination]) -> None:
        """With what `read` has read."""
        self.is_stale = False
        self._exports.compare(present)

    def missing(self) -> list[Part]:
        return [Part(Subject.EXPORTS, one, f"exported route to {one}") for one in self._exports.missing]

    def mend(self, part: Part) -> None:
        """Put it back, unless nobody owns it any more. From any thread. Errors: OSError."""
        kernel = self._kernel
        if kernel is not None and part.key in self._exports.missing:
            for error in export_routes(kernel, self._index, [part.key]).values():
                raise error
            if not self._exports.put_back(part.key):
                withdraw_routes(kernel, self._index, [part.key])
