"""A libFuzzer target over parse and decide: no Python runs in it, Cython only translates it.

The first byte of an input chooses direction, mode, flag, GSO and access; the rest is the frame. What is to be routed
gets another header, behind an offload header that is made of its own bytes. With 255 in front the rest is a
virtio_net_hdr and a frame, which is made fit for an interface without offloads. `tests/fuzz/run.py` builds and drives
it.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from ipvsw.datapath.rules.hostaccess cimport FLOWS, FROM_HOST_INITIATES, TO_HOST_INITIATES
from ipvsw.datapath.rules.ndproxy cimport is_neighbour_query, neighbour_reply
from ipvsw.datapath.rules.decide cimport (
    HOST_GATEWAY, HOST_PORT, L2, L3S, VEPA, PortRule, Switch, Verdict, decide_from_host, decide_from_master,
    decide_from_port,
)
from ipvsw.datapath.rules.guard cimport FIRST_GUARD, N_GUARDS, UNKNOWN, claimed_address, guard_check, guard_host
from ipvsw.datapath.rules.outcome cimport N_OUTCOMES, NO_OUTCOME, TO_PORT, TO_ROUTE
from ipvsw.datapath.packet.segment cimport (
    HEAD, Segmenter, segmenter_bytes, segmenter_complete, segmenter_head, segmenter_parse, segmenter_payload,
)
from ipvsw.datapath.rules.macnat cimport macnat_restore, macnat_rewrite
from ipvsw.datapath.rules.routecache cimport Route, route_key, route_rewrite, wire_length
from ipvsw.datapath.loop.punt cimport is_dhcp, place_of, sender_of
from ipvsw.datapath.loop.state cimport MARKS
from ipvsw.datapath.kernel.sys cimport mac48, virtio_net_hdr
from ipvsw.datapath.rules.table cimport table_init, table_put
from ipvsw.datapath.packet.headers cimport (
    NO_ADDRESS, Address, Frame, frame_is_membership_report, frame_parse, ipv4_address, ipv6_address,
)

cdef enum:
    PORTS = 4
    LONGER = 8  # bytes that an answer may have more than its question
    BOTH = TO_HOST_INITIATES | FROM_HOST_INITIATES

cdef Switch switch_


cdef void set_up() noexcept nogil:
    """The corpus's addresses: 10.1.0.11 and fd00:1::11 upwards, the last port down, the master's MAC 02:..:01."""
    cdef uint8_t v4[4]
    cdef uint8_t v6[16]
    cdef uint8_t mac[6]
    cdef Address a
    cdef int32_t i
    for i in range(16):
        v6[i] = 0
    for i in range(6):
        mac[i] = 0
    v4[0], v4[1], v4[2] = 10, 1, 0
    v6[0], v6[3] = 0xFD, 1
    mac[0], mac[5] = 2, 1
    switch_.mode = L2
    switch_.mac = mac48(mac)
    switch_.n_ports = PORTS
    switch_.rules = <PortRule *> calloc(PORTS, sizeof(PortRule))
    switch_.flows = <uint64_t *> calloc(FLOWS, sizeof(uint64_t))
    if switch_.rules == NULL or switch_.flows == NULL or not table_init(&switch_.table, 1):
        abort()
    for i in range(PORTS):
        switch_.rules[i].up = i < PORTS - 1
        switch_.rules[i].mtu = 100 if i == 1 else 1500
        v4[3] = 11 + i
        a = ipv4_address(v4)
        table_put(&switch_.table, &a, i)
        v6[15] = 0x11 + i
        a = ipv6_address(v6)
        table_put(&switch_.table, &a, i)
    v4[3] = v6[15] = 1
    a = ipv4_address(v4)
    table_put(&switch_.table, &a, HOST_PORT)
    a = ipv6_address(v6)
    table_put(&switch_.table, &a, HOST_PORT)
    v4[3] = v6[15] = 254
    a = ipv4_address(v4)
    table_put(&switch_.table, &a, HOST_GATEWAY)
    a = ipv6_address(v6)
    table_put(&switch_.table, &a, HOST_GATEWAY)


cdef void route(const uint8_t *data, uint32_t length) noexcept nogil:
    """On a block of exactly the frame's size: libFuzzer's is not to be written."""
    cdef uint8_t *block = <uint8_t *> malloc(length)
    cdef Frame f
    cdef Route way
    cdef virtio_net_hdr header
    if block == NULL:
        abort()
    memcpy(block, data, length)
    if not frame_parse(&f, block, length) or route_key(&f).family == NO_ADDRESS:
        abort()
    memset(&way, 2, sizeof(way))
    memcpy(&header, f.l3 + 2, sizeof(header))
    if wire_length(&f, &header) > f.l3_length + header.gso_size + 65536:
        abort()
    route_rewrite(&f, &way, switch_.mac)
    if block[0] != 2 or block[5] != 2:
        abort()
    free(block)


cdef void guard(const uint8_t *data, uint32_t length) noexcept nogil:
    """Each guard alone stops no more than all of them, and only with its own outcome or for tags and encapsulation."""
    cdef Frame f
    cdef int outcome
    cdef uint32_t bit
    cdef bint stopped = False
    if not frame_parse(&f, <uint8_t *> data, length):
        return
    for bit in range(N_GUARDS):
        switch_.rules[0].guards = <uint32_t> 1 << bit
        outcome = guard_check(&switch_, 0, &f)
        if outcome != NO_OUTCOME:
            outcome &= ~UNKNOWN
            stopped = True
            if outcome < FIRST_GUARD or outcome >= FIRST_GUARD + N_GUARDS:
                abort()
    switch_.rules[0].guards = (<uint32_t> 1 << N_GUARDS) - 1
    if stopped != (guard_check(&switch_, 0, &f) != NO_OUTCOME):
        abort()
    guard_host(&switch_, 0, &f)
    if claimed_address(&f).family != NO_ADDRESS and length < 34:
        abort()


cdef void complete(const Segmenter *c) noexcept nogil:
    """In a copy of exactly the frame's size."""
    cdef uint8_t *block = <uint8_t *> malloc(c.length)
    if block == NULL and c.length:
        abort()
    memcpy(block, c.frame, c.length)
    segmenter_complete(c, block)
    free(block)


