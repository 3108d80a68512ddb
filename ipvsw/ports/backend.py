"""What a port is made of towards its endpoint: the contract of a backend, as Open vSwitch has one in `netdev_class`.

A backend is made closed. Its port calls, one after the other and from its own task: `prepare` at every step; `open`,
or `adopt` for what the last daemon has left; while it is open `hung_up`, `has_moved`, `update`, `read`, `wrong`, `mend`
and `poll` as often as there is a reason; and `close`, after which it may be opened again. All other methods may be
called at any time while it is open. A kind of port must say `kind`, `addressing`, `fd`, `open`, `update`, `read` and
`close`; the rest has defaults.

A backend does not touch the table of addresses: its port does, and is informed by `endpoint_changed`.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import ClassVar, Protocol

from msgspec import Struct

from ipvsw.addresses.table import Table
from ipvsw.linux.bpf import Shim
from ipvsw.linux.devices.tap import LONG_HEADER, VNET_HEADER
from ipvsw.linux.fastports import FastDevice
from ipvsw.linux.namespaceref import NamespaceRef
from ipvsw.linux.netlink import Handle, Link
from ipvsw.linux.repair import Part
from ipvsw.linux.runtime import Follower, Runtime
from ipvsw.linux.tracked import Snapshot
from ipvsw.model import Device, Kind, PortConfig
from ipvsw.ports.addressing import Addressing


class MasterState(Struct):
    """What ports must know of their master; the switch keeps it up to date."""

    name: str
    present: bool = False
    mac: bytes = b""
    mtu: int = 0  # bytes, without the Ethernet header
    carrier: bool = False
    noarp: bool = False  # modes l3 and l3s
    open_place: Callable[[], int | None] = lambda: None  # an fd of its namespace, None if that is gone
    nsid: int | None = None  # of its namespace, as netlink's events have it


class Settings(Struct, frozen=True, gc=False):
    """What an endpoint should be like: by the configuration, and by what the master is like."""

    config: PortConfig
    mac: bytes
    mtu: int  # bytes, without the Ethernet header
    carrier: bool
    noarp: bool


class Holding(Struct, frozen=True):
    """An endpoint that outlives the daemon: what tells it from others, and the descriptors that keep it alive, by a
    word for each."""

    fds: dict[str, int]
    index: int = 0
    place: tuple[int, int] | None = None  # the identity of its namespace


class Left(Struct, frozen=True):
    """An endpoint as the last daemon had it when it ended."""

    kind: Kind
    settings: Settings
    holding: Holding


class PortEnvironment(Struct, frozen=True, eq=False):
    """What all ports of a switch share."""

    switch: str
    runtime: Runtime
    table: Table
    shim: Shim
    master: MasterState
    repaired: Counter[str]  # what others had changed and ports have put back, by `model.Subject`
    left: dict[str, Left] = {}  # by port; each is adopted, or undone, once
    lost: Callable[[str], None] = lambda port: None  # its namespace is gone, and it does not outlive it
    changed: Callable[[BackendPort, Backend], None] = lambda port, backend: None  # its endpoint has come, up or down
    is_filed: Callable[[str], bool] = lambda port: True  # whether the file has it; else it was added at run time


class BackendPort(Follower, Protocol):
    """What a backend may use of its port. It is the `Follower` of the device's events."""

    env: PortEnvironment
    config: PortConfig
    namespace: NamespaceRef
    link: Link | None  # the endpoint as last seen, None while the port is closed

    @property
    def stopping(self) -> bool:
        """Whether the port is being removed: what takes long needn't be finished."""

    def wake(self) -> None:
        """Have the next step done now, `poll` above all."""

    def endpoint_changed(self, link: Link) -> None:
        """The endpoint has come, left, or changed its attributes. Only while `link` is not None."""

    def hold(self) -> None:
        """`holding` has other descriptors than before."""

    def moved(self, ifname: str) -> None:
        """The endpoint has that name, in the namespace that `namespace` has, by another's doing."""


def held_name(switch: str, port: str, word: str) -> str:
    """The name under which a port's descriptor is held, see `FdStore`."""
    return f"port-{blake2b(f'{switch}/{port}'.encode(), digest_size=12).hexdigest()}-{word}"


class Gone(Exception):
    """What was to be opened does not exist any more."""


