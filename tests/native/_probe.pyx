"""The data plane's helpers as plain Python calls, for the tests alone; never shipped. The rules are in `_decider`.

Every frame is copied to a heap block of exactly its size before it is looked at, so that under
AddressSanitizer a read of one byte too many is an error.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ipvsw.datapath.packet.checksum cimport ones_sum as c_ones_sum
from ipvsw.datapath.packet.offload cimport offload_fits as c_offload_fits
from ipvsw.datapath.packet.segment cimport (
    HEAD, Segmenter, segmenter_bytes, segmenter_complete, segmenter_head, segmenter_parse, segmenter_payload,
)
from ipvsw.datapath.packet.gro cimport GroBatch, gro_merge, gro_checksums_hold, gro_takes
from ipvsw.datapath.rules.macnat cimport macnat_restore as c_macnat_restore, macnat_rewrite as c_macnat_rewrite
from ipvsw.datapath.rules.routecache cimport (
    Route, Routes as CRoutes, route_clear, route_find, route_forget, route_put, route_rewrite as c_route_rewrite,
    wire_length as c_wire_length,
)
from ipvsw.datapath.face.limits cimport limits_new
from ipvsw.datapath.rules.ratelimit cimport Limits as CLimits, limit_check, may_fan_out
from ipvsw.datapath.rules.guard cimport claimed_address as c_claimed_address
from ipvsw.datapath.loop.punt cimport is_dhcp as c_is_dhcp, sender_of as c_sender_of
from ipvsw.datapath.kernel.sys cimport mac48, virtio_net_hdr
from ipvsw.datapath.rules.table cimport (
    PART, Part, Slot, Table as CTable, Walk, table_find, table_free, table_init, table_next, table_place, table_put,
    table_remove,
)
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_IP, ETH_P_IPV6, Address, Frame, frame_address, frame_is_membership_report, frame_parse,
    frame_received,
)
from tests.native._values cimport address_bytes, address_from, exact_copy


def address_of(bytes frame, *, bint received, bint source):
    """The address that a frame goes by, as 4 or 16 bytes or None; `received`: as the receive path sees it."""
    cdef uint8_t *block = exact_copy(frame)
    cdef Frame f
    cdef Address a
    try:
        if not frame_parse(&f, block, len(frame)):
            return None
        if received:
            f = frame_received(&f)
        a = frame_address(&f, source)
        return address_bytes(&a)
    finally:
        free(block)


def sender_of(bytes frame):
    """The address that its sender says to be its own, as 4 or 16 bytes or None."""
    cdef uint8_t *block = exact_copy(frame)
    cdef Frame f
    cdef Address a
    try:
        if not frame_parse(&f, block, len(frame)):
            return None
        a = c_sender_of(&f)
        return address_bytes(&a)
    finally:
        free(block)


def claimed_address(bytes frame):
    """The address that a frame names as its sender's, as 4 or 16 bytes or None."""
    cdef uint8_t *block = exact_copy(frame)
    cdef Frame f
    cdef Address a
    try:
        if not frame_parse(&f, block, len(frame)):
            return None
        a = c_claimed_address(&f)
        return address_bytes(&a)
    finally:
        free(block)


def is_dhcp(bytes frame, *, bint to_client):
    cdef uint8_t *block = exact_copy(frame)
    cdef Frame f
    try:
        return bool(frame_parse(&f, block, len(frame)) and c_is_dhcp(&f, to_client))
    finally:
        free(block)


def is_membership_report(bytes frame):
    cdef uint8_t *block = exact_copy(frame)
    cdef Frame f
    try:
        return bool(frame_parse(&f, block, len(frame)) and frame_is_membership_report(&f))
    finally:
        free(block)


def ones_sum(bytes data):
    cdef uint8_t *block = exact_copy(data)
    try:
        return c_ones_sum(block, len(data))
    finally:
        free(block)


def offload_fits(bytes data):
    """Whether its virtio_net_hdr describes a frame."""
    cdef uint8_t *block = exact_copy(data)
    try:
        return bool(c_offload_fits(block, len(data)))
    finally:
        free(block)


def offloaded(bytes data):
    """The frames that leave an interface without offloads, of a virtio_net_hdr and a frame; None if the header lies."""
    cdef uint8_t *block
    cdef uint8_t *head
    cdef Segmenter c
    cdef uint32_t number, at
    if <uint32_t> len(data) < sizeof(virtio_net_hdr):
        raise ValueError("a frame has a virtio_net_hdr of 10 bytes before it")
    block = exact_copy(data)
    head = NULL
    try:
        if not segmenter_parse(&c, block, len(data)):
            return None
        if not c.size:
            frame = data[sizeof(virtio_net_hdr):]
            assert c.count == 1 and segmenter_bytes(&c) == <uint64_t> len(frame)
            segmenter_complete(&c, block + sizeof(virtio_net_hdr))
            return [PyBytes_FromStringAndSize(<const char *> block + sizeof(virtio_net_hdr), c.length)]
        assert c.head <= HEAD
        head = <uint8_t *> malloc(c.head)
        found = []
        for number in range(c.count):
            segmenter_head(&c, number, head)
            at = c.head + number * c.size
            found.append(PyBytes_FromStringAndSize(<const char *> head, c.head)
                         + PyBytes_FromStringAndSize(<const char *> c.frame + at, segmenter_payload(&c, number)))
        assert sum(map(len, found)) == segmenter_bytes(&c)
        assert PyBytes_FromStringAndSize(<const char *> block, len(data)) == data, "the frame itself is not written"
        return found
    finally:
        free(head)
        free(block)


