"""One port's life: waiting for its namespace, up, down, gone, and waiting again.

A port has two parts in which kinds of ports differ: a `Backend`, which makes, changes and undoes the endpoint, and an
`Addressing`, which knows the endpoint's addresses. `kinds` says which kind has which.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence, Set

import msgspec

from ipvsw.linux.devices.tap import MAX_MTU
from ipvsw.linux.namespaces import is_given
from ipvsw.linux.netlink import AddressEvent, Link, LinkEvent
from ipvsw.linux.runtime import DeviceEvent
from ipvsw.linux.tracked import RETRY, Snapshot, TrackedDevice
from ipvsw.model import Address, MacSource, Persist, PortConfig, Refused
from ipvsw.ports.backend import Backend, BackendPort, Gone, Left, PortEnvironment, Settings
from ipvsw.ports.held import HeldDescriptors
from ipvsw.ports.mac import own_mac
from ipvsw.ports.status import port_status
from ipvsw.status import AddressSource, HandedOver, PortState, PortStatus

log = logging.getLogger("ipvsw")


class Port(TrackedDevice):
    """See `TrackedDevice`. `config` may be replaced by `change` only."""

    __slots__ = (
        "_addressing", "_attached", "_backend", "_held", "_hung_up", "_own_mac", "_settings", "_snapshot", "config",
        "env",
    )  # fmt: skip

    def __init__(
        self, env: PortEnvironment, config: PortConfig, make_backend: Callable[[BackendPort], Backend]
    ) -> None:
        super().__init__(env.runtime, config.netns, f"port {env.switch}/{config.name}", env.repaired)
        self.env = env
        self.config = config
        self._backend = make_backend(self)
        self._addressing = self._backend.addressing()
        self._hung_up = False  # nothing is at the other end of the backend's descriptor
        self._own_mac: bytes | None = None  # that the endpoint is given, once it is known
        self._settings: Settings | None = None  # what the endpoint was opened or updated with
        self._snapshot: Snapshot | None = None  # the last one, until it is compared
        self._attached: tuple[bool, int] | None = None  # what the table knows: up, MTU
        self._held = HeldDescriptors(env.runtime.store, env.switch, config.name, env.left.get(config.name))

    @property
    def about(self) -> dict[str, str]:
        return {"switch": self.env.switch, "port": self.config.name}

    # ------------------------------------------------------------------------ what the switch calls

    def change(self, config: PortConfig) -> None:
        """Other addresses, gateways or MTU, in place."""
        self.config = config
        self.wake()

    def gone(self) -> None:
        """The datapath found nothing at the other end of the port's descriptor."""
        self._hung_up = True
        self.wake()

    def write(self, frame: bytes) -> None:
        """Send the endpoint a frame, its virtio_net_hdr before it, unless it can't take one now."""
        if self.link is not None:
            self._backend.write(frame)

    @property
    def is_lost(self) -> bool:
        """Whether its namespace is gone, and it is to go with it."""
        goes = self.config.persist is Persist.NETNS or is_given(self.config.netns)
        return goes and self.link is None and self.namespace.is_lost

    @property
    def max_learned(self) -> int:
        """How many addresses may be learned besides those that the configuration has."""
        return self._addressing.max_learned(self.config)

    def may_learn(self, address: Address) -> bool:
        """Whether the address is of those."""
        return self._addressing.may_learn(self.config, address)

    def set_learned(self, addresses: Mapping[Address, AddressSource], tentative: Set[Address]) -> None:
        """All addresses that the snooper has learned, and those that the machine has only asked about."""
        self._addressing.set_learned(addresses, tentative)
        if self.link is not None:
            with self.env.table.change():
                self._addressing.publish(self.env.table, self.config)

    def set_joined(self, groups: Set[bytes], versions: Set[int]) -> None:
        """MAC addresses of all groups that its machine has reported; of the IP versions it needs no others."""
        self._addressing.set_joined(groups, versions)
        if self.link is not None:
            with self.env.table.change():
                self._addressing.publish(self.env.table, self.config)

    def status(self) -> PortStatus:
        return port_status(self, self._backend, self._addressing)

    # ------------------------------------------------------------------------ virtual machines

    @property
    def serves_vm(self) -> bool:
        return self._backend.serves_vm

    @property
    def offers_tap(self) -> bool:
        """Whether what `hand_over` gives is a TAP's descriptors."""
        return self._backend.offers_tap

    @property
    def free(self) -> bool:
        """Whether a VMM could have the endpoint now."""
        if self.link is not None:
            self._backend.poll()
        return self.link is not None and not self._backend.is_taken(self.link)

    async def hand_over(self) -> tuple[HandedOver, list[int]]:
        """Descriptors for a VMM, one for each queue; the caller closes them. Errors: Refused."""
        if path := self._backend.vmm_path:
            raise Refused(f"{self.label}: its virtual machine comes by {path}")
        if self.link is None:
            raise Refused(f"{self.label}: {self.state} {self.reason}")
        if not self.free:
            raise Refused(f"{self.label}: a virtual machine has it already")
        about = HandedOver(
            port=f"{self.env.switch}/{self.config.name}",
            kind=self._backend.kind,
            mac=self._wanted_settings().mac.hex(":"),
            mtu=self.link.mtu,
            queues=self.config.queues,
        )
        try:
            return about, await self._backend.hand_over()
        except OSError as error:
            taken = error.errno == errno.EBUSY
            raise Refused(f"{self.label}: {'a virtual machine has it already' if taken else _text(error)}") from None

    # ------------------------------------------------------------------------ life

    async def _step(self) -> float:
        try:
            self._backend.prepare()
            if self.link is not None:
                try:
                    await self._keep()
                except OSError as error:
                    return self._postpone(error)
            if self.link is None and self.is_lost:
                self._wait(self.namespace.absence)
                self.env.lost(self.config.name)
                return self._resync()
            if self.link is None and (delay := await self._open()) is not None:
                return delay
            return self._poll()
        except OSError as error:
            self._fail(_text(error))
            return RETRY

    async def _keep(self) -> None:
        """See to it that the endpoint is what it should be, and close it if it is gone."""
        gone = False
        if self._hung_up:
            self._hung_up, gone = False, self._backend.hung_up()
        if self._netns_changed:
            self._netns_changed, gone = False, gone or self._backend.has_moved()
        gone = gone or not await self._update()
        if self._stale and not gone and not self.stopping:
            gone = not await self._read(self._read_endpoint)
            if not gone:
                await self._look_after()
        if gone:
            await self._shut()
            self._backend.ended()

    async def _update(self) -> bool:
        """Bring the endpoint up to date with the master and with the configuration; whether it still exists."""
        wanted, had = self._wanted_settings(), self._settings
        assert self.link is not None and had is not None
        if wanted == had:
            return True
        self._settings, self._stale = wanted, True
        self._runtime.note_change()
        return await self._backend.update(wanted, had)

    async def _read_endpoint(self) -> Snapshot | None:
        self._snapshot = await self._backend.read()
        return self._snapshot

    async def _look_after(self) -> None:
        """Put back what others have changed of the endpoint. One that was set down is left alone."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None or self._settings is None:
            return
        wrong = self._backend.wrong(self._settings, snapshot) if snapshot.link.up else []
        await self._put_back(wrong, self._backend.place_of, self._backend.mend)

    def _poll(self) -> float:
        delay = self._backend.poll()
        if self.link is not None:
            self._tell(*self._state_of(self.link))  # what `poll` reported as failed works again
        return self._resync() if delay is None else delay

    # ------------------------------------------------------------------------ opening

    async def _open(self) -> float | None:
        """Seconds until the next attempt, None: it is open."""
        self._netns_changed = False
        if not self.env.master.present:
            self._wait(f"for the master {self.env.master.name}")
            return self._resync()
        async with self._runtime.openings:
            if self.stopping:
                return 0
            try:
                if await self._synchronize(self._open_backend, self._attach):
                    return None
                if self.stopping:
                    return 0
            except Gone:
                await self._shut()
                self._backend.ended()
                return self._resync()
            except Exception as error:
                await self._shut()
                if not isinstance(error, OSError):
                    raise
                self._fail(_text(error))
                return RETRY
        self._wait(self.namespace.absence)
        return self._resync()

    async def _open_backend(self) -> Snapshot | None:
        left = self.env.left.pop(self.config.name, None)
        snapshot = await self._adopt(left) if left is not None else None
        if snapshot is None:
            self._settings = self._wanted_settings()
            snapshot = await self._backend.open(self._settings)
            if self._backend.problems:
                self.mark_stale()  # what could not be set is tried again
        self.hold()
        return snapshot

    async def _adopt(self, left: Left) -> Snapshot | None:
        """Go on with the endpoint that the last daemon had. None: that can't be, and nothing is left of it."""
        try:
            if left.kind is not self._backend.kind:
                raise OSError(errno.EMEDIUMTYPE, f"it was of kind {left.kind}")
            snapshot = await self._backend.adopt(left.holding, left.settings)
        except OSError as error:
            log.warning("%s: its endpoint can't be kept: %s", self.label, _text(error))
            snapshot = None
        if snapshot is None:
            await self._held.release()
            await self._backend.close()
        self._settings = left.settings  # the next step brings it up to date
        self.mark_stale()  # and what was changed in the meantime
        return snapshot

    # ------------------------------------------------------------------------ for a successor

    @property
    def left(self) -> Left | None:
        """What a successor would find if the daemon were killed now."""
        holding = self._backend.holding if self.link is not None else None
        if holding is None or self._settings is None:
            return None
        return Left(self._backend.kind, self._settings, holding)

    def hold(self) -> None:
        """Have a successor find the endpoint as it is now."""
        self._held.hold(self._backend.holding)
        self._runtime.note_change()

    def moved(self, ifname: str) -> None:
        """Its device has that name, in the namespace that `namespace` has, by another's doing. A port that was added at
        run time belongs there from now on; of the others the file says where they are made."""
        if not self.env.is_filed(self.config.name):
            self.config = msgspec.structs.replace(self.config, netns=self.namespace.spec, ifname=ifname)
        log.info("%s: its interface is %s now", self.label, ifname)
        self._runtime.note_change()

    def _wanted_settings(self) -> Settings:
        master = self.env.master
        return Settings(
            config=self.config,
            mac=master.mac if self.config.mac is MacSource.MASTER else self._make_own_mac(),
            mtu=min(self.config.mtu or master.mtu, master.mtu, MAX_MTU),
            carrier=master.carrier,
            noarp=master.noarp,
        )

    def _make_own_mac(self) -> bytes:
        """Once made it stays, whatever the master's becomes."""
        if not isinstance(self.config.mac, MacSource):
            return bytes.fromhex(self.config.mac.replace(":", ""))
        if self._own_mac is None:
            self._own_mac = own_mac(self.env.switch, self.config.name, self.env.master.mac)
        return self._own_mac

    async def _shut(self) -> None:
        self.link = None
        await self.env.table.leave(self.config.name)
        self._hung_up = False
        left = self.env.left.pop(self.config.name, None)
        if left is not None:  # it has never been opened since: all that there is of it goes
            await self._adopt(left)
        await self._held.release()
        await self._backend.close()
        self._runtime.note_change()

    # ------------------------------------------------------------------------ what the table knows

    def _attach(self, snapshot: Snapshot) -> None:
        backend, settings = self._backend, self._settings
        assert settings is not None
        with self.env.table.change():
            self.env.table.attach(
                self.config.name,
                backend.fd,
                snapshot.link.mtu,
                None if self.config.mac is MacSource.MASTER else settings.mac,
                extra_fds=backend.extra_fds,
                framing=backend.framing,
                accepts_uso=backend.accepts_uso,
                long_header=backend.long_header,
                device=backend.fast_device,
            )
            self._attached = None
            self._take(snapshot)
        self._tell(*self._state_of(snapshot.link))
        self._runtime.note_change()

    def _see(self, snapshot: Snapshot) -> None:
        with self.env.table.change():
            self._take(snapshot)
        self._tell(*self._state_of(snapshot.link))

    def _take(self, snapshot: Snapshot) -> None:
        """Within a change. What the state is, is said when the data plane and the shim know: then frames pass."""
        self._set_link(snapshot.link)
        self._addressing.see(self.env.table, self.config, snapshot)

    def endpoint_changed(self, link: Link) -> None:
        """The endpoint has come, left, or changed its attributes."""
        self._set_link(link)
        self._tell(*self._state_of(link))

    def _set_link(self, link: Link) -> None:
        self.link = link
        state, _ = self._state_of(link)
        attached = (state in (PortState.UP, PortState.DEGRADED), link.mtu)
        if self._attached != attached:
            self._attached = attached
            self.env.changed(self, self._backend)
            self.env.table.set_port(self.config.name, up=attached[0], mtu=link.mtu)

    def _state_of(self, link: Link) -> tuple[PortState, str]:
        """The state that follows, and what is wrong or missing."""
        if link.up and self._backend.serves_vm and not self._backend.is_taken(link):
            return PortState.WAITING, "for a virtual machine"
        problems = dict.fromkeys((*self._backend.problems, *self.repairs.problems))
        well = PortState.DEGRADED if problems else PortState.UP
        return well if link.up else PortState.DOWN, "; ".join(problems)

    def handle_events(self, events: Sequence[DeviceEvent]) -> None:
        with self.env.table.change():  # all at one commit
            super().handle_events(events)
        if self.link is not None:
            self._tell(*self._state_of(self.link))

    def _needs_reading(self, event: DeviceEvent) -> bool:
        is_ours = isinstance(event, AddressEvent) and (
            event.address.is_link_local  # made by the kernel, of an identifier that may be another than before
            or (event.gone and self._addressing.is_configured(self.config, event.address, event.prefix))
        )
        return is_ours or super()._needs_reading(event)

    def _follow(self, event: DeviceEvent) -> None:
        self.repairs.hope()
        if self.link is None:
            return
        if isinstance(event, LinkEvent) and not event.gone:
            self._set_link(event.link)
            self._backend.link_announced(event.link)
        elif isinstance(event, AddressEvent):
            self._addressing.follow(self.env.table, self.config, event)


def _text(error: OSError) -> str:
    return error.strerror or str(error)
