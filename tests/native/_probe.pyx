"""The data plane's header-only helpers as plain Python calls, for the tests alone; never shipped.

Every frame is copied to a heap block of exactly its size before it is looked at, so that under
AddressSanitizer a read of one byte too many is an error.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ipvsw.datapath.rules.hostaccess cimport FLOWS, fingerprint as c_fingerprint, flow_known, is_fragment
from ipvsw.datapath.rules.prefetch cimport Ahead, ahead_fetch, collect_ahead
from ipvsw.datapath.rules.decide cimport (
    HOST_PORT, PortRule, Switch, Verdict, decide_from_host, decide_from_master, decide_from_port, port_accepts,
    port_listens,
)
from ipvsw.datapath.rules.outcome cimport DROP_RUNT, N_OUTCOMES, NO_OUTCOME, TO_PORT, TO_ROUTE
from ipvsw.datapath.packet.segment cimport (
    HEAD, Segmenter, segmenter_bytes, segmenter_checksum, segmenter_head, segmenter_parse, segmenter_payload,
    ones_sum as c_ones_sum,
)
from ipvsw.datapath.packet.gro cimport GroBatch, gro_merge, gro_checksums_hold, gro_takes
from ipvsw.datapath.rules.macnat cimport macnat_restore as c_macnat_restore, macnat_rewrite as c_macnat_rewrite
from ipvsw.datapath.rules.routecache cimport (
    Route, Routes as CRoutes, route_clear, route_find, route_put, route_rewrite as c_route_rewrite, wire_length as
    c_wire_length,
)
from ipvsw.datapath.loop.punt cimport is_dhcp as c_is_dhcp, sender_of as c_sender_of
from ipvsw.datapath.kernel.sys cimport mac48, virtio_net_hdr
from ipvsw.datapath.rules.table cimport (
    PART, Part, Slot, Table as CTable, Walk, table_find, table_free, table_init, table_next, table_place, table_put,
    table_remove,
)
from ipvsw.datapath.packet.headers cimport (
    ETH_HLEN, ETH_P_IP, ETH_P_IPV6, IPV4, NO_ADDRESS, Address, Frame, frame_address, frame_is_membership_report,
    frame_parse, frame_received, ipv4_address, ipv6_address,
)


cdef uint8_t *exact_copy(bytes frame) except NULL:
    cdef uint8_t *block = <uint8_t *> malloc(len(frame))
    if block == NULL:
        raise MemoryError
    memcpy(block, PyBytes_AS_STRING(frame), len(frame))
    return block


cdef Address address_from(bytes raw) except *:
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(raw)
    return ipv4_address(p) if len(raw) == 4 else ipv6_address(p)


cdef object address_bytes(const Address *a):
    if a.family == NO_ADDRESS:
        return None
    if a.family == IPV4:
        return int(a.lo).to_bytes(4, "big")
    return PyBytes_FromStringAndSize(<const char *> &a.hi, 8) + PyBytes_FromStringAndSize(<const char *> &a.lo, 8)


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
            if not c.sum_at:
                return [frame]
            return [frame[:c.sum_at] + int(segmenter_checksum(&c)).to_bytes(2, "big") + frame[c.sum_at + 2:]]
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

    def clear(self):
        if not route_clear(&self.routes):
            raise MemoryError

    def __len__(self):
        return self.routes.length


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


cdef enum:
    FROM_GSO  # where a frame comes from: from a port, to be segmented
    FROM_PORT
    FROM_MASTER
    FROM_HOST
    WAYS


cdef Verdict verdict(const Switch *s, int way, uint8_t *block, uint32_t length) noexcept:
    """As loop/forward.pxd asks for it."""
    cdef Frame f
    if not frame_parse(&f, block, length):
        return Verdict(DROP_RUNT, -1)
    if way == FROM_MASTER:
        return decide_from_master(s, &f)
    if way == FROM_HOST:
        return decide_from_host(s, &f)
    return decide_from_port(s, &f, way == FROM_GSO)


cdef class Decider:
    """A switch without its interfaces. `ports` are (up, mtu, everything, groups), `table` is {address: port}, `host`
    are
    the master's own addresses."""

    cdef Switch s

    def __cinit__(self, int mode, int flag, bytes mac, ports, table, host=(), int access=0,
                  uint64_t key=0x5B5C31F2A97D4E63u):  # as good as the random ones of a datapath
        cdef Address a
        cdef int32_t i
        cdef uint32_t k
        self.s.mode, self.s.flag, self.s.mac = mode, flag, mac48(<const uint8_t *> PyBytes_AS_STRING(mac))
        self.s.access = access
        self.s.flows = <uint64_t *> calloc(FLOWS, sizeof(uint64_t))
        if self.s.flows == NULL or not table_init(&self.s.table, key):
            raise MemoryError
        self.s.rules = <PortRule *> calloc(max(len(ports), 1), sizeof(PortRule))
        if self.s.rules == NULL:
            raise MemoryError
        for i, (up, mtu, everything, groups) in enumerate(ports):
            self.s.rules[i].up, self.s.rules[i].mtu, self.s.rules[i].all_multicast = up, mtu, everything
            self.s.rules[i].groups = <uint64_t *> malloc(len(groups) * sizeof(uint64_t))
            for k, group in enumerate(groups):
                self.s.rules[i].groups[k] = mac48(<const uint8_t *> PyBytes_AS_STRING(group))
            self.s.rules[i].n_groups = len(groups)
            self.s.n_ports = i + 1
        for address, port in [*table.items(), *((address, HOST_PORT) for address in host)]:
            a = address_from(address)
            if not table_put(&self.s.table, &a, port):
                raise MemoryError

    def __dealloc__(self):
        for i in range(self.s.n_ports):
            free(self.s.rules[i].groups)
        free(self.s.rules)
        free(self.s.flows)
        table_free(&self.s.table)

    def fingerprint(self, bytes frame):
        """Of the frame's flow, and whether that is remembered."""
        cdef uint8_t *block = exact_copy(frame)
        cdef Frame f
        cdef uint64_t mark = 0
        if frame_parse(&f, block, len(frame)):
            mark = c_fingerprint(&f, self.s.table.key, is_fragment(&f))
        free(block)
        return mark, mark != 0 and bool(flow_known(self.s.flows, mark))

    def from_port(self, bytes frame, bint gso=False):
        """(outcome, port or -1) of a frame that a port sends."""
        return self.decided(frame, FROM_GSO if gso else FROM_PORT)

    def from_master(self, bytes frame):
        return self.decided(frame, FROM_MASTER)

    def from_host(self, bytes frame):
        return self.decided(frame, FROM_HOST)

    cdef object decided(self, bytes frame, int way):
        cdef uint8_t *block = exact_copy(frame)
        cdef Verdict v = verdict(&self.s, way, block, len(frame))
        free(block)
        return v.outcome, v.port

    def collected_ahead(self, bytes frame):
        """The port in the place that the table is looked at ahead of a frame: None if it is empty, False if the
        table isn't looked at. With few addresses they are in their places, all but those that share one."""
        cdef uint8_t *block = exact_copy(frame)
        cdef Ahead ahead
        cdef const Slot *slot
        ahead.length = 0
        collect_ahead(&self.s, &ahead, block, len(frame))
        free(block)
        if ahead.length == 0:
            return False
        slot = <const Slot *> ahead.places[0]
        ahead_fetch(&ahead)
        return slot.port if slot.family else None

    def place(self, bytes address):
        """The same for an address."""
        cdef Address a = address_from(address)
        cdef const Slot *slot = table_place(&self.s.table, &a)
        return slot.port if slot.family else None

    def listeners(self, bytes group):
        """The ports that a multicast frame for this MAC is for."""
        cdef uint64_t mac = mac48(<const uint8_t *> PyBytes_AS_STRING(group))
        return [i for i in range(self.s.n_ports) if port_listens(&self.s.rules[i], mac)]

    def accepts(self, int32_t port, uint32_t length, bint gso):
        return bool(port_accepts(&self.s.rules[port], length, gso))

    def storm(self, seeds, uint64_t count, uint64_t seed):
        """Decide about `count` mutated frames, every way, and put another header on what is to be routed. Returns
        how many ended in each outcome; raises AssertionError with the frame if a verdict makes no sense."""
        cdef uint64_t state = seed * 2 + 1
        cdef uint64_t _n
        cdef uint64_t totals[TO_ROUTE + 1]
        cdef uint32_t length = 0
        cdef uint8_t *block
        cdef Verdict v
        cdef int way
        cdef bytes raw
        memset(totals, 0, sizeof(totals))
        for _n in range(count):
            raw = seeds[random_below(&state, len(seeds))]
            block = mutated(raw, &state, &length)
            if block == NULL:
                raise MemoryError
            for way in range(WAYS):
                v = verdict(&self.s, way, block, length)
                if not (0 <= v.outcome < (TO_ROUTE + 1 if way <= FROM_PORT else N_OUTCOMES) and -1 <= v.port < self.s.n_ports
                        and (v.outcome != TO_PORT or (v.port >= 0 and self.s.rules[v.port].up
                                                      and length >= ETH_HLEN))):
                    culprit = PyBytes_FromStringAndSize(<const char *> block, length)
                    free(block)
                    raise AssertionError(f"way {way}: outcome {v.outcome}, port {v.port}: {culprit.hex()}")
                totals[v.outcome] += 1
                if way == FROM_PORT and v.outcome == TO_ROUTE:
                    route(block, length, &state)
            cut(block, length, &state)
            good = own(block, length, &state, self.s.mac)
            free(block)
            if not good:
                raise AssertionError(f"a foreign MAC address got through: {raw.hex()}, seed {seed}, frame {_n}")
        return [totals[k] for k in range(TO_ROUTE + 1)]


