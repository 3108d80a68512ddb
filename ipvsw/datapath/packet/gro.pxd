"""UDP GRO: datagrams of one flow that arrived back to back are merged into one GSO frame, as the kernel does.

The frames stay in the slots of the receive ring, so nothing is copied: the first is written with the payloads of the
others behind it. Only what can be segmented again is merged: equal headers, equal lengths but for a shorter last one,
IP identifiers that count up or, with DF (RFC 6864), mean nothing, and valid checksums throughout, because the merged
frame has a partial checksum. Frames never change their order.
Sources: `udp_gro_receive_segment`, `inet_gro_receive`, `udp_gro_complete_segment` and `__udp_gso_segment` in the
kernel; RFC 768; RFC 8200 section 8.1.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from ipvsw.datapath.packet.checksum cimport ones_sum
from ipvsw.datapath.packet.offload cimport GSO_UDP_L4, PROTOCOL_UDP
from ipvsw.datapath.kernel.sys cimport (
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, be16, iovec, virtio_net_hdr,
)
from ipvsw.datapath.packet.headers cimport ETH_HLEN, ETH_P_IP, ETH_P_IPV6, folded, put16

cdef enum:
    MAX_BATCH = 64  # datagrams: UDP_MAX_SEGMENTS of kernels before 6.9
    UDP_HLEN = 8
    UDP_CHECK = 6  # offset in the header
    IPV4_HEADERS = 42  # bytes from the Ethernet header to the payload, without options
    IPV6_HEADERS = 62
    DF = 0x4000
    DHCP_FIRST = 67  # UDP ports whose datagrams are never merged
    DHCP_LAST = 68
    DHCP6_FIRST = 546
    DHCP6_LAST = 547

# Datagrams in the order in which they came, each with its virtio_net_hdr.
cdef struct GroBatch:
    uint32_t count
    uint32_t headers  # bytes before each payload, without the virtio_net_hdr
    uint32_t size  # bytes of each payload but the last
    uint32_t total  # of all payloads
    bint ended  # the last is shorter: nothing follows
    iovec frames[MAX_BATCH]


cdef inline uint32_t datagram_headers(const uint8_t *buffer, uint32_t n) noexcept nogil:
    """The length of its headers if the frame is a UDP datagram with a checksum that may be merged with others, else 0.
    `buffer` holds a virtio_net_hdr and a frame, n bytes."""
    cdef const virtio_net_hdr *header = <const virtio_net_hdr *> buffer
    cdef const uint8_t *f = buffer + sizeof(virtio_net_hdr)
    cdef uint32_t length = n - sizeof(virtio_net_hdr)
    cdef uint32_t headers, port
    if header.gso_type != VIRTIO_NET_HDR_GSO_NONE or length <= IPV4_HEADERS:
        return 0
    if be16(f + 12) == ETH_P_IP:
        headers = IPV4_HEADERS
        if (f[14] != 0x45 or f[23] != PROTOCOL_UDP or be16(f + 20) & ~DF & 0xFFFF
                or be16(f + 16) != length - ETH_HLEN):
            return 0
    elif be16(f + 12) == ETH_P_IPV6:
        headers = IPV6_HEADERS
        if (length <= IPV6_HEADERS or f[14] >> 4 != 6 or f[20] != PROTOCOL_UDP
                or be16(f + 18) != length - (IPV6_HEADERS - UDP_HLEN)):
            return 0
    else:
        return 0
    port = be16(f + headers - 6)
    if (be16(f + headers - 4) != length - headers + UDP_HLEN or be16(f + headers - 2) == 0
            or DHCP_FIRST <= port <= DHCP_LAST or DHCP6_FIRST <= port <= DHCP6_LAST):
        return 0
    return headers


cdef inline bint gro_takes(GroBatch *t, uint8_t *buffer, uint32_t n) noexcept nogil:
    """Append the frame to the batch. False if it can't be merged with what is there."""
    cdef uint32_t headers
    cdef uint32_t payload
    if t.ended or t.count == MAX_BATCH:
        return False
    headers = datagram_headers(buffer, n)
    if headers == 0:
        return False
    payload = n - sizeof(virtio_net_hdr) - headers
    if t.count == 0:
        t.headers, t.size, t.total = headers, payload, 0
    elif (headers != t.headers or payload > t.size or t.total + payload + headers - ETH_HLEN > 0xFFFF
            or not follows(t, buffer)):
        return False
    t.ended = payload < t.size
    t.frames[t.count] = iovec(buffer, n)
    t.count += 1
    t.total += payload
    return True


