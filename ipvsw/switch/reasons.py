"""Why a frame ended as it did, and what to do about it: a line for each outcome, as a person would say it."""

from __future__ import annotations

from ipvsw import LOST

REASONS = {
    "to_port": "the port that owns the destination address gets it",
    "to_ports": "every port that listens to the group gets a copy",
    "to_master": "it leaves on the wire",
    "to_host": "the host's stack receives it",
    "left_to_host": "it is not for a port: the host's own stack has it",
    "drop_runt": "it is shorter than an Ethernet header",
    "drop_pause": "MAC PAUSE frames are not forwarded",
    "drop_private": "flag private: ports do not reach each other; `ipvsw link set SWITCH type ipvlan bridge` allows it",
    "drop_port_down": "the port that it is for is down",
    "drop_too_big": "it is longer than the MTU of the port that it is for",
    "drop_backlog": "too many frames of this interface wait already",
    "drop_no_master": "there is no master to send on, or it is down",
    "drop_full": "the receiver's queue is full",
    "drop_bad_header": "its offload header contradicts its bytes",
    "drop_error": "the device that it is for can't take it",
    "to_stack": "the host's IP output sends it on, past its netfilter",
    "to_slowpath": "the daemon's router sends it on, as the host's routes say",
    "drop_multicast": "modes l3 and l3s: no multicast frame leaves a port, and this query gets no answer",
    "drop_not_ip": "modes l3 and l3s: only whole IPv4 and IPv6 packets are routed",
    "drop_no_route": "nobody on this switch has the destination address, and the host has no route to it",
    "drop_host_access": "`host_access` does not let this side begin: the host and the ports are kept apart",
    "drop_macnat": "it names the port's own MAC address where MAC NAT can't replace it",
    "answered": "the switch answers the query itself, with the master's MAC address",
    "guard_ip_source": "guard ip-source: the port does not own the IP address that it sends from",
    "guard_arp": "guard arp: the port does not own the address or the MAC address that this ARP claims",
    "guard_nd": "guard nd: the port does not own the address or the MAC address that it announces, or hides it",
    "guard_ra": "guard ra: a port may not be a router",
    "guard_dhcp_server": "guard dhcp-server: a port may not be a DHCP server",
    "guard_mac": "guard mac: the source MAC address is not the port's",
    "guard_vlan": "guard vlan: a port may not send VLAN tags",
    "guard_gateway": "guard gateway: it claims the address of a gateway of the host",
    "guard_host": "guard host: it would reach the host, and `host_access` does not let it",
    "limit_rate": "more bits a second than the port's `rate` allows",
    "limit_packets": "more packets a second than the port's `packets` allows",
    "limit_broadcast": "more multicast frames a second than the port's `broadcast` allows",
}


def is_drop(outcome: str) -> bool:
    return outcome.startswith(LOST)
