"""Guards: whether a port may send a frame at all. No system call; all that is written is the last source that it owned.

Each guard is a bit of `PortRule.guards` and has an outcome of its own, in the same order; any of them may be on without
the others. They stand before every other rule, and after MAC NAT, so that the only MAC address that a port may use is
the master's. What a port claims is compared with the table: the addresses that it owns are its own, all others aren't.

  guard        a frame ends if
  MAC          its Ethernet source is not the master's
  VLAN         it has a VLAN tag (VID 0, a priority tag, is none)
  IP_SOURCE    the port does not own its IP source, save for what has no address yet: a DHCP client, IGMP, MLD, DAD
  ARP          it is ARP, and the port does not own the sender's address, or the hardware address isn't the master's
  ND           it is a neighbour advertisement for a target that the port does not own, a redirect, has a link-layer
               address that isn't the master's; or neighbour discovery, or the end of the headers, can't be found in it
  RA           it is a router advertisement (ICMPv6, or ICMP: RFC 1256)
  DHCP_SERVER  it is what a DHCP server or relay sends
  GATEWAY      any of those addresses is the one of a gateway of the host
  HOST         it would reach the host though `host_access` does not let it

Guards look through two tags, through IPv6 extension headers and into the first fragment, which must have all headers.
A later fragment can't change them (overlaps are dropped by who receives them: RFC 5722, and Linux for IPv4): of it the
addresses alone are checked. `guard_checksum` sees to it that a frame stays as it was checked.

An address that a port has lost is its own for a moment yet (FORMER_PORT), unless somebody else has it: what it has sent
from it is perhaps still in the queue of its device.

Sources: RFC 826, RFC 1042, RFC 2131 section 4.1, RFC 3376 section 4.2.13, RFC 3590, RFC 4861, RFC 4862 section 5.4, RFC
5227, RFC 6980 section 5, RFC 7112 section 5, RFC 7113, RFC 7610.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, be16, be32, mac48, virtio_net_hdr
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ICMPV6_NEIGHBOUR_ADVERTISEMENT, ICMPV6_NEIGHBOUR_SOLICITATION,
    IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IGMP, IPPROTO_UDP, IPV4, NO_ADDRESS, VLAN_HLEN, Address, Frame, frame_source,
    ipv4_address, ipv6_address, ipv6_is_whole,
)
from ipvsw.datapath.packet.payload cimport (
    ARP_LENGTH, ARP_REQUEST, ARP_SENDER, DHCP6_CLIENT, DHCP6_SERVER, DHCP_CLIENT, DHCP_SERVER, ETH_P_802_3_MIN,
    ETH_P_RARP, INVERSE_ADVERTISEMENT, INVERSE_SOLICITATION, LATER_FRAGMENT, NO_FRAGMENT, RARP_REQUEST, REDIRECT,
    ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION, SNAP_HLEN, SOURCE_LINK_LAYER, TAGS, TARGET_LINK_LAYER, Payload, Upper,
    find_payload, find_upper, is_tag, nd_fixed_part,
)
from ipvsw.datapath.rules.decide cimport FORMER_PORT, HOST_GATEWAY, L2, PortRule, Switch, is_for_host
from ipvsw.datapath.rules.hostaccess cimport CLOSED
from ipvsw.datapath.rules.outcome cimport (
    GUARD_ARP, GUARD_DHCP_SERVER, GUARD_GATEWAY, GUARD_HOST, GUARD_IP_SOURCE, GUARD_MAC, GUARD_ND, GUARD_RA,
    GUARD_VLAN, NO_OUTCOME,
)
from ipvsw.datapath.rules.table cimport table_find

cdef enum:
    FIRST_GUARD = GUARD_IP_SOURCE
    N_GUARDS = GUARD_HOST - FIRST_GUARD + 1
    # Beside an outcome: the one fault is an address that nobody owns. It may be the port's in a moment.
    UNKNOWN = 1 << 16

cdef enum:
    ICMP_ROUTER_ADVERTISEMENT = 9
    ICMPV6_REPORT = 131  # MLD; RFC 3590 lets this, the next and version 2's come from the unspecified address
    ICMPV6_DONE = 132
    ICMPV6_REPORT2 = 143
    OFFSET = 0x1FFF  # of a fragment, in an IPv4 header


cdef inline bint is_on(uint32_t guards, int outcome) noexcept nogil:
    return guards >> (outcome - FIRST_GUARD) & 1


cdef inline int guarded_by(uint32_t guards, int outcome) noexcept nogil:
    """The outcome, where that guard is on."""
    return outcome if is_on(guards, outcome) else NO_OUTCOME


cdef inline bint reads_packets(uint32_t guards) noexcept nogil:
    """Whether any guard is on that looks behind the Ethernet header."""
    return guards & ~(<uint32_t> 1 << (GUARD_MAC - FIRST_GUARD) | <uint32_t> 1 << (GUARD_HOST - FIRST_GUARD)) != 0


cdef inline bint is_final(int outcome) noexcept nogil:
    return outcome != NO_OUTCOME and not outcome & UNKNOWN


cdef inline int guard_check(Switch *s, int32_t port, const Frame *f) noexcept nogil:
    """NO_OUTCOME for a frame that may go on, else the outcome of the guard that it ended at, with UNKNOWN or without.
    For a port with guards."""
    cdef uint32_t guards = s.rules[port].guards
    if frame_source(f) != s.mac and is_on(guards, GUARD_MAC):
        return GUARD_MAC
    if f.ethertype == ETH_P_IP:
        return guard_ipv4(s, port, guards, f.l3, f.l3_length)
    if f.ethertype == ETH_P_IPV6:
        return guard_ipv6(s, port, guards, f.l3, f.l3_length)
    if f.ethertype == ETH_P_ARP or f.ethertype == ETH_P_RARP:
        return guard_arp(s, port, guards, f.ethertype, f.l3, f.l3_length)
    return guard_layered(s, port, guards, f)


cdef inline int owner_check(
    const Switch *s, int32_t port, uint32_t guards, const Address *a, int outcome
) noexcept nogil:
    """Whether the port may claim the address; `outcome` is the guard's that asks."""
    cdef int32_t owner = table_find(&s.table, a)
    if owner == port or owner == FORMER_PORT - port:
        return NO_OUTCOME
    if owner == HOST_GATEWAY and is_on(guards, GUARD_GATEWAY):
        return GUARD_GATEWAY
    if not is_on(guards, outcome):
        return NO_OUTCOME
    return outcome | UNKNOWN if owner == -1 or owner <= FORMER_PORT else outcome