cdef inline bint follows(const GroBatch *t, const uint8_t *buffer) noexcept nogil:
    """Whether the headers match those of the first frame."""
    cdef const uint8_t *a = <const uint8_t *> t.frames[0].iov_base + sizeof(virtio_net_hdr)
    cdef const uint8_t *b = buffer + sizeof(virtio_net_hdr)
    if t.headers == IPV6_HEADERS:
        # All but the lengths and the checksum.
        return memcmp(a, b, 18) == 0 and memcmp(a + 20, b + 20, 38) == 0
    # All but the lengths, the identifier and the checksums.
    return (memcmp(a, b, 16) == 0 and memcmp(a + 20, b + 20, 4) == 0 and memcmp(a + 26, b + 26, 12) == 0
            and (be16(a + 20) & DF or be16(b + 18) == (be16(a + 18) + t.count & 0xFFFF)))


cdef inline bint gro_checksums_hold(const GroBatch *t) noexcept nogil:
    """Whether every checksum is valid, or was verified by the device (DATA_VALID)."""
    cdef uint32_t i
    for i in range(t.count):
        if not datagram_is_whole(<const uint8_t *> t.frames[i].iov_base, t.headers, t.frames[i].iov_len):
            return False
    return True


cdef inline bint datagram_is_whole(const uint8_t *buffer, uint32_t headers, uint32_t n) noexcept nogil:
    cdef const virtio_net_hdr *header = <const virtio_net_hdr *> buffer
    cdef const uint8_t *f = buffer + sizeof(virtio_net_hdr)
    cdef uint32_t length = n - sizeof(virtio_net_hdr) - headers + UDP_HLEN
    if headers == IPV4_HEADERS and folded(ones_sum(f + ETH_HLEN, 20)):
        return False
    if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return header.csum_start == headers - UDP_HLEN and header.csum_offset == UDP_CHECK
    if header.flags & VIRTIO_NET_HDR_F_DATA_VALID:
        return True
    return folded(datagram_sum(f, headers, length, length)) == 0


cdef inline uint64_t datagram_sum(const uint8_t *f, uint32_t headers, uint32_t length, uint32_t added) noexcept nogil:
    """RFC 768's sum over the pseudo header of a datagram of `length` bytes and over its first `added` bytes."""
    cdef uint32_t addresses = 8 if headers == IPV4_HEADERS else 32  # bytes, right before the UDP header
    return <uint64_t> ones_sum(f + headers - UDP_HLEN - addresses, addresses + added) + PROTOCOL_UDP + length


cdef inline void gro_merge(GroBatch *t) noexcept nogil:
    """Make one GSO frame of the batch: the first frame's headers, then all payloads."""
    cdef uint8_t *buffer = <uint8_t *> t.frames[0].iov_base
    cdef virtio_net_hdr *header = <virtio_net_hdr *> buffer
    cdef uint8_t *f = buffer + sizeof(virtio_net_hdr)
    cdef uint8_t *udp = f + t.headers - UDP_HLEN
    cdef uint32_t length = UDP_HLEN + t.total
    cdef uint32_t i
    for i in range(1, t.count):
        t.frames[i].iov_base = <uint8_t *> t.frames[i].iov_base + sizeof(virtio_net_hdr) + t.headers
        t.frames[i].iov_len -= sizeof(virtio_net_hdr) + t.headers
    header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    header.gso_type = GSO_UDP_L4
    header.hdr_len = t.headers
    header.gso_size = t.size
    header.csum_start = t.headers - UDP_HLEN
    header.csum_offset = UDP_CHECK
    put16(udp + 4, length)
    put16(udp + UDP_CHECK, <uint16_t> ~folded(datagram_sum(f, t.headers, length, 0)))  # the kernel adds the rest
    if t.headers == IPV6_HEADERS:
        put16(f + 18, length)
    else:
        put16(f + 16, 20 + length)
        put16(f + 24, 0)
        put16(f + 24, folded(ones_sum(f + ETH_HLEN, 20)))
