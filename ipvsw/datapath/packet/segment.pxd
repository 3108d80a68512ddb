"""Software offloads for interfaces that have none: partial checksums completed, GSO frames segmented.

`segmenter_parse` checks the frame and its virtio_net_hdr against the length; no length is checked after it. The frame
is not changed and its payload not copied: each segment is a header written here and a piece of the payload in place.
The rules are those of ipvsw/packets/segment.py, which segments routed packets.
Sources: `tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment`, `skb_checksum_help` in the kernel.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, be16, be32, virtio_net_hdr
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, IPPROTO_HOPOPTS, VLAN_HLEN, folded, put16,
)


cdef extern from *:
    """
    /* The one's complement sum (RFC 1071) of big-endian 16-bit words, folded to 16 bits; an odd last byte is padded
       with 0. Added up in the machine's own order, 8 bytes at a time: that only swaps the bytes of the sum. */
    static inline uint32_t ipvsw_ones_sum(const uint8_t *p, size_t n)
    {
        unsigned long long total = 0, carries = 0, w;
        for (; n >= 8; p += 8, n -= 8) {
            __builtin_memcpy(&w, p, 8);
            carries += __builtin_add_overflow(total, w, &total);
        }
        if (n) {
            w = 0;
            __builtin_memcpy(&w, p, n);
            carries += __builtin_add_overflow(total, w, &total);
        }
        total = (total & 0xFFFFFFFF) + (total >> 32) + carries;
        total = (total & 0xFFFF) + (total >> 16 & 0xFFFF) + (total >> 32);
        total = (total & 0xFFFF) + (total >> 16);
        total = (total & 0xFFFF) + (total >> 16);
        return __builtin_bswap16((uint16_t)total);
    }
    """
    uint32_t ones_sum "ipvsw_ones_sum"(const uint8_t *p, size_t n) noexcept nogil

cdef enum:
    HEAD = 256  # bytes of headers in front of a segment's payload; no stack sends more
    MOST_SEGMENTS = 0xFFFF // 48  # of one GSO frame: no stack sends smaller ones (TCP_MIN_SND_MSS)

cdef enum:
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    IPV6_ROUTING = 43
    IPV6_FRAGMENT = 44
    IPV6_DESTINATION = 60
    MOST_EXTENSIONS = 16
    TCP_FIN_PSH = 0x09
    TCP_CWR = 0x80

# A frame and how it is completed or segmented. All offsets in bytes from its Ethernet header.
cdef struct Segmenter:
    const uint8_t *frame
    uint32_t length
    uint32_t count  # frames that it becomes
    uint32_t size  # a GSO frame's: payload bytes of each segment but the last; 0: it is none
    # Of a frame that is none: where the checksum starts and where it is stored. 0: it is complete.
    uint32_t sum_from
    uint32_t sum_at
    # Of a GSO frame.
    uint32_t l3
    uint32_t l4
    uint32_t head  # what each segment repeats
    uint32_t protocol
    bint ipv4
    uint64_t pseudo  # the sum of the pseudo header, without the length


cdef inline bint segmenter_parse(Segmenter *c, const uint8_t *buffer, uint32_t n) noexcept nogil:
    """`buffer` holds a virtio_net_hdr and a frame, n bytes, at least 10. False if the header is invalid: a checksum
    outside of the frame, headers longer than it (a TAP refuses these too, `tun_get_user`), impossible segments."""
    cdef virtio_net_hdr header
    cdef bint partial
    memset(c, 0, sizeof(Segmenter))
    memcpy(&header, buffer, sizeof(header))
    partial = header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
    c.frame = buffer + sizeof(virtio_net_hdr)
    c.length = n - sizeof(virtio_net_hdr)
    c.count = 1
    if header.hdr_len > c.length:
        return False
    if partial:
        c.sum_from = header.csum_start
        c.sum_at = c.sum_from + header.csum_offset
        if c.sum_from < ETH_HLEN or c.sum_at + 2 > c.length:
            return False
    if header.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return True
    return segmenter_parse_gso(c, &header, partial)


cdef inline bint segmenter_parse_gso(Segmenter *c, const virtio_net_hdr *header, bint partial) noexcept nogil:
    cdef bint routed = False
    cdef uint32_t at, payload
    if not header.gso_size or not segmenter_find_transport(c, &routed):
        return False
    if not segmenter_is_kind(c, header.gso_type & ~GSO_ECN):
        return False
    at = c.l4 + (6 if c.protocol == PROTOCOL_UDP else 16)
    if c.l4 + (8 if c.protocol == PROTOCOL_UDP else 20) > c.length:
        return False
    c.head = c.l4 + 8
    if c.protocol == PROTOCOL_TCP:
        c.head = c.l4 + (c.frame[c.l4 + 12] >> 4) * 4
        if c.head < c.l4 + 20 or c.head > c.length:
            return False
    if c.head > HEAD:
        return False
    # The sum belongs where the protocol has it. Not partial at all: then it needs the last destination, known here only
    # if no routing header has it.
    if (c.sum_from != c.l4 or c.sum_at != at) if partial else routed:
        return False
    payload = c.length - c.head
    c.size = header.gso_size
    c.count = (payload + c.size - 1) // c.size if payload else 1
    if payload > c.size * MOST_SEGMENTS:
        return False
    if routed:
        # Only the sender knows the last destination; its sum over the pseudo header stands in the field.
        c.pseudo = <uint64_t> 0xFFFFFFFFu + be16(c.frame + at) - (c.length - c.l4)  # 2^32 - 1 is a multiple of 2^16 - 1
    elif c.ipv4:
        c.pseudo = ones_sum(c.frame + c.l3 + 12, 8) + c.protocol
    else:
        c.pseudo = ones_sum(c.frame + c.l3 + 8, 32) + c.protocol
    return True


cdef inline bint segmenter_is_kind(const Segmenter *c, int kind) noexcept nogil:
    """Whether a gso_type is that of this packet."""
    if kind == GSO_UDP_L4:
        return c.protocol == PROTOCOL_UDP
    return c.protocol == PROTOCOL_TCP and kind == (GSO_TCPV4 if c.ipv4 else GSO_TCPV6)


cdef inline bint segmenter_find_transport(Segmenter *c, bint *routed) noexcept nogil:
    """l3, l4 and protocol, behind one VLAN tag at most. False if it isn't IP, is a fragment, or is longer than an IP
    packet can be. `routed`: the header's destination may not be the final one."""
    cdef uint16_t ethertype
    cdef const uint8_t *p
    cdef uint32_t length
    if c.length < ETH_HLEN:
        return False
    c.l3 = ETH_HLEN
    ethertype = be16(c.frame + 12)
    if (ethertype == ETH_P_8021Q or ethertype == ETH_P_8021AD) and c.length >= ETH_HLEN + VLAN_HLEN:
        c.l3 += VLAN_HLEN
        ethertype = be16(c.frame + 16)
    p = c.frame + c.l3
    length = c.length - c.l3
    c.ipv4 = ethertype == ETH_P_IP
    if c.ipv4:
        if length < 20 or length > 0xFFFF or be16(p + 6) & 0x3FFF:
            return False
        c.l4 = c.l3 + (p[0] & 0x0F) * 4
        c.protocol = p[9]
        routed[0] = c.l4 > c.l3 + 20
        return c.l4 >= c.l3 + 20
    if ethertype != ETH_P_IPV6 or length < 40 or length > 40 + 0xFFFF:
        return False
    return segmenter_walk(c, p, length, routed)