cdef void route(uint8_t *block, uint32_t length, uint64_t *state) noexcept:
    """All that is done to a frame for the outside before it is sent, with an offload header that lies."""
    cdef Frame f
    cdef virtio_net_hdr header
    cdef Route way
    if not frame_parse(&f, block, length):
        return
    memset(&way, 2, sizeof(way))
    memset(&header, 0, sizeof(header))
    header.gso_type = random_below(state, 8)
    header.gso_size = random_below(state, 2000)
    header.csum_start = random_below(state, length + 32) if random_below(state, 8) else random_below(state, 65536)
    if c_wire_length(&f, &header) > 20:
        c_route_rewrite(&f, &way, random_below(state, 65536))


cdef void cut(const uint8_t *frame, uint32_t length, uint64_t *state) noexcept:
    """Have it completed or segmented, as an offload header wants that lies, or only nearly tells the truth."""
    cdef uint32_t n = sizeof(virtio_net_hdr) + length
    cdef uint8_t *block = <uint8_t *> malloc(n)
    cdef uint8_t head[HEAD]
    cdef virtio_net_hdr *header = <virtio_net_hdr *> block
    cdef Segmenter c
    cdef uint32_t number
    if block == NULL:
        return
    memcpy(block + sizeof(virtio_net_hdr), frame, length)
    header.flags = random_below(state, 4) > 0
    header.gso_type = (0, 1, 4, 5, 0x81, 3)[random_below(state, 6)]
    header.hdr_len = random_below(state, 100) if random_below(state, 8) else random_below(state, 65536)
    header.gso_size = random_below(state, 40)
    header.csum_start = (14, 34, 38, 54, 58)[random_below(state, 5)]
    header.csum_offset = (6, 16)[random_below(state, 2)] if random_below(state, 8) else random_below(state, 65536)
    if segmenter_parse(&c, block, n):
        if c.size:
            for number in range(c.count):
                segmenter_head(&c, number, head)
                c_ones_sum(c.frame + c.head + number * c.size, segmenter_payload(&c, number))
        elif c.sum_at:
            segmenter_checksum(&c)
    free(block)


