"""What a virtio_net_hdr can say of a frame, and whether the one that a frame has describes it.

The header knows three kinds of GSO frames, TCP over IPv4 or IPv6 and UDP (virtio 1.2 section 5.1.6): the packet is what
follows the Ethernet header and its VLAN tags, and a partial checksum is an internet checksum (RFC 1071). The kernel's
packet sockets write more into it than that (`virtio_net_hdr_from_skb`):

- a GSO frame of a tunnel (VXLAN, GENEVE, FOU, GUE, GRE, IPIP) is told as the GSO frame that it carries. What it is
  itself is lost; only `csum_start`, which is that of the inner transport header, shows it;
- the partial checksum of SCTP is a CRC32c (RFC 9260 appendix A), of which only `csum_offset` tells.

No reader of the header can know. Such frames are taken apart before they go on, by loop/offload_fix.pxd.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, be16, virtio_net_hdr
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, IPPROTO_HOPOPTS, VLAN_HLEN,
)

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
    MOST_TAGS = 3
    SCTP_CHECK = 8  # where SCTP has its checksum; no other protocol has one there

# Where an IP packet has its headers, in bytes from the frame's Ethernet header.
cdef struct Headers:
    uint32_t l3
    uint32_t l4
    uint32_t protocol
    bint ipv4
    bint routed  # the IP header's destination may not be the last one


cdef inline bint asks_for_offload(const uint8_t *buffer) noexcept nogil:
    """Whether a frame's virtio_net_hdr says anything at all that has to fit."""
    cdef const virtio_net_hdr *header = <const virtio_net_hdr *> buffer
    return (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) | header.gso_type


cdef inline bint offload_fits(const uint8_t *buffer, uint32_t n) noexcept nogil:
    """Whether its virtio_net_hdr describes a frame. `buffer` holds both, n bytes. False only where `segmenter_parse`
    knows better: other contradictions are for the reader of the header to find."""
    cdef const virtio_net_hdr *header = <const virtio_net_hdr *> buffer
    cdef Headers ip
    if not header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return True
    if header.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return header.csum_offset != SCTP_CHECK
    if not headers_find(buffer + sizeof(virtio_net_hdr), n - <uint32_t> sizeof(virtio_net_hdr), &ip):
        return True
    return header.csum_start <= ip.l4


cdef inline bint headers_find(const uint8_t *frame, uint32_t length, Headers *ip) noexcept nogil:
    """Of the packet in a frame, behind its VLAN tags. False if there is none, or as for `packet_find`."""
    cdef uint32_t l3 = ETH_HLEN
    cdef uint16_t ethertype
    cdef int _i
    if length < ETH_HLEN:
        return False
    ethertype = be16(frame + 12)
    for _i in range(MOST_TAGS):
        if (ethertype != ETH_P_8021Q and ethertype != ETH_P_8021AD) or length < l3 + VLAN_HLEN:
            break
        ethertype = be16(frame + l3 + 2)
        l3 += VLAN_HLEN
    return packet_find(frame, length, l3, ethertype, ip)


cdef inline bint packet_find(
    const uint8_t *frame, uint32_t length, uint32_t l3, uint16_t ethertype, Headers *ip
) noexcept nogil:
    """Of a packet that starts at `l3` and ends with the frame. False if it isn't IP, is a fragment, or is longer than
    an IP packet can be."""
    cdef const uint8_t *p = frame + l3
    cdef uint32_t size = length - l3
    if length < l3:
        return False
    ip.l3 = l3
    ip.routed = False
    ip.ipv4 = ethertype == ETH_P_IP
    if ip.ipv4:
        if size < 20 or size > 0xFFFF or be16(p + 6) & 0x3FFF:
            return False
        ip.l4 = l3 + (p[0] & 0x0F) * 4
        ip.protocol = p[9]
        ip.routed = ip.l4 > l3 + 20
        return ip.l4 >= l3 + 20
    if ethertype != ETH_P_IPV6 or size < 40 or size > 40 + 0xFFFF:
        return False
    return extensions_walk(p, size, ip)


cdef inline bint extensions_walk(const uint8_t *p, uint32_t length, Headers *ip) noexcept nogil:
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
            ip.routed = True
        if at + size > length:
            break
        kind = p[at]
        at += size
    ip.l4 = ip.l3 + at
    ip.protocol = kind
    return True
