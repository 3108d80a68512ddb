"""What is done to all workers at once. `workers` has `n` of them, which go on meanwhile."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from ipvsw.datapath.face.convert cimport queue_take
from ipvsw.datapath.kernel.sys cimport (
    add_i32, eventfd_read, eventfd_write, load_i32, load_ptr, load_u32, store_ptr, take_u32,
)
from ipvsw.datapath.kernel.uring cimport ring_close, ring_open
from ipvsw.datapath.loop.mailbox cimport Batch, take_mail
from ipvsw.datapath.loop.state cimport BUFFER, CREDIT, FROM_GONE, MASTER_CREDIT, ROOM, Port, Worker


cdef inline int rings_open(Worker **workers, int n) noexcept nogil:
    """A ring for each, before they start. 0, or the errno of the first that can't be had: then there is none at all."""
    cdef int i, k, error
    for i in range(n):
        error = ring_open(&workers[i].ring, BUFFER, ROOM)
        if error:
            for k in range(i + 1):
                ring_close(&workers[k].ring)
            return error
    return 0


cdef inline bint have_rings(Worker **workers, int n) noexcept nogil:
    """Whether each still has one: a worker whose ring the kernel has failed goes on without."""
    cdef int i
    for i in range(n):
        if workers[i].ring.fd < 0:
            return False
    return n > 0


cdef inline list frames_waiting(Worker **workers, int n):
    """As `Datapath.waiting` gives it."""
    cdef list found = []
    cdef int i
    for i in range(n):
        found.append((
            load_u32(&workers[i].backlog_length),
            load_u32(&workers[i].slow.tail) - load_u32(&workers[i].slow.head),
            load_u32(&workers[i].punted.tail) - load_u32(&workers[i].punted.head),
        ))
    return found


cdef inline void commit_batch(Worker **workers, int n, int done_fd, Batch *batch, bint running) noexcept nogil:
    """Returns when every worker has made the changes; here, if they don't run. Of `batch` the edits are given."""
    cdef uint64_t value
    cdef int i
    batch.workers_left = n
    batch.failures = batch.error = 0
    batch.done_fd = done_fd
    for i in range(n):
        store_ptr(&workers[i].mailbox, batch)
        eventfd_write(workers[i].control_fd, 1)
    if not running:
        for i in range(n):
            while load_ptr(&workers[i].mailbox) != NULL:
                take_mail(workers[i])
    while eventfd_read(done_fd, &value) < 0:
        pass  # a signal came (EINTR), but the workers still use the batch, which is on the caller's stack


cdef inline list events_taken(Worker **workers, int n, int32_t ports):
    """Of the ports below that number: pairs of a port and the bits of its events since the last call."""
    cdef uint32_t bits
    cdef int32_t port
    cdef int i
    found = []
    for port in range(ports):
        bits = 0
        for i in range(n):
            if port < workers[i].switch_.n_ports and load_u32(&workers[i].ports[port].events):
                bits |= take_u32(&workers[i].ports[port].events)
        if bits:
            found.append((port, bits))
    return found


cdef inline list slow_taken(Worker **workers, int n):
    """Pairs of a source and a frame that waited for the router."""
    cdef int i
    found = []
    for i in range(n):
        found += queue_take(workers[i], &workers[i].slow)
    return found


cdef inline list punted_taken(Worker **workers, int n):
    """The same for the snooper, without those of ports that have left."""
    cdef int i
    found = []
    for i in range(n):
        found += queue_take(workers[i], &workers[i].punted)
    return [(source, frame) for source, frame in found if source != FROM_GONE]


cdef inline void give_credit_to(Worker **workers, int n, int32_t source) noexcept nogil:
    """Let a port, or for a negative number the master and the host, have more frames punted."""
    cdef Port *p
    cdef int i
    for i in range(n):
        if source < 0:
            add_i32(&workers[i].credit, MASTER_CREDIT - load_i32(&workers[i].credit))
        elif source < workers[i].switch_.n_ports:
            p = &workers[i].ports[source]
            add_i32(&p.credit, min(CREDIT // 4, CREDIT - load_i32(&p.credit)))
