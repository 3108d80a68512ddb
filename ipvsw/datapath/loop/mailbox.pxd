"""How the control thread changes what a worker owns: batches of edits through a mailbox.

The control thread puts one batch into each worker's mailbox and waits; a worker applies it between two bursts: whole,
unless it is so long that frames would have to wait, then so much of it a round. Because the control thread waits, its
reads of counters and a worker's reallocations of them never meet.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from ipvsw.datapath.mirror.ring cimport Capture
from ipvsw.datapath.rules.decide cimport CAPTURED, PortRule, note_stages
from ipvsw.datapath.kernel.packetring cimport packets_map, packets_unmap, send_ring_map, send_ring_unmap
from ipvsw.datapath.rules.routecache cimport Route, route_clear, route_forget, route_put
from ipvsw.datapath.loop.state cimport (
    BACKLOG, CREDIT, DEVICE, FROM_GONE, FROM_MASTER, HOST_EVENT, MASTER_EVENT, NO_OFFENCE, OFFENCE_WANTED,
    SLOW, UNIX_SOCKET, Port,
    Queue, Reinjected, Worker, backlog_put, poll_fd, queue_of, read_by_ring, reads_port, unpoll_fd,
)
from ipvsw.datapath.backends.unixsock cimport Socket, socket_connect, socket_release
from ipvsw.datapath.loop.tx cimport settle_captured
from ipvsw.datapath.kernel.sys cimport add_i32, eventfd_write, load_ptr, store_ptr, store_u32, take_u32
from ipvsw.datapath.rules.ratelimit cimport RX, TX, Limits, limits_direction
from ipvsw.datapath.rules.table cimport table_put, table_remove
from ipvsw.datapath.packet.headers cimport Address
from ipvsw.datapath.packet.longheader cimport LONGER

cdef enum:
    MAIL = 128  # edits that a worker makes in one round: some 60 us where each misses the cache or is given a new page

cdef enum EditKind:
    SET_MODE
    SET_MASTER
    SET_VLANS
    ATTACH_MASTER
    DETACH_MASTER
    ATTACH_PORT
    CONNECT_PORT
    SET_PORT
    SET_GROUPS
    SET_LEARNING
    SET_GUARDS
    SET_LIMITS
    SET_CAPTURE
    CAPTURE_INTERFACE
    REINJECT
    ANNOUNCE
    DETACH_PORT
    ATTACH_HOST
    DETACH_HOST
    SET_ROUTE
    FORGET_ROUTE
    CLEAR_ROUTES
    BIND
    UNBIND
    STOP

# One change; which members count depends on `kind`.
cdef struct Edit:
    EditKind kind
    int32_t port
    int fd
    int *fds  # ATTACH_MASTER: one for each worker; ATTACH_PORT: for each queue
    int queues
    int backend  # ATTACH_PORT: DEVICE, or another of state.pxd's
    Socket *socket  # ATTACH_PORT: of a UNIX_SOCKET
    bint accepts_uso
    bint long_header
    int inject_fd
    int tunnel_fd
    uint32_t *starts  # ATTACH_MASTER: of each worker's receive ring the slot that is taken first; NULL: they are new
    int *send_fds  # ATTACH_MASTER: one for each worker, with a ring to send from; NULL: none
    int mode
    int flag
    int access
    void *switched  # SET_MODE: `n_groups` addresses
    uint8_t learn
    uint32_t guards
    Limits *limits
    Capture *captures  # SET_CAPTURE: one for each worker; NULL: none
    uint32_t tag  # CAPTURE_INTERFACE
    bint up
    uint8_t all_multicast
    uint32_t mtu
    uint32_t n_groups
    uint64_t *groups
    uint64_t *vlans  # SET_VLANS: VLAN_WORDS of them
    uint8_t *frame  # ANNOUNCE, REINJECT
    uint32_t length
    int32_t to
    uint64_t *macnat
    uint64_t mac
    Address address
    Route route
    int stack_fds[2]
    int master_index

cdef struct Batch:
    Edit *edits
    size_t length
    int32_t workers_left
    int32_t failures  # edits that a worker could not make
    int32_t error  # errno of one of them
    int done_fd  # eventfd: the last worker has it


cdef inline void take_mail(Worker *w) noexcept nogil:
    """Apply the batch in the mailbox, if any: MAIL edits of it."""
    cdef Batch *batch = <Batch *> load_ptr(&w.mailbox)
    cdef size_t end
    cdef int error
    if batch == NULL:
        return
    settle_captured(w)
    end = mail_end(w, batch)
    while w.mail_read < end:
        error = apply_edit(w, &batch.edits[w.mail_read])
        w.mail_read += 1
        if error:
            batch.error = error
            add_i32(&batch.failures, 1)
    if w.mail_read < batch.length:
        return
    w.mail_read = 0
    store_ptr(&w.mailbox, NULL)
    if add_i32(&batch.workers_left, -1) == 0:
        eventfd_write(batch.done_fd, 1)


cdef inline size_t mail_end(const Worker *w, const Batch *batch) noexcept nogil:
    """The first edit that is not made in this round."""
    return min(batch.length, w.mail_read + MAIL)


cdef inline int apply_edit(Worker *w, const Edit *e) noexcept nogil:
    """0 or an errno."""
    if e.kind == ATTACH_PORT:
        return attach_port(w, e)
    if e.port >= w.switch_.n_ports and e.kind in (
            BIND, CONNECT_PORT, SET_PORT, SET_GROUPS, SET_LEARNING, SET_GUARDS, SET_LIMITS, CAPTURE_INTERFACE, ANNOUNCE,
            DETACH_PORT):
        return ENOMEM  # there was none for the port itself
    if e.kind == BIND:
        return 0 if table_put(&w.switch_.table, &e.address, e.port) else ENOMEM
    elif e.kind == CONNECT_PORT:
        return connect_port(w, e.port, e.fd)
    elif e.kind == SET_ROUTE:
        return 0 if route_put(&w.routes, &e.address, &e.route) else ENOMEM
    elif e.kind == FORGET_ROUTE:
        route_forget(&w.routes, &e.address)
    elif e.kind == CLEAR_ROUTES:
        return 0 if route_clear(&w.routes) else ENOMEM
    elif e.kind == UNBIND:
        table_remove(&w.switch_.table, &e.address)
    elif e.kind == SET_PORT:
        w.switch_.rules[e.port].up = e.up
        w.switch_.rules[e.port].mtu = e.mtu
    elif e.kind == SET_GROUPS:
        return 0 if copy_groups(&w.switch_.rules[e.port], e) else ENOMEM
    elif e.kind == SET_LEARNING:
        w.switch_.rules[e.port].learn = e.learn
        note_stages(&w.switch_.rules[e.port])
    elif e.kind == SET_GUARDS:
        w.switch_.rules[e.port].guards = <uint16_t> e.guards
        w.switch_.rules[e.port].holds = e.up
        note_stages(&w.switch_.rules[e.port])
        store_u32(&w.ports[e.port].offence.state, OFFENCE_WANTED if e.guards else NO_OFFENCE)
    elif e.kind == SET_LIMITS:
        set_limits(w, e.port, e.limits)
    elif e.kind == SET_CAPTURE:
        set_capture(w, e.captures)
    elif e.kind == CAPTURE_INTERFACE:
        capture_interface(w, e.port, e.tag, e.up)
    elif e.kind == REINJECT:
        return 0 if queue_reinjected(w, e) else ENOMEM
    elif e.kind == ANNOUNCE:
        if queue_of(w, e.port) == 0:
            backlog_put(w, e.port, e.frame, e.length)
    elif e.kind == DETACH_PORT:
        detach_port(w, e.port)
    elif e.kind == SET_MODE:
        w.switch_.mode = e.mode
        w.switch_.flag = e.flag
        w.switch_.access = e.access
        w.switch_.n_groups = e.n_groups
        memcpy(w.switch_.groups, e.switched, e.n_groups * sizeof(Address))
    elif e.kind == SET_VLANS:
        memcpy(w.switch_.vlans, e.vlans, sizeof(w.switch_.vlans))
    elif e.kind == SET_MASTER:
        w.switch_.mac = e.mac
    elif e.kind == ATTACH_MASTER:
        return attach_master(w, e)
    elif e.kind == DETACH_MASTER:
        detach_master(w)
    elif e.kind == ATTACH_HOST:
        detach_host(w)
        w.host_fd = e.fd
        if w.number == 0:  # one reader: a flow's order is kept
            return poll_fd(w, e.fd, HOST_EVENT)
    elif e.kind == DETACH_HOST:
        detach_host(w)
    elif e.kind == STOP:
        w.stopping = True
    return 0


cdef inline int attach_port(Worker *w, const Edit *e) noexcept nogil:
    """0 or an errno. A worker that reads none of the port's queues writes to the first one."""
    cdef Port *p
    cdef int queue = queue_of(w, e.port)
    if not reserve_ports(w, e.port + 1):
        return ENOMEM
    p = &w.ports[e.port]
    p.fd = e.fds[queue if queue < e.queues else 0]
    p.queues = e.queues
    p.backend = e.backend
    p.socket = e.socket
    p.accepts_uso = e.accepts_uso
    p.longer = LONGER if e.long_header else 0
    p.credit = CREDIT
    w.switch_.rules[e.port].mtu = e.mtu
    w.switch_.rules[e.port].own = e.macnat
    note_special(w, e.port)
    note_stages(&w.switch_.rules[e.port])
    return watch_port(w, e.port) if e.backend == DEVICE and reads_port(w, e.port) else 0