cdef inline bint segmenter_walk(Segmenter *c, const uint8_t *p, uint32_t length, bint *routed) noexcept nogil:
    """IPv6 extension headers (RFC 8200 section 4). One that is truncated counts as transport."""
    cdef uint32_t at = 40
    cdef uint32_t size
    cdef uint8_t kind = p[6]
    cdef int _i
    for _i in range(MOST_EXTENSIONS):
        if kind not in (IPPROTO_HOPOPTS, IPV6_ROUTING, IPV6_FRAGMENT, IPV6_DESTINATION) or at + 8 > length:
            break
        if kind == IPV6_FRAGMENT:
            return False
        size = (p[at + 1] + 1) * 8
        if kind == IPV6_ROUTING and p[at + 3]:
            routed[0] = True
        if at + size > length:
            break
        kind = p[at]
        at += size
    c.l4 = c.l3 + at
    c.protocol = kind
    return True


cdef inline uint16_t segmenter_checksum(const Segmenter *c) noexcept nogil:
    """Of a frame that is no GSO frame and has `sum_at`. Never 0, which UDP has for "none" (RFC 768); to others it is
    the same number."""
    cdef uint16_t value = folded(ones_sum(c.frame + c.sum_from, c.length - c.sum_from))
    return value if value else 0xFFFF


cdef inline uint32_t segmenter_payload(const Segmenter *c, uint32_t number) noexcept nogil:
    """Payload bytes of a GSO frame's segment."""
    return min(c.size, c.length - c.head - number * c.size)


cdef inline uint64_t segmenter_bytes(const Segmenter *c) noexcept nogil:
    """Of all frames that it becomes."""
    return c.length + <uint64_t> (c.count - 1) * (c.head if c.size else 0)


cdef inline void segmenter_head(const Segmenter *c, uint32_t number, uint8_t *out) noexcept nogil:
    """The `head` bytes of headers of a GSO frame's segment; its payload starts at `head + number * size`."""
    cdef uint32_t payload = segmenter_payload(c, number)
    cdef uint32_t length = c.head - c.l4 + payload  # from the transport header on
    cdef uint8_t *l3 = out + c.l3
    cdef uint8_t *l4 = out + c.l4
    cdef uint32_t sequence
    cdef uint16_t value
    cdef uint8_t *field
    memcpy(out, c.frame, c.head)
    if c.ipv4:
        put16(l3 + 2, c.head - c.l3 + payload)
        put16(l3 + 4, be16(l3 + 4) + number)
        put16(l3 + 10, 0)
        put16(l3 + 10, folded(ones_sum(l3, c.l4 - c.l3)))
    else:
        put16(l3 + 4, c.head - c.l3 - 40 + payload)
    if c.protocol == PROTOCOL_TCP:
        field = l4 + 16
        sequence = be32(l4 + 4) + number * c.size
        put16(l4 + 4, sequence >> 16)
        put16(l4 + 6, sequence)
        if number:
            l4[13] &= ~TCP_CWR
        if number + 1 < c.count:
            l4[13] &= ~TCP_FIN_PSH
    else:
        field = l4 + 6
        put16(l4 + 4, length)
    memset(field, 0, 2)
    value = folded(c.pseudo + length + ones_sum(l4, c.head - c.l4)
                   + ones_sum(c.frame + c.head + number * c.size, payload))
    put16(field, value if value or c.protocol == PROTOCOL_TCP else 0xFFFF)
