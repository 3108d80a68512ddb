"""MAC NAT: endpoints with a MAC address of their own. In the switch, for siblings and on the wire it is the master's.

`macnat_rewrite` replaces the endpoint's address in what it sends, before any rule sees the frame: Ethernet source, ARP
sender, link-layer options of neighbour discovery. So the rules see what they would see of the kernel's driver, and no
other MAC address gets through, whatever a guest makes up. `macnat_restore` puts the endpoint's address into what is for
it.

Sources: RFC 826, RFC 4861 sections 4.1 to 4.6, RFC 1624 equation 3, RFC 6980 section 5, RFC 7112 section 5.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ipvsw.datapath.rules.outcome cimport DROP_BAD_HEADER, DROP_MACNAT, NO_OUTCOME
from ipvsw.datapath.kernel.sys cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, be16, load_u64, mac48, store_u64, virtio_net_hdr,
)
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, IPPROTO_HOPOPTS, IPPROTO_ICMPV6, VLAN_HLEN,
    Frame, folded, ipv6_is_whole, put16,
)

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

cdef enum:
    IPPROTO_ROUTING = 43
    IPPROTO_FRAGMENT = 44
    IPPROTO_AH = 51
    IPPROTO_DSTOPTS = 60
    IPPROTO_MOBILITY = 135
    IPPROTO_HIP = 139
    IPPROTO_SHIM6 = 140

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


cdef inline void put_mac(uint8_t *place, uint64_t mac) noexcept nogil:
    memcpy(place, &mac, 6)  # the low six bytes: a MAC stands there in memory order


cdef inline Payload find_payload(const uint8_t *data, uint32_t length) noexcept nogil:
    """`data` has an Ethernet header at least."""
    cdef uint32_t at = ETH_HLEN
    cdef uint16_t kind
    cdef int _i
    for _i in range(TAGS + 1):
        kind = be16(data + at - 2)
        if kind == ETH_P_8021Q or kind == ETH_P_8021AD or kind == ETH_P_QINQ1:
            at += VLAN_HLEN
        elif kind < ETH_P_802_3_MIN and at + SNAP_HLEN <= length and is_snap(data + at):
            at += SNAP_HLEN
        else:
            return Payload(kind, at)
        if at > length:
            break
    return Payload(0, 0)


cdef inline bint is_snap(const uint8_t *p) noexcept nogil:
    return p[0] == 0xAA and p[1] == 0xAA and p[2] == 3 and p[3] == 0 and p[4] == 0 and p[5] == 0


# -------------------------------------------------------------------------------- from the endpoint


cdef inline int macnat_rewrite(
    uint64_t *own, uint64_t master, const virtio_net_hdr *header, const Frame *f
) noexcept nogil:
    """NO_OUTCOME, or how a frame ended that must not go on. `own` follows the source of what is sent."""
    cdef uint8_t *data = f.data
    cdef uint64_t source = mac48(data + 6)
    cdef Payload p
    if source and not source & 1 and source != load_u64(own):
        store_u64(own, source)
    if mac48(data) == source and not source & 1:
        put_mac(data, master)  # as devices without ARP address all they send
    put_mac(data + 6, master)
    p = find_payload(data, f.length)
    if p.at == 0:
        return DROP_MACNAT
    if p.kind == ETH_P_ARP or p.kind == ETH_P_RARP:
        return arp_to_master(source, master, header, data + p.at, f.length - p.at)
    if p.kind == ETH_P_IPV6:
        return ipv6_to_master(source, master, header, data, p.at, f.length)
    return NO_OUTCOME if checksum_is_behind(header, p.at) else DROP_BAD_HEADER


cdef inline bint checksum_is_behind(const virtio_net_hdr *header, uint32_t at) noexcept nogil:
    """Whether the checksum that a device is to fill in has its place there or later. One that stood before would write
    over the very addresses that were put right."""
    return (not header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
            or <uint32_t> header.csum_start + header.csum_offset >= at)


cdef inline int arp_to_master(
    uint64_t source, uint64_t master, const virtio_net_hdr *header, uint8_t *p, uint32_t length
) noexcept nogil:
    """ARP and RARP. The target's address is somebody else's, except in announcements."""
    cdef uint64_t sender, target
    if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM or header.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        return DROP_BAD_HEADER
    if length < ARP_LENGTH or be16(p + 2) != ETH_P_IP or p[4] != 6 or p[5] != 4:
        return DROP_MACNAT
    sender, target = mac48(p + ARP_SENDER), mac48(p + ARP_TARGET)
    if target and not target & 1 and (target == source or target == sender):
        put_mac(p + ARP_TARGET, master)
    put_mac(p + ARP_SENDER, master)
    return NO_OUTCOME


cdef inline int ipv6_to_master(
    uint64_t source, uint64_t master, const virtio_net_hdr *header, uint8_t *data, uint32_t at, uint32_t length
) noexcept nogil:
    """From `at` on. Neighbour discovery is found behind extension headers too; where it can't be told whether there is
    any, or all of it, the frame ends here."""
    cdef uint32_t payload
    cdef uint32_t here = at + 40
    cdef uint32_t end = length
    cdef bint in_fragment = False
    cdef uint8_t kind
    if not ipv6_is_whole(data + at, length - at):  # nor may a checksum make it so
        return DROP_BAD_HEADER if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM else NO_OUTCOME
    payload, kind = be16(data + at + 4), data[at + 6]
    if payload and here + payload <= length:
        end = here + payload
    while is_extension(kind):
        if here + 8 > end:
            return DROP_MACNAT
        if kind == IPPROTO_FRAGMENT:
            if be16(data + here + 2) & 0xFFF8:  # not the first
                return DROP_BAD_HEADER if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM else NO_OUTCOME
            in_fragment = True
        kind, here = data[here], here + extension_length(kind, data[here + 1])
    if here > end:
        return DROP_MACNAT
    if kind != IPPROTO_ICMPV6:
        return NO_OUTCOME if checksum_is_behind(header, here) else DROP_BAD_HEADER
    if here + 8 > end:
        return DROP_MACNAT
    if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and (header.csum_start != here or header.csum_offset != 2):
        return DROP_BAD_HEADER
    if data[here] == INVERSE_SOLICITATION or data[here] == INVERSE_ADVERTISEMENT:
        return DROP_MACNAT
    if not ROUTER_SOLICITATION <= data[here] <= REDIRECT:
        return NO_OUTCOME
    if in_fragment or here - at - 40 + 8 > payload or end != at + 40 + payload:
        return DROP_MACNAT
    if header.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        return DROP_BAD_HEADER
    return nd_to_master(
        source, master, data + here, end - here, not header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
    )


cdef inline bint is_extension(uint8_t kind) noexcept nogil:
    """Headers that say what follows them: RFC 8200 section 4, RFC 7045 section 4."""
    return (kind == IPPROTO_HOPOPTS or kind == IPPROTO_ROUTING or kind == IPPROTO_FRAGMENT or kind == IPPROTO_AH
            or kind == IPPROTO_DSTOPTS or kind == IPPROTO_MOBILITY or kind == IPPROTO_HIP or kind == IPPROTO_SHIM6)


cdef inline uint32_t extension_length(uint8_t kind, uint8_t field) noexcept nogil:
    if kind == IPPROTO_FRAGMENT:
        return 8
    if kind == IPPROTO_AH:
        return (<uint32_t> field + 2) * 4
    return (<uint32_t> field + 1) * 8


cdef inline uint32_t fixed_part(uint8_t message) noexcept nogil:
    """Bytes before the options: RFC 4861 sections 4.1 to 4.5."""
    if message == ROUTER_SOLICITATION:
        return 8
    if message == ROUTER_ADVERTISEMENT:
        return 16
    return 40 if message == REDIRECT else 24


cdef inline int nd_to_master(
    uint64_t source, uint64_t master, uint8_t *p, uint32_t length, bint summed
) noexcept nogil:
    """`p` is the ICMPv6 header. A checksum that a device has yet to add up (not `summed`) covers nothing so far."""
    cdef uint32_t at = fixed_part(p[0])
    cdef uint32_t size
    cdef uint64_t said
    if at > length:
        return DROP_MACNAT
    while at < length:
        if at + 8 > length:
            return DROP_MACNAT
        size = <uint32_t> p[at + 1] * 8
        if size == 0 or at + size > length:
            return DROP_MACNAT
        if p[at] == SOURCE_LINK_LAYER or p[at] == TARGET_LINK_LAYER:
            if size != 8:
                return DROP_MACNAT
            said = mac48(p + at + 2)
            if p[0] == REDIRECT and p[at] == TARGET_LINK_LAYER and said != source and said != master:
                return DROP_MACNAT  # to somebody else: with the master's address it would lead astray
            if summed:
                correct_sum(p + 2, p + at + 2, master)
            put_mac(p + at + 2, master)
        at += size
    return NO_OUTCOME


cdef inline void correct_sum(uint8_t *place, const uint8_t *old, uint64_t new) noexcept nogil:
    """For a MAC address at an even distance that is about to be replaced: HC' = ~(~HC + ~m + m')."""
    cdef const uint8_t *mac = <const uint8_t *> &new
    cdef uint32_t total = be16(place) ^ 0xFFFF
    cdef int i
    for i in range(0, 6, 2):
        total += be16(old + i) ^ 0xFFFF
        total += be16(mac + i)
    put16(place, folded(total))


# -------------------------------------------------------------------------------- to the endpoint


cdef inline void macnat_restore(
    uint64_t *own, uint64_t master, bint routed, uint8_t *data, uint32_t length
) noexcept nogil:
    """In place. Multicast frames stay as they are: they may be others' too, and nothing in them is for one MAC address.
    `routed`: a mode in which addresses alone say whose a frame is."""
    cdef Payload p
    cdef uint64_t mac
    if data[0] & 1:
        return
    mac = load_u64(own)
    if routed or mac48(data) == master:
        put_mac(data, mac)
    p = find_payload(data, length)
    if p.kind == ETH_P_ARP and length - p.at >= ARP_LENGTH and mac48(data + p.at + ARP_TARGET) == master:
        put_mac(data + p.at + ARP_TARGET, mac)
