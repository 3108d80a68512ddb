"""Address -> port: open addressing, linear probing, deletion by shifting back (no tombstones); in parts.

A worker owns its table alone. The hash is keyed, so that nobody outside can choose addresses that
collide. A part has up to PART slots and is at most three quarters full: the address that is too many
for it has it split in two, by the next bit of their hashes, and never more than one part is moved at a
time, however many there are (extendible hashing: Fagin et al., ACM TODS 4(3), 1979). What a directory
says by the first bits of a hash is which part it is in; a table of one part has no use for it, and
grows by doubling that part until it is as large as they get. Two parts that have become small enough
together are one again. 24 bytes a slot, so 32 to 64 bytes for an address.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from ipvsw.datapath.kernel.sys cimport mix
from ipvsw.datapath.packet.headers cimport Address

cdef enum:
    FEWEST = 16  # slots of the first part, a power of two
    PART = 1024  # slots of the others: splitting one takes some ten microseconds
    DEEPEST = 22  # bits of a hash that the directory may use: with 32 MB, parts for a billion addresses

cdef struct Slot:
    uint64_t hi
    uint64_t lo
    uint32_t family  # 0: empty
    int32_t port

# The addresses whose hashes begin with the same `depth` bits.
cdef struct Part:
    uint32_t used
    uint32_t depth
    Slot slots[1]  # `Table.mask` + 1 of them

cdef struct Table:
    Part **parts  # by the first `depth` bits of a hash; a part of fewer bits is there several times
    uint32_t depth
    uint32_t largest  # slots that a part may have, a power of two
    uint64_t mask  # slots of a part, less one
    uint64_t used
    uint64_t key
    uint64_t changes  # how often an address was put or removed

# Where a walk through the table is; zeroed to begin with.
cdef struct Walk:
    uint64_t part
    uint64_t slot


cdef inline Part *part_new(uint64_t slots, uint32_t depth) noexcept nogil:
    cdef Part *part = <Part *> calloc(1, sizeof(Part) + (slots - 1) * sizeof(Slot))
    if part != NULL:
        part.depth = depth
    return part


cdef inline bint table_init(Table *t, uint64_t key, uint32_t largest=PART) noexcept nogil:
    """False if there is no memory."""
    t.depth = 0
    t.largest = largest
    t.mask = FEWEST - 1
    t.used = 0
    t.key = key
    t.changes = 0
    t.parts = <Part **> malloc(sizeof(Part *))
    if t.parts == NULL:
        return False
    t.parts[0] = part_new(FEWEST, 0)
    if t.parts[0] == NULL:
        free(t.parts)
        t.parts = NULL
    return t.parts != NULL


cdef inline uint64_t part_width(const Table *t, const Part *part) noexcept nogil:
    """How many times the directory has a part, next to each other."""
    return <uint64_t> 1 << (t.depth - part.depth)


cdef inline void table_free(Table *t) noexcept nogil:
    cdef uint64_t i = 0
    cdef uint64_t width
    if t.parts == NULL:
        return
    while i < <uint64_t> 1 << t.depth:
        width = part_width(t, t.parts[i])
        free(t.parts[i])
        i += width
    free(t.parts)
    t.parts = NULL


cdef inline uint64_t table_hash(const Table *t, uint64_t hi, uint64_t lo, uint32_t family) noexcept nogil:
    """Where `hi` happens to be the key, the product is 0 whatever `lo` is: hence `inner` once more; multiplied, since
    where they differ in one bit, the product is `inner` itself, or that rotated."""
    cdef uint64_t inner = mix(lo ^ t.key, 0x9E3779B97F4A7C15u ^ family)
    return mix(hi ^ t.key, inner ^ 0xD6E8FEB86659FD93u) ^ inner * 0xFF51AFD7ED558CCDu


cdef inline uint64_t slot_hash(const Table *t, const Slot *slot) noexcept nogil:
    return table_hash(t, slot.hi, slot.lo, slot.family)


cdef inline uint64_t first_bits(uint64_t hash_, uint32_t depth) noexcept nogil:
    return (hash_ >> 1) >> (63 - depth)  # a shift by all 64 would say nothing


cdef inline Slot *part_slot(Part *part, uint64_t mask, uint64_t hash_, const Slot *wanted) noexcept nogil:
    """The slot that holds the same address, or the empty one where it would go."""
    cdef Slot *slots = part.slots
    cdef uint64_t i = hash_ & mask
    while slots[i].family and not (slots[i].lo == wanted.lo and slots[i].hi == wanted.hi
                                   and slots[i].family == wanted.family):
        i = (i + 1) & mask
    return &slots[i]


cdef inline int32_t table_find(const Table *t, const Address *a) noexcept nogil:
    """The owner's port number, another negative one that was put there, or -1."""
    cdef uint64_t hash_
    cdef Slot wanted
    cdef Slot *slot
    if a.family == 0:
        return -1
    wanted = Slot(a.hi, a.lo, a.family, -1)
    hash_ = slot_hash(t, &wanted)
    slot = part_slot(t.parts[first_bits(hash_, t.depth)], t.mask, hash_, &wanted)
    return slot.port if slot.family else -1


