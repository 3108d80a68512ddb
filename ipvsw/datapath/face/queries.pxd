"""What all workers together say. `workers` has `n` of them, which go on meanwhile."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from ipvsw.datapath.face.convert cimport address_of, as_address
from ipvsw.datapath.kernel.sys cimport load_u32, store_u32, take_u64
from ipvsw.datapath.loop.punt cimport place_of
from ipvsw.datapath.loop.state cimport MARKS, OFFENCE_KEPT, OFFENCE_WANTED, Offence, Traffic, Worker
from ipvsw.datapath.loop.tx cimport traffic_of
from ipvsw.datapath.packet.headers cimport Address
from ipvsw.datapath.rules.outcome cimport N_OUTCOMES
from ipvsw.datapath.rules.routecache cimport Routes
from ipvsw.datapath.rules.table cimport Slot, Walk, table_next


cdef inline list addresses_used(Worker **workers, int n, int32_t port, addresses):
    """Those of `addresses` that the port has sent from since the last call, and maybe a few more."""
    cdef uint64_t marks[MARKS]
    cdef uint64_t place
    cdef Address a
    cdef int i, k
    memset(marks, 0, sizeof(marks))
    for i in range(n):
        if port < workers[i].switch_.n_ports:
            for k in range(MARKS):
                marks[k] |= take_u64(&workers[i].ports[port].marks[k])
    found = []
    for address in addresses:
        a = as_address(address)
        place = place_of(&a)
        if marks[place >> 6] >> (place & 63) & 1:
            found.append(address)
    return found


cdef inline set routes_used(Worker **workers, int n):
    """Destinations, as bytes, whose cached routes were used since the last call."""
    cdef Routes *routes
    cdef Walk walk
    cdef Address a
    cdef Slot *s
    cdef int i
    found = set()
    for i in range(n):
        routes = &workers[i].routes
        memset(&walk, 0, sizeof(walk))
        while True:
            s = table_next(&routes.table, &walk)
            if s == NULL:
                break
            if routes.entries[s.port].used:
                routes.entries[s.port].used = False
                a = Address(s.hi, s.lo, s.family)
                found.add(address_of(&a))
    return found


cdef inline Offence *offence_of(Worker **workers, int n, int32_t port):
    """One that a worker keeps of the port's, NULL if none does."""
    cdef int i
    for i in range(n):
        if port < workers[i].switch_.n_ports and load_u32(&workers[i].ports[port].offence.state) == OFFENCE_KEPT:
            return &workers[i].ports[port].offence
    return NULL


cdef inline uint32_t guards_of(Worker **workers, int32_t port) noexcept:
    """Those of the port that are on, as bits."""
    return workers[0].switch_.rules[port].guards if port < workers[0].switch_.n_ports else 0


cdef inline void await_offences(Worker **workers, int n, int32_t port) noexcept:
    """Have every worker keep the port's next one, in the place of what it keeps."""
    cdef Offence *offence = offence_of(workers, n, port)
    while offence != NULL:
        store_u32(&offence.state, OFFENCE_WANTED)
        offence = offence_of(workers, n, port)


cdef inline tuple traffic_total(Worker **workers, int n, int32_t source):
    """As `Datapath.traffic` gives it: of a port, FROM_MASTER or FROM_HOST. A port that was not committed yet has none.
    """
    cdef Traffic total
    cdef int i, k
    memset(&total, 0, sizeof(total))
    for i in range(n):
        if source < workers[i].switch_.n_ports:
            traffic_add(&total, traffic_of(workers[i], source))
    return (total.rx_frames, total.rx_bytes, total.tx_frames, total.tx_bytes, total.tx_errors,
            total.offload_fixed, tuple([total.outcomes[k] for k in range(N_OUTCOMES)]))


cdef inline void traffic_add(Traffic *total, const Traffic *t):
    cdef int k
    total.rx_frames += t.rx_frames
    total.rx_bytes += t.rx_bytes
    total.tx_frames += t.tx_frames
    total.tx_bytes += t.tx_bytes
    total.tx_errors += t.tx_errors
    total.offload_fixed += t.offload_fixed
    for k in range(N_OUTCOMES):
        total.outcomes[k] += t.outcomes[k]


cdef inline uint64_t frames_read(Worker **workers, int n):
    """On all interfaces."""
    cdef uint64_t total = 0
    cdef int32_t port
    cdef int i
    for i in range(n):
        total += workers[i].master.rx_frames + workers[i].host.rx_frames
        for port in range(workers[i].switch_.n_ports):
            total += workers[i].ports[port].traffic.rx_frames
    return total
