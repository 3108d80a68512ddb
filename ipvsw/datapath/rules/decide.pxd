"""The switch's rules: what becomes of one frame. No system call, no allocation.

`decide_from_port` is the kernel driver's `ipvlan_queue_xmit`, `decide_from_master` its rx handler
(`ipvlan_handle_frame`); `decide_from_host` has no counterpart there. MAC addresses count first, IP addresses second.

A source address is compared in three places, as the driver does or for what it lacks: equal MAC addresses mean a
sibling or the host; a multicast frame from the master with the master's MAC address and a port's IP address is that
port's own, reflected by the wire; and a frame from the host's interface passes `host_access` only where its source is
the host's. Who may send with which address is no question here: that is for the guards, before. Frames are not
written; the one thing that is, in hostaccess.pxd, is which flows either side has initiated.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ipvsw.datapath.kernel.sys cimport be16
from ipvsw.datapath.rules.hostaccess cimport (
    CLOSED, FROM_HOST_INITIATES, TO_HOST_INITIATES, is_dhcp_reply, is_link_control, may_pass,
)
from ipvsw.datapath.rules.outcome cimport (
    DROP_HOST_ACCESS, DROP_MULTICAST, DROP_NOT_IP, DROP_NO_ROUTE, DROP_PAUSE, DROP_PORT_DOWN, DROP_PRIVATE,
    DROP_TOO_BIG, LEFT_TO_HOST, TO_HOST, TO_MASTER, TO_PORT, TO_PORTS, TO_ROUTE,
)
from ipvsw.datapath.rules.table cimport Table, table_find
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, ETH_P_PAUSE, VLAN_HLEN, Address, Frame, frame_address,
    frame_destination, frame_is_multicast, frame_received, frame_source, ipv4_address, ipv6_address, packet_group,
)

cdef enum:
    VLANS = 4096
    VLAN_WORDS = 2 * VLANS // 64  # bits of 802.1Q, then those of 802.1ad
    GROUPS = 16  # of those that l3 and l3s switch

cdef enum:
    L2 = 0
    L3 = 1
    L3S = 2

cdef enum:
    BRIDGE = 0
    PRIVATE = 1
    VEPA = 2

cdef enum:  # bits of a port's `all_multicast`
    EVERY_GROUP = 1
    JOINED_IPV4 = 2  # of IPv4's groups those alone that it has joined, and those of which nobody has to report
    JOINED_IPV6 = 4  # of IPv6's groups those alone that it has joined

cdef enum:  # a port's `extra_stages`
    MAC_NAT = 1
    GUARDED = 2
    LIMITED = 4
    LEARNING = 8
    REPORTING = 16
    CAPTURED = 32  # its frames are copied for readers, see mirror/frames.pxd; set and cleared by itself

cdef enum:  # a port's `learn`
    LEARN_NOTHING = 0
    LEARN_ALL = 1
    LEARN_LINK_LOCAL = 2  # IPv6 link-local addresses alone

# What the rules need to know of a port. One cache line, found by a shift.
cdef struct PortRule:
    # Whether
    uint8_t up
    uint8_t learn  # which of its addresses are found out from its frames
    uint8_t holds  # frames with an address that nobody owns yet wait until Python has seen them, where a guard is on
    uint8_t all_multicast  # it listens to every group, or to all but some; 0: to those in `groups`
    uint8_t limited  # what it sends has a limit, see ratelimit.pxd
    uint8_t extra_stages  # bits of what its frames pass besides; `note_stages` keeps them
    uint16_t guards  # one bit each, see guard.pxd; 0: none
    uint64_t *own  # the MAC of its own that its endpoint uses, shared by all workers; NULL: it uses the master's
    Address source  # the last that a guard found to be its own,
    uint64_t source_at  # and when, as `table_stamp` gives it; 0: none
    uint32_t mtu  # bytes without the Ethernet header
    uint32_t n_groups
    uint64_t *groups  # MACs in memory order

cdef struct Switch:
    int mode
    int flag
    uint64_t mac  # the master's
    Table table
    PortRule *rules  # by port number
    int access  # CLOSED, or *_INITIATES bits
    uint64_t *flows  # shared by all workers; see hostaccess.pxd
    uint64_t vlans[VLAN_WORDS]  # those that have a device of their own on the master
    int32_t n_ports
    uint32_t n_groups
    Address groups[GROUPS]  # whose packets l3 and l3s switch, as l2 does with every multicast frame

cdef struct Verdict:
    int outcome
    int32_t port  # for TO_PORT


cdef inline void note_stages(PortRule *rule) noexcept nogil:
    """After a change of what `extra_stages` stands for: one test for all of it is all that an ordinary port pays."""
    rule.extra_stages = ((rule.extra_stages & CAPTURED)
                         | (MAC_NAT if rule.own != NULL else 0) | (GUARDED if rule.guards else 0)
                         | (LIMITED if rule.limited else 0) | (LEARNING if rule.learn else 0)
                         | (REPORTING if rule.all_multicast else 0))


cdef enum:
    BROADCAST = 0xFFFFFFFFFFFF  # as mac48 gives it
    # Owners in the table that are no ports:
    HOST_PORT = -2  # of the master's own addresses
    # For all but the guards nobody's:
    HOST_GATEWAY = -3  # of those that the host's routes use as gateways
    FORMER_PORT = -4  # minus a port's number: of those that the port had until just now


cdef inline bint port_accepts(const PortRule *rule, uint32_t length, bint gso) noexcept nogil:
    """The kernel's `is_skb_forwardable`: a tag's worth above the MTU passes, and so does what will be segmented."""
    return gso or length <= rule.mtu + ETH_HLEN + VLAN_HLEN


cdef inline bint is_reported(const PortRule *rule, uint64_t group) noexcept nogil:
    """Whether it is known of the port that it would be in `groups` if it listened to the group. IPv4: 01:00:5e, but for
    224.0.0.X, of which hosts need not report any (RFC 4541 section 2.1.2); IPv6: 33:33, all of them but ff02::1, which
    is in every port's `groups`."""
    if group & 0xFFFFFF == 0x5E0001:
        return rule.all_multicast & JOINED_IPV4 != 0 and group >> 24 & 0xFFFF != 0
    return rule.all_multicast & JOINED_IPV6 != 0 and group & 0xFFFF == 0x3333


