"""Limits of a port: token buckets for bits and packets in each direction, and for what is fanned out from it.

A bucket is one number: until when what has passed is paid for, at the bucket's rate. A frame passes if that is not in
the future, and then moves it on by what it costs (GCRA's virtual scheduling, ITU-T I.371 annex A). A bucket that was
idle may be behind the present by its burst and no more. The last frame of a burst may cost more than is left: what is
too much is paid for before the next, so that a GSO frame of any length passes and the rate holds all the same.

A frame is charged what it is on a wire: its bytes without preamble and checksum, of a GSO frame those of all packets
that it becomes, headers included. All workers share a port's buckets; who has none has no `Limits`.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_GSO_NONE, exchange_u64, load_u64, virtio_net_hdr
from ipvsw.datapath.packet.segment cimport Segmenter, segmenter_parse
from ipvsw.datapath.rules.outcome cimport LIMIT_PACKETS, LIMIT_RATE, NO_OUTCOME

ctypedef int (*LimitCheck)(Limits *, int, const uint8_t *, uint32_t, uint64_t) noexcept nogil

cdef extern from *:
    LimitCheck apart "ipvsw_apart"(LimitCheck f) noexcept nogil

cdef enum:
    RX = 0  # directions: from the port
    TX = 1  # to it
    DIRECTIONS = 2

cdef enum:
    FRACTION = 16  # bits of `Bucket.cost` behind the binary point
    RATE_BURST = 20_000_000  # ns: long enough for a worker that had to wait for its CPU, and for TCP
    BROADCAST_BURST = 2_000_000_000  # ns: a host that starts, with many behind it, asks for all its neighbours at once

cdef struct Bucket:
    uint64_t paid_until  # ns, the clock's
    uint64_t cost  # of one bit, packet or frame: ns, and FRACTION bits behind the point; 0: no limit
    uint64_t burst  # ns

cdef struct Limits:
    Bucket rate[DIRECTIONS]
    Bucket packets[DIRECTIONS]
    Bucket broadcast


cdef inline Bucket bucket_of(uint64_t per_second, uint64_t burst) noexcept nogil:
    """A full one for so many a second; 0: no limit."""
    return Bucket(0, (<uint64_t> 1_000_000_000 << FRACTION) // per_second if per_second else 0, burst)


cdef inline uint64_t bucket_start(Bucket *b, uint64_t paid_until, uint64_t now) noexcept nogil:
    """What is paid for, at the least up to a burst ago."""
    return max(paid_until, now - b.burst) if now > b.burst else paid_until


cdef inline bint bucket_is_empty(Bucket *b, uint64_t now) noexcept nogil:
    return b.cost and load_u64(&b.paid_until) > now


cdef inline void bucket_take(Bucket *b, uint64_t units, uint64_t now) noexcept nogil:
    cdef uint64_t before = load_u64(&b.paid_until)
    if b.cost:
        while not exchange_u64(&b.paid_until, &before, bucket_start(b, before, now) + (units * b.cost >> FRACTION)):
            pass  # another worker was faster: `before` is what it has left


cdef inline uint32_t packets_in(const uint8_t *buffer, uint32_t n, uint32_t *repeated) noexcept nogil:
    """How many packets the frame in `buffer`, behind its virtio_net_hdr, is or becomes, and how many bytes of headers
    each but the first repeats. Of a GSO frame that can't be parsed at least as many as its length says."""
    cdef const virtio_net_hdr *header = <const virtio_net_hdr *> buffer
    cdef Segmenter c
    repeated[0] = 0
    if header.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return 1
    if segmenter_parse(&c, buffer, n):
        repeated[0] = c.head
        return c.count
    return 1 + n // header.gso_size if header.gso_size else 1


cdef inline int limit_frame(
    Limits *limits, int direction, const uint8_t *buffer, uint32_t n, uint64_t now
) noexcept nogil:
    """`limit_check`, where nothing of it makes the way of other frames longer."""
    return apart(limit_check)(limits, direction, buffer, n, now)


cdef inline int limit_check(
    Limits *limits, int direction, const uint8_t *buffer, uint32_t n, uint64_t now
) noexcept nogil:
    """NO_OUTCOME for a frame that may pass, which is charged then; else the outcome of the limit that it ended at."""
    cdef uint32_t repeated = 0
    cdef uint32_t packets
    if bucket_is_empty(&limits.rate[direction], now):
        return LIMIT_RATE
    if bucket_is_empty(&limits.packets[direction], now):
        return LIMIT_PACKETS
    packets = packets_in(buffer, n, &repeated)
    bucket_take(&limits.rate[direction], 8 * (n - sizeof(virtio_net_hdr) + <uint64_t> repeated * (packets - 1)), now)
    bucket_take(&limits.packets[direction], packets, now)
    return NO_OUTCOME


cdef inline bint may_fan_out(Limits *limits, const uint8_t *buffer, uint32_t n, uint64_t now) noexcept nogil:
    """Whether a multicast frame of the port's may be copied to all, which is charged then."""
    cdef uint32_t repeated = 0
    if bucket_is_empty(&limits.broadcast, now):
        return False
    bucket_take(&limits.broadcast, packets_in(buffer, n, &repeated), now)
    return True


cdef inline bint limits_direction(const Limits *limits, int direction) noexcept nogil:
    """Whether every frame of that direction must be charged."""
    return limits.rate[direction].cost or limits.packets[direction].cost
