"""Where l3 frames for the outside go: destination address -> what the host's routing said, and the L2 rewrite.

The cache only ever holds the kernel's own answers; the control thread fills it and forgets them when anything
they rest on changes. A destination that is not in it is Python's turn.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

from ipvsw.datapath.kernel.sys cimport be16, virtio_net_hdr
from ipvsw.datapath.rules.table cimport Table, table_find, table_free, table_init, table_put, table_remove
from ipvsw.datapath.packet.headers cimport ETH_HLEN, ETH_P_IP, Address, Frame, folded, ipv4_address, ipv6_address, put16

cdef enum:
    BY_NEXTHOP = 0  # out on the master to `mac`
    BY_STACK = 1  # through the host's IP output
    UNREACHABLE = 2
    BY_LOCAL_STACK = 3  # the same as BY_STACK, and the destination is the host itself

cdef enum:
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_ECN = 0x80

cdef struct Route:
    uint8_t kind
    bint used  # since the control thread last asked
    uint8_t mac[6]
    uint32_t mtu  # of the path, bytes

cdef struct Routes:
    Table table  # address -> index
    Route *entries
    int32_t length
    int32_t room
    int32_t free  # 1 + the index of the first entry that was forgotten; the next one's stands in its `mtu`


cdef inline Address route_key(const Frame *f) noexcept nogil:
    """The destination as it stands there, however broken the rest of the header is."""
    return ipv4_address(f.l3 + 16) if f.ethertype == ETH_P_IP else ipv6_address(f.l3 + 24)


cdef inline Route *route_find(const Routes *r, const Frame *f) noexcept nogil:
    cdef Address a = route_key(f)
    cdef int32_t i = table_find(&r.table, &a)
    return &r.entries[i] if i >= 0 else NULL


cdef inline bint route_put(Routes *r, const Address *a, const Route *route) noexcept nogil:
    """False if there is no memory."""
    cdef int32_t i = table_find(&r.table, a)
    cdef Route *entries
    if i < 0 and r.free:
        i = r.free - 1
        if not table_put(&r.table, a, i):
            return False
        r.free = <int32_t> r.entries[i].mtu
    elif i < 0:
        if r.length == r.room:
            entries = <Route *> realloc(r.entries, max(64, r.room * 2) * sizeof(Route))
            if entries == NULL:
                return False
            r.entries = entries
            r.room = max(64, r.room * 2)
        i = r.length
        if not table_put(&r.table, a, i):
            return False
        r.length += 1
    r.entries[i] = route[0]
    return True


cdef inline void route_forget(Routes *r, const Address *a) noexcept nogil:
    """One that isn't there is no error."""
    cdef int32_t i = table_find(&r.table, a)
    if i >= 0:
        table_remove(&r.table, a)
        r.entries[i].mtu = <uint32_t> r.free
        r.free = i + 1


cdef inline bint route_clear(Routes *r) noexcept nogil:
    """Forget all. False if there is no memory; nothing is forgotten then."""
    cdef Table empty
    if not table_init(&empty, r.table.key):
        return False
    table_free(&r.table)
    r.table = empty
    r.length = r.free = 0
    return True


cdef inline uint32_t wire_length(const Frame *f, const virtio_net_hdr *header) noexcept nogil:
    """Bytes of the longest packet that leaves: the frame's own, or a segment's where it will be cut."""
    cdef uint32_t l4 = 8  # UDP
    cdef int kind = header.gso_type & ~GSO_ECN
    if not header.gso_type:
        return f.l3_length
    if header.csum_start < ETH_HLEN or <uint32_t> header.csum_start + 20 > f.length:
        return f.l3_length  # a lie; it won't fit any path
    if kind == GSO_TCPV4 or kind == GSO_TCPV6:
        l4 = (f.data[header.csum_start + 12] >> 4) * 4
    return header.csum_start - ETH_HLEN + l4 + header.gso_size


cdef inline uint16_t ipv4_checksum(const uint8_t *p, uint32_t header) noexcept nogil:
    """RFC 1071 over the header, its checksum field taken as zero; in host order."""
    cdef uint32_t total = 0
    cdef uint32_t i
    for i in range(0, header, 2):
        if i != 10:
            total += be16(p + i)
    return folded(total)


cdef inline uint32_t ipv4_total(const Frame *f) noexcept nogil:
    """The total length that the frame's bytes call for; 0 for what only a segmenting device can send."""
    return f.l3_length if f.l3_length <= 65535 else 0


cdef inline uint32_t ipv6_payload(const Frame *f) noexcept nogil:
    """The length field that the frame's bytes call for; 0 for a jumbogram."""
    return f.l3_length - 40 if f.l3_length <= 65575 else 0


cdef inline void route_rewrite(const Frame *f, const Route *route, uint64_t source) noexcept nogil:
    """The L2 header of the route's decision; lengths and header checksum as the kernel's local output sets them
    (`__ip_local_out`, `__ip6_local_out`). TTL, IP ID and options stay."""
    cdef uint8_t *data = f.data
    cdef uint8_t *l3 = f.l3
    cdef uint32_t header
    memcpy(data, route.mac, 6)
    memcpy(data + 6, &source, 6)  # the low six bytes: a MAC stands there in memory order
    if f.ethertype == ETH_P_IP:
        put16(l3 + 2, ipv4_total(f))
        header = (l3[0] & 0x0F) * 4
        if header < 20:
            memcpy(l3 + 10, l3, 2)  # what ip_fast_csum makes of a header that is too short to add up
        elif header <= f.l3_length:
            put16(l3 + 10, ipv4_checksum(l3, header))
    else:
        put16(l3 + 4, ipv6_payload(f))