cdef inline bint port_listens(const PortRule *rule, uint64_t group) noexcept nogil:
    """Whether a multicast frame is for the port: broadcast always is."""
    cdef uint32_t i
    if not rule.up:
        return False
    if group == BROADCAST or (rule.all_multicast and not is_reported(rule, group)):
        return True
    for i in range(rule.n_groups):
        if rule.groups[i] == group:
            return True
    return False


cdef inline int32_t owner_of(const Switch *s, const Frame *f, bint source) noexcept nogil:
    """The port that owns the frame's address, or a negative number: an owner that is no port, or -1."""
    cdef Address a = frame_address(f, source)
    return table_find(&s.table, &a)


cdef inline Verdict deliver_to_sibling(const Switch *s, int32_t port, const Frame *f, bint gso) noexcept nogil:
    if s.flag == PRIVATE:
        return Verdict(DROP_PRIVATE, port)
    if not s.rules[port].up:
        return Verdict(DROP_PORT_DOWN, port)
    if not port_accepts(&s.rules[port], f.length, gso):
        return Verdict(DROP_TOO_BIG, port)
    return Verdict(TO_PORT, port)


cdef inline bint is_for_vlan_device(const Switch *s, const Frame *f) noexcept nogil:
    """Whether a frame that the master receives is a VLAN device's of the host. That has it before the driver's receive
    handler could (`vlan_do_receive`); tags without a device are nobody's, and the handler looks behind them."""
    cdef uint32_t vlan
    if (f.ethertype != ETH_P_8021Q and f.ethertype != ETH_P_8021AD) or f.l3_length < VLAN_HLEN:
        return False
    vlan = (be16(f.l3) & (VLANS - 1)) + (VLANS if f.ethertype == ETH_P_8021AD else 0)
    return s.vlans[vlan >> 6] >> (vlan & 63) & 1


