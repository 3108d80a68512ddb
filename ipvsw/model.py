"""The configuration of the daemon: frozen, typed structures and nothing else. `status` has those of what it tells.

`config.file` reads it from TOML and `config.plan` compares it. `config.keys` has the records of its keys.
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal

from msgspec import Struct

from ipvsw import DEFAULT_SOCKET

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

FOLLOW = "follow"
"""In the place of a namespace: the port goes with its device, wherever others move it."""

DEFAULT_LEARNED = 16
"""Addresses: a guest with IPv4, a link-local address and a week of temporary ones (RFC 8981) needs some ten."""


class Mode(enum.StrEnum):
    """How frames are switched; the kernel's IFLA_IPVLAN_MODE. Belongs to the whole switch."""

    L2 = "l2"
    L3 = "l3"
    L3S = "l3s"


class Flag(enum.StrEnum):
    """Whether ports may talk to each other; the kernel's IFLA_IPVLAN_FLAGS. Belongs to the whole switch."""

    BRIDGE = "bridge"
    PRIVATE = "private"
    VEPA = "vepa"


class L3Output(enum.StrEnum):
    """How l3 packets leave for the outside."""

    FAST = "fast"  # as the host's routes and neighbours say, past its netfilter
    HOST = "host"  # through the host's IP output, OUTPUT and POSTROUTING, as with the kernel's driver


class HostAccess(enum.StrEnum):
    """Which side may initiate flows between the host and the ports. The other side may always answer."""

    NONE = "none"  # as with the kernel's driver: nothing that the host sends reaches a port
    TO_HOST = "to-host"
    FROM_HOST = "from-host"
    BOTH = "both"


class Export(enum.StrEnum):
    """What of its ports' addresses a switch tells routing daemons."""

    NONE = "none"
    ROUTES = "routes"  # each is a route in a table of the kernel's that nothing but they reads


class Io(enum.StrEnum):
    """How the data plane reads and writes its ports."""

    AUTO = "auto"  # uring where the kernel grants it
    EPOLL = "epoll"
    URING = "uring"


class Kind(enum.StrEnum):
    """What is at a port's other end."""

    NETNS = "netns"  # a namespace's own stack, by a TAP inside it
    MACVTAP = "macvtap"  # a virtual machine, by the character device of a macvtap on a TAP of the daemon's
    TAP = "tap"  # a virtual machine, by a TAP that it opens by name or descriptor
    STREAM = "stream"  # a virtual machine, by a unix socket: each frame behind its length
    DGRAM = "dgram"  # a virtual machine, by unix sockets: each datagram a frame
    LINK = "link"  # as netns, by a device that `ip link add ... type ipvsw` has made


class Device(enum.StrEnum):
    """What a namespace's port is in it."""

    TAP = "tap"  # the daemon forwards every frame
    VETH = "veth"  # one end of a veth: known unicast is forwarded by BPF programs, everything else by the daemon
    AUTO = "auto"  # a veth where the kernel has them


class MacSource(enum.StrEnum):
    """Which MAC address a port's endpoint uses. The wire sees the master's alone."""

    MASTER = "master"  # the master's, as with the kernel's driver
    OWN = "own"  # one of its own (MAC NAT): rewritten to the master's in what it sends, restored in what it gets


class Guard(enum.StrEnum):
    """What a port is kept from sending; `_fast.GUARDS` has the same names in the same order."""

    IP_SOURCE = "ip-source"
    ARP = "arp"
    ND = "nd"
    RA = "ra"
    DHCP_SERVER = "dhcp-server"
    MAC = "mac"
    VLAN = "vlan"
    GATEWAY = "gateway"
    HOST = "host"


class Persist(enum.StrEnum):
    """How long a port stays that the command line or the API has added."""

    ALWAYS = "always"  # until it is removed: it comes back after a restart of the daemon or the host
    NETNS = "netns"  # the same, but no longer than its namespace
    NEVER = "never"  # until the daemon stops


class Route(Struct, frozen=True, kw_only=True):
    """A route by way of a port's device, written as ip-route(8) writes it."""

    destination: Network
    gateway: Address | None = None  # None: the destination is on the link
    metric: int | None = None

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{self.destination}{via}" + ("" if self.metric is None else f" metric {self.metric}")


class Limit(Struct, frozen=True, kw_only=True):
    """How much may pass in a second, 0 for any amount; `text` says it as the configuration does."""

    text: str
    rx: int = 0  # from the port
    tx: int = 0  # to it

    def __str__(self) -> str:
        return self.text


UNLIMITED = Limit(text="off")
DEFAULT_BROADCAST = Limit(text="500/s", rx=500)

Who = str | int
"""An entry of an allow list: a user by name or number, or "@group"."""


