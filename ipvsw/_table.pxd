"""Address -> port: open addressing, linear probing, deletion by shifting back (no tombstones).

A worker owns its table alone. The hash is keyed, so that nobody outside can choose addresses that
collide. At most three quarters full; 24 bytes a slot.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from ._sys cimport mix
from ._wire cimport Address

cdef struct Slot:
    uint64_t hi
    uint64_t lo
    uint32_t family  # 0: empty
    int32_t port

cdef struct Table:
    Slot *slots
    uint64_t mask
    uint64_t used
    uint64_t key


cdef inline bint table_init(Table *t, uint64_t key) noexcept nogil:
    """False if there is no memory."""
    t.mask = 15
    t.used = 0
    t.key = key
    t.slots = <Slot *> calloc(t.mask + 1, sizeof(Slot))
    return t.slots != NULL


cdef inline void table_free(Table *t) noexcept nogil:
    free(t.slots)
    t.slots = NULL


cdef inline uint64_t table_home(const Table *t, uint64_t hi, uint64_t lo, uint32_t family) noexcept nogil:
    return mix(hi ^ t.key, mix(lo ^ t.key, 0x9E3779B97F4A7C15u ^ family) ^ 0xD6E8FEB86659FD93u) & t.mask


cdef inline Slot *table_slot(const Table *t, const Address *a) noexcept nogil:
    """The slot that holds the address, or the empty one where it would go."""
    cdef uint64_t i = table_home(t, a.hi, a.lo, a.family)
    while t.slots[i].family and not (t.slots[i].lo == a.lo and t.slots[i].hi == a.hi
                                     and t.slots[i].family == a.family):
        i = (i + 1) & t.mask
    return &t.slots[i]


cdef inline int32_t table_find(const Table *t, const Address *a) noexcept nogil:
    """The owner's port number, or -1."""
    if a.family == 0:
        return -1
    cdef Slot *slot = table_slot(t, a)
    return slot.port if slot.family else -1


cdef inline bint table_grow(Table *t) noexcept nogil:
    cdef Table bigger
    cdef uint64_t i
    cdef Address a
    bigger.mask = t.mask * 2 + 1
    bigger.used = t.used
    bigger.key = t.key
    bigger.slots = <Slot *> calloc(bigger.mask + 1, sizeof(Slot))
    if bigger.slots == NULL:
        return False
    for i in range(t.mask + 1):
        if t.slots[i].family:
            a = Address(t.slots[i].hi, t.slots[i].lo, t.slots[i].family)
            table_slot(&bigger, &a)[0] = t.slots[i]
    free(t.slots)
    t[0] = bigger
    return True


cdef inline bint table_put(Table *t, const Address *a, int32_t port) noexcept nogil:
    """Insert or replace. False if there is no memory; the table is then as it was."""
    if (t.used + 1) * 4 > (t.mask + 1) * 3 and not table_grow(t):
        return False
    cdef Slot *slot = table_slot(t, a)
    if not slot.family:
        t.used += 1
    slot[0] = Slot(a.hi, a.lo, a.family, port)
    return True


cdef inline void table_remove(Table *t, const Address *a) noexcept nogil:
    cdef Slot *slot = table_slot(t, a)
    cdef uint64_t hole, i, home
    if not slot.family:
        return
    t.used -= 1
    hole = slot - t.slots
    i = hole
    while True:
        t.slots[hole].family = 0
        while True:
            i = (i + 1) & t.mask
            if not t.slots[i].family:
                return
            home = table_home(t, t.slots[i].hi, t.slots[i].lo, t.slots[i].family)
            # Keep what a search from its home would still reach without passing the hole.
            if (i - home) & t.mask >= (i - hole) & t.mask:
                break
        t.slots[hole] = t.slots[i]
        hole = i