cdef Frame routable(uint8_t *block, uint32_t length) except *:
    """What the rules hand to the route cache: IPv4 or IPv6 with a whole header, whatever it says."""
    cdef Frame f
    if not frame_parse(&f, block, length):
        raise ValueError("a runt")
    if f.l3_length < <uint32_t> {ETH_P_IP: 20, ETH_P_IPV6: 40}.get(f.ethertype, 65536):
        raise ValueError("nothing to route")
    return f


def coupled(list frames):
    """What goes on of frames that arrived together, each with its virtio_net_hdr: GSO frames, or they themselves."""
    cdef GroBatch t
    cdef uint8_t *block
    memset(&t, 0, sizeof(t))
    blocks, found = [], []
    try:
        for frame in frames:
            block = exact_copy(frame)
            blocks.append(<size_t> block)
            if not gro_takes(&t, block, len(frame)):
                found += went_on(&t)
                if not gro_takes(&t, block, len(frame)):
                    found.append(frame)
        return found + went_on(&t)
    finally:
        for address in blocks:
            free(<void *> <size_t> address)


cdef list went_on(GroBatch *t):
    cdef uint32_t i
    whole = t.count > 1 and gro_checksums_hold(t)
    if whole:
        gro_merge(t)
    pieces = [(<const char *> t.frames[i].iov_base)[:t.frames[i].iov_len] for i in range(t.count)]
    t.count = 0
    t.ended = False
    return [b"".join(pieces)] if whole else pieces


def wire_length(bytes frame, bytes header):
    """`header` is the frame's virtio_net_hdr."""
    cdef uint8_t *block = exact_copy(frame)
    cdef Frame f
    try:
        if len(header) != sizeof(virtio_net_hdr):
            raise ValueError("a virtio_net_hdr has 10 bytes")
        f = routable(block, len(frame))
        return c_wire_length(&f, <const virtio_net_hdr *> PyBytes_AS_STRING(header))
    finally:
        free(block)


def route_rewrite(bytes frame, bytes mac, bytes source):
    """The frame as it leaves to the neighbour `mac`."""
    cdef uint8_t *block = exact_copy(frame)
    cdef Frame f
    cdef Route route
    try:
        f = routable(block, len(frame))
        memcpy(route.mac, PyBytes_AS_STRING(mac), 6)
        c_route_rewrite(&f, &route, mac48(<const uint8_t *> PyBytes_AS_STRING(source)))
        return PyBytes_FromStringAndSize(<const char *> block, len(frame))
    finally:
        free(block)


def macnat_rewrite(bytes frame, bytes header, bytes own, bytes master):
    """(outcome or -1, the frame that goes on, the endpoint's MAC address from now on)"""
    cdef uint8_t *block = exact_copy(frame)
    cdef Frame f
    cdef uint64_t cell = mac48(<const uint8_t *> PyBytes_AS_STRING(own))
    cdef int outcome
    try:
        if len(header) != sizeof(virtio_net_hdr):
            raise ValueError("a virtio_net_hdr has 10 bytes")
        if not frame_parse(&f, block, len(frame)):
            raise ValueError("a runt")
        outcome = c_macnat_rewrite(&cell, mac48(<const uint8_t *> PyBytes_AS_STRING(master)),
                                   <const virtio_net_hdr *> PyBytes_AS_STRING(header), &f)
        return outcome, PyBytes_FromStringAndSize(<const char *> block, len(frame)), cell.to_bytes(6, "little")
    finally:
        free(block)


def macnat_restore(bytes frame, bytes own, bytes master, *, bint routed):
    """The frame as the endpoint gets it."""
    cdef uint8_t *block = exact_copy(frame)
    cdef uint64_t cell = mac48(<const uint8_t *> PyBytes_AS_STRING(own))
    try:
        if len(frame) < ETH_HLEN:
            raise ValueError("a runt")
        c_macnat_restore(&cell, mac48(<const uint8_t *> PyBytes_AS_STRING(master)), routed, block, len(frame))
        return PyBytes_FromStringAndSize(<const char *> block, len(frame))
    finally:
        free(block)