cdef inline bint reserve_ports(Worker *w, int32_t n) noexcept nogil:
    """Make room for port numbers below n. False if there is no memory."""
    cdef int32_t length = w.switch_.n_ports
    cdef PortRule *rules
    cdef Port *ports
    if n <= length:
        return True
    n = max(n, length * 2)
    rules = <PortRule *> realloc(w.switch_.rules, n * sizeof(PortRule))
    if rules == NULL:
        return False
    w.switch_.rules = rules
    ports = <Port *> realloc(w.ports, n * sizeof(Port))
    if ports == NULL:
        return False
    w.ports = ports
    memset(&rules[length], 0, (n - length) * sizeof(PortRule))
    memset(&ports[length], 0, (n - length) * sizeof(Port))
    for i in range(length, n):
        ports[i].fd = -1
    w.switch_.n_ports = n
    return True


cdef inline int watch_port(Worker *w, int32_t port) noexcept nogil:
    """0 or an errno: what can't be read when it is ready, epoll says at once."""
    cdef int error = poll_fd(w, w.ports[port].fd, port)
    if not error and w.ring.running:
        unpoll_fd(w, w.ports[port].fd)
        read_by_ring(w, port)
    return error


cdef inline int connect_port(Worker *w, int32_t port, int fd) noexcept nogil:
    """0 or an errno. Events about an earlier peer are discarded."""
    w.ports[port].fd = fd
    take_u32(&w.ports[port].events)
    return socket_connect(w.ports[port].socket, fd, reads_port(w, port), w.epoll_fd, port)


