"""How a frame that was read can end: one line for each outcome, each with one counter.

The order is that of the counters. `OUTCOMES` in _fast has the names in lower case, which setup.py reads from here when
it builds: a new outcome is a line here and the place that decides it.
"""

cdef enum:
    TO_PORT  # delivered to the owner of its address
    TO_PORTS  # queued for every port that listens to its group (and, from a port, for the wire)
    TO_MASTER  # sent on the wire
    TO_HOST  # injected: the host's stack receives it on the master
    LEFT_TO_HOST  # from the master and none of ours: the host has it already
    DROP_RUNT  # shorter than an Ethernet header
    DROP_PAUSE  # MAC control
    DROP_PRIVATE  # to a sibling, and the flag is private
    DROP_PORT_DOWN
    DROP_TOO_BIG  # above the receiving port's MTU
    DROP_BACKLOG  # too many multicast frames are waiting
    DROP_NO_MASTER  # there is no master to send on
    DROP_FULL  # the receiving device's queue is full
    DROP_BAD_HEADER  # its virtio_net_hdr contradicts its bytes, or does not describe them and can't be made to
    DROP_ERROR  # the receiving device refused it
    TO_STACK  # handed to the host's IP output, as if sent by a process there
    TO_SLOWPATH  # Python's turn: no route is cached yet, or the frame must be made smaller first
    DROP_MULTICAST  # l3: a multicast frame
    DROP_NOT_IP  # l3: neither IPv4 nor IPv6, or not a whole header
    DROP_NO_ROUTE  # l3: the host has no route there
    DROP_HOST_ACCESS  # between the host and a port, and `host_access` does not allow it
    DROP_MACNAT  # MAC NAT: the endpoint's MAC address can't be replaced everywhere in the frame
    ANSWERED  # l3: asked for a neighbour, by an endpoint behind MAC NAT: the switch has replied
    GUARD_IP_SOURCE  # from a port: an IP source address that it does not own
    GUARD_ARP  # an ARP sender that it isn't, or what is no ARP of Ethernet and IPv4
    GUARD_ND  # neighbour discovery in the name of another, or hidden where nobody can check it
    GUARD_RA  # a router advertisement
    GUARD_DHCP_SERVER  # a DHCP server's or relay's message
    GUARD_MAC  # a source MAC address that isn't the port's
    GUARD_VLAN  # a VLAN tag, or more tags than are looked through
    GUARD_GATEWAY  # the address of a gateway of the host
    GUARD_HOST  # for the host, and `host_access` does not let it pass
    LIMIT_RATE  # more bits a second than a port may send, or the receiving port may get
    LIMIT_PACKETS  # the same for packets
    LIMIT_BROADCAST  # from a port: more multicast frames a second than it may have copied to all
    N_OUTCOMES

cdef enum:
    NO_OUTCOME = -1  # the frame hasn't ended yet: it goes on, or is queued and counted when it has left
    TO_ROUTE = N_OUTCOMES  # a verdict alone: the route cache says where the frame goes