cdef inline uint64_t table_stamp(const Switch *s, uint32_t family) noexcept nogil:
    """Of the table as it is now; for each family another."""
    return s.table.changes << 3 | family


cdef inline int source_check(Switch *s, int32_t port, uint32_t guards, const Address *a) noexcept nogil:
    """The same for an IP source, which mostly is that of the frame before: no look-up, as long as the table stays."""
    cdef PortRule *rule = &s.rules[port]
    cdef int outcome
    if (rule.source_at == table_stamp(s, a.family) and rule.source.lo == a.lo
            and (a.family == IPV4 or rule.source.hi == a.hi)):  # of IPv4 it is 0
        return NO_OUTCOME
    outcome = owner_check(s, port, guards, a, GUARD_IP_SOURCE)
    if outcome == NO_OUTCOME and is_on(guards, GUARD_IP_SOURCE):
        rule.source, rule.source_at = a[0], table_stamp(s, a.family)
    return outcome


# -------------------------------------------------------------------------------- IPv4, ARP


cdef inline int guard_ipv4(
    Switch *s, int32_t port, uint32_t guards, const uint8_t *p, uint32_t length
) noexcept nogil:
    """A packet, maybe with padding behind it. What has no whole header nobody will take for one."""
    cdef uint32_t at = 20
    cdef uint32_t total
    cdef Address source
    cdef int outcome
    if length < 20:
        return guarded_by(guards, GUARD_IP_SOURCE)
    total = be16(p + 2)
    if p[0] != 0x45:  # as most packets have it
        at = (p[0] & 0x0F) * 4
        if p[0] >> 4 != 4 or at < 20:
            return guarded_by(guards, GUARD_IP_SOURCE)
    if at > total or total > length:
        return guarded_by(guards, GUARD_IP_SOURCE)
    if not be16(p + 6) & OFFSET:
        if p[9] == IPPROTO_UDP:
            if ((at + 8 > total or be16(p + at) == DHCP_SERVER or be16(p + at + 2) == DHCP_CLIENT)
                    and is_on(guards, GUARD_DHCP_SERVER)):
                return GUARD_DHCP_SERVER
        elif p[9] == IPPROTO_ICMP and at < total and p[at] == ICMP_ROUTER_ADVERTISEMENT and is_on(guards, GUARD_RA):
            return GUARD_RA
    source = ipv4_address(p + 12)
    outcome = source_check(s, port, guards, &source)
    if outcome == NO_OUTCOME or source.lo:
        return outcome
    return NO_OUTCOME if has_no_ipv4_yet(p, at, total) else GUARD_IP_SOURCE


