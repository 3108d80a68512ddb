"""Frames: Ethernet, one VLAN tag, and the addresses that ARP, IPv4, IPv6 and neighbour discovery carry.

Each parse function makes its length checks once and then promises what it says; nothing checks again.
What counts as an address follows the kernel driver's `ipvlan_get_L3_hdr` and `ipvlan_addr_lookup`:
IPv4 checksum, TTL and options are not looked at, IPv6 extension headers are not walked.
Sources: IEEE 802.3 clause 3, 802.1Q clause 9, RFC 826, RFC 791, RFC 8200, RFC 4861 section 4.3.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ipvsw.datapath.kernel.sys cimport be16, be32, mac48, raw64, virtio_net_hdr

cdef enum:
    ETH_HLEN = 14
    VLAN_HLEN = 4
    ETH_P_IP = 0x0800
    ETH_P_ARP = 0x0806
    ETH_P_8021Q = 0x8100
    ETH_P_IPV6 = 0x86DD
    ETH_P_PAUSE = 0x8808
    ETH_P_8021AD = 0x88A8
    IPPROTO_HOPOPTS = 0
    IPPROTO_ICMP = 1
    IPPROTO_IGMP = 2
    IPPROTO_TCP = 6
    IPPROTO_UDP = 17
    IPPROTO_ICMPV6 = 58
    ICMPV6_NEIGHBOUR_SOLICITATION = 135
    ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136

cdef enum:
    NO_ADDRESS = 0
    IPV4 = 4
    IPV6 = 6

# An address as a table key: the bytes in memory order (IPv4 in the low half of `lo`), and the family.
cdef struct Address:
    uint64_t hi
    uint64_t lo
    uint32_t family

# A frame that has at least an Ethernet header: `length` bytes at `data`. `l3` is what follows that header, `l3_length`
# bytes. Where it was read, its virtio_net_hdr stands right before `data`.
cdef struct Frame:
    uint8_t *data
    uint32_t length
    uint8_t *l3
    uint32_t l3_length
    uint32_t claim  # the most that an IPv4 total length may say
    uint16_t ethertype


cdef inline void put16(uint8_t *p, uint32_t v) noexcept nogil:
    """In network order, as be16 reads it."""
    p[0] = (v >> 8) & 0xFF
    p[1] = v & 0xFF


cdef inline uint16_t folded(uint64_t total) noexcept nogil:
    """The checksum for a sum of 16-bit words, or of sums of them: RFC 1071 section 4.1, in host order."""
    total = (total & 0xFFFFFFFFu) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t> ~total


cdef inline bint frame_parse(Frame *f, uint8_t *data, uint32_t length) noexcept nogil:
    """False for a frame too short for an Ethernet header. As a sender's driver sees it: a VLAN tag is an ethertype
    like any other, and `skb->len` counts the Ethernet header too, so that a total length 14 too large passes."""
    if length < ETH_HLEN:
        return False
    f.data = data
    f.length = length
    f.l3 = data + ETH_HLEN
    f.l3_length = length - ETH_HLEN
    f.claim = length
    f.ethertype = be16(data + 12)
    return True


cdef inline Frame frame_received(const Frame *f) noexcept nogil:
    """As a receiver's driver sees it: one VLAN tag is off (`skb_vlan_untag`), and so is the Ethernet header."""
    cdef Frame received = f[0]
    if (f.ethertype == ETH_P_8021Q or f.ethertype == ETH_P_8021AD) and f.l3_length >= VLAN_HLEN:
        received.ethertype = be16(f.l3 + 2)
        received.l3 += VLAN_HLEN
        received.l3_length -= VLAN_HLEN
    received.claim = received.l3_length
    return received


cdef inline bint is_priority_tagged(const Frame *f) noexcept nogil:
    """Whether its tag has VID 0: the frame belongs to no VLAN (IEEE 802.1Q section 9.6)."""
    return f.ethertype == ETH_P_8021Q and f.l3_length >= VLAN_HLEN and be16(f.l3) & 0x0FFF == 0


cdef inline virtio_net_hdr *frame_header(const Frame *f) noexcept nogil:
    """Of a frame that was read from an interface."""
    return <virtio_net_hdr *> (f.data - sizeof(virtio_net_hdr))


cdef inline uint64_t frame_destination(const Frame *f) noexcept nogil:
    """As mac48 gives it; by one load, for both addresses and the ethertype are there."""
    return raw64(f.data) & 0xFFFFFFFFFFFFu


