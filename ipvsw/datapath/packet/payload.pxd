"""What a frame carries behind its tags, and what an IPv6 packet carries behind its extension headers.

Sources: IEEE 802.1Q clause 9, RFC 1042, RFC 826, RFC 4861 section 4, RFC 8200 section 4, RFC 7045 section 4, RFC 7112
section 5.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from ipvsw.datapath.kernel.sys cimport be16
from ipvsw.datapath.packet.headers cimport ETH_HLEN, ETH_P_8021AD, ETH_P_8021Q, IPPROTO_HOPOPTS, VLAN_HLEN

cdef enum:
    ETH_P_802_3_MIN = 0x0600  # below it is a length
    ETH_P_RARP = 0x8035
    ETH_P_QINQ1 = 0x9100
    SNAP_HLEN = 8  # LLC and SNAP before an ethertype of their own: RFC 1042
    TAGS = 2

cdef enum:
    ARP_LENGTH = 28
    ARP_SENDER = 8
    ARP_TARGET = 18
    ARP_REQUEST = 1
    ARP_REPLY = 2
    RARP_REQUEST = 3

cdef enum:
    IPPROTO_ROUTING = 43
    IPPROTO_FRAGMENT = 44
    IPPROTO_AH = 51
    IPPROTO_DSTOPTS = 60
    IPPROTO_MOBILITY = 135
    IPPROTO_HIP = 139
    IPPROTO_SHIM6 = 140
    EXTENSIONS = 8  # headers that are passed at most

cdef enum:  # UDP
    DHCP_SERVER = 67
    DHCP_CLIENT = 68
    DHCP6_CLIENT = 546
    DHCP6_SERVER = 547

cdef enum:
    ROUTER_SOLICITATION = 133
    ROUTER_ADVERTISEMENT = 134
    REDIRECT = 137
    INVERSE_SOLICITATION = 141  # RFC 3122: for Frame Relay
    INVERSE_ADVERTISEMENT = 142
    SOURCE_LINK_LAYER = 1
    TARGET_LINK_LAYER = 2

# What a frame carries behind its tags, and where; `at` is 0 if it ends within a tag, or has too many.
cdef struct Payload:
    uint16_t kind
    uint32_t at

cdef enum:
    NO_FRAGMENT = 0
    FIRST_FRAGMENT = 1  # or a whole packet with a fragment header
    LATER_FRAGMENT = 2  # what it carries can't be told

# What an IPv6 packet carries: protocol and first byte, counted from the packet's start as `end` is, where the packet
# ends. `at` is 0 where the headers don't end within it, as they must in the first fragment too, or are too many, and in
# a later fragment.
cdef struct Upper:
    uint8_t kind
    int fragment
    uint32_t at
    uint32_t end


cdef inline bint is_tag(uint16_t kind) noexcept nogil:
    return kind == ETH_P_8021Q or kind == ETH_P_8021AD or kind == ETH_P_QINQ1


cdef inline bint is_snap(const uint8_t *p) noexcept nogil:
    return p[0] == 0xAA and p[1] == 0xAA and p[2] == 3 and p[3] == 0 and p[4] == 0 and p[5] == 0


cdef inline Payload find_payload(const uint8_t *data, uint32_t length) noexcept nogil:
    """`data` has an Ethernet header at least."""
    cdef uint32_t at = ETH_HLEN
    cdef uint16_t kind
    cdef int _i
    for _i in range(TAGS + 1):
        kind = be16(data + at - 2)
        if is_tag(kind):
            at += VLAN_HLEN
        elif kind < ETH_P_802_3_MIN and at + SNAP_HLEN <= length and is_snap(data + at):
            at += SNAP_HLEN
        else:
            return Payload(kind, at)
        if at > length:
            break
    return Payload(0, 0)


cdef inline bint is_extension(uint8_t kind) noexcept nogil:
    """Headers that say what follows them."""
    return (kind == IPPROTO_HOPOPTS or kind == IPPROTO_ROUTING or kind == IPPROTO_FRAGMENT or kind == IPPROTO_AH
            or kind == IPPROTO_DSTOPTS or kind == IPPROTO_MOBILITY or kind == IPPROTO_HIP or kind == IPPROTO_SHIM6)


cdef inline uint32_t extension_length(uint8_t kind, uint8_t field) noexcept nogil:
    if kind == IPPROTO_FRAGMENT:
        return 8
    if kind == IPPROTO_AH:
        return (<uint32_t> field + 2) * 4
    return (<uint32_t> field + 1) * 8


cdef inline Upper find_upper(const uint8_t *p, uint32_t length) noexcept nogil:
    """Of a packet whose fixed header is whole. A payload length of 0, or one beyond the frame, says nothing."""
    cdef Upper u = Upper(p[6], NO_FRAGMENT, 40, length)
    cdef uint32_t payload = be16(p + 4)
    if payload and 40 + payload <= length:
        u.end = 40 + payload
    cdef int headers = 0
    while is_extension(u.kind):
        headers += 1
        if headers > EXTENSIONS or u.at + 8 > u.end:
            u.at = 0
            return u
        if u.kind == IPPROTO_FRAGMENT:
            u.fragment = FIRST_FRAGMENT
            if be16(p + u.at + 2) & 0xFFF8:
                u.fragment, u.at = LATER_FRAGMENT, 0
                return u
        u.kind, u.at = p[u.at], u.at + extension_length(u.kind, p[u.at + 1])
    if u.at > u.end:
        u.at = 0
    return u


cdef inline uint32_t nd_fixed_part(uint8_t message) noexcept nogil:
    """Bytes of a neighbour discovery message before its options: RFC 4861 sections 4.1 to 4.5."""
    if message == ROUTER_SOLICITATION:
        return 8
    if message == ROUTER_ADVERTISEMENT:
        return 16
    return 40 if message == REDIRECT else 24