cdef class Routes:
    """A route cache."""

    cdef CRoutes routes

    def __cinit__(self, uint64_t key=1):
        if not table_init(&self.routes.table, key):
            raise MemoryError

    def __dealloc__(self):
        table_free(&self.routes.table)
        free(self.routes.entries)

    def put(self, bytes address, int kind, bytes mac, uint32_t mtu):
        cdef Address a = address_from(address)
        cdef Route route
        memset(&route, 0, sizeof(route))
        route.kind, route.mtu = kind, mtu
        memcpy(route.mac, PyBytes_AS_STRING(mac), 6)
        if not route_put(&self.routes, &a, &route):
            raise MemoryError

    def find(self, bytes frame):
        """(kind, mac, mtu), or None."""
        cdef uint8_t *block = exact_copy(frame)
        cdef Frame f
        cdef const Route *route
        try:
            f = routable(block, len(frame))
            route = route_find(&self.routes, &f)
            return None if route == NULL else (route.kind, (<const char *> route.mac)[:6], route.mtu)
        finally:
            free(block)

    def forget(self, bytes address):
        cdef Address a = address_from(address)
        route_forget(&self.routes, &a)

    def clear(self):
        if not route_clear(&self.routes):
            raise MemoryError

    @property
    def entries(self):
        """How many there is room for; those that were forgotten are used again."""
        return self.routes.length

    def __len__(self):
        return self.routes.table.used


cdef class Table:
    """An address table with a given hash key, and parts of a given size."""

    cdef CTable table

    def __cinit__(self, uint64_t key, uint32_t largest=PART):
        if not table_init(&self.table, key, largest):
            raise MemoryError

    def __dealloc__(self):
        table_free(&self.table)

    def put(self, bytes address, int32_t port):
        cdef Address a = address_from(address)
        if not table_put(&self.table, &a, port):
            raise MemoryError

    def remove(self, bytes address):
        cdef Address a = address_from(address)
        table_remove(&self.table, &a)

    def find(self, bytes address):
        cdef Address a = address_from(address)
        return table_find(&self.table, &a)

    def search(self, bytes address):
        """Which slots a look-up passes: the addresses in them, from its place to the first that is empty."""
        cdef Address a = address_from(address)
        cdef const Slot *place = table_place(&self.table, &a)
        cdef uint64_t i = 0, k
        cdef Part *part
        while not &self.table.parts[i].slots[0] <= place <= &self.table.parts[i].slots[self.table.mask]:
            i += 1  # past the directory's end if the place were in no part
        part = self.table.parts[i]
        k = place - part.slots
        found = []
        while part.slots[k].family:
            a = Address(part.slots[k].hi, part.slots[k].lo, part.slots[k].family)
            found.append(address_bytes(&a))
            k = (k + 1) & self.table.mask
        return found

    def __len__(self):
        return self.table.used

    def items(self):
        """Every used slot, in the order of the slots."""
        cdef Address a
        cdef Walk walk
        cdef Slot *slot
        memset(&walk, 0, sizeof(walk))
        found = []
        while True:
            slot = table_next(&self.table, &walk)
            if slot == NULL:
                return found
            a = Address(slot.hi, slot.lo, slot.family)
            found.append((address_bytes(&a), slot.port))

    def parts(self):
        """(used slots, slots, longest run of used ones next to each other) of each part."""
        cdef uint64_t i, k, run, longest
        cdef uint64_t slots = self.table.mask + 1
        cdef Part *part
        found = []
        i = 0
        while i < <uint64_t> 1 << self.table.depth:
            part = self.table.parts[i]
            run = longest = 0
            for k in range(2 * slots):
                run = run + 1 if part.slots[k % slots].family else 0
                longest = max(longest, run)
            found.append((part.used, slots, min(longest, slots)))
            i += <uint64_t> 1 << (self.table.depth - part.depth)
        return found

    def memory(self):
        """Bytes, of the directory too."""
        return (sum([slots for _, slots, _ in self.parts()]) * sizeof(Slot)
                + (<uint64_t> 1 << self.table.depth) * sizeof(Part *))


cdef class Limits:
    """A port's buckets at times that the test chooses, in ns. `frame` has its virtio_net_hdr."""

    cdef CLimits *limits

    def __cinit__(self, *, rate=(0, 0), packets=(0, 0), uint64_t broadcast=0):
        self.limits = limits_new(rate, packets, broadcast)

    def __dealloc__(self):
        free(self.limits)

    def check(self, int direction, bytes frame, uint64_t now):
        """The outcome's number, -1 if it passes."""
        cdef uint8_t *block = exact_copy(frame)
        try:
            return limit_check(self.limits, direction, block, len(frame), now)
        finally:
            free(block)

    def fan_out(self, bytes frame, uint64_t now):
        cdef uint8_t *block = exact_copy(frame)
        try:
            return may_fan_out(self.limits, block, len(frame), now)
        finally:
            free(block)