cdef inline bint switches_groups(const Switch *s) noexcept nogil:
    """Whether ports get multicast frames that are for no address of theirs."""
    return s.mode == L2 or s.n_groups


cdef inline bint is_switched_group(const Switch *s, const Frame *f) noexcept nogil:
    """In l3 and l3s: whether a packet is for one of the groups that are switched there. By its destination: that may be
    another address than the one that `frame_address` gives."""
    cdef Address a
    cdef uint32_t i
    if s.n_groups == 0 or not packet_group(f):
        return False
    a = ipv4_address(f.l3 + 16) if f.ethertype == ETH_P_IP else ipv6_address(f.l3 + 24)
    for i in range(s.n_groups):
        if s.groups[i].lo == a.lo and s.groups[i].hi == a.hi and s.groups[i].family == a.family:
            return True
    return False


cdef inline bint sends_to_switched_group(const Switch *s, const Frame *f) noexcept nogil:
    """The same of a port's frame, which is to its packet's group."""
    return is_switched_group(s, f) and frame_destination(f) == packet_group(f)


cdef inline bint receives_switched_group(const Switch *s, const Frame *f) noexcept nogil:
    """The same of a frame from the wire, which may be for the master's MAC address as well, see `is_unicast_to_group`.
    One from that address is a port's own or the host's, and was sent to the ports already."""
    return (is_switched_group(s, f) and frame_source(f) != s.mac
            and (frame_destination(f) == packet_group(f) or frame_destination(f) == s.mac))


cdef inline Verdict receive_l2(const Switch *s, const Frame *f) noexcept nogil:
    cdef int32_t port
    if frame_is_multicast(f):
        if f.ethertype == ETH_P_PAUSE:
            return Verdict(LEFT_TO_HOST, -1)
        if frame_source(f) == s.mac and owner_of(s, f, True) >= 0:
            return Verdict(LEFT_TO_HOST, -1)  # a port's own frame, reflected by the wire
        return Verdict(TO_PORTS, -1)
    port = owner_of(s, f, False)
    if port < 0:
        return Verdict(TO_PORTS if is_unicast_to_group(s, f) else LEFT_TO_HOST, -1)
    return Verdict(TO_PORT if s.rules[port].up else LEFT_TO_HOST, port)


cdef inline bint is_unicast_to_group(const Switch *s, const Frame *f) noexcept nogil:
    """Whether a packet for a group came in a frame for the master's MAC address, as access points and bridges send it
    to spare their stations multicast frames (RFC 6085). Every port has that address."""
    return packet_group(f) and frame_destination(f) == s.mac and frame_source(f) != s.mac


cdef inline Verdict transmit_l2(const Switch *s, const Frame *f, bint gso) noexcept nogil:
    cdef int32_t port
    cdef Frame received
    cdef Verdict v
    if s.flag != VEPA and frame_destination(f) == frame_source(f):
        port = owner_of(s, f, False)
        if port >= 0:
            return deliver_to_sibling(s, port, f, gso)
        # It goes up as if received on the master, whose receive path takes off a VLAN tag and looks again.
        if is_for_vlan_device(s, f):
            return Verdict(TO_HOST, -1)
        received = frame_received(f)
        v = receive_l2(s, &received)
        return v if v.outcome == TO_PORT else Verdict(TO_HOST, -1)
    if frame_is_multicast(f):
        return Verdict(DROP_PAUSE if f.ethertype == ETH_P_PAUSE else TO_PORTS, -1)
    return Verdict(TO_MASTER, -1)


cdef inline Verdict receive_l3(const Switch *s, const Frame *f) noexcept nogil:
    """Whatever its MAC says, the owner of its address gets it."""
    cdef int32_t port = owner_of(s, f, False)
    if port < 0:
        return receive_l3s(s, f)
    return Verdict(TO_PORT if s.rules[port].up else LEFT_TO_HOST, port)