cdef inline bint has_no_ipv4_yet(const uint8_t *p, uint32_t at, uint32_t total) noexcept nogil:
    """What may come from 0.0.0.0: a DHCP client's broadcast, and IGMP."""
    if p[9] == IPPROTO_IGMP:
        return True
    return (p[9] == IPPROTO_UDP and not be16(p + 6) & OFFSET and at + 8 <= total and be32(p + 16) == 0xFFFFFFFFu
            and be16(p + at) == DHCP_CLIENT and be16(p + at + 2) == DHCP_SERVER)


cdef inline int guard_arp(
    const Switch *s, int32_t port, uint32_t guards, uint16_t kind, const uint8_t *p, uint32_t length
) noexcept nogil:
    """ARP and RARP. Who has no address yet may ask (RFC 5227); a guest that was moved says so with a RARP request."""
    cdef uint16_t query = ARP_REQUEST if kind == ETH_P_ARP else RARP_REQUEST
    cdef Address sender
    if (length < ARP_LENGTH or be16(p) != 1 or be16(p + 2) != ETH_P_IP or p[4] != 6 or p[5] != 4
            or mac48(p + ARP_SENDER) != s.mac or (kind == ETH_P_RARP and be16(p + 6) != RARP_REQUEST)):
        if is_on(guards, GUARD_ARP):
            return GUARD_ARP
        if length < ARP_LENGTH:
            return NO_OUTCOME
    sender = ipv4_address(p + ARP_SENDER + 6)
    if sender.lo == 0:
        return NO_OUTCOME if be16(p + 6) == query else guarded_by(guards, GUARD_ARP)
    return owner_check(s, port, guards, &sender, GUARD_ARP)


# -------------------------------------------------------------------------------- IPv6


cdef inline int guard_ipv6(
    Switch *s, int32_t port, uint32_t guards, const uint8_t *p, uint32_t length
) noexcept nogil:
    cdef Upper u
    cdef Address source
    cdef int outcome, of_target = NO_OUTCOME
    if not ipv6_is_whole(p, length):
        return guarded_by(guards, GUARD_IP_SOURCE)
    u = find_upper(p, length)
    if u.fragment != LATER_FRAGMENT:
        of_target = guard_upper(s, port, guards, p, &u)
        if is_final(of_target):
            return of_target
    source = ipv6_address(p + 8)
    outcome = source_check(s, port, guards, &source)
    if outcome == NO_OUTCOME:
        return of_target
    if source.hi or outcome == GUARD_GATEWAY:
        return outcome
    # ::/64 has the unspecified and the loopback address and those that stand for one of IPv4: no machine's.
    return of_target if source.lo == 0 and has_no_ipv6_yet(p, &u) else GUARD_IP_SOURCE


