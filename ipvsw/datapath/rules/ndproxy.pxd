"""ARP and neighbour discovery in modes l3 and l3s, where neither passes: proxy ARP and ND proxy, for an endpoint behind
MAC NAT. Whichever address it resolves, the switch replies with the master's MAC address, as a router may (RFC 1027, RFC
4861 section 7.2.8).

A query whether an address is free (RFC 5227 section 2.1.1, RFC 4862 section 5.4.3) gets a reply only if a sibling or
the host has it, and one for the endpoint's own address never. What gets no reply ends here too: by its address it would
come back to its sender, as if another had it.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from ipvsw.datapath.rules.decide cimport HOST_PORT, Switch
from ipvsw.datapath.rules.macnat cimport put_mac
from ipvsw.datapath.kernel.sys cimport be16
from ipvsw.datapath.rules.table cimport table_find
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_ARP, ETH_P_IPV6, ICMPV6_NEIGHBOUR_ADVERTISEMENT, ICMPV6_NEIGHBOUR_SOLICITATION, IPPROTO_ICMPV6,
    Address, Frame, folded, ipv4_address, ipv6_address, ipv6_is_whole, put16,
)
from ipvsw.datapath.packet.payload cimport ARP_LENGTH, ARP_REPLY, ARP_REQUEST, ARP_SENDER, ARP_TARGET

cdef enum:
    SOLICITATION = 64  # bytes: IPv6 header and message without options
    ADVERTISEMENT = 72  # with the target's link-layer address
    ROUTER_SOLICITED_OVERRIDE = 0xE0
    OVERRIDE = 0x20


cdef inline bint is_neighbour_query(const Frame *f) noexcept nogil:
    """All of ARP counts: no other stage has a use for it here."""
    if f.ethertype == ETH_P_ARP:
        return f.l3_length >= ARP_LENGTH
    return (f.ethertype == ETH_P_IPV6 and f.l3_length >= SOLICITATION and ipv6_is_whole(f.l3, f.l3_length)
            and f.l3[6] == IPPROTO_ICMPV6 and f.l3[40] == ICMPV6_NEIGHBOUR_SOLICITATION)


cdef inline uint32_t neighbour_reply(const Switch *s, int32_t port, const Frame *f) noexcept nogil:
    """Makes the reply to a query from `port`, in its place, which has room for a longer one. Its length; 0 if there
    is none, and the frame is as it was."""
    return arp_reply(s, port, f) if f.ethertype == ETH_P_ARP else neighbour_advertisement(s, port, f)


cdef inline bint gets_reply(const Switch *s, int32_t port, const Address *target, bint probe) noexcept nogil:
    cdef int32_t owner = table_find(&s.table, target)
    return owner != port and (owner >= 0 or owner == HOST_PORT or not probe)


cdef inline uint32_t arp_reply(const Switch *s, int32_t port, const Frame *f) noexcept nogil:
    cdef uint8_t *p = f.l3
    cdef Address sender = ipv4_address(p + ARP_SENDER + 6)
    cdef Address target = ipv4_address(p + ARP_TARGET + 6)
    cdef uint8_t asked[4]
    if be16(p + 6) != ARP_REQUEST or sender.lo == target.lo or not gets_reply(s, port, &target, sender.lo == 0):
        return 0
    memcpy(asked, p + ARP_TARGET + 6, 4)
    put_mac(f.data, s.mac)
    put16(p + 6, ARP_REPLY)
    memcpy(p + ARP_TARGET, p + ARP_SENDER, 10)
    put_mac(p + ARP_SENDER, s.mac)
    memcpy(p + ARP_SENDER + 6, asked, 4)
    return f.length


cdef inline uint32_t neighbour_advertisement(const Switch *s, int32_t port, const Frame *f) noexcept nogil:
    cdef uint8_t *p = f.l3
    cdef Address source = ipv6_address(p + 8)
    cdef Address target = ipv6_address(p + 48)
    cdef bint probe = source.hi == 0 and source.lo == 0
    cdef uint32_t total = ADVERTISEMENT - 40 + IPPROTO_ICMPV6  # the rest of the pseudo header
    cdef int i
    if not gets_reply(s, port, &target, probe):
        return 0
    if probe:  # to all nodes
        memset(p + 24, 0, 16)
        p[24], p[25], p[39] = 0xFF, 0x02, 1
        memset(f.data, 0, 6)
        f.data[0], f.data[1], f.data[5] = 0x33, 0x33, 1
    else:
        memcpy(p + 24, p + 8, 16)
        put_mac(f.data, s.mac)
    memcpy(p + 8, p + 48, 16)
    put16(p + 4, ADVERTISEMENT - 40)
    memset(p + 40, 0, 8)
    p[40], p[44] = ICMPV6_NEIGHBOUR_ADVERTISEMENT, OVERRIDE if probe else ROUTER_SOLICITED_OVERRIDE
    p[64], p[65] = 2, 1  # target link-layer address
    put_mac(p + 66, s.mac)
    for i in range(8, ADVERTISEMENT, 2):
        total += be16(p + i)
    put16(p + 42, folded(total))
    return ETH_HLEN + ADVERTISEMENT