cdef inline Verdict receive_l3s(const Switch *s, const Frame *f) noexcept nogil:
    """The host's own stack forwards to the ports, but for what is for a group: that it keeps to itself."""
    return Verdict(TO_PORTS if receives_switched_group(s, f) else LEFT_TO_HOST, -1)


cdef inline Verdict transmit_l3(const Switch *s, const Frame *f, bint gso) noexcept nogil:
    cdef int32_t port
    if s.flag != VEPA:
        port = owner_of(s, f, False)
        if port >= 0:
            return deliver_to_sibling(s, port, f, gso)
    if frame_is_multicast(f):
        if sends_to_switched_group(s, f):
            return Verdict(TO_PORTS, -1)
        return Verdict(TO_HOST if host_hears_group(s, f) else DROP_MULTICAST, -1)
    if (f.ethertype == ETH_P_IP and f.l3_length >= 20) or (f.ethertype == ETH_P_IPV6 and f.l3_length >= 40):
        return Verdict(TO_ROUTE, -1)
    return Verdict(DROP_NOT_IP, -1)


cdef inline bint is_for_host(const Switch *s, const Frame *f) noexcept nogil:
    """A packet from a port that the master's own stack is to have though the kernel's driver would give it another
    way: in l2 it is addressed to the master's MAC, in l3 the address alone counts."""
    return ((s.mode != L2 or frame_destination(f) == s.mac) and not frame_is_multicast(f)
            and owner_of(s, f, False) == HOST_PORT)


cdef inline Verdict transmit_to_host(const Switch *s, const Frame *f) noexcept nogil:
    if may_pass(s.flows, s.table.key, f, s.access & TO_HOST_INITIATES):
        return Verdict(TO_HOST, -1)
    return Verdict(DROP_HOST_ACCESS, -1)


cdef inline bint host_hears_group(const Switch *s, const Frame *f) noexcept nogil:
    """Whether the host gets a copy of a port's multicast frame; the kernel's driver never gives it one."""
    return s.access != CLOSED and (s.access & TO_HOST_INITIATES or is_link_control(f))


cdef inline Verdict decide_from_port(const Switch *s, const Frame *f, bint gso) noexcept nogil:
    """`gso`: the frame will be segmented, its length says nothing."""
    if s.access != CLOSED and is_for_host(s, f):
        return transmit_to_host(s, f)
    return transmit_l2(s, f, gso) if s.mode == L2 else transmit_l3(s, f, gso)


cdef inline Verdict decide_from_master(const Switch *s, const Frame *f) noexcept nogil:
    cdef Frame received = frame_received(f)
    if is_for_vlan_device(s, f):
        return Verdict(LEFT_TO_HOST, -1)
    if s.mode == L2:
        return receive_l2(s, &received)
    if s.mode == L3:
        return receive_l3(s, &received)
    return receive_l3s(s, &received)


cdef inline Verdict decide_from_host(const Switch *s, const Frame *f) noexcept nogil:
    """What the host's stack sends to the ports through an interface of its own. Only what it forwards, in l3s, has
    another source than one of its own addresses."""
    cdef bint own = owner_of(s, f, True) == HOST_PORT
    cdef int32_t port
    if frame_is_multicast(f):
        return Verdict(TO_PORTS if s.access & FROM_HOST_INITIATES or is_link_control(f) else DROP_HOST_ACCESS, -1)
    port = owner_of(s, f, False)
    if port < 0:
        if is_dhcp_reply(f) and s.access & TO_HOST_INITIATES:
            return Verdict(TO_PORTS, -1)
        return Verdict(DROP_NO_ROUTE, -1)
    if own and not may_pass(s.flows, s.table.key, f, s.access & FROM_HOST_INITIATES):
        return Verdict(DROP_HOST_ACCESS, -1)
    return Verdict(TO_PORT if s.rules[port].up else DROP_PORT_DOWN, port)
