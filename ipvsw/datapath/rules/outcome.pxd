"""How a frame that was read can end, as numbers: each has one counter. ipvsw/outcomes.py says what they mean.

`OUTCOMES` in _fast has the names in lower case, which setup.py reads from here when it builds.
"""

cdef enum:
    # outcomes
    TO_PORT
    TO_PORTS
    TO_MASTER
    TO_HOST
    LEFT_TO_HOST
    DROP_RUNT
    DROP_PAUSE
    DROP_PRIVATE
    DROP_PORT_DOWN
    DROP_TOO_BIG
    DROP_BACKLOG
    DROP_NO_MASTER
    DROP_FULL
    DROP_BAD_HEADER
    DROP_ERROR
    TO_STACK
    TO_SLOWPATH
    DROP_MULTICAST
    DROP_NOT_IP
    DROP_NO_ROUTE
    DROP_HOST_ACCESS
    DROP_MACNAT
    ANSWERED
    GUARD_IP_SOURCE
    GUARD_ARP
    GUARD_ND
    GUARD_RA
    GUARD_DHCP_SERVER
    GUARD_MAC
    GUARD_VLAN
    GUARD_GATEWAY
    GUARD_HOST
    LIMIT_RATE
    LIMIT_PACKETS
    LIMIT_BROADCAST
    # end
    N_OUTCOMES

cdef enum:
    NO_OUTCOME = -1  # the frame hasn't ended yet: it goes on, or is queued and counted when it has left
    TO_ROUTE = N_OUTCOMES  # a verdict alone: the route cache says where the frame goes
