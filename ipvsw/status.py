"""The status of the daemon: frozen, typed structures and nothing else. The API serves it as JSON, field for field, and
the command line tool prints it."""

from __future__ import annotations

import enum
from typing import Literal

from msgspec import Struct

from ipvsw.model import Device, Export, Flag, Guard, HostAccess, Io, Kind, L3Output, MacSource, Mode


class AddressState(enum.StrEnum):
    """The state of an address that a port claims."""

    OWNED = "owned"  # in the table: frames for it go to the port
    DOWN = "down"  # held, but its port is down: frames for it go to the host
    DUPLICATE = "duplicate"  # another port of the switch has it
    MASTER = "master"  # the master has it itself
    TENTATIVE = "tentative"  # the machine has asked whether it is free, and does not have it yet (RFC 5227, RFC 4862)
    REFUSED = "refused"  # the port may not have it; the reason says why


class AddressSource(enum.StrEnum):
    """How the switch learned an address."""

    CONFIG = "config"  # the configuration asked for it
    NETLINK = "netlink"  # found in the port's namespace
    DHCP = "dhcp"  # a server has leased it to the port's virtual machine
    DAD = "dad"  # the machine's duplicate address detection found no other owner
    ARP = "arp"  # the machine sends ARP with it
    ND = "nd"  # the same for IPv6, neighbour discovery
    TRAFFIC = "traffic"  # the machine sends from it


class AddressStatus(Struct, frozen=True, kw_only=True):
    switch: str
    port: str
    address: str  # without a prefix length
    state: AddressState
    source: AddressSource
    reason: str = ""  # why it is refused


class LeaseStatus(Struct, frozen=True, kw_only=True):
    """An address that a DHCP server has leased to a port's client."""

    switch: str
    port: str
    address: str
    state: AddressState | None  # what became of the address; None: the port doesn't have it
    client_id: str = ""  # as it was sent, or for IPv6 the DUID: bytes in hexadecimal
    mac: str = ""  # of the client, as it states it; not in DHCPv6
    hostname: str = ""  # of the client, as it states it
    server: str = ""  # its address, for IPv6 its DUID
    remaining: int | None  # seconds of a clock that stands still while the machine sleeps; None: for ever
    ends: float | None = None  # seconds since the epoch, by the wall clock as it was when it was granted; None: unknown
    # Of a port with `dhcp`, whose client the daemon is, when its namespace has all of it:
    prefix: int | None = None  # length
    gateway: str = ""
    routes: tuple[str, ...] = ()  # as ip-route(8) writes them
    dns: tuple[str, ...] = ()
    domain: str = ""


class Subject(enum.StrEnum):
    """What the daemon sets in the kernel, and puts back when others change it."""

    FILTERS = "filters"
    HOST_ENDS = "host_ends"
    HOST_DEVICE = "host_device"
    RULES = "rules"
    ROUTES = "routes"
    EXPORTS = "exports"
    SYSCTLS = "sysctls"
    GROUPS = "groups"
    MAC = "mac"
    MTU = "mtu"
    ADDR_GEN_MODE = "addr_gen_mode"
    ADDRESSES = "addresses"
    GATEWAYS = "gateways"


class PortState(enum.StrEnum):
    WAITING = "waiting"  # for its namespace, for the master, or for a virtual machine
    UP = "up"
    DOWN = "down"  # set down inside its namespace
    DEGRADED = "degraded"  # it forwards, but something is not as it should be: `reason` says what
    FAILED = "failed"  # `reason` says why


NO_VETH = "slow (the kernel has no veth)"  # as a port's `path`


class PortStatus(Struct, frozen=True, kw_only=True):
    name: str
    ifname: str
    netns: str
    device: Device = Device.TAP  # of a namespace's
    path: str = ""  # of a veth: "fast", or "slow" and why: who forwards its unicast
    kind: Kind = Kind.NETNS  # as it is: where the kernel has no macvtap, such a port is a tap
    state: PortState
    reason: str = ""
    index: int = 0  # the interface index inside the namespace, 0 while there is none
    mac: str = ""  # of the endpoint; with `mac_source` master, what a virtual machine must use
    mac_source: MacSource = MacSource.MASTER
    mtu: int = 0
    carrier: bool = False
    offloads: tuple[str, ...] = ()  # of "csum", "tso4", "tso6", "uso4", "uso6", "tunnel"
    addresses: tuple[AddressStatus, ...] = ()
    guards: tuple[Guard, ...] = ()  # that are on
    limits: dict[str, str | int] = {}  # by key, as configured, where they are not the default
    label: str = ""


class Event(enum.StrEnum):
    """What has happened, as `ipvsw watch` and the log's field EVENT name it."""

    STATE = "state"  # a port or a master is up, down, waiting or failed
    CHANGE = "change"  # of the configuration, by a reload or the API
    BOUND = "bound"  # an address is a port's from now on
    UNBOUND = "unbound"  # it is nobody's any more
    LEARNED = "learned"  # a virtual machine has an address
    FORGOTTEN = "forgotten"  # its lease has ended, or it is not used any more
    DUPLICATE = "duplicate"  # a port was refused an address that another or the master has
    REFUSED = "refused"  # or that it may not have
    GUARD = "guard"  # a guard has dropped a port's frames
    REPAIRED = "repaired"  # something that others had removed or changed was put back
    LOST = "lost"  # events that this reader was too slow for


class EventStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event; what it is not about is left out."""

    time: float  # seconds since the epoch
    event: Event
    text: str  # one line
    switch: str = ""
    port: str = ""
    master: str = ""
    address: str = ""
    reason: str = ""


class TraceAsked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frame to trace: `frame`, or one that is made of the other words. What is left out is taken from the port."""

    at: str  # where it comes from: PORT, SWITCH/PORT, a master's name, "master", "host", SWITCH/master, SWITCH/host
    frame: str = ""  # its bytes in hexadecimal, from the Ethernet header on
    header: str = ""  # of such a frame, its virtio_net_hdr in hexadecimal; "": one that asks for nothing
    kind: Literal["", "icmp", "tcp", "udp", "arp", "ns", "dhcp"] = ""  # "": icmp
    source: str = ""  # addresses
    destination: str = ""
    source_port: int = 0
    destination_port: int = 0
    source_mac: str = ""
    destination_mac: str = ""


class TraceStep(Struct, frozen=True, kw_only=True):
    """One stage that the frame passes."""

    stage: str
    text: str  # one line
    outcome: str = ""  # of `Traffic.outcomes`, or "to_route"; "": the frame goes on


class TraceReceiver(Struct, frozen=True, kw_only=True):
    """Who gets the frame, and as which bytes."""

    to: str  # SWITCH/PORT, "wire", "host", or "stack" for the host's IP output
    frame: str  # in hexadecimal


class TraceStatus(Struct, frozen=True, kw_only=True):
    """What would become of a frame."""

    switch: str
    at: str  # PORT, "master" or "host"
    frame: str  # in hexadecimal
    outcome: str  # of `Traffic.outcomes`
    delivered: bool  # whether anybody gets it
    reason: str  # one line: why it ends so
    steps: tuple[TraceStep, ...]
    receivers: tuple[TraceReceiver, ...]


class CaptureAsked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A capture: a switch's name for all its interfaces, or an interface as `TraceAsked.at` names it."""

    at: str = ""  # "": the only switch


class CaptureStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a reader of captured frames must know. "rings": the descriptor that comes with the answer has the switch's
    rings, each of `size` bytes behind `head` bytes, one for each worker. "interface": records
    with that tag are of this interface."""

    event: Literal["rings", "interface"]
    name: str  # of the switch; of an interface: SWITCH/PORT, SWITCH/host, or the master's name
    head: int = 0
    size: int = 0
    outcomes: dict[str, str] = {}  # how a frame can end, in the order of their numbers: names and reasons
    tag: int = 0
    captured: bool = False  # whether it is one that was asked for


class HandedOver(Struct, frozen=True, kw_only=True):
    """What goes with a port's descriptors: what their virtual machine must know."""

    port: str  # SWITCH/PORT
    kind: Kind  # of stream and dgram the descriptor is a socket's, of others a TAP's
    mac: str
    mtu: int
    queues: int  # as many descriptors


class SwitchStatus(Struct, frozen=True, kw_only=True):
    name: str
    master: str
    netns: str
    mode: Mode
    flag: Flag
    l3_output: L3Output = L3Output.FAST
    host_access: HostAccess = HostAccess.NONE
    multicast: tuple[str, ...] = ()  # groups that are switched in l3 and l3s
    export: Export = Export.NONE
    exported: int = 0  # routes that routing daemons see
    guard: tuple[Guard, ...] | None = None  # as configured: of ports that have none of their own; None: by their kind
    state: PortState  # of the master: waiting until the device exists
    reason: str = ""
    index: int = 0
    mac: str = ""
    mtu: int = 0
    carrier: bool = False
    workers: int = 1
    io: Io = Io.EPOLL  # what is in use, never "auto"
    ports: tuple[PortStatus, ...] = ()


class Traffic(Struct, frozen=True, kw_only=True):
    """Counters of one interface since it was opened, as the switch sees it: rx is what it read.

    `outcomes` has one entry for each way a frame that was read here can end (see `_fast.OUTCOMES`);
    every frame is counted in exactly one, so `rx_frames == sum(outcomes.values())`.
    """

    rx_frames: int = 0
    rx_bytes: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0
    tx_errors: int = 0
    kernel_frames: int = 0  # of rx_frames: what the kernel forwarded, and the daemon never saw
    offload_fixed: int = 0  # GSO frames and checksums that no virtio_net_hdr can describe: segmented, completed
    outcomes: dict[str, int] = {}


class WorkerLoad(Struct, frozen=True):
    """What one worker has done, and what waits for it or for the daemon at this moment, in frames."""

    cpu: float  # seconds, of all its time
    flood: int  # multicast frames to be copied
    router: int  # packets for which the daemon asks the host's routes
    snooper: int  # frames at which the daemon looks first


class SwitchStats(Struct, frozen=True, kw_only=True):
    name: str
    master: Traffic
    host: Traffic = Traffic()  # what the host's stack sent to ports through its own interface
    ports: dict[str, Traffic] = {}
    duplicates: int = 0  # addresses refused because another port or the master has them
    refused: int = 0  # because the port may not claim them
    repaired: dict[str, int] = {}  # what others had changed and was put back, by `Subject`
    learned: dict[str, int] = {}  # outcomes of address learning
    routed: dict[str, int] = {}  # l3: how the frames ended that the data plane handed to the router (`to_slowpath`)
    workers: tuple[WorkerLoad, ...] = ()  # since the daemon has started


class States(Struct, frozen=True, kw_only=True):
    """Of a switch, for metrics: its master's, its ports', and how many addresses are in its table."""

    master: PortState
    ports: dict[str, PortState]
    addresses: int