cdef inline bint has_no_ipv6_yet(const uint8_t *p, const Upper *u) noexcept nogil:
    """What may come from the unspecified address: duplicate address detection, router solicitation, MLD reports."""
    cdef uint8_t message
    if u.kind != IPPROTO_ICMPV6 or u.fragment != NO_FRAGMENT or u.at == 0 or u.at >= u.end:
        return False
    message = p[u.at]
    return (message == ICMPV6_NEIGHBOUR_SOLICITATION or message == ROUTER_SOLICITATION or message == ICMPV6_REPORT
            or message == ICMPV6_DONE or message == ICMPV6_REPORT2)


cdef inline int guard_upper(
    const Switch *s, int32_t port, uint32_t guards, const uint8_t *p, const Upper *u
) noexcept nogil:
    """What a packet carries that is no later fragment."""
    if u.at and u.kind != IPPROTO_ICMPV6 and u.kind != IPPROTO_UDP:
        return NO_OUTCOME
    if u.at == 0 or (u.kind == IPPROTO_ICMPV6 and u.at + 8 > u.end):
        if is_on(guards, GUARD_RA) or is_on(guards, GUARD_ND):
            return GUARD_ND
        return guarded_by(guards, GUARD_DHCP_SERVER) if u.at == 0 else NO_OUTCOME
    if u.kind == IPPROTO_ICMPV6:
        return guard_icmpv6(s, port, guards, p + u.at, u.end - u.at, u.fragment != NO_FRAGMENT)
    if u.at + 8 > u.end or be16(p + u.at) == DHCP6_SERVER or be16(p + u.at + 2) == DHCP6_CLIENT:
        return guarded_by(guards, GUARD_DHCP_SERVER)
    return NO_OUTCOME


cdef inline int guard_icmpv6(
    const Switch *s, int32_t port, uint32_t guards, const uint8_t *p, uint32_t length, bint in_fragment
) noexcept nogil:
    """`p` is the ICMPv6 header, of which there are 8 bytes at least."""
    cdef Address target
    if p[0] == ROUTER_ADVERTISEMENT and is_on(guards, GUARD_RA):
        return GUARD_RA
    if p[0] == INVERSE_SOLICITATION or p[0] == INVERSE_ADVERTISEMENT:
        return guarded_by(guards, GUARD_ND)
    if not ROUTER_SOLICITATION <= p[0] <= REDIRECT:
        return NO_OUTCOME
    if is_on(guards, GUARD_ND) and (in_fragment or p[0] == REDIRECT or not has_own_link_layer(s, p, length)):
        return GUARD_ND
    if p[0] != ICMPV6_NEIGHBOUR_ADVERTISEMENT or length < nd_fixed_part(p[0]):
        return NO_OUTCOME
    target = ipv6_address(p + 8)
    return owner_check(s, port, guards, &target, GUARD_ND)


cdef inline bint has_own_link_layer(const Switch *s, const uint8_t *p, uint32_t length) noexcept nogil:
    """Whether a neighbour discovery message is whole, and every link-layer address in its options the master's."""
    cdef uint32_t at = nd_fixed_part(p[0])
    cdef uint32_t size
    if at > length:
        return False
    while at < length:
        if at + 8 > length:
            return False
        size = <uint32_t> p[at + 1] * 8
        if size == 0 or at + size > length:
            return False
        if (p[at] == SOURCE_LINK_LAYER or p[at] == TARGET_LINK_LAYER) and (size != 8 or mac48(p + at + 2) != s.mac):
            return False
        at += size
    return True


# -------------------------------------------------------------------------------- tags, 802.3, the host


cdef inline int guard_layered(Switch *s, int32_t port, uint32_t guards, const Frame *f) noexcept nogil:
    """What is neither IP nor ARP right behind the Ethernet header. Nothing is learned through a tag."""
    cdef uint32_t at = ETH_HLEN
    cdef uint16_t kind = f.ethertype
    cdef int tags = 0
    cdef int outcome = NO_OUTCOME
    while is_tag(kind):
        tags += 1
        if tags > TAGS or at + VLAN_HLEN > f.length:
            return GUARD_VLAN if reads_packets(guards) else NO_OUTCOME
        if be16(f.data + at) & 0x0FFF and is_on(guards, GUARD_VLAN):
            return GUARD_VLAN
        kind = be16(f.data + at + 2)
        at += VLAN_HLEN
    if kind < ETH_P_802_3_MIN:
        # An ethertype behind LLC and SNAP: RFC 1042, and 802.1H for bridges. Nobody needs it here.
        return GUARD_IP_SOURCE if is_encapsulated(f, at) and reads_packets(guards) else NO_OUTCOME
    if kind == ETH_P_IP:
        outcome = guard_ipv4(s, port, guards, f.data + at, f.length - at)
    elif kind == ETH_P_IPV6:
        outcome = guard_ipv6(s, port, guards, f.data + at, f.length - at)
    elif kind == ETH_P_ARP or kind == ETH_P_RARP:
        outcome = guard_arp(s, port, guards, kind, f.data + at, f.length - at)
    return outcome & ~UNKNOWN if outcome != NO_OUTCOME else NO_OUTCOME