cdef inline void detach_port(Worker *w, int32_t port) noexcept nogil:
    cdef uint32_t i
    disown(&w.slow, port)
    disown(&w.punted, port)
    for i in range(w.backlog_length):
        if w.backlog[(w.backlog_head + i) % BACKLOG].source == port:
            w.backlog[(w.backlog_head + i) % BACKLOG].source = FROM_GONE
    if w.ports[port].fd >= 0 and reads_port(w, port):
        unpoll_fd(w, w.ports[port].fd)
    if w.ports[port].backend == UNIX_SOCKET:
        socket_release(w.ports[port].socket)
    free(w.switch_.rules[port].groups)
    memset(&w.switch_.rules[port], 0, sizeof(PortRule))
    memset(&w.ports[port], 0, sizeof(Port))
    w.ports[port].fd = -1


cdef inline void disown(Queue *q, int32_t port) noexcept nogil:
    cdef uint32_t i
    for i in range(q.tail - q.head):
        if q.entries[(q.head + i) % SLOW].source == port:
            q.entries[(q.head + i) % SLOW].source = FROM_GONE


cdef inline void set_limits(Worker *w, int32_t port, Limits *limits) noexcept nogil:
    """NULL: none."""
    cdef Port *p = &w.ports[port]
    p.limits = limits
    note_special(w, port)
    w.switch_.rules[port].limited = limits != NULL and limits_direction(limits, RX)
    note_stages(&w.switch_.rules[port])


