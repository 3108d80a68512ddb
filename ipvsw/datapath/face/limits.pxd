"""What all workers share of a port, in memory of its own: limits, and the MAC address that its endpoint uses."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport malloc

from ipvsw.datapath.rules.ratelimit cimport BROADCAST_BURST, RATE_BURST, RX, TX, Limits, bucket_of


cdef inline uint64_t *macnat_new(uint64_t mac) except NULL:
    """For `free`."""
    cdef uint64_t *own = <uint64_t *> malloc(sizeof(uint64_t))
    if own == NULL:
        raise MemoryError
    own[0] = mac
    return own


cdef inline Limits *limits_new(rate, packets, uint64_t broadcast) except? NULL:
    """For `free`; NULL for no limit at all. What may pass a second; of `rate` and `packets` from the port and to it."""
    cdef uint64_t rate_rx, rate_tx, packets_rx, packets_tx
    cdef Limits *limits
    rate_rx, rate_tx = rate
    packets_rx, packets_tx = packets
    if not (rate_rx or rate_tx or packets_rx or packets_tx or broadcast):
        return NULL
    limits = <Limits *> malloc(sizeof(Limits))
    if limits == NULL:
        raise MemoryError
    limits.rate[RX], limits.rate[TX] = bucket_of(rate_rx, RATE_BURST), bucket_of(rate_tx, RATE_BURST)
    limits.packets[RX], limits.packets[TX] = bucket_of(packets_rx, RATE_BURST), bucket_of(packets_tx, RATE_BURST)
    limits.broadcast = bucket_of(broadcast, BROADCAST_BURST)
    return limits