class Backend(ABC):
    """See the head of this file."""

    __slots__ = ("port", "problems")

    kind: ClassVar[Kind]  # as status shows it
    addressing: ClassVar[type[Addressing]]  # how the endpoint's addresses become known
    serves_vm: ClassVar[bool] = False  # the endpoint is a virtual machine
    offers_tap: ClassVar[bool] = False  # the descriptors for its VMM are a TAP's
    device: ClassVar[Device] = Device.TAP  # of a namespace's endpoint
    path = ""  # why no unicast is the kernel's to forward, where a user may expect it

    def __init__(self, port: BackendPort) -> None:
        self.port = port
        self.problems: tuple[str, ...] = ()  # what could not be done, though the port is open

    # ------------------------------------------------------------------------ what the data plane reads and writes

    @property
    @abstractmethod
    def fd(self) -> int:
        """The descriptor, -1 while there is none."""

    @property
    def extra_fds(self) -> tuple[int, ...]:
        """Those of the other queues of a device."""
        return ()

    @property
    def framing(self) -> str:
        """Of a backend whose descriptor is a socket, see `_fast.FRAMINGS`; it is attached without a descriptor."""
        return ""

    @property
    def offloads(self) -> tuple[str, ...]:
        """Those of "csum", "tso4", "tso6", "uso4", "uso6", "tunnel" that frames may come with."""
        return ()

    @property
    def accepts_uso(self) -> bool:
        """Whether the endpoint takes UDP GSO frames."""
        return False

    @property
    def long_header(self) -> bool:
        """Whether its frames have the virtio_net_hdr of 24 bytes."""
        return False

    @property
    def fast_device(self) -> FastDevice | None:
        """The devices by which the kernel may forward the endpoint's unicast. None: it can't."""
        return None

    def write(self, frame: bytes) -> None:
        """Send the endpoint a frame, the short virtio_net_hdr before it, unless it can't take one now."""
        if own := self.port.env.table.own_mac(self.port.config.name):
            frame = frame[:VNET_HEADER] + own + frame[VNET_HEADER + len(own) :]
        if self.long_header:
            frame = frame[:VNET_HEADER] + bytes(LONG_HEADER - VNET_HEADER) + frame[VNET_HEADER:]
        with contextlib.suppress(OSError):
            os.write(self.fd, frame)

    # ------------------------------------------------------------------------ life

    def prepare(self) -> None:
        """What must exist before there is a master. Idempotent. Errors: OSError."""

    @abstractmethod
    async def open(self, settings: Settings) -> Snapshot | None:
        """Make or find the endpoint and have the port follow its device. A snapshot of it, None if its namespace does
        not exist. Errors: OSError, Gone; `close` is called after them."""

    async def adopt(self, holding: Holding, settings: Settings) -> Snapshot | None:
        """As `open`, with an endpoint that the last daemon has left with `settings`. Takes the descriptors. Errors:
        OSError if it is not the one that the port is about; `close` is called after it, and undoes it."""
        raise NotImplementedError

    @property
    def holding(self) -> Holding | None:
        """What a successor needs to `adopt` the endpoint. None: it can't."""
        return None

    def inherit(self, word: str) -> int | None:
        """Take a descriptor of what the last daemon has left, before `adopt` has the others. None: there is none."""
        left = self.port.env.left.get(self.port.config.name)
        return None if left is None else left.holding.fds.pop(word, None)

    @abstractmethod
    async def update(self, settings: Settings, had: Settings) -> bool:
        """Change the endpoint from `had` to `settings`; whether it still exists. `problems` has what can't be done."""

    @abstractmethod
    async def read(self) -> Snapshot | None:
        """A new snapshot of the endpoint, None if it is gone. Errors: OSError."""

    def wrong(self, settings: Settings, snapshot: Snapshot) -> list[Part]:
        """What others have changed of what `settings` says of the endpoint, which is up."""
        return []

    def open_place(self) -> int | None:
        """An fd of the namespace that the endpoint is in, None if it is gone. From any thread."""
        return None

    def place_of(self, part: Part) -> Callable[[], int | None]:
        """What gives an fd of the namespace in which `mend` is to be called for a part."""
        return self.open_place

    def mend(self, handle: Handle, part: Part) -> None:
        """Put back one part that is wrong. Errors: OSError."""

    def poll(self) -> float | None:
        """Check for what no event announces, as that a VMM has connected. Seconds until the next time, None: it is
        called again after an event. Errors: OSError: it is reported as the port's failure, but the port stays open."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Nothing is left of the endpoint, nor of an attempt to open it. Idempotent."""

    # ------------------------------------------------------------------------ events

    def link_announced(self, link: Link) -> None:
        """Netlink has announced the device; the port has seen it already."""

    def has_moved(self) -> bool:
        """Its namespace's name has come, gone or changed: whether the port must be closed for that."""
        return False

    def hung_up(self) -> bool:
        """The datapath finds nothing at the other end of `fd`: whether the port must be closed for that."""
        return True

    def ended(self) -> None:
        """The endpoint is gone and the port is closed. If nothing else is done, it will be opened again."""

    # ------------------------------------------------------------------------ virtual machines

    @property
    def vmm_path(self) -> str | None:
        """The path by which the VMM connects; None: it is handed descriptors."""
        return None

    def is_taken(self, link: Link) -> bool:
        """Whether a VMM has the endpoint."""
        return False

    async def hand_over(self) -> list[int]:
        """Descriptors for a VMM, one for each queue; the caller closes them. Errors: OSError, EBUSY if another VMM has
        them."""
        raise NotImplementedError