cdef inline const Slot *table_place(const Table *t, const Address *a) noexcept nogil:
    """Where looking for the address begins."""
    cdef uint64_t hash_ = table_hash(t, a.hi, a.lo, a.family)
    return &t.parts[first_bits(hash_, t.depth)].slots[hash_ & t.mask]


cdef inline void part_take(const Table *t, Part *into, uint64_t mask, const Part *source) noexcept nogil:
    """Copy everything that is in `source`."""
    cdef uint64_t i, hash_
    for i in range(t.mask + 1):
        if source.slots[i].family:
            hash_ = slot_hash(t, &source.slots[i])
            part_slot(into, mask, hash_, &source.slots[i])[0] = source.slots[i]
            into.used += 1


cdef inline bint table_resize(Table *t, uint64_t slots) noexcept nogil:
    """Another size for the only part. False if there is no memory."""
    cdef Part *part = part_new(slots, 0)
    if part == NULL:
        return False
    part_take(t, part, slots - 1, t.parts[0])
    free(t.parts[0])
    t.parts[0] = part
    t.mask = slots - 1
    return True


cdef inline bint table_deepen(Table *t) noexcept nogil:
    """One more bit for the directory. False if there is no memory."""
    cdef uint64_t i
    cdef uint64_t length = <uint64_t> 1 << t.depth
    cdef Part **parts
    if t.depth == DEEPEST:
        return False
    parts = <Part **> malloc(2 * length * sizeof(Part *))
    if parts == NULL:
        return False
    for i in range(length):
        parts[2 * i] = parts[2 * i + 1] = t.parts[i]
    free(t.parts)
    t.parts = parts
    t.depth += 1
    return True


cdef inline void table_show(Table *t, uint64_t bits, Part *part) noexcept nogil:
    """Have the directory say that what begins with `bits`, as many as the part's depth, is in that part."""
    cdef uint64_t i
    cdef uint64_t width = part_width(t, part)
    for i in range(bits * width, (bits + 1) * width):
        t.parts[i] = part


cdef inline bint table_split(Table *t, uint64_t hash_) noexcept nogil:
    """Two parts for the one that a hash is in. False if there is no memory."""
    cdef Part *old = t.parts[first_bits(hash_, t.depth)]
    cdef Part *halves[2]
    cdef Part *half
    cdef uint64_t i, bits, has
    if old.depth == t.depth and not table_deepen(t):
        return False
    halves[0] = part_new(t.mask + 1, old.depth + 1)
    halves[1] = part_new(t.mask + 1, old.depth + 1)
    if halves[0] == NULL or halves[1] == NULL:
        free(halves[0])
        free(halves[1])
        return False
    for i in range(t.mask + 1):
        if old.slots[i].family:
            has = slot_hash(t, &old.slots[i])
            half = halves[first_bits(has, old.depth + 1) & 1]
            part_slot(half, t.mask, has, &old.slots[i])[0] = old.slots[i]
            half.used += 1
    bits = first_bits(hash_, old.depth)
    table_show(t, 2 * bits, halves[0])
    table_show(t, 2 * bits + 1, halves[1])
    free(old)
    return True


