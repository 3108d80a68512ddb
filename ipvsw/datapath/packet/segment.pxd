"""Software offloads for interfaces that have none: partial checksums completed, GSO frames segmented.

`segmenter_parse` checks the frame and its virtio_net_hdr against the length; no length is checked after it. The frame
is not changed and its payload not copied: each segment is a header written here and a piece of the payload in place.
The rules are those of ipvsw/packets/segment.py, which segments routed packets, and besides those for what that never
sees: VLAN tags, tunnels, SCTP.
Sources: `tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment`, `skb_checksum_help`, `skb_crc32c_csum_help` in the
kernel.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, be16, be32, virtio_net_hdr
from ipvsw.datapath.packet.checksum cimport ones_sum, put_crc32c
from ipvsw.datapath.packet.headers cimport ETH_HLEN, folded, put16
from ipvsw.datapath.packet.offload cimport (
    GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, PROTOCOL_TCP, PROTOCOL_UDP, SCTP_CHECK, Headers, headers_find,
)
from ipvsw.datapath.packet.tunnel cimport Outer, tunnel_find, tunnel_head

cdef enum:
    HEAD = 256  # bytes of headers in front of a segment's payload; no stack sends more
    MOST_SEGMENTS = 0xFFFF // 48  # of one GSO frame: no stack sends smaller ones (TCP_MIN_SND_MSS)
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
    bint sctp  # it is a CRC32c
    # Of a GSO frame.
    Headers ip  # of the packet that is segmented, which in a tunnel is the innermost
    Outer outer  # what is around it
    uint32_t head  # what each segment repeats
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
        c.sctp = header.csum_offset == SCTP_CHECK and header.gso_type == VIRTIO_NET_HDR_GSO_NONE
        if c.sum_from < ETH_HLEN or c.sum_at + (4 if c.sctp else 2) > c.length:
            return False
    if header.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return True
    return segmenter_parse_gso(c, &header, partial)


cdef inline bint segmenter_parse_gso(Segmenter *c, const virtio_net_hdr *header, bint partial) noexcept nogil:
    cdef Headers *ip = &c.ip
    cdef uint32_t at, payload
    if not header.gso_size or not headers_find(c.frame, c.length, ip):
        return False
    if partial and c.sum_from > ip.l4 and not tunnel_find(&c.outer, c.frame, c.length, ip, c.sum_from):
        return False
    if not segmenter_is_kind(c, header.gso_type & ~GSO_ECN):
        return False
    at = ip.l4 + (6 if ip.protocol == PROTOCOL_UDP else 16)
    if ip.l4 + (8 if ip.protocol == PROTOCOL_UDP else 20) > c.length:
        return False
    c.head = ip.l4 + 8
    if ip.protocol == PROTOCOL_TCP:
        c.head = ip.l4 + (c.frame[ip.l4 + 12] >> 4) * 4
        if c.head < ip.l4 + 20 or c.head > c.length:
            return False
    if c.head > HEAD:
        return False
    # The sum belongs where the protocol has it. Not partial at all: then it needs the last destination, known here only
    # if no routing header has it.
    if (c.sum_from != ip.l4 or c.sum_at != at) if partial else ip.routed:
        return False
    payload = c.length - c.head
    c.size = header.gso_size
    c.count = (payload + c.size - 1) // c.size if payload else 1
    if payload > c.size * MOST_SEGMENTS:
        return False
    if ip.routed:
        # Only the sender knows the last destination; its sum over the pseudo header stands in the field.
        c.pseudo = <uint64_t> 0xFFFFFFFFu + be16(c.frame + at) - (c.length - ip.l4)  # 2^32 - 1: a multiple of 2^16 - 1
    elif ip.ipv4:
        c.pseudo = ones_sum(c.frame + ip.l3 + 12, 8) + ip.protocol
    else:
        c.pseudo = ones_sum(c.frame + ip.l3 + 8, 32) + ip.protocol
    return True


cdef inline bint segmenter_is_kind(const Segmenter *c, int kind) noexcept nogil:
    """Whether a gso_type is that of this packet."""
    if kind == GSO_UDP_L4:
        return c.ip.protocol == PROTOCOL_UDP
    return c.ip.protocol == PROTOCOL_TCP and kind == (GSO_TCPV4 if c.ip.ipv4 else GSO_TCPV6)


cdef inline void segmenter_complete(const Segmenter *c, uint8_t *frame) noexcept nogil:
    """Write the checksum of a frame that is no GSO frame into it, or into a copy. Never 0, which UDP has for "none"
    (RFC 768); to others it is the same number."""
    cdef uint16_t value
    if c.sctp:
        put_crc32c(frame + c.sum_from, c.length - c.sum_from, SCTP_CHECK)
    elif c.sum_at:
        value = folded(ones_sum(frame + c.sum_from, c.length - c.sum_from))
        put16(frame + c.sum_at, value if value else 0xFFFF)


cdef inline uint32_t segmenter_payload(const Segmenter *c, uint32_t number) noexcept nogil:
    """Payload bytes of a GSO frame's segment."""
    return min(c.size, c.length - c.head - number * c.size)


cdef inline uint64_t segmenter_bytes(const Segmenter *c) noexcept nogil:
    """Of all frames that it becomes."""
    return c.length + <uint64_t> (c.count - 1) * (c.head if c.size else 0)


cdef inline void segmenter_head(const Segmenter *c, uint32_t number, uint8_t *out) noexcept nogil:
    """The `head` bytes of headers of a GSO frame's segment; its payload starts at `head + number * size`."""
    cdef const Headers *ip = &c.ip
    cdef uint32_t payload = segmenter_payload(c, number)
    cdef uint32_t length = c.head - ip.l4 + payload  # from the transport header on
    cdef uint32_t payload_sum = ones_sum(c.frame + c.head + number * c.size, payload)
    cdef uint8_t *l3 = out + ip.l3
    cdef uint8_t *l4 = out + ip.l4
    cdef uint32_t sequence
    cdef uint16_t value
    cdef uint8_t *field
    memcpy(out, c.frame, c.head)
    if ip.ipv4:
        put16(l3 + 2, c.head - ip.l3 + payload)
        put16(l3 + 4, be16(l3 + 4) + number)
        put16(l3 + 10, 0)
        put16(l3 + 10, folded(ones_sum(l3, (l3[0] & 0x0F) * 4)))
    else:
        put16(l3 + 4, c.head - ip.l3 - 40 + payload)
    if ip.protocol == PROTOCOL_TCP:
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
    value = folded(c.pseudo + length + ones_sum(l4, c.head - ip.l4) + payload_sum)
    put16(field, value if value or ip.protocol == PROTOCOL_TCP else 0xFFFF)
    if c.outer.n:
        tunnel_head(&c.outer, out, c.head, payload, payload_sum, number)
