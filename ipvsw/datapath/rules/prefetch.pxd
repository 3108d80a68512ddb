"""The table slots of a whole burst are prefetched before its first frame is forwarded.

A large table does not fit in the CPU's caches: each look-up waits some 250 ns for memory. The loads of a burst overlap
if they are issued back to back, so a receive loop first collects the slots of all its frames (`collect_ahead`), then
prefetches them (`ahead_fetch`), then forwards the frames; computing and prefetching slot by slot costs twice as much. A
slot that was not collected, or the wrong one, costs time but changes no result.
"""

from libc.stdint cimport uint8_t, uint32_t

from ipvsw.datapath.rules.decide cimport L2, Switch
from ipvsw.datapath.kernel.sys cimport prefetch
from ipvsw.datapath.rules.table cimport Table, table_place
from ipvsw.datapath.packet.headers cimport Address, Frame, frame_address, frame_destination, frame_parse

cdef enum:
    AHEAD = 64  # slots of one burst
    LINE = 64  # bytes of a cache line
    FAR = 4  # bits of a directory: the parts of a smaller one, 200 KB, stay in the cache

# The slots of a burst.
cdef struct Ahead:
    uint32_t length  # 0 to begin with
    const uint8_t *places[AHEAD]


cdef inline bint is_far(const Table *t) noexcept nogil:
    """Whether the table is so large that prefetching pays."""
    return t.depth >= FAR


cdef inline void collect_ahead(const Switch *s, Ahead *ahead, uint8_t *data, uint32_t length) noexcept nogil:
    """The slot for a frame that was read from a port or from the master. In l2 only frames to the master's MAC address
    are looked up in the table; in l3 all are."""
    cdef Frame f
    cdef Address a
    if ahead.length == AHEAD or not frame_parse(&f, data, length):
        return
    if s.mode == L2 and frame_destination(&f) != s.mac:
        return
    a = frame_address(&f, False)
    if a.family:
        ahead.places[ahead.length] = <const uint8_t *> table_place(&s.table, &a)
        ahead.length += 1


cdef inline void ahead_fetch(const Ahead *ahead) noexcept nogil:
    """The next slots are in the same line, or in the one behind it."""
    cdef uint32_t i
    for i in range(ahead.length):
        prefetch(ahead.places[i])
        prefetch(ahead.places[i] + LINE - 1)