cdef inline bint is_encapsulated(const Frame *f, uint32_t at) noexcept nogil:
    cdef const uint8_t *p = f.data + at
    return (at + SNAP_HLEN <= f.length and p[0] == 0xAA and p[1] == 0xAA and p[2] == 3 and p[3] == 0 and p[4] == 0
            and (p[5] == 0 or p[5] == 0xF8))


cdef inline bint guard_checksum(const uint8_t *buffer, uint32_t n) noexcept nogil:
    """Whether a frame is sent as the guards see it. `buffer` holds its virtio_net_hdr and itself, n bytes. The checksum
    that a device is to fill in has its place where the header says, and what is written there can be chosen: it must
    not be an address, a port or anything else that a guard looks at."""
    cdef const virtio_net_hdr *header = <const virtio_net_hdr *> buffer
    cdef const uint8_t *data = buffer + sizeof(virtio_net_hdr)
    cdef uint32_t length = n - <uint32_t> sizeof(virtio_net_hdr)
    cdef uint32_t place = <uint32_t> header.csum_start + header.csum_offset
    cdef Payload payload
    cdef Upper u
    if not header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM or length < ETH_HLEN:
        return True
    payload = find_payload(data, length)
    if payload.at and payload.kind == ETH_P_IP and length >= payload.at + 20:
        u.kind, u.at = data[payload.at + 9], (data[payload.at] & 0x0F) * 4
    elif payload.at and payload.kind == ETH_P_IPV6 and length >= payload.at + 40:
        u = find_upper(data + payload.at, length - payload.at)
    else:
        return False
    if u.at == 0 or place < payload.at + u.at + 2:
        return False
    if u.kind == IPPROTO_ICMPV6:
        return place == payload.at + u.at + 2
    return u.kind != IPPROTO_UDP or place >= payload.at + u.at + 4


cdef inline bint guard_host(const Switch *s, int32_t port, const Frame *f) noexcept nogil:
    """Whether a port's frame ends that the rules hand to the host: as the kernel's driver does in l2 where source and
    destination MAC address are the same, and not because `host_access` lets it pass."""
    return (is_on(s.rules[port].guards, GUARD_HOST) and s.mode == L2
            and (s.access == CLOSED or not is_for_host(s, f)))


cdef inline Address claimed_address(const Frame *f) noexcept nogil:
    """The address that a frame names as its sender's, for who reads the log: an advertisement's target, else the
    source; family NO_ADDRESS if there is none."""
    cdef Payload payload = find_payload(f.data, f.length)
    cdef const uint8_t *p = f.data + payload.at
    cdef uint32_t length = f.length - payload.at
    if payload.at and payload.kind == ETH_P_IP and length >= 20:
        return ipv4_address(p + 12)
    if payload.at and (payload.kind == ETH_P_ARP or payload.kind == ETH_P_RARP) and length >= ARP_LENGTH:
        return ipv4_address(p + ARP_SENDER + 6)
    if payload.at and payload.kind == ETH_P_IPV6 and length >= 40:
        if length >= 64 and p[6] == IPPROTO_ICMPV6 and p[40] == ICMPV6_NEIGHBOUR_ADVERTISEMENT:
            return ipv6_address(p + 48)
        return ipv6_address(p + 8)
    return Address(0, 0, NO_ADDRESS)
