"""MAC NAT: endpoints with a MAC address of their own. In the switch, for siblings and on the wire it is the master's.

`macnat_rewrite` replaces the endpoint's address in what it sends, before any rule sees the frame: Ethernet source, ARP
sender, link-layer options of neighbour discovery. So the rules see what they would see of the kernel's driver, and no
other MAC address gets through, whatever a guest makes up. `macnat_restore` puts the endpoint's address into what is for
it.

Sources: RFC 826, RFC 4861 sections 4.1 to 4.6, RFC 1624 equation 3, RFC 6980 section 5.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ipvsw.datapath.rules.outcome cimport DROP_BAD_HEADER, DROP_MACNAT, NO_OUTCOME
from ipvsw.datapath.kernel.sys cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, be16, load_u64, mac48, store_u64, virtio_net_hdr,
)
from ipvsw.datapath.packet.headers cimport (
    ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, IPPROTO_ICMPV6, Frame, folded, ipv6_is_whole, put16,
)
from ipvsw.datapath.packet.payload cimport (
    ARP_LENGTH, ARP_SENDER, ARP_TARGET, ETH_P_RARP, FIRST_FRAGMENT, INVERSE_ADVERTISEMENT, INVERSE_SOLICITATION,
    LATER_FRAGMENT, REDIRECT, ROUTER_SOLICITATION, SOURCE_LINK_LAYER, TARGET_LINK_LAYER, Payload, Upper, find_payload,
    find_upper, nd_fixed_part,
)


cdef inline void put_mac(uint8_t *place, uint64_t mac) noexcept nogil:
    memcpy(place, &mac, 6)  # the low six bytes: a MAC stands there in memory order


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
    cdef Upper u
    cdef uint32_t here, payload
    cdef bint partial = header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
    cdef const uint8_t *p = data + at
    if not ipv6_is_whole(p, length - at):  # nor may a checksum make it so
        return DROP_BAD_HEADER if partial else NO_OUTCOME
    u = find_upper(p, length - at)
    if u.fragment == LATER_FRAGMENT:
        return DROP_BAD_HEADER if partial else NO_OUTCOME
    if u.at == 0:
        return DROP_MACNAT
    here = at + u.at
    if u.kind != IPPROTO_ICMPV6:
        return NO_OUTCOME if checksum_is_behind(header, here) else DROP_BAD_HEADER
    if u.at + 8 > u.end:
        return DROP_MACNAT
    if partial and (header.csum_start != here or header.csum_offset != 2):
        return DROP_BAD_HEADER
    if data[here] == INVERSE_SOLICITATION or data[here] == INVERSE_ADVERTISEMENT:
        return DROP_MACNAT
    if not ROUTER_SOLICITATION <= data[here] <= REDIRECT:
        return NO_OUTCOME
    payload = be16(p + 4)
    if u.fragment == FIRST_FRAGMENT or u.at - 40 + 8 > payload or u.end != 40 + payload:
        return DROP_MACNAT
    if header.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        return DROP_BAD_HEADER
    return nd_to_master(source, master, data + here, u.end - u.at, not partial)


cdef inline int nd_to_master(
    uint64_t source, uint64_t master, uint8_t *p, uint32_t length, bint summed
) noexcept nogil:
    """`p` is the ICMPv6 header. A checksum that a device has yet to add up (not `summed`) covers nothing so far."""
    cdef uint32_t at = nd_fixed_part(p[0])
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
