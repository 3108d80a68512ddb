"""The master's life: waiting for the device, claimed and served, gone, and waiting again.

The daemon's sockets keep the namespace alive that the master is in. They are closed when the device is gone or when
the namespace has lost its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence

from ipvsw._fast import PACKET_RING
from ipvsw.addresses.table import Table
from ipvsw.batch import until_tick
from ipvsw.changes import Changes
from ipvsw.linux.bpf import Shim
from ipvsw.linux.devices import packet
from ipvsw.linux.namespaces import identity
from ipvsw.linux.netlink import AddressEvent, Handle, Link, LinkEvent, RoutesChanged
from ipvsw.linux.runtime import POLL, DeviceEvent, Runtime
from ipvsw.linux.tracked import RESYNC, RETRY, Snapshot, TrackedDevice, read_device, read_in_netns
from ipvsw.model import Address
from ipvsw.ports.backends.veth import delete_orphans
from ipvsw.routing.router import RouterUplink
from ipvsw.status import PortState
from ipvsw.switch.fitness import Absent, Taken, Unfit, fit_master
from ipvsw.switch.held import HeldFrames, MasterLeft, held_name
from ipvsw.switch.hostport import HostPort, HostPortConfig
from ipvsw.switch.hostside import HostSide
from ipvsw.switch.repair import INTERVAL, MasterRepair
from ipvsw.switch.sockets import Sockets, open_sockets

log = logging.getLogger("ipvsw")


class Master(TrackedDevice):
    """See `TrackedDevice`. `changed` is called when `link` is another, None while there is none."""

    def __init__(
        self,
        runtime: Runtime,
        table: Table,
        shim: Shim,
        changes: Changes,
        *,
        switch: str,
        name: str,
        netns: str,
        workers: int,
        left: MasterLeft | None,
        changed: Callable[[], None],
        repaired: Counter[str],
    ) -> None:
        super().__init__(runtime, netns, f"master {name}", repaired)
        self.taken = False  # another daemon serves it
        self._name = name
        self._table = table
        self._shim = shim
        self._changes = changes
        self._workers = workers
        self._changed = changed
        host_left = left.host if left else None
        host_port = HostPort(runtime, changes, name, held_name(switch, "host"), host_left, shim.errors_fd)
        self._host = HostSide(runtime, table, changes, host_port, self.label)
        self._repair = MasterRepair(shim, host_port, self._host.exports)
        self._sockets: Sockets | None = None
        self.nsid: int | None = None  # of its namespace
        self._is_quiet = False  # nothing has happened: the master is awake for what has no events
        self._place: tuple[int, int] | None = None
        self._groups: frozenset[bytes] = frozenset()  # that the device listens to for us
        self._addresses: frozenset[Address] = frozenset()
        self._held = HeldFrames(runtime.store, switch, workers, left)
        self._resuming = False  # the last daemon's programs go on until `resume`
        self._starts: tuple[int, ...] = ()  # where a successor goes on reading

    @property
    def about(self) -> dict[str, str]:
        return {"master": self._name}

    def handle_events(self, events: Sequence[DeviceEvent]) -> None:
        if self._sockets is not None or self._buffered_events is not None:
            super().handle_events(events)
        elif any(
            isinstance(event, LinkEvent) and (event.nsid, event.link.name) == (self.nsid, self._name)
            for event in events
        ):
            self.wake()

    def set_host_side(self, config: HostPortConfig, *, exports: bool) -> None:
        self._host.config, self._host.exports.wanted = config, exports
        self.wake()

    @property
    def router_uplink(self) -> RouterUplink | None:
        """What routing needs, None while there is no master."""
        sockets, link = self._sockets, self.link
        if sockets is None or link is None:
            return None
        return sockets.uplink(link, self._addresses)

    def release(self, starts: Sequence[int]) -> None:
        """Another daemon may serve the device, and go on reading with these slots. Nothing else changes."""
        self._starts = tuple(starts)
        if self._sockets is not None:
            self._sockets.claim.close()

    @property
    def left(self) -> MasterLeft | None:
        """What a successor would find if the daemon ended now."""
        sockets, link, place = self._sockets, self.link, self._place
        if sockets is None or link is None or place is None:
            return None
        fds = tuple(each.fileno() for each in sockets.frames)
        return MasterLeft(link.index, place, fds, PACKET_RING, self._starts, self._groups, self._host.port.left)

    @property
    def identity(self) -> tuple[int, int] | None:
        """The inode number of its namespace and its index there, None while there is no master."""
        return (self._place[1], self.link.index) if self._place and self.link else None

    @property
    def exported(self) -> int:
        """How many routes routing daemons see."""
        return len(self._host.exports)

    # ------------------------------------------------------------------------ life

    async def _step(self) -> float:
        if self._sockets is not None:
            await self._keep()
        if self._sockets is None:
            return await self._open()
        return until_tick(asyncio.get_running_loop().time(), INTERVAL)

    def _timed_out(self) -> None:
        if asyncio.get_running_loop().time() >= self._read_at + RESYNC:
            self.mark_stale()
        elif not self._woken:
            self.wake()
            self._is_quiet = True

    def wake(self) -> None:
        self._is_quiet = False
        super().wake()

    async def _keep(self) -> None:
        assert self.link is not None
        present = True
        if self._stale or self._netns_changed:
            self._repair.is_stale = True
            self._netns_changed = False
            present = await self._read(self._read_link)
        is_quiet, self._is_quiet = self._is_quiet, False
        if not present:
            await self._shut()
        elif is_quiet:
            await self._look_after()
        else:
            await self._follow_host()

    async def _follow_host(self) -> None:
        """What depends on the ports' groups and addresses, and on the host's own addresses and routes."""
        await self._listen()
        for follow in (self._host.read_gateways, self._host.read_vlans, self._host.update_exports):
            if self._sockets is not None and self.link is not None:
                await follow(self._sockets.device, self.link)
        await self._update_host_port()
        await self._look_after()

    async def _look_after(self) -> None:
        """Put back what others have changed."""
        loop, link, sockets = asyncio.get_running_loop(), self.link, self._sockets
        if link is None or sockets is None or self._resuming or not self._repair.is_due(loop.time()):
            return
        if self._repair.is_stale:
            self._repair.is_stale = False
            self.repairs.hope()
        wanted, now = self._repair.wanted(link), loop.time()
        seen = await self._runtime.run_in_netns(
            self.open_place, lambda handle: self._repair.read(handle, link, wanted, now)
        )
        if seen is None:
            return
        wrong = self._repair.compare(wanted, self._groups, seen, now)
        listener = sockets.frames[0]
        await self._put_back(
            wrong, lambda part: self.open_place, lambda handle, part: self._repair.mend(handle, part, link, listener)
        )
        if self._host.port.is_lost:
            await self._host.port.close(self.open_place)
            await self._update_host_port()
        self._tell_state(link)

    def routes_changed(self, changes: Sequence[RoutesChanged]) -> None:
        """The host's routes may be others than before."""
        self._host.routes_changed(changes)
        self.mark_stale()

    async def _update_host_port(self) -> None:
        """Bring the host's own interface up to date. Without it everything else goes on."""
        uplink, link = self.router_uplink, self.link
        assert uplink is not None and link is not None
        failed = await self._host.adapt(self.open_place, link, uplink, keeps_routes=self._resuming)
        if failed is not None:
            self.repairs.done(failed, asyncio.get_running_loop().time())
        self._tell_state(link)

    async def _listen(self) -> None:
        """Have the device listen to every group that a port listens to."""
        assert self._sockets is not None and self.link is not None
        sockets, index, wanted, had = self._sockets, self.link.index, self._table.groups(), self._groups
        join = self._changes.switched_groups(wanted)
        if (wanted, join) == (had, sockets.membership.joined):
            return
        self._groups = wanted
        try:
            await self._runtime.run_blocking(lambda: sockets.listen(index, wanted - had, had - wanted, join))
        except OSError as error:
            if error.errno != errno.ENODEV:  # that the device is gone netlink announces
                log.warning("%s: does not listen to every group: %s", self.label, error.strerror)

    # ------------------------------------------------------------------------ opening

    async def _open(self) -> float:
        self._netns_changed = self._stale = self.taken = False
        self._runtime.found_device(self)
        try:
            await self._open_in_namespace()
        except Absent as error:
            await self._shut()
            self._wait(str(error))
            self._runtime.await_device(self)
            return POLL
        except Unfit as error:  # nothing was opened: no event of our own making comes back
            self.taken = isinstance(error, Taken)
            self._fail(str(error))
            self._runtime.await_device(self)
            return RETRY
        except OSError as error:
            await self._shut()
            self._fail(error.strerror or str(error))
            return RETRY
        return INTERVAL

    async def _open_in_namespace(self) -> None:
        fd = self.namespace.open()
        if fd is None:
            raise Absent(self.namespace.absence)
        try:
            self._place = identity(fd)
            self.nsid = await self._runtime.netlink.run(None, lambda handle: handle.nsid(fd)) if self._spec else None
            await self._synchronize(lambda: self._runtime.netlink.run(fd, self._serve), self._attach)
        finally:
            os.close(fd)
        await self._follow_host()

    def _serve(self, handle: Handle) -> Snapshot:
        """In the master's namespace: claim the device, open the sockets, attach the shim."""
        link = fit_master(handle, self._name)
        if link is None:
            raise Absent(f"for the device {self._name}")
        if not self._resuming:  # then `resume` does it, when the ports are there
            delete_orphans(handle)
        with contextlib.ExitStack() as undo:
            sockets = open_sockets(undo, handle, link, self._workers, self._shim, self._held, self._place)
            if not (self._resuming and len(handle.clsact_programs(link.index)) == 2):
                handle.attach_clsact(link.index, self._shim.ingress_fd, self._shim.egress_fd)
            undo.callback(handle.detach_clsact, link.index)
            self._runtime.enter(self.nsid, link.index, self)
            undo.callback(self._runtime.leave, self.nsid, link.index, self)
            snapshot = read_device(handle, link.index, groups=False)
            if snapshot is None:
                raise Absent(f"for the device {self._name}")
            undo.pop_all()
        self._sockets, self._groups = sockets, sockets.listening
        return snapshot

    def _attach(self, snapshot: Snapshot) -> None:
        assert self._sockets is not None
        with self._changes.batch() as datapath:
            self._sockets.attach(datapath, snapshot.link.mac)
        self._changes.set_uplink(snapshot.link.index)
        self._held.hold(self._sockets.frames, self._sockets.tunnels, adopted=bool(self._sockets.starts))
        self._see(snapshot)
        self._runtime.note_change()

    def set_resuming(self, on: bool) -> None:
        """Whether the programs of the last daemon go on, and forward to the ports that it has left."""
        self._resuming = self._host.exports.keeps = on
        self._changes.set_resuming(on)

    async def resume(self) -> None:
        """The ports that the last daemon has left are there again, and table and shim know them: from now on the shim's
        programs say whose a frame is, in the place of those of the last daemon."""
        if (sockets := self._sockets) is not None and (link := self.link) is not None:
            index = link.index

            def renew(handle: Handle) -> None:
                delete_orphans(handle)
                handle.attach_clsact(index, self._shim.ingress_fd, self._shim.egress_fd)

            try:
                if sockets.starts:
                    for each in sockets.frames:
                        packet.set_filter(each, self._shim.filter_fd)
                await self._runtime.run_in_netns(self.open_place, renew)
            except OSError as error:
                log.warning("%s: %s", self.label, error.strerror)  # what is wrong will be put back
        self.set_resuming(False)
        self._repair.is_stale = True
        self.wake()

    # ------------------------------------------------------------------------ while it is served

    def open_place(self) -> int | None:
        """An fd of the namespace in which the device is served, None if that is gone. From any thread."""
        fd = self.namespace.open()
        if fd is not None and identity(fd) != self._place:
            os.close(fd)
            return None
        return fd

    async def _read_link(self) -> Snapshot | None:
        assert self.link is not None
        index = self.link.index
        return await read_in_netns(
            self._runtime, self.open_place, lambda handle: read_device(handle, index, groups=False)
        )

    def _see(self, snapshot: Snapshot) -> None:
        addresses = frozenset(address for address, _ in snapshot.addresses)
        differ, self._addresses = addresses != self._addresses, addresses
        self._host.set_networks(snapshot.addresses)
        self._table.master_replace(set(snapshot.addresses))
        self._see_link(snapshot.link)
        if differ:
            self._changed()

    def _see_link(self, link: Link) -> None:
        old, self.link = self.link, link
        if old is not None and old.mac != link.mac:
            with self._changes.batch() as datapath:
                datapath.set_master(link.mac)
        self._tell_state(link)
        if old != link:
            self._changed()

    def _tell_state(self, link: Link) -> None:
        problems = [*filter(None, [self._host.problem]), *self.repairs.problems]
        well = PortState.DEGRADED if problems else PortState.UP
        self._tell(well if link.up else PortState.DOWN, "; ".join(problems))

    def _needs_reading(self, event: DeviceEvent) -> bool:
        """The router sends ICMP errors from one of the addresses: all must be known to choose it."""
        return isinstance(event, AddressEvent) or super()._needs_reading(event)

    def _follow(self, event: DeviceEvent) -> None:
        if isinstance(event, AddressEvent):
            change = self._table.master_release if event.gone else self._table.master_claim
            change(event.address, event.prefix)
        elif isinstance(event, LinkEvent) and not event.gone:
            self._see_link(event.link)

    # ------------------------------------------------------------------------ the end

    async def _shut(self) -> None:
        self._runtime.found_device(self)
        await self._held.drop()
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            await self._host.port.close(self.open_place)  # the last daemon's
            return
        self._host.mark_stale()
        self._changes.set_uplink(0)
        with self._changes.batch() as datapath:
            datapath.detach_master()
        link, self.link, self._groups, self._addresses = self.link, None, frozenset(), frozenset()
        self._changed()  # from here on the router doesn't use the sockets
        await self._host.close(self.open_place)
        if link is not None:
            self._runtime.leave(self.nsid, link.index, self)
            await self._withdraw(link.index)
        await self._runtime.run_blocking(sockets.close)
        self._table.master_replace(set())

    async def _withdraw(self, index: int) -> None:
        """Take the shim off the device, if it is still there."""
        with contextlib.suppress(OSError):
            await self._runtime.run_in_netns(self.open_place, lambda handle: handle.detach_clsact(index))