cdef inline uint64_t frame_source(const Frame *f) noexcept nogil:
    return raw64(f.data + 6) & 0xFFFFFFFFFFFFu


cdef inline bint frame_is_multicast(const Frame *f) noexcept nogil:
    """Whether the destination MAC address has the I/G bit. As in the kernel's `is_multicast_ether_addr`, and throughout
    the data plane, "multicast" includes broadcast."""
    return f.data[0] & 1


cdef inline Address ipv4_address(const uint8_t *p) noexcept nogil:
    return Address(0, be32(p), IPV4)


cdef inline Address ipv6_address(const uint8_t *p) noexcept nogil:
    return Address(raw64(p), raw64(p + 8), IPV6)


cdef inline bint ipv4_is_whole(const Frame *f) noexcept nogil:
    """A header, and no larger a total length than may be claimed (padding may follow)."""
    cdef const uint8_t *p = f.l3
    if f.l3_length < 20:
        return False
    cdef uint32_t header = (p[0] & 0x0F) * 4
    cdef uint32_t total = be16(p + 2)
    return p[0] >> 4 == 4 and header >= 20 and header <= total <= f.claim


cdef inline bint ipv6_is_whole(const uint8_t *p, uint32_t length) noexcept nogil:
    """A fixed header; the payload length is not looked at."""
    return length >= 40 and p[0] >> 4 == 6


cdef inline Address frame_address(const Frame *f, bint source) noexcept nogil:
    """The address that says whose the frame is: its destination, or its source where `source` asks for it.
    ICMPv6 from :: stands for the address that it asks about, or for none. Family NO_ADDRESS if there is none."""
    cdef Address none = Address(0, 0, NO_ADDRESS)
    cdef Address address
    if f.ethertype == ETH_P_IP:
        if ipv4_is_whole(f):
            return ipv4_address(f.l3 + (12 if source else 16))
    elif f.ethertype == ETH_P_IPV6:
        if ipv6_is_whole(f.l3, f.l3_length):
            address = ipv6_address(f.l3 + 8)
            if address.hi == 0 and address.lo == 0 and f.l3[6] == IPPROTO_ICMPV6:
                if f.l3_length >= 64 and f.l3[40] == ICMPV6_NEIGHBOUR_SOLICITATION:
                    return ipv6_address(f.l3 + 48)
                return none
            return address if source else ipv6_address(f.l3 + 24)
    elif f.ethertype == ETH_P_ARP:
        if f.l3_length >= 28:
            return ipv4_address(f.l3 + (14 if source else 24))
    return none


cdef inline uint64_t packet_group(const Frame *f) noexcept nogil:
    """The MAC address of the group that an IP packet is for, whatever the frame's is (RFC 1112 section 6.4, RFC 2464
    section 7; of 255.255.255.255 it is the broadcast address). 0: it is for none."""
    cdef uint8_t group[6]
    if f.ethertype == ETH_P_IP and ipv4_is_whole(f):
        if be32(f.l3 + 16) == 0xFFFFFFFFu:
            return 0xFFFFFFFFFFFFu
        if f.l3[16] >> 4 != 14:
            return 0
        group[0], group[1], group[2], group[3] = 0x01, 0x00, 0x5E, f.l3[17] & 0x7F
        group[4], group[5] = f.l3[18], f.l3[19]
        return mac48(group)
    if f.ethertype == ETH_P_IPV6 and ipv6_is_whole(f.l3, f.l3_length) and f.l3[24] == 0xFF:
        group[0], group[1], group[2], group[3] = 0x33, 0x33, f.l3[36], f.l3[37]
        group[4], group[5] = f.l3[38], f.l3[39]
        return mac48(group)
    return 0


cdef inline bint frame_is_membership_report(const Frame *f) noexcept nogil:
    """IGMP, or ICMPv6 behind a hop-by-hop header as every MLD message has it (RFC 3810 section 5)."""
    if f.ethertype == ETH_P_IP:
        return ipv4_is_whole(f) and f.l3[9] == IPPROTO_IGMP
    if f.ethertype == ETH_P_IPV6:
        return (ipv6_is_whole(f.l3, f.l3_length) and f.l3_length >= 48
                and f.l3[6] == IPPROTO_HOPOPTS and f.l3[40] == IPPROTO_ICMPV6)
    return False
