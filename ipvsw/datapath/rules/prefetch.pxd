"""Where the table will be looked at, asked of the memory before the frames have their turn.

A large table is in no cache near the CPU, and a look-up in it waits for memory, some 250 ns. Asked for one right after
the other, the places of a burst come together: finding them all out first and asking then costs half of doing both for
each. So who has several frames in hand first lets each be looked at ahead, then fetches, then carries them out. A frame
for which that was forgotten, or guessed wrong, costs time and nothing else.
"""

from libc.stdint cimport uint8_t, uint32_t

from ipvsw.datapath.rules.decide cimport L2, Switch
from ipvsw.datapath.kernel.sys cimport prefetch
from ipvsw.datapath.rules.table cimport Table, table_place
from ipvsw.datapath.packet.headers cimport Address, Frame, frame_address, frame_destination, frame_parse

cdef enum:
    AHEAD = 64  # places at once
    LINE = 64  # bytes that come together
    FAR = 4  # bits of a directory: the parts of a smaller one, 200 KB, stay in the cache

# The places of a burst.
cdef struct Ahead:
    uint32_t length  # 0 to begin with
    const uint8_t *places[AHEAD]


cdef inline bint is_far(const Table *t) noexcept nogil:
    """Whether looking ahead pays."""
    return t.depth >= FAR


cdef inline void collect_ahead(const Switch *s, Ahead *ahead, uint8_t *data, uint32_t length) noexcept nogil:
    """A frame that was read, from a port or from the master, and isn't decided about yet. In l2 the table counts for
    what is addressed to the master's MAC; in l3 for all."""
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