cdef inline void table_merge(Table *t, uint64_t hash_) noexcept nogil:
    """One part for the two that a hash and its neighbours are in, if that is far from full. Without memory for it
    they stay."""
    cdef Part *part = t.parts[first_bits(hash_, t.depth)]
    cdef uint64_t bits = first_bits(hash_, part.depth)
    cdef Part *other
    cdef Part *both
    if part.depth == 0:
        if t.mask + 1 > FEWEST and part.used * 16 <= (t.mask + 1) * 3:
            table_resize(t, (t.mask + 1) // 2)
        return
    other = t.parts[(bits ^ 1) * part_width(t, part)]
    if other.depth != part.depth or (part.used + other.used) * 8 > (t.mask + 1) * 3:
        return
    both = part_new(t.mask + 1, part.depth - 1)
    if both == NULL:
        return
    part_take(t, both, t.mask, part)
    part_take(t, both, t.mask, other)
    table_show(t, bits >> 1, both)
    free(part)
    free(other)
    if both.depth == 0:
        t.depth = 0


cdef inline bint table_put(Table *t, const Address *a, int32_t port) noexcept nogil:
    """Insert or replace. False if there is no memory; every address is then where it was."""
    cdef Slot wanted = Slot(a.hi, a.lo, a.family, port)
    cdef uint64_t hash_ = slot_hash(t, &wanted)
    cdef Part *part = t.parts[first_bits(hash_, t.depth)]
    cdef Slot *slot = part_slot(part, t.mask, hash_, &wanted)
    t.changes += 1
    if slot.family:
        slot.port = port
        return True
    while (part.used + 1) * 4 > (t.mask + 1) * 3:
        if not (table_split(t, hash_) if t.mask + 1 >= t.largest else table_resize(t, (t.mask + 1) * 2)):
            return False
        part = t.parts[first_bits(hash_, t.depth)]
        slot = part_slot(part, t.mask, hash_, &wanted)
    slot[0] = wanted
    part.used += 1
    t.used += 1
    return True


cdef inline void table_remove(Table *t, const Address *a) noexcept nogil:
    cdef Slot wanted = Slot(a.hi, a.lo, a.family, -1)
    cdef uint64_t hash_ = slot_hash(t, &wanted)
    cdef Part *part = t.parts[first_bits(hash_, t.depth)]
    cdef Slot *slots = part.slots
    cdef Slot *slot = part_slot(part, t.mask, hash_, &wanted)
    cdef uint64_t hole, i, home
    if not slot.family:
        return
    t.changes += 1
    t.used -= 1
    part.used -= 1
    hole = slot - slots
    i = hole
    while True:
        slots[hole].family = 0
        while True:
            i = (i + 1) & t.mask
            if not slots[i].family:
                table_merge(t, hash_)
                return
            home = slot_hash(t, &slots[i]) & t.mask
            # Keep what a search from its home would still reach without passing the hole.
            if (i - home) & t.mask >= (i - hole) & t.mask:
                break
        slots[hole] = slots[i]
        hole = i


cdef inline Slot *table_next(const Table *t, Walk *walk) noexcept nogil:
    """One used slot after the other, NULL after the last. The table must not change meanwhile."""
    cdef Part *part
    cdef Slot *slot
    while walk.part < <uint64_t> 1 << t.depth:
        part = t.parts[walk.part]
        while walk.slot <= t.mask:
            slot = &part.slots[walk.slot]
            walk.slot += 1
            if slot.family:
                return slot
        walk.slot = 0
        walk.part += part_width(t, part)
    return NULL
