"""Encapsulations: from a packet's outer headers to the transport header of the packet that it carries at last.

Only GSO frames are looked at, of which that transport header's place is known (`csum_start`). What carries it is found
by trying: UDP doesn't tell what is in it. A guess holds if every IP and UDP header on the way says a length that ends
with the frame, and if the last one leads to the known place. What of the headers is not a length, a checksum or an IPv4
identification is the same in each segment, so VXLAN's and GENEVE's own headers need no more than to be passed.

Sources: RFC 7348 section 5 (VXLAN), draft-ietf-nvo3-vxlan-gpe section 3, RFC 8926 section 3.4 (GENEVE),
draft-ietf-intarea-gue section 3, RFC 2784 and 2890 (GRE), RFC 2003 (IPIP), RFC 4213 (IPv6 in IPv4);
`skb_udp_tunnel_segment`, `gre_gso_segment`, `inet_gso_segment` in the kernel.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ipvsw.datapath.kernel.sys cimport be16
from ipvsw.datapath.packet.checksum cimport ones_sum
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, VLAN_HLEN, folded, put16,
)
from ipvsw.datapath.packet.offload cimport MOST_TAGS, PROTOCOL_UDP, Headers, packet_find

cdef enum:
    MOST_LAYERS = 8
    ETH_P_TEB = 0x6558  # an Ethernet frame, in GRE and GENEVE
    PROTOCOL_IPIP = 4
    PROTOCOL_IPV6 = 41
    PROTOCOL_GRE = 47
    UDP_HEADER = 8
    VXLAN_HEADER = 8
    VXLAN_VALID = 0x08  # a virtual network's number is there
    GENEVE_HEADER = 8
    GUE_HEADER = 4
    GUE_CONTROL = 0x20
    GRE_HEADER = 4
    GRE_CHECKSUM = 0x80
    GRE_KEY = 0x20
    GRE_OTHERS = 0x5F  # source routing and sequence numbers, which no stack combines with GSO; reserved bits
    GRE_VERSION = 0x07

cdef enum LayerKind:
    LAYER_IPV4
    LAYER_IPV6
    LAYER_UDP
    LAYER_GRE  # with a checksum

# A header with something in it that is each segment's own.
cdef struct Layer:
    LayerKind kind
    uint32_t at

# What is around a packet, from the outside.
cdef struct Outer:
    uint32_t n
    Layer layers[MOST_LAYERS]


cdef inline bint tunnel_find(
    Outer *outer, const uint8_t *frame, uint32_t length, Headers *ip, uint32_t target
) noexcept nogil:
    """`ip`: a frame's outer headers, and afterwards those of the packet whose transport header is at `target`. False if
    no known encapsulation leads there."""
    outer.n = 0
    return into_packet(outer, frame, length, ip, target)


cdef inline bint into_packet(
    Outer *o, const uint8_t *frame, uint32_t length, Headers *ip, uint32_t target
) noexcept nogil:
    """From an IP header, to which `ip` belongs."""
    cdef uint32_t said = be16(frame + ip.l3 + (2 if ip.ipv4 else 4)) + (0 if ip.ipv4 else 40)
    if said != length - ip.l3:
        return False
    if ip.l4 == target:
        return True
    return layer_add(o, LAYER_IPV4 if ip.ipv4 else LAYER_IPV6, ip.l3) and into_protocol(
        o, frame, length, ip, target, ip.l4, ip.protocol)


cdef inline bint into_protocol(
    Outer *o, const uint8_t *frame, uint32_t length, Headers *ip, uint32_t target, uint32_t at, uint32_t protocol
) noexcept nogil:
    """From what an IP header, or GUE, says to be at `at`."""
    if at >= target:
        return False
    if protocol == PROTOCOL_UDP:
        return into_datagram(o, frame, length, ip, target, at)
    if protocol == PROTOCOL_GRE:
        return into_gre(o, frame, length, ip, target, at)
    if protocol == PROTOCOL_IPIP:
        return into_payload(o, frame, length, ip, target, at, ETH_P_IP)
    return protocol == PROTOCOL_IPV6 and into_payload(o, frame, length, ip, target, at, ETH_P_IPV6)


cdef inline bint into_payload(
    Outer *o, const uint8_t *frame, uint32_t length, Headers *ip, uint32_t target, uint32_t at, uint16_t ethertype
) noexcept nogil:
    """An Ethernet frame with its tags, or a packet."""
    cdef int _i
    if ethertype == ETH_P_TEB:
        if at + ETH_HLEN > target:
            return False
        at += ETH_HLEN
        ethertype = be16(frame + at - 2)
    for _i in range(MOST_TAGS):
        if (ethertype != ETH_P_8021Q and ethertype != ETH_P_8021AD) or at + VLAN_HLEN > target:
            break
        ethertype = be16(frame + at + 2)
        at += VLAN_HLEN
    if at >= target or frame[at] >> 4 != (4 if ethertype == ETH_P_IP else 6):
        return False
    return packet_find(frame, length, at, ethertype, ip) and into_packet(o, frame, length, ip, target)


cdef inline bint into_gre(
    Outer *o, const uint8_t *frame, uint32_t length, Headers *ip, uint32_t target, uint32_t at
) noexcept nogil:
    cdef uint8_t flags = frame[at]
    cdef uint32_t size = GRE_HEADER + (4 if flags & GRE_CHECKSUM else 0) + (4 if flags & GRE_KEY else 0)
    if at + size > target or flags & GRE_OTHERS or frame[at + 1] & GRE_VERSION:
        return False
    if flags & GRE_CHECKSUM and not layer_add(o, LAYER_GRE, at):
        return False
    return into_payload(o, frame, length, ip, target, at + size, be16(frame + at + 2))


cdef inline bint into_datagram(
    Outer *o, const uint8_t *frame, uint32_t length, Headers *ip, uint32_t target, uint32_t at
) noexcept nogil:
    """One encapsulation after the other. Ports tell little: each of them can be configured."""
    cdef Headers around = ip[0]
    cdef uint32_t before
    cdef int guess
    if at + UDP_HEADER + GUE_HEADER > target or be16(frame + at + 4) != length - at:
        return False
    if ip.routed and be16(frame + at + 6):  # a checksum with a destination that only the sender knows
        return False
    if not layer_add(o, LAYER_UDP, at):
        return False
    before = o.n
    for guess in range(GUESSES):
        if into_guess(o, frame, length, ip, target, at + UDP_HEADER, guess):
            return True
        o.n = before
        ip[0] = around
    return False


cdef enum:
    GUESS_VXLAN  # also of the variants that have no Ethernet header inside
    GUESS_GENEVE
    GUESS_GUE
    GUESS_FOU  # a packet without a header of its own
    GUESS_FOU_GRE
    GUESSES


cdef inline bint into_guess(
    Outer *o, const uint8_t *frame, uint32_t length, Headers *ip, uint32_t target, uint32_t at, int guess
) noexcept nogil:
    cdef const uint8_t *p = frame + at
    cdef uint16_t packet = ETH_P_IP if p[0] >> 4 == 4 else ETH_P_IPV6
    if guess == GUESS_FOU:
        return into_payload(o, frame, length, ip, target, at, packet)
    if guess == GUESS_FOU_GRE:
        return into_gre(o, frame, length, ip, target, at)
    if guess == GUESS_GUE:
        if p[0] & (0xC0 | GUE_CONTROL):
            return False
        return into_protocol(o, frame, length, ip, target, at + GUE_HEADER + (p[0] & 0x1F) * 4, p[1])
    if at + VXLAN_HEADER >= target:
        return False
    if guess == GUESS_GENEVE:
        return not p[0] & 0xC0 and into_payload(
            o, frame, length, ip, target, at + GENEVE_HEADER + (p[0] & 0x3F) * 4, be16(p + 2))
    if not p[0] & VXLAN_VALID:
        return False
    at += VXLAN_HEADER
    return into_payload(o, frame, length, ip, target, at, ETH_P_TEB) or into_payload(
        o, frame, length, ip, target, at, ETH_P_IP if frame[at] >> 4 == 4 else ETH_P_IPV6)


cdef inline bint layer_add(Outer *o, LayerKind kind, uint32_t at) noexcept nogil:
    """False for a packet in more packets than anybody sends."""
    if o.n == MOST_LAYERS:
        return False
    o.layers[o.n] = Layer(kind, at)
    o.n += 1
    return True


cdef inline void tunnel_head(
    const Outer *outer, uint8_t *out, uint32_t head, uint32_t payload, uint32_t payload_sum, uint32_t number
) noexcept nogil:
    """What is around a segment's packet, whose own headers are right already: `out` has `head` bytes of headers, to be
    followed by `payload` bytes with that sum. The innermost comes first, because an outer checksum covers it."""
    cdef uint32_t i = outer.n
    cdef uint32_t size
    cdef uint8_t *p
    while i:
        i -= 1
        p = out + outer.layers[i].at
        size = head + payload - outer.layers[i].at
        if outer.layers[i].kind == LAYER_IPV4:
            put16(p + 2, size)
            put16(p + 4, be16(p + 4) + number)
            put16(p + 10, 0)
            put16(p + 10, folded(ones_sum(p, (p[0] & 0x0F) * 4)))
        elif outer.layers[i].kind == LAYER_IPV6:
            put16(p + 4, size - 40)
        elif outer.layers[i].kind == LAYER_GRE:
            put16(p + 4, 0)
            put16(p + 4, folded(<uint64_t> ones_sum(p, size - payload) + payload_sum))
        else:
            put16(p + 4, size)
            if be16(p + 6):
                put16(p + 6, 0)
                put16(p + 6, datagram_checksum(out, &outer.layers[i - 1], p, size, payload, payload_sum))


cdef inline uint16_t datagram_checksum(
    const uint8_t *out, const Layer *ip, const uint8_t *p, uint32_t size, uint32_t payload, uint32_t payload_sum
) noexcept nogil:
    """Never 0, which UDP has for "none" (RFC 768)."""
    cdef const uint8_t *l3 = out + ip.at
    cdef uint64_t pseudo = ones_sum(l3 + 12, 8) if ip.kind == LAYER_IPV4 else ones_sum(l3 + 8, 32)
    cdef uint16_t value = folded(pseudo + PROTOCOL_UDP + size + ones_sum(p, size - payload) + payload_sum)
    return value if value else 0xFFFF


cdef inline bint carries_datagrams(const Outer *outer) noexcept nogil:
    """Whether what is outermost is a UDP tunnel."""
    return outer.n > 1 and outer.layers[1].kind == LAYER_UDP


cdef inline void tunnel_merge(const Outer *outer, uint8_t *out, uint32_t length) noexcept nogil:
    """The first datagram's headers, made those of a UDP GSO frame of `length` bytes: longer, and with a partial
    checksum whether or not the tunnel uses one, because the kernel segments no others (`__udp_gso_segment`)."""
    cdef const Layer *ip = &outer.layers[0]
    cdef uint8_t *l3 = out + ip.at
    cdef uint8_t *udp = out + outer.layers[1].at
    cdef uint32_t size = length - outer.layers[1].at
    cdef uint64_t pseudo
    put16(udp + 4, size)
    if ip.kind == LAYER_IPV4:
        pseudo = ones_sum(l3 + 12, 8)
        put16(l3 + 2, length - ip.at)
        put16(l3 + 10, 0)
        put16(l3 + 10, folded(ones_sum(l3, (l3[0] & 0x0F) * 4)))
    else:
        pseudo = ones_sum(l3 + 8, 32)
        put16(l3 + 4, length - ip.at - 40)
    put16(udp + 6, <uint16_t> ~folded(pseudo + PROTOCOL_UDP + size))