cdef void cut(const uint8_t *data, uint32_t size) noexcept nogil:
    """Every segment's header; and together they have every byte of the payload."""
    cdef uint8_t head[HEAD]
    cdef uint64_t total = 0
    cdef uint32_t number
    cdef Segmenter c
    if size < sizeof(virtio_net_hdr) or not segmenter_parse(&c, data, size):
        return
    if c.size:
        for number in range(c.count):
            segmenter_head(&c, number, head)
            total += c.head + segmenter_payload(&c, number)
        if total != segmenter_bytes(&c):
            abort()
    else:
        complete(&c)


cdef void own(const uint8_t *data, uint32_t length) noexcept nogil:
    """In from an endpoint with a MAC address of its own, behind an offload header of the frame's last bytes, and
    out to one; answered if it asks for a neighbour."""
    cdef uint8_t *block = <uint8_t *> malloc(length)
    cdef uint64_t cell = 0xAA0000000002
    cdef virtio_net_hdr header
    cdef Frame f
    if block == NULL:
        abort()
    memcpy(block, data, length)
    if not frame_parse(&f, block, length):
        free(block)
        return
    memset(&header, 0, sizeof(header))
    if length and data[length - 1] & 1 and length > sizeof(header):
        memcpy(&header, data + length - sizeof(header), sizeof(header))
    if macnat_rewrite(&cell, switch_.mac, &header, &f) == NO_OUTCOME:
        if mac48(block + 6) != switch_.mac:
            abort()
        macnat_restore(&cell, switch_.mac, switch_.mode != L2, block, length)
        if is_neighbour_query(&f):
            block = <uint8_t *> realloc(block, length + LONGER)
            if block == NULL or not frame_parse(&f, block, length):
                abort()
            if neighbour_reply(&switch_, 0, &f) > length + LONGER:
                abort()
    free(block)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    cdef Verdict v
    cdef Frame f
    cdef Address sender
    if switch_.rules == NULL:
        set_up()
    if size == 0:
        return 0
    if data[0] == 0xFF:
        cut(data + 1, size - 1)
        return 0
    own(data + 1, size - 1)
    guard(data + 1, size - 1)
    switch_.flag = (data[0] >> 3) % (VEPA + 1)
    switch_.mode = (data[0] >> 3) // (VEPA + 1) % (L3S + 1)
    switch_.access = (data[0] >> 3) % (BOTH + 1)
    if not frame_parse(&f, <uint8_t *> data + 1, size - 1):
        return 0
    if data[0] & 1:
        v = decide_from_master(&switch_, &f)
    elif data[0] & 4:
        v = decide_from_host(&switch_, &f)
    else:
        v = decide_from_port(&switch_, &f, data[0] & 2)
        if v.outcome == TO_ROUTE:
            route(data + 1, size - 1)
            return 0
    if v.outcome < 0 or v.outcome >= N_OUTCOMES or v.port < -1 or v.port >= PORTS:
        abort()
    if v.outcome == TO_PORT and (v.port < 0 or not switch_.rules[v.port].up):
        abort()
    frame_is_membership_report(&f)
    is_dhcp(&f, data[0] & 1)
    sender = sender_of(&f)
    if place_of(&sender) >= 64 * MARKS:
        abort()
    return 0
