"""The keys of the configuration: one record for each, with everything that the code and the documents state about it.

Reading a file, the plan of a reload, the body of the API, the words of `ipvsw link add` with their help and completion
follow these records. The tables of the documents, the manual pages and the example are generated from them
(`make docs`). `values` has the readers; what a value does is up to the code that uses the model.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

from msgspec import UNSET, Struct

from ipvsw import DEFAULT_SOCKET, DEFAULT_STATE
from ipvsw.config.multicast import GROUPS_MAX, read_groups
from ipvsw.config.values import (
    BUSY_POLL_MAX,
    SOCKET_PATH_MAX,
    WORKERS_MAX,
    Reader,
    choice,
    integer,
    read_allow,
    read_boolean,
    read_endpoint,
    read_file,
    read_guard,
    read_master,
    read_name,
    read_netns,
    read_socket,
)
from ipvsw.model import Device, Export, Flag, Guard, HostAccess, Io, Kind, L3Output, Mode, Who

KINDS = tuple(kind for kind in Kind if kind is not Kind.LINK)
"""Of ports that a configuration can have."""


class Change(enum.Enum):
    """What a reload does when a key has another value."""

    IN_PLACE = "in place"
    ANEW = "made anew"  # the port or the switch is removed and added again
    RESTART = "needs a restart"  # of the daemon


class Key(Struct, frozen=True, kw_only=True):
    """One key. `help` is one line for every place where there is little room (at most 76 characters), `more` what the
    documents add; both are Markdown with `code` alone."""

    name: str
    read: Reader
    type: Any = str  # in the API's JSON
    default: Any = UNSET  # the model's; without one the key is required or follows from others
    default_text: str = ""  # for people, where the value alone is not enough
    change: Change
    kinds: tuple[Kind, ...] = KINDS  # of a port: those it is for
    word: str = ""  # in `ipvsw link add`; the name, if there is none
    operand: str = "NAME"  # what follows the word there, in help
    help: str
    more: str = ""
    example: str = ""  # TOML, for contrib/ipvsw.toml; the default if there is none

    @property
    def is_list(self) -> bool:
        """Whether it may stand several times on a command line."""
        return getattr(self.type, "__origin__", None) is tuple

    @property
    def required(self) -> bool:
        return self.default is UNSET and not self.default_text

    @property
    def default_words(self) -> str:
        return self.default_text or self.write(self.default)

    def write(self, value: Any) -> str:
        """A value in words, as the plan and help print it."""
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, tuple) and value:
            return ", ".join(map(str, value))
        return self.default_text or "none" if value in (None, "", (), UNSET) else str(value)


def readers(keys: Iterable[Key]) -> dict[str, Reader]:
    """For `values.read_table`."""
    return {key.name: key.read for key in keys}


DAEMON = (
    Key(
        name="socket",
        read=read_socket,
        default=DEFAULT_SOCKET,
        change=Change.RESTART,
        help=f"path of the API's unix socket, at most {SOCKET_PATH_MAX} bytes",
    ),
    Key(
        name="users_socket",
        read=read_socket,
        default=None,
        default_text="none",
        change=Change.RESTART,
        operand="PATH",
        help="unix socket for users who attach network namespaces of their own",
        more="Not below `/run`, of which a rootless Podman sees nothing. `users` of a switch says who may.",
        example='"/var/lib/ipvsw/users.sock"',
    ),
    Key(
        name="state",
        read=read_file,
        default=None,
        default_text=f"`{DEFAULT_STATE}` with the default socket; none with another",
        change=Change.RESTART,
        operand="PATH",
        help="file that keeps what the command line and the API have changed",
        more="Ports that were added, and modes, flags and MTUs that were set at run time: they come back when the"
        " daemon or the host is started again. It is replaced as a whole, and exists only while there is something to"
        " keep."
        " Without it they end with an orderly stop of the daemon.",
        example=f'"{DEFAULT_STATE}"',
    ),
    Key(
        name="workers",
        read=integer(1, WORKERS_MAX),
        type=int,
        default=1,
        change=Change.RESTART,
        help=f"data-plane threads of each switch, 1 to {WORKERS_MAX}",
        more="Ports are spread over them, frames from the wire by flow; see `queues`.",
    ),
    Key(
        name="io",
        read=choice(Io),
        type=Io,
        default=Io.AUTO,
        change=Change.RESTART,
        help="how ports are read and written: `auto`, `epoll` or `uring`",
        more="`uring`: through an io_uring, which takes about a fifth less CPU for each frame and needs Linux 6.7."
        " `epoll`: with a system call for each frame. `auto`: `uring` where the kernel grants it, which the sysctl"
        " `kernel.io_uring_disabled` or a system call filter may prevent; it is decided when a switch starts and"
        " `ipvsw show` prints it.",
    ),
    Key(
        name="busy_poll",
        read=integer(0, BUSY_POLL_MAX),
        type=int,
        default=50,
        change=Change.RESTART,
        help=f"microseconds that an idle worker may poll before it sleeps, 0 to {BUSY_POLL_MAX}",
        more="Polling is adaptive: a worker polls only while that pays, as between a request and its answer, and yields"
        " the CPU to other processes. An idle daemon sleeps. 0: never poll.",
    ),
    Key(
        name="coalesce",
        read=read_boolean,
        type=bool,
        default=True,
        change=Change.RESTART,
        help="merge UDP datagrams of one flow that arrive together from the wire",
        more="They reach a namespace as one GSO frame. Its kernel splits the frame again for applications, or hands it"
        " over whole to those that set `UDP_GRO`: about twice the datagrams per second. `false`: each datagram is"
        " delivered as it arrived.",
    ),
    Key(
        name="allow",
        read=read_allow,
        type=tuple[Who, ...],
        default=(),
        default_text="none",
        change=Change.RESTART,
        help="who may get the descriptor of any virtual machine's port",
        more='Users (`"alice"`, 1000) and groups (`"@kvm"`), by name or number. Root and the daemon\'s own user always'
        " may.",
    ),
    Key(
        name="metrics",
        read=read_endpoint,
        default=None,
        default_text="the API's socket alone",
        change=Change.RESTART,
        help="a loopback address and a port where `/metrics` is served too",
        more="For Prometheus, by HTTP without TLS and to everybody on this machine.",
        example='"127.0.0.1:9417"',
    ),
)

SWITCH = (
    Key(
        name="name",
        read=read_name,
        default_text="the master's name",
        change=Change.ANEW,
        help="the switch's name in the API and on the command line, unique",
        example='"lan"',
    ),
    Key(
        name="master",
        read=read_master,
        change=Change.ANEW,
        word="link",
        operand="MASTER",
        help="the network device that all ports of the switch share",
        more="It must be an Ethernet device and no part of a bridge or a bond. It must exist when its namespace does,"
        " unless another switch of the file can be served: then this one waits for it, and the others start. If it"
        " goes later, the ports wait for it.",
        example='"eth0"',
    ),
    Key(
        name="netns",
        read=read_netns,
        default="",
        default_text="the daemon's own",
        change=Change.ANEW,
        help="the network namespace of the master",
        more="Written as that of a port.",
        example='"host1"',
    ),
    Key(
        name="mode",
        read=choice(Mode),
        type=Mode,
        default=Mode.L2,
        change=Change.IN_PLACE,
        word="mode",
        operand="MODE",
        help="how frames are switched: `l2`, `l3` or `l3s`",
        more="`l2`: ports exchange frames with each other and with the wire. `l3`: packets alone, and the host's routes"
        " say where those for the outside go. `l3s`: as `l3`, through the host's netfilter.",
    ),
    Key(
        name="flag",
        read=choice(Flag),
        type=Flag,
        default=Flag.BRIDGE,
        change=Change.IN_PLACE,
        word="FLAG",
        operand="",
        help="whether ports reach each other: `bridge`, `private` or `vepa`",
        more="`bridge`: they do. `private`: they do not. `vepa`: what they send each other leaves by the master, for an"
        " external switch to send it back.",
    ),
    Key(
        name="l3_output",
        read=choice(L3Output),
        type=L3Output,
        default=L3Output.FAST,
        change=Change.IN_PLACE,
        help="how packets leave for the outside in mode `l3`: `fast` or `host`",
        more="`fast`: as the host's routes and neighbours say, past its netfilter. `host`: through the host's IP"
        " output, so that its OUTPUT and POSTROUTING chains see each packet, as with the kernel's driver; slower."
        " `l3s` always does the latter.",
    ),
    Key(
        name="host_access",
        read=choice(HostAccess),
        type=HostAccess,
        default=HostAccess.NONE,
        change=Change.IN_PLACE,
        help="who may initiate: `none`, `to-host`, `from-host` or `both`",
        more="It is about flows between the host and the ports. `to-host`: ports may initiate them. `from-host`: the"
        " host may. The other side may always answer.",
    ),
    Key(
        name="multicast",
        read=read_groups,
        type=tuple[str, ...],
        default=(),
        change=Change.IN_PLACE,
        help="groups that pass between ports, wire and host in `l3` and `l3s`",
        more=f"Addresses of at most {GROUPS_MAX} groups. Their packets are switched as in `l2`, to the ports that"
        " listen to the group; those for all others end at the switch. mDNS has 224.0.0.251 and ff02::fb, SSDP"
        " 239.255.255.250 and ff02::c.",
        example='["224.0.0.251", "ff02::fb"]',
    ),
    Key(
        name="export",
        read=choice(Export),
        type=Export,
        default=Export.NONE,
        change=Change.IN_PLACE,
        help="what routing daemons see of the ports' addresses: `none` or `routes`",
        more="In the modes `l3` and `l3s`. `routes`: each address that a port owns, and each prefix of its `claim` in"
        " which it owns one, is a route by the master in table 118 under protocol 118, from where FRR, BIRD or GoBGP"
        " announces it. The host itself does not look there.",
        example='"routes"',
    ),
    Key(
        name="guard",
        read=read_guard,
        type=tuple[Guard, ...],
        default=None,
        default_text="by the port's kind",
        change=Change.IN_PLACE,
        help="`guard` of ports that have none of their own",
        more="Written as that of a port.",
        example='"strict"',
    ),
    Key(
        name="device",
        read=choice(Device),
        type=Device,
        default=Device.TAP,
        change=Change.IN_PLACE,
        help="`device` of namespaces' ports that have none of their own",
        more="When it changes, those ports are made anew.",
        example='"auto"',
    ),
    Key(
        name="users",
        read=read_allow,
        type=tuple[Who, ...],
        default=(),
        default_text="none",
        change=Change.IN_PLACE,
        help="users and @groups who may attach network namespaces of their own",
        more="By `daemon.users_socket`; written as in `daemon.allow`. Such a port has all guards and no other address"
        " than those that it was added with.",
        example='["@podman"]',
    ),
)
MODE = tuple(key for key in SWITCH if key.name in ("mode", "flag"))
"""What the API and the command line change of a switch."""
