"""The rules and their table as a Python object, and a storm of mutated frames over them; for the tests alone.

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
    FORMER_PORT, HOST_GATEWAY, HOST_PORT, PortRule, Switch, Verdict, decide_from_host, decide_from_master,
    decide_from_port, port_accepts, port_listens,
)
from ipvsw.datapath.rules.guard cimport (
    FIRST_GUARD, N_GUARDS, UNKNOWN, claimed_address, guard_check, guard_host,
)
from ipvsw.datapath.rules.outcome cimport DROP_RUNT, N_OUTCOMES, NO_OUTCOME, TO_PORT, TO_ROUTE
from ipvsw.datapath.packet.checksum cimport ones_sum as c_ones_sum
from ipvsw.datapath.packet.offload cimport offload_fits
from ipvsw.datapath.packet.segment cimport (
    HEAD, Segmenter, segmenter_complete, segmenter_head, segmenter_parse, segmenter_payload,
)
from ipvsw.datapath.rules.macnat cimport macnat_restore as c_macnat_restore, macnat_rewrite as c_macnat_rewrite
from ipvsw.datapath.rules.routecache cimport Route, route_rewrite as c_route_rewrite, wire_length as     c_wire_length
from ipvsw.datapath.kernel.sys cimport mac48, virtio_net_hdr
from ipvsw.datapath.rules.table cimport Slot, table_free, table_init, table_place, table_put
from ipvsw.datapath.packet.headers cimport ETH_HLEN, Address, Frame, frame_parse
from tests.native._values cimport address_from, exact_copy


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
    are the master's own addresses, `multicast` the groups that are switched in l3 and l3s."""

    cdef Switch s

    def __cinit__(self, int mode, int flag, bytes mac, ports, table, host=(), int access=0,
                  uint64_t key=0x5B5C31F2A97D4E63u,  # as good as the random ones of a datapath
                  vlans=(), multicast=()):
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
        for group in multicast:
            self.s.groups[self.s.n_groups] = address_from(group)
            self.s.n_groups += 1
        for vlan in vlans:
            self.s.vlans[<int> vlan >> 6] |= <uint64_t> 1 << (<int> vlan & 63)
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

    def add_gateway(self, bytes address):
        cdef Address a = address_from(address)
        if not table_put(&self.s.table, &a, HOST_GATEWAY):
            raise MemoryError

    def add_former(self, bytes address, int32_t port):
        cdef Address a = address_from(address)
        if not table_put(&self.s.table, &a, FORMER_PORT - port):
            raise MemoryError

    def guarded(self, int32_t port, uint32_t guards, bytes frame):
        """(outcome or -1, whether the one fault is an address that nobody owns) of a frame that a port sends."""
        cdef uint8_t *block = exact_copy(frame)
        cdef Frame f
        cdef int outcome
        try:
            if not frame_parse(&f, block, len(frame)):
                raise ValueError("a runt")
            self.s.rules[port].guards = guards
            outcome = guard_check(&self.s, port, &f)
            return (-1, False) if outcome == NO_OUTCOME else (outcome & ~UNKNOWN, bool(outcome & UNKNOWN))
        finally:
            free(block)

    def kept_from_host(self, int32_t port, uint32_t guards, bytes frame):
        """Whether the host's guard stops a frame that the rules hand to the host."""
        cdef uint8_t *block = exact_copy(frame)
        cdef Frame f
        try:
            if not frame_parse(&f, block, len(frame)):
                raise ValueError("a runt")
            self.s.rules[port].guards = guards
            return bool(guard_host(&self.s, port, &f))
        finally:
            free(block)

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
                if not (0 <= v.outcome < (TO_ROUTE + 1 if way <= FROM_PORT else N_OUTCOMES)
                        and -1 <= v.port < self.s.n_ports
                        and (v.outcome != TO_PORT or (v.port >= 0 and self.s.rules[v.port].up
                                                      and length >= ETH_HLEN))):
                    culprit = PyBytes_FromStringAndSize(<const char *> block, length)
                    free(block)
                    raise AssertionError(f"way {way}: outcome {v.outcome}, port {v.port}: {culprit.hex()}")
                totals[v.outcome] += 1
                if way == FROM_PORT and v.outcome == TO_ROUTE:
                    route(block, length, &state)
            if not guard(&self.s, block, length, &state):
                culprit = PyBytes_FromStringAndSize(<const char *> block, length)
                free(block)
                raise AssertionError(f"a guard's outcome that there isn't: {culprit.hex()}")
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


cdef bint guard(Switch *s, uint8_t *block, uint32_t length, uint64_t *state) noexcept:
    """Whether some of the guards say something about a frame that makes sense."""
    cdef Frame f
    cdef int outcome
    if s.n_ports == 0 or not frame_parse(&f, block, length):
        return True
    s.rules[0].guards = random_below(state, 1 << N_GUARDS)
    outcome = guard_check(s, 0, &f)
    claimed_address(&f)
    if outcome == NO_OUTCOME:
        return True
    outcome &= ~UNKNOWN
    return FIRST_GUARD <= outcome < FIRST_GUARD + N_GUARDS


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
    header.csum_offset = (6, 16, 8)[random_below(state, 3)] if random_below(state, 8) else random_below(state, 65536)
    offload_fits(block, n)
    if segmenter_parse(&c, block, n):
        if c.size:
            for number in range(c.count):
                segmenter_head(&c, number, head)
                c_ones_sum(c.frame + c.head + number * c.size, segmenter_payload(&c, number))
        else:
            segmenter_complete(&c, block + sizeof(virtio_net_hdr))
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
