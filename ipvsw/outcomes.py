"""How a frame that was read can end: one line for each outcome, each with one counter.

From this record `make docs` writes the enumeration of the hot loop (datapath/rules/outcome.pxd) and the table of
docs/reference/counters.md: a new outcome is an entry here, and the place that decides it.
"""

from __future__ import annotations

from typing import NamedTuple


def is_drop(name: str) -> bool:
    """Whether nobody gets a frame with this outcome, which another version may have added."""
    return name.startswith(("drop_", "guard_", "limit_"))


class Outcome(NamedTuple):
    name: str
    frame: str  # the frame that ends so: what comes after "the frame ..."
    reason: str  # why one frame did, and what to do about it, as a person would say it


_IN_ORDER = (
    Outcome(
        "to_port",
        "was delivered to the port that owns its destination address",
        "the port that owns the destination address gets it",
    ),
    Outcome(
        "to_ports",
        "is a multicast frame, and was queued for every port that listens to its group; from a port, also for the wire",
        "every port that listens to the group gets a copy",
    ),
    Outcome(
        "to_master",
        "left on the wire",
        "it leaves on the wire",
    ),
    Outcome(
        "to_host",
        "is from a port, for the master's own MAC address: the host received it on the master",
        "the host's stack receives it",
    ),
    Outcome(
        "left_to_host",
        "is from the wire and for none of the ports: the host's stack has it anyway",
        "it is not for a port: the host's own stack has it",
    ),
    Outcome(
        "drop_runt",
        "is shorter than an Ethernet header; or has a VLAN tag and is from a port of kind `tap`, where tags "
        "can't be read",
        "it is shorter than an Ethernet header",
    ),
    Outcome(
        "drop_pause",
        "is a MAC PAUSE frame from a port",
        "MAC PAUSE frames are not forwarded",
    ),
    Outcome(
        "drop_private",
        "is for another port, and the flag is `private`",
        "flag private: ports do not reach each other; `ipvsw link set SWITCH type ipvlan bridge` allows it",
    ),
    Outcome(
        "drop_port_down",
        "is for a port that is down",
        "the port that it is for is down",
    ),
    Outcome(
        "drop_too_big",
        "is longer than the MTU of the port it is for",
        "it is longer than the MTU of the port that it is for",
    ),
    Outcome(
        "drop_backlog",
        "is a multicast frame, or one of `to_slowpath`, and too many of that interface wait "
        "([bounds](../security.md#bounds))",
        "too many frames of this interface wait already",
    ),
    Outcome(
        "drop_no_master",
        "is for the wire, and there is no master or it is down",
        "there is no master to send on, or it is down",
    ),
    Outcome(
        "drop_full",
        "is for a device or a socket whose queue is full",
        "the receiver's queue is full",
    ),
    Outcome(
        "drop_bad_header",
        "has an offload header that contradicts its bytes; or is a GSO frame in an encapsulation that the "
        "switch can't segment (it can: VXLAN, GENEVE, FOU, GUE, GRE without sequence numbers, IPIP, IPv6 in "
        "IP); or has on a stream socket a length that no frame can have; or is from a port with guards, and its "
        "checksum would be written over an address, a port or whatever else they look at",
        "its offload header contradicts its bytes",
    ),
    Outcome(
        "drop_error",
        "was refused by the device, for example because it is longer than the wire's MTU",
        "the device that it is for can't take it",
    ),
    Outcome(
        "to_stack",
        "`l3`, `l3s`: went to the host's IP output, as if a process there had sent it",
        "the host's IP output sends it on, past its netfilter",
    ),
    Outcome(
        "to_slowpath",
        "`l3`, `l3s`: was handed to the control thread, because no route is cached for it or because it has to "
        "be made smaller",
        "the daemon's router sends it on, as the host's routes say",
    ),
    Outcome(
        "drop_multicast",
        "`l3`, `l3s`: is a multicast frame from a port, of no group that `multicast` has, or an ARP request or "
        "neighbour solicitation that the switch does not answer",
        "modes l3 and l3s: no multicast frame leaves a port, but for groups of `multicast`; this query gets no answer",
    ),
    Outcome(
        "drop_not_ip",
        "`l3`, `l3s`: is neither IPv4 nor IPv6, or has an incomplete header",
        "modes l3 and l3s: only whole IPv4 and IPv6 packets are routed",
    ),
    Outcome(
        "drop_no_route",
        "`l3`, `l3s`: the host has no route to its destination",
        "nobody on this switch has the destination address, and the host has no route to it",
    ),
    Outcome(
        "drop_host_access",
        "is between the host and a port, and `host_access` does not allow it",
        "`host_access` does not let this side begin: the host and the ports are kept apart",
    ),
    Outcome(
        "drop_macnat",
        'is from a port with MAC NAT (`mac = "own"`), and names the port\'s own MAC address where the switch '
        "can't replace it, as in malformed ARP or neighbour discovery",
        "it names the port's own MAC address where MAC NAT can't replace it",
    ),
    Outcome(
        "answered",
        "`l3`, `l3s`: is an ARP request or neighbour solicitation from a port with MAC NAT; the switch itself "
        "answered it, with the master's MAC address",
        "the switch answers the query itself, with the master's MAC address",
    ),
    Outcome(
        "guard_ip_source",
        "is from a port with that guard, and from an IP address that the port does not own; or is IP behind an "
        "LLC/SNAP header",
        "guard ip-source: the port does not own the IP address that it sends from",
    ),
    Outcome(
        "guard_arp",
        "is ARP or RARP from a port, with a sender address that the port does not own or a MAC address that "
        "isn't its own, or malformed",
        "guard arp: the port does not own the address or the MAC address that this ARP claims",
    ),
    Outcome(
        "guard_nd",
        "is neighbour discovery from a port for an address that it does not own, with a MAC address that isn't "
        "its own, a redirect, or in a fragment; or has IPv6 headers of which the end can't be found",
        "guard nd: the port does not own the address or the MAC address that it announces, or hides it",
    ),
    Outcome(
        "guard_ra",
        "is a router advertisement from a port",
        "guard ra: a port may not be a router",
    ),
    Outcome(
        "guard_dhcp_server",
        "is a message of a DHCP server or relay from a port",
        "guard dhcp-server: a port may not be a DHCP server",
    ),
    Outcome(
        "guard_mac",
        "is from a port, and its source MAC address isn't the port's",
        "guard mac: the source MAC address is not the port's",
    ),
    Outcome(
        "guard_vlan",
        "is from a port and has a VLAN tag with a VLAN, or more than two tags",
        "guard vlan: a port may not send VLAN tags",
    ),
    Outcome(
        "guard_gateway",
        "is from a port, and claims the address of a gateway of the host",
        "guard gateway: it claims the address of a gateway of the host",
    ),
    Outcome(
        "guard_host",
        "is from a port and would reach the host, and `host_access` does not allow it",
        "guard host: it would reach the host, and `host_access` does not let it",
    ),
    Outcome(
        "limit_rate",
        "is from a port that sends more than its `rate`, or for one that would get more (`tx_errors` of that port)",
        "more bits a second than the port's `rate` allows",
    ),
    Outcome(
        "limit_packets",
        "the same for `packets`",
        "more packets a second than the port's `packets` allows",
    ),
    Outcome(
        "limit_broadcast",
        "is a multicast frame from a port that sends more of them than its `broadcast`",
        "more multicast frames a second than the port's `broadcast` allows",
    ),
)

OUTCOMES = {outcome.name: outcome for outcome in _IN_ORDER}
"""By name, in the order of the counters."""
