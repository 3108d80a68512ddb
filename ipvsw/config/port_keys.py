"""The keys of a port. See `keys`."""

from __future__ import annotations

from ipvsw.config.keys import Change, Key
from ipvsw.config.port_rules import RULES
from ipvsw.config.routes import METRIC_MAX, read_metric, read_routes
from ipvsw.config.values import (
    IFNAME_MAX,
    INDEX_MAX,
    LABEL_MAX,
    LEARNED_MAX,
    MTU_MAX,
    MTU_MIN,
    MTU_MIN_IPV6,
    QUEUES_MAX,
    choice,
    integer,
    read_addresses,
    read_allow,
    read_boolean,
    read_gateways,
    read_ifname,
    read_label,
    read_mac,
    read_name,
    read_persist,
    read_port_netns,
    read_socket,
    read_who,
)
from ipvsw.model import DEFAULT_LEARNED, Device, Kind, MacSource, Persist, Who

DEVICES = (Kind.NETNS, Kind.MACVTAP, Kind.TAP)
SOCKETS = (Kind.STREAM, Kind.DGRAM)
MACHINES = (Kind.MACVTAP, Kind.TAP, *SOCKETS)

BY_DESCRIPTOR = "by descriptor"

PORT = (
    Key(
        name="name",
        read=read_name,
        change=Change.ANEW,
        help="the port's name in the API and on the command line, unique in the switch",
        example='"web"',
    ),
    Key(
        name="ifname",
        read=read_ifname,
        default_text="the name",
        change=Change.ANEW,
        kinds=DEVICES,
        operand="IFNAME",
        help=f"name of the interface inside the namespace, at most {IFNAME_MAX} bytes",
        more="Unique in its namespace.",
        example='"eth0"',
    ),
    Key(
        name="netns",
        read=read_port_netns,
        default_text="the daemon's own",
        change=Change.ANEW,
        kinds=DEVICES,
        operand="NETNS",
        help="the namespace: a name under `/run/netns`, a path, `pid:N` or `follow`",
        more="A name or path need not exist yet: the port waits for it. A process must, also one that the path leads "
        "to: once it has ended, the port is gone, even if another process gets its number, until the configuration is "
        "read again or the port is added anew. `follow`: the interface is made in the daemon's own namespace, down and"
        " without addresses, for a runtime to take. The port goes with it wherever it is moved and however it is named,"
        " and gives it what the configuration says as soon as it is up there. When that namespace is gone, a port of"
        " the file is made anew, and another is removed. Without the key a macvtap is in a namespace of its own.",
        example='"/proc/4711/ns/net"',
    ),
    Key(
        name="kind",
        read=choice(Kind, but=Kind.LINK),
        type=Kind,
        default=Kind.NETNS,
        change=Change.ANEW,
        operand="KIND",
        help="`netns`; for a virtual machine `macvtap`, `tap`, `stream` or `dgram`",
        more="`netns`: an interface in a namespace. `macvtap`: the descriptor of a macvtap; a tap where the"
        " kernel has no macvtap. `tap`: a TAP that the VMM opens by name or gets by descriptor. `stream`,"
        " `dgram`: a unix socket, for QEMU's netdevs of these names.",
    ),
    Key(
        name="device",
        read=choice(Device),
        type=Device,
        default=None,
        default_text="the switch's",
        change=Change.ANEW,
        kinds=(Kind.NETNS,),
        operand="tap|veth|auto",
        help="what the interface is: `tap`, `veth` with a fast path in the kernel, `auto`",
        more="`tap`: the daemon forwards every frame. `veth`: BPF programs forward unicast between such ports, and"
        " between them and the wire, without the daemon; everything else is the daemon's as before. It goes with its"
        " namespace's name. With a `guard`, `rate`, `packets` or `mac = own` the daemon forwards all that the port"
        " sends and receives, and `ipvsw show` says so. `auto`: `veth`, or `tap` where the kernel has none; `ipvsw"
        " show` says which.",
        example='"veth"',
    ),
    Key(
        name="mac",
        read=read_mac,
        default=MacSource.MASTER,
        default_text="`master`; `own` for a virtual machine",
        change=Change.ANEW,
        operand="SOURCE|MAC",
        help="the MAC address that the endpoint uses: `master`, `own` or which one",
        more="`own`: one of its own, which the switch rewrites to the master's in frames from the endpoint and"
        " restores in frames to it, ARP and neighbour discovery included (MAC NAT): the wire and other ports see"
        " the master's only. `l2macnat` means the same. A MAC address, as `02:00:00:00:00:11`: the same with that one.",
    ),
    Key(
        name="addresses",
        read=read_addresses,
        type=tuple[str, ...],
        default=(),
        default_text="none: the namespace sets its own",
        change=Change.IN_PLACE,
        word="address",
        operand="A/LEN",
        help="IPv4 and IPv6 addresses with prefix length",
        more="Those of a virtual machine are set by its guest: the key says which it may own. No address may"
        " stand twice in a switch. Without a prefix length, /32 or /128 is meant.",
        example='["192.0.2.11/24"]',
    ),
    Key(
        name="gateway",
        read=read_gateways,
        type=tuple[str, ...],
        default=(),
        change=Change.IN_PLACE,
        kinds=(Kind.NETNS,),
        operand="A",
        help="default gateways, at most one for each family",
        more="Each needs an address of its family in `addresses`, but need not be in any of their networks.",
        example='["192.0.2.1"]',
    ),
    Key(
        name="metric",
        read=read_metric,
        type=int,
        default=None,
        default_text="the kernel's: 0, for IPv6 1024",
        change=Change.ANEW,
        kinds=(Kind.NETNS,),
        operand="N",
        help=f"metric of the default routes by `gateway`, 1 to {METRIC_MAX}",
        more="Of two default routes in one namespace the one with the lower metric is used.",
        example="100",
    ),
    Key(
        name="routes",
        read=read_routes,
        type=tuple[str, ...],
        default=(),
        change=Change.IN_PLACE,
        kinds=(Kind.NETNS,),
        word="route",
        operand="ROUTE",
        help="routes in the namespace: `DESTINATION [via GATEWAY] [metric N]`",
        more="By way of the port's interface. Without a gateway the destination is on the link. `default` is a"
        " destination too.",
        example='["198.51.100.0/24 via 192.0.2.1"]',
    ),
    Key(
        name="dhcp",
        read=read_boolean,
        type=bool,
        default=False,
        change=Change.ANEW,
        kinds=(Kind.NETNS,),
        operand="on|off",
        help="lease an IPv4 address for the namespace by DHCP, and renew it",
        more="The daemon is the client, with an identifier of the port's own; the namespace needs none. The lease's"
        " address is the port's besides those in `addresses`, its gateway and routes are set with the port's `metric`,"
        " and name servers are shown (`ipvsw lease --json`). Needs mode `l2`.",
        example="true",
    ),
    Key(
        name="mtu",
        read=integer(MTU_MIN, MTU_MAX),
        type=int,
        default=None,
        default_text="the master's",
        change=Change.IN_PLACE,
        operand="N",
        help=f"bytes without the Ethernet header, {MTU_MIN} to the master's",
        more=f"With IPv6 addresses at least {MTU_MIN_IPV6}.",
        example="1500",
    ),
    Key(
        name="index",
        read=integer(1, INDEX_MAX),
        type=int,
        default=None,
        default_text="the kernel's choice",
        change=Change.ANEW,
        kinds=(Kind.NETNS,),
        operand="N",
        help=f"index of the interface inside the namespace, 1 to {INDEX_MAX}",
        more="Needs `netns`, and a device that is a `tap`. One that is taken there is a failure of the port.",
        example="100",
    ),
    Key(
        name="queues",
        read=integer(1, QUEUES_MAX),
        type=int,
        default=1,
        change=Change.ANEW,
        kinds=DEVICES,
        operand="N",
        help=f"workers that read a namespace's device; a VM's descriptors; 1 to {QUEUES_MAX}",
        more="Of a namespace: at most `daemon.workers` of them read what it sends, each some of its flows. TCP"
        " is spread by addresses and ports, anything else by addresses, so that no flow is reordered. A"
        " device with several queues takes some 200 KB more of kernel memory. Of a virtual machine: how many"
        " descriptors it opens.",
    ),
    Key(
        name="owner",
        read=read_who,
        type=Who,
        default=None,
        default_text="root",
        change=Change.ANEW,
        kinds=(Kind.TAP, *SOCKETS),
        operand="USER",
        help="the user who may open the tap, or connect to `path` or `local`",
        more="By name or number.",
        example='"nobody"',
    ),
    Key(
        name="group",
        read=read_who,
        type=Who,
        default=None,
        change=Change.ANEW,
        kinds=(Kind.TAP, *SOCKETS),
        operand="GROUP",
        help="the group that may open the tap, or connect to `path` or `local`",
        example='"kvm"',
    ),
    Key(
        name="allow",
        read=read_allow,
        type=tuple[Who, ...],
        default=(),
        default_text="none",
        change=Change.IN_PLACE,
        kinds=MACHINES,
        operand="WHO",
        help="users and @groups who may get the descriptor",
        more="From `ipvsw-qemu-helper` or the API; written as in `daemon.allow`. Root and the daemon's own user"
        " always may.",
        example='["@kvm"]',
    ),
    Key(
        name="learn",
        read=read_boolean,
        type=bool,
        default=False,
        change=Change.IN_PLACE,
        kinds=MACHINES,
        operand="on|off",
        help="learn the guest's addresses from what it sends",
        more="Besides those in `addresses`: from its DHCP lease, its duplicate address detection, its ARP and"
        " neighbour discovery, and from its traffic. An address that another port or the master has is"
        " refused. One that the guest has not used for an hour is forgotten, a leased one when the lease"
        " ends.",
    ),
    Key(
        name="max_learned",
        read=integer(1, LEARNED_MAX),
        type=int,
        default=DEFAULT_LEARNED,
        change=Change.IN_PLACE,
        kinds=MACHINES,
        operand="N",
        help=f"with `learn`: how many addresses at most, 1 to {LEARNED_MAX}",
        more="When there are more, the one that was unused longest, and for a minute at least, makes room.",
    ),
    *RULES,
    Key(
        name="path",
        read=read_socket,
        default=None,
        default_text=BY_DESCRIPTOR,
        change=Change.ANEW,
        kinds=(Kind.STREAM,),
        operand="PATH",
        help="the unix socket that the daemon listens on",
        example='"/run/ipvsw/vm3.sock"',
    ),
    Key(
        name="connect",
        read=read_socket,
        default=None,
        default_text=BY_DESCRIPTOR,
        change=Change.ANEW,
        kinds=(Kind.STREAM,),
        operand="PATH",
        help="the unix socket that the VMM listens on; instead of `path`",
        more="The daemon connects again whenever it can.",
        example='"/run/vm3.sock"',
    ),
    Key(
        name="local",
        read=read_socket,
        default=None,
        default_text=BY_DESCRIPTOR,
        change=Change.ANEW,
        kinds=(Kind.DGRAM,),
        operand="PATH",
        help="the unix socket that the VMM sends to",
        more="Needs `remote` too.",
        example='"/run/ipvsw/vm4.sock"',
    ),
    Key(
        name="remote",
        read=read_socket,
        default=None,
        default_text=BY_DESCRIPTOR,
        change=Change.ANEW,
        kinds=(Kind.DGRAM,),
        operand="PATH",
        help="the unix socket that the VMM receives on",
        more="Needs `local` too.",
        example='"/run/vm4.sock"',
    ),
    Key(
        name="label",
        read=read_label,
        default="",
        default_text="none",
        change=Change.ANEW,
        operand="LABEL",
        help="what the program that manages the port calls it",
        more=f"Up to {LABEL_MAX} printable ASCII characters, in parts that colons separate: ports are listed and"
        " removed by the whole or by the first parts. The CNI plugin's are `cni:NETWORK:CONTAINER:IFNAME`.",
        example='"lab:group1:web"',
    ),
    Key(
        name="persist",
        read=read_persist,
        type=Persist,
        default=Persist.ALWAYS,
        change=Change.ANEW,
        operand="always|netns|never",
        help="how long a port stays that was added at run time",
        more="`always`, or `true`: until it is removed. It comes back when the daemon or the host is started again."
        " `netns`: the same, but it is removed as soon as its namespace is gone, as a container's should be. `never`,"
        " or `false`: until the daemon stops. One for a process (`pid:N`) never comes back for another process. See"
        " `daemon.state`. Of a port in the configuration file it says nothing.",
    ),
)

CHANGE = tuple(key for key in PORT if key.name == "mtu")
"""What the API and the command line change of a port."""
