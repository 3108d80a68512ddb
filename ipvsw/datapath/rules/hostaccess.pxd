"""Host access: which side may initiate flows between the host and the ports, and which flows are established.

Either side may reply within a flow that the other was allowed to initiate. The flow table holds a fingerprint of the
two endpoints; it has a fixed size and is shared by all workers: a few loads and one store, no lock. A full set replaces
an old flow, which is entered again with the next packet of its initiator.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ipvsw.datapath.kernel.sys cimport be16, load_u64, mix, store_u64
from ipvsw.datapath.packet.headers cimport (
    ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, Address, Frame,
    frame_address, ipv4_is_whole, ipv6_is_whole,
)
from ipvsw.datapath.packet.payload cimport DHCP_CLIENT, IPPROTO_FRAGMENT

cdef enum:
    CLOSED = 0  # as in the kernel's driver: no traffic between the host and the ports
    TO_HOST_INITIATES = 1  # bits: ports may initiate flows to the host
    FROM_HOST_INITIATES = 2  # the host may initiate flows to ports

cdef enum:
    FLOWS = 1 << 16  # fingerprints
    WAYS = 4  # slots in which one may be: the table is 4-way set-associative


cdef inline bint is_icmp_error(uint8_t protocol, uint8_t kind) noexcept nogil:
    """ICMP: RFC 1122 section 3.2.2; ICMPv6: RFC 4443 section 2.1."""
    if protocol == IPPROTO_ICMPV6:
        return kind < 128
    return kind == 3 or kind == 4 or kind == 5 or kind == 11 or kind == 12


cdef inline uint32_t ipv4_transport(const Frame *f, uint8_t protocol) noexcept nogil:
    """Offset of the transport header in the packet, if it is of that protocol and has its first 8 bytes; else 0."""
    cdef uint32_t start
    if f.ethertype != ETH_P_IP or not ipv4_is_whole(f) or f.l3[9] != protocol:
        return 0
    start = (f.l3[0] & 0x0F) * 4
    return start if start + 8 <= f.l3_length else 0


cdef inline bint is_link_control(const Frame *f) noexcept nogil:
    """Link control, which is allowed without a flow: ARP, neighbour discovery, ICMP errors."""
    cdef uint32_t start
    if f.ethertype == ETH_P_ARP:
        return True
    if f.ethertype == ETH_P_IPV6 and ipv6_is_whole(f.l3, f.l3_length) and f.l3[6] == IPPROTO_ICMPV6:
        return f.l3_length >= 44 and (is_icmp_error(IPPROTO_ICMPV6, f.l3[40]) or 133 <= f.l3[40] <= 137)
    start = ipv4_transport(f, IPPROTO_ICMP)
    return start and is_icmp_error(IPPROTO_ICMP, f.l3[start])


cdef inline bint is_dhcp_reply(const Frame *f) noexcept nogil:
    """To a client without an address, which has no entry in the table yet (RFC 2131 section 4.1)."""
    cdef uint32_t start = ipv4_transport(f, IPPROTO_UDP)
    return start and be16(f.l3 + start + 2) == DHCP_CLIENT


cdef inline bint is_fragment(const Frame *f) noexcept nogil:
    if f.ethertype == ETH_P_IP:
        return ipv4_is_whole(f) and be16(f.l3 + 6) & 0x3FFF
    return f.ethertype == ETH_P_IPV6 and ipv6_is_whole(f.l3, f.l3_length) and f.l3[6] == IPPROTO_FRAGMENT


cdef inline uint64_t fingerprint(const Frame *f, uint64_t key, bint in_fragments) noexcept nogil:
    """Of the flow that a packet belongs to, the same in both directions; 0 if it is no IP packet. It covers addresses
    and ports, or the identifier of an ICMP echo; with `in_fragments`, which have none, addresses alone."""
    cdef Address a = frame_address(f, True)
    cdef Address b = frame_address(f, False)
    cdef uint32_t start, here = 0, there = 0
    cdef uint8_t protocol
    cdef uint64_t ends
    if f.ethertype == ETH_P_IP and a.family:
        protocol = f.l3[9]
        start = (f.l3[0] & 0x0F) * 4
    elif f.ethertype == ETH_P_IPV6 and a.family:
        protocol = f.l3[6]
        start = 40
    else:
        return 0
    if in_fragments:
        protocol = IPPROTO_FRAGMENT
    elif f.l3_length >= start + 8:
        if protocol == IPPROTO_TCP or protocol == IPPROTO_UDP:
            here, there = be16(f.l3 + start), be16(f.l3 + start + 2)
        elif protocol == IPPROTO_ICMP or protocol == IPPROTO_ICMPV6:
            here = there = be16(f.l3 + start + 4)
    ends = mix(a.hi ^ key, mix(a.lo ^ key, 0x9E3779B97F4A7C15u ^ here))
    ends += mix(b.hi ^ key, mix(b.lo ^ key, 0x9E3779B97F4A7C15u ^ there))
    return mix(ends ^ key, 0xD6E8FEB86659FD93u ^ protocol ^ a.family << 8) | 1


cdef inline bint flow_known(uint64_t *flows, uint64_t mark) noexcept nogil:
    cdef uint64_t *place = &flows[mark >> 8 & (FLOWS - WAYS)]
    cdef int i
    for i in range(WAYS):
        if load_u64(&place[i]) == mark:
            return True
    return False


cdef inline void flow_remember(uint64_t *flows, uint64_t mark) noexcept nogil:
    cdef uint64_t *place = &flows[mark >> 8 & (FLOWS - WAYS)]
    cdef int i
    if flow_known(flows, mark):
        return
    for i in range(WAYS):
        if load_u64(&place[i]) == 0:
            store_u64(&place[i], mark)
            return
    store_u64(&place[(mark >> 56) % WAYS], mark)


cdef inline bint may_pass(uint64_t *flows, uint64_t key, const Frame *f, bint may_initiate) noexcept nogil:
    """Whether a packet between the host and a port may pass. `may_initiate`: its sender may initiate flows. Replies may
    be fragmented even if the packet was not."""
    cdef bint in_fragments = is_fragment(f)
    cdef uint64_t mark
    if is_link_control(f):
        return True
    mark = fingerprint(f, key, in_fragments)
    if mark == 0:
        return may_initiate
    if may_initiate:
        flow_remember(flows, mark)
        if not in_fragments:
            flow_remember(flows, fingerprint(f, key, True))
        return True
    return flow_known(flows, mark)