cdef bint own(uint8_t *block, uint32_t length, uint64_t *state, uint64_t master) noexcept:
    """In from an endpoint with a MAC address of its own, and out to one; whether the former was seen to."""
    cdef virtio_net_hdr header
    cdef uint64_t cell = 0xAA0000000002
    cdef bint lies = random_below(state, 2)
    cdef Frame f
    if not frame_parse(&f, block, length):
        return True
    memset(&header, 0, sizeof(header))
    if lies:
        header.flags, header.gso_type = random_below(state, 2), random_below(state, 8)
        header.csum_start, header.csum_offset = random_below(state, length + 32), random_below(state, 24)
    if c_macnat_rewrite(&cell, master, &header, &f) == NO_OUTCOME:
        if mac48(block + 6) != master:
            return False
        c_macnat_restore(&cell, master, lies, block, length)
    return True


cdef uint32_t random_below(uint64_t *state, uint32_t bound) noexcept:
    """SplitMix64, reduced."""
    cdef uint64_t z
    state[0] += 0x9E3779B97F4A7C15u
    z = state[0]
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu
    return <uint32_t> (((z ^ (z >> 31)) >> 32) * bound >> 32)


cdef uint8_t *mutated(bytes raw, uint64_t *state, uint32_t *length) noexcept:
    """A heap block of exactly `length` bytes: the seed cut short or lengthened, a few bytes changed, of which
    most are among the first 80, where everything is that anybody looks at. NULL if there is no memory."""
    cdef uint32_t n = len(raw), i
    cdef uint8_t *block
    cdef uint32_t what = random_below(state, 4)
    if what == 0:
        n = random_below(state, n + 1)
    elif what == 1:
        n = n + random_below(state, 64)
    block = <uint8_t *> malloc(n)
    if block == NULL:
        return NULL
    length[0] = n
    memcpy(block, PyBytes_AS_STRING(raw), min(n, <uint32_t> len(raw)))
    for i in range(<uint32_t> len(raw), n):
        block[i] = random_below(state, 256)
    if n:
        for _i in range(random_below(state, 4)):
            block[random_below(state, min(n, 80) if random_below(state, 8) else n)] = random_below(state, 256)
        if n > 12 and random_below(state, 16) == 0:
            memcpy(block, block + 6, 6)  # to the sender's own MAC
    return block