# ---------------------------------------------------------------------------- configuration


_USER = "user:"


def label_of_user(uid: int) -> str:
    """What the labels begin with of ports that this user has added, who is not root."""
    return f"{_USER}{uid}"


class PortConfig(Struct, frozen=True, kw_only=True):
    """One endpoint: a device named `ifname` inside the namespace `netns`."""

    name: str
    ifname: str
    netns: str  # a name under /run/netns, a path, "pid:1234", FOLLOW, or "" for the daemon's own
    kind: Kind = Kind.NETNS
    device: Device | None = None  # of a namespace; None: the switch's, see `plan.device_of`
    mac: MacSource | str = MacSource.MASTER  # or this one, as OWN; `config` makes OWN the default for virtual machines
    addresses: tuple[Interface, ...] = ()
    gateway: tuple[Address, ...] = ()
    metric: int | None = None  # of the default routes; None: the kernel's default
    routes: tuple[Route, ...] = ()
    dhcp: bool = False  # of a namespace: the daemon leases an IPv4 address for it
    mtu: int | None = None  # bytes without the Ethernet header; None: the master's
    index: int | None = None  # of a namespace's device; None: the kernel's choice
    queues: int = 1  # of a namespace: workers that read it, if there are as many; of a VM: descriptors that it opens
    owner: Who | None = None  # user who may open a tap by name, or connect to a socket's path, besides root
    group: Who | None = None
    path: str | None = None  # kind stream: where the daemon listens
    connect: str | None = None  # kind stream: where the VMM does
    local: str | None = None  # kind dgram: where the VMM sends to,
    remote: str | None = None  # and where it is sent to
    allow: tuple[Who, ...] = ()  # of a virtual machine: users who may get its descriptor, besides root
    learn: bool = False  # of a virtual machine: its addresses are learned from what it sends
    max_learned: int = DEFAULT_LEARNED
    claim: tuple[Network, ...] | Literal["any", "on-link"] | None = None  # None: by the kind, see `claim_rule`
    max_addresses: int | None = None  # that it may claim; None: any number
    guard: tuple[Guard, ...] | None = None  # None: the switch's, see `guards_of`
    rate: Limit = UNLIMITED  # bits a second
    packets: Limit = UNLIMITED  # a second
    broadcast: Limit = DEFAULT_BROADCAST  # multicast frames a second from the port
    max_groups: int | None = None  # multicast groups that a namespace listens to
    label: str = ""  # what the one who added the port calls it
    persist: Persist = Persist.ALWAYS  # of a port that was added at run time

    @property
    def is_users(self) -> bool:
        """Whether one who is not root has added it, and chosen its addresses."""
        return self.label.startswith(_USER)


class SwitchConfig(Struct, frozen=True, kw_only=True):
    """One master and the ports that share it."""

    name: str
    master: str
    netns: str = ""  # where the master lives; "" for the daemon's own namespace
    mode: Mode = Mode.L2
    flag: Flag = Flag.BRIDGE
    l3_output: L3Output = L3Output.FAST
    host_access: HostAccess = HostAccess.NONE
    multicast: tuple[Address, ...] = ()  # groups that are switched in l3 and l3s; in l2 all are
    export: Export = Export.NONE  # modes l3 and l3s
    guard: tuple[Guard, ...] | None = None  # of its ports that have none of their own; None: by their kind
    device: Device = Device.TAP  # of its ports that have none of their own
    users: tuple[Who, ...] = ()  # who may attach namespaces of their own, besides root
    ports: tuple[PortConfig, ...] = ()


class DaemonConfig(Struct, frozen=True, kw_only=True):
    """The process as a whole."""

    socket: str = DEFAULT_SOCKET
    users_socket: str | None = None  # for users who attach namespaces of their own
    state: str | None = None  # where ports that were added at run time are kept; None: see `daemon.main`
    workers: int = 1  # data-plane threads of each switch
    io: Io = Io.AUTO
    busy_poll: int = 50  # us that an idle worker may poll before it sleeps
    coalesce: bool = True  # UDP datagrams of one flow that arrive together
    allow: tuple[Who, ...] = ()  # users who may get the descriptor of any virtual machine's port, besides root
    metrics: str | None = None  # ADDRESS:PORT where they are served besides the API's socket


class Config(Struct, frozen=True, kw_only=True):
    """A whole configuration file, validated."""

    daemon: DaemonConfig = DaemonConfig()
    switches: tuple[SwitchConfig, ...] = ()


# ---------------------------------------------------------------------------- refusals


class Refused(Exception):
    """The daemon refuses: one line that names the place, and nothing was changed."""


class NotFound(Refused):
    """There is no such switch or port."""


class Forbidden(Refused):
    """Not for this user."""
