"""The keys of a port that say what it may own, send and receive. See `keys`."""

from __future__ import annotations

from ipvsw.config.keys import Change, Key
from ipvsw.config.limits import read_broadcast, read_packets, read_rate
from ipvsw.config.values import (
    ADDRESSES_MAX,
    GROUPS_MAX,
    integer,
    read_claim,
    read_guard,
)
from ipvsw.model import DEFAULT_BROADCAST, UNLIMITED, Guard, Kind

RULES = (
    Key(
        name="claim",
        read=read_claim,
        type=tuple[str, ...],
        default=None,
        default_text="`any`; `on-link` for a virtual machine",
        change=Change.IN_PLACE,
        operand="any|on-link|PREFIX",
        help="which addresses the port may own besides those in `addresses`",
        more="`any`: any, as with the kernel's driver. `on-link`: those in a prefix that the master has an address in;"
        " any, of an IP version of which it has none. Or a list of prefixes. Whatever it says, a port never owns one"
        " of the master's, one that a route of the host uses as its gateway, or one that the configuration gives to"
        " another port. What is refused is shown with its reason.",
        example='["192.0.2.0/26", "2001:db8:1::/64"]',
    ),
    Key(
        name="max_addresses",
        read=integer(0, ADDRESSES_MAX),
        type=int,
        default=None,
        default_text="any number",
        change=Change.IN_PLACE,
        operand="N",
        help="how many addresses the port may own at most",
        example="16",
    ),
    Key(
        name="guard",
        read=read_guard,
        type=tuple[Guard, ...],
        default=None,
        default_text="the switch's; else `strict` for a virtual machine, `off` for a namespace",
        change=Change.IN_PLACE,
        operand="strict|off|GUARD",
        help="what the port is kept from sending: `strict`, `off` or a list",
        more="`strict`: all of them. `off`: none, as with the kernel's driver. Or a list: `ip-source`, `arp` and `nd`:"
        " another's address or MAC address in IP, ARP or neighbour discovery. `ra`: router advertisements."
        " `dhcp-server`: a DHCP server's messages. `mac`: another source MAC address. `vlan`: VLAN tags. `gateway`: the"
        " address of one of the host's gateways. `host`: whatever reaches the host, unless `host_access` lets it.",
        example='"strict"',
    ),
    Key(
        name="rate",
        read=read_rate,
        default=UNLIMITED,
        change=Change.IN_PLACE,
        operand="RATE[/RATE]",
        help="bits a second that may pass, in each direction",
        more="A number with `kbit`, `mbit`, `gbit` or `tbit`, as in tc(8), or `off`. One for both directions, or what"
        " the port may send and, behind a slash, what it may receive. What is more is dropped; a port that was silent"
        " may have a burst of 20 ms.",
        example='"1gbit/500mbit"',
    ),
    Key(
        name="packets",
        read=read_packets,
        default=UNLIMITED,
        change=Change.IN_PLACE,
        operand="N[/N]",
        help="packets a second that may pass, in each direction",
        more="Written as `rate`, a number with `k` or `m`. A GSO frame counts as the packets that it becomes.",
        example='"200k"',
    ),
    Key(
        name="broadcast",
        read=read_broadcast,
        default=DEFAULT_BROADCAST,
        change=Change.IN_PLACE,
        operand="N",
        help="broadcast and multicast frames a second from the port",
        more="Each is copied to all ports that listen, which costs far more than another frame. `off`: any number. A"
        " port that was silent may have a burst of 2 s.",
        example='"500/s"',
    ),
    Key(
        name="max_groups",
        read=integer(1, GROUPS_MAX),
        type=int,
        default=None,
        default_text="any number",
        change=Change.IN_PLACE,
        kinds=(Kind.NETNS,),
        operand="N",
        help="how many multicast groups the namespace may listen to at most",
        more="Those by which its own addresses are found come first. With the key the namespace can't listen to all.",
        example="64",
    ),
)