cdef inline void note_special(Worker *w, int32_t port) noexcept nogil:
    cdef Port *p = &w.ports[port]
    p.special = (p.backend != DEVICE or w.switch_.rules[port].own != NULL or w.capture != NULL
                 or (p.limits != NULL and limits_direction(p.limits, TX)))


cdef inline void set_capture(Worker *w, Capture *captures) noexcept nogil:
    """Of no interface yet. NULL: of none any more."""
    cdef int32_t port
    w.capture = NULL if captures == NULL else &captures[w.number]
    for port in range(w.switch_.n_ports):
        capture_interface(w, port, w.ports[port].tag, False)


cdef inline void capture_interface(Worker *w, int32_t source, uint32_t tag, bint on) noexcept nogil:
    """A port, or while there is a capture FROM_MASTER or FROM_HOST."""
    if source >= 0:
        w.ports[source].tag = tag
        w.switch_.rules[source].extra_stages &= ~CAPTURED
        w.switch_.rules[source].extra_stages |= CAPTURED if on else 0
        note_special(w, source)
    elif w.capture != NULL and source == FROM_MASTER:
        w.capture.wire = on
    elif w.capture != NULL:
        w.capture.host = on


cdef inline bint copy_groups(PortRule *rule, const Edit *e) noexcept nogil:
    cdef uint64_t *groups = NULL
    if e.n_groups:
        groups = <uint64_t *> malloc(e.n_groups * sizeof(uint64_t))
        if groups == NULL:
            return False
        memcpy(groups, e.groups, e.n_groups * sizeof(uint64_t))
    free(rule.groups)
    rule.groups = groups
    rule.n_groups = e.n_groups
    rule.all_multicast = e.all_multicast
    note_stages(rule)
    return True


cdef inline bint queue_reinjected(Worker *w, const Edit *e) noexcept nogil:
    """Queue a frame for the loop, if this worker read it. False if there is no memory."""
    cdef Reinjected *entry
    if (queue_of(w, e.port) if e.port >= 0 else w.number) != 0:
        return True
    entry = <Reinjected *> malloc(sizeof(Reinjected) + e.length)
    if entry == NULL:
        return False
    entry.next = NULL
    entry.source = e.port
    entry.to = e.to
    entry.copy = e.up
    entry.length = e.length
    entry.frame = <uint8_t *> &entry[1]
    memcpy(entry.frame, e.frame, e.length)
    if w.reinjected == NULL:
        w.reinjected = entry
    else:
        w.reinjected_last.next = entry
    w.reinjected_last = entry
    return True


cdef inline int attach_master(Worker *w, const Edit *e) noexcept nogil:
    """0 or an errno. In place of the one there is."""
    detach_master(w)
    w.switch_.mac = e.mac
    w.master_fd = e.fds[w.number]
    w.inject_fd = e.inject_fd
    w.tunnel_fd = e.tunnel_fd
    w.stack_fds[0] = e.stack_fds[0]
    w.stack_fds[1] = e.stack_fds[1]
    w.master_index = e.master_index
    packets_map(&w.packets, w.master_fd, 0 if e.starts == NULL else e.starts[w.number])
    if e.send_fds != NULL:
        send_ring_map(&w.txring, e.send_fds[w.number])
    return 0 if w.ring.running else poll_fd(w, w.master_fd, MASTER_EVENT)


cdef inline void detach_master(Worker *w) noexcept nogil:
    if w.master_fd >= 0:
        unpoll_fd(w, w.master_fd)
    packets_unmap(&w.packets)
    send_ring_unmap(&w.txring)
    w.master_fd = -1
    w.inject_fd = w.tunnel_fd = -1
    w.stack_fds[0] = w.stack_fds[1] = -1


cdef inline void detach_host(Worker *w) noexcept nogil:
    if w.host_fd >= 0 and w.number == 0:
        unpoll_fd(w, w.host_fd)
    w.host_fd = -1
