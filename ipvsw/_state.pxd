"""What one worker owns, and how the control thread changes it: batches of edits through a mailbox.

Every worker has a replica of its own (rules, table, counters), so nothing that the hot loop touches is
shared or locked. The control thread puts one batch into each worker's mailbox and waits; a worker applies
it between two bursts: whole, unless it is so long that frames would have to wait, then so much of it a
round. Because the control thread waits, its reads of counters and a worker's reallocations of them never meet.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from ._decide cimport N_OUTCOMES, PortRule, Switch
from ._gro cimport Train
from ._packetring cimport PacketRing, packets_map, packets_unmap
from ._route cimport Route, Routes, route_clear, route_put
from ._sys cimport (
    EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, add_i32, epoll_ctl, epoll_event, eventfd_write, iovec, load_ptr, mmsghdr,
    store_ptr, take_u32,
)
from ._spin cimport Spin
from ._stream cimport Socket, socket_connect, socket_release
from ._table cimport table_put, table_remove
from ._uring cimport Ring, ring_read
from ._wire cimport Address

cdef enum:
    BURST = 32  # frames read from one device before the next has its turn
    MASTER_BURST = 64  # from the master, behind which are many
    HEADER = 10  # sizeof(struct virtio_net_hdr)
    ROOM = 16  # before the header, so that a VLAN tag can be put back in place
    LONGEST = 65536 + 64  # a GSO packet with its Ethernet header
    BUFFER = ROOM + HEADER + LONGEST
    BACKLOG = 2000  # group frames that may wait; from one door half of it, the kernel driver's IPVLAN_QBACKLOG_LIMIT
    SLOW = 256  # frames that may wait for Python in one queue
    MARKS = 4  # words in which a port's addresses in use are marked
    CREDIT = 32  # frames of one port that may be shown to the learner before it gives more
    MASTER_CREDIT = 128  # the same for what comes from the master and from the host
    MAIL = 128  # edits that a worker makes in one round: some 60 us where each misses the cache or is given a new page
    CONTROL = 64  # one cmsg of struct tpacket_auxdata or of struct in6_pktinfo, padded

cdef enum:
    CONTROL_EVENT = 0xFFFFFFFF  # epoll tags: a port number, or one of these
    MASTER_EVENT = 0xFFFFFFFE
    HOST_EVENT = 0xFFFFFFFD

# What an answer of the ring is about, its tag: a port's number and nothing else is what was read; RING_WRITE stands
# before a source, a port and a length.
cdef enum:
    RING_READ = 0
    RING_DOORS = 0x100000000
    RING_CANCEL = 0x200000000
    RING_MASTER = 0x400000000
    RING_SOURCE = 40  # where its bits begin
    RING_PORT = 17
    RING_PORTS = 0x7FFFFF
    RING_LENGTHS = 0x1FFFF
    RING_WRITE = 0x8000000000000000u

cdef enum:
    FROM_MASTER = -1  # where a frame came from, else a port number
    FROM_GONE = -2  # a port that has left since
    FROM_HOST = -3  # the host's stack, through its own door
    FROM_FIRST = -3

cdef enum:
    EVENT_GONE_BIT = 1
    EVENT_GROUPS_BIT = 2

cdef struct Traffic:
    uint64_t rx_frames
    uint64_t rx_bytes
    uint64_t tx_frames
    uint64_t tx_bytes
    uint64_t tx_errors
    uint64_t outcomes[N_OUTCOMES]

cdef struct Port:
    int fd  # of the queue that this worker uses; -1: no such port, or nobody is connected to its socket
    int queues  # each of which has its reader
    Socket *socket  # NULL: a device, frames with their virtio_net_hdr
    bint merges  # takes datagrams that have become one (USO)
    bint gathers  # frames for its socket wait to be sent together
    uint32_t events  # EVENT_* bits that the control thread has not fetched
    uint32_t waiting  # its group frames in the backlog
    bint armed  # the ring reads it
    bint fed  # and has, since it began to
    bint leaving  # and is told not to
    int32_t next_hungry
    int32_t credit  # frames that may be shown to Python before Python gives more
    uint64_t marks[MARKS]  # of the addresses that it has sent from, for a port that learns
    Traffic traffic

# A group frame on its way to the ports, one after the other.
cdef struct Waiting:
    uint8_t *frame  # virtio_net_hdr and frame
    uint32_t length  # of both
    int32_t source  # port number, or FROM_*
    int32_t next  # port to look at next

# A frame that waits for Python.
cdef struct Slow:
    uint8_t *frame
    uint32_t length
    int32_t source

# Written at the tail by the worker, read at the head by the control thread.
cdef struct Queue:
    Slow entries[SLOW]
    uint32_t head
    uint32_t tail

# A frame that Python has seen and gives back, to go on as if just read.
cdef struct Returned:
    Returned *next
    int32_t source
    int32_t to  # the port that is to have it, or -1 for where the rules send it
    uint32_t length
    uint8_t *frame  # behind this

cdef struct Worker:
    Switch switch_
    Routes routes
    Port *ports  # as long as switch_.rules
    Traffic master
    Traffic host
    int number
    int workers
    int epoll_fd
    int control_fd  # eventfd: the mailbox has something
    int notify_fd  # eventfd of the control thread: a port has events
    int master_fd  # -1: none
    int inject_fd
    int host_fd  # -1: the host has no door of its own
    int stack_fds[2]  # raw sockets, IPv4 and IPv6; -1: none
    int master_index
    void *mailbox  # Batch *
    size_t mail_read  # edits of that batch that are made already
    bint stopping
    Waiting backlog[BACKLOG]
    uint32_t backlog_head
    uint32_t backlog_length
    uint32_t polite  # turns that the backlog still gives to those who have got frames
    uint64_t impolite_until  # ns, the clock's
    uint32_t master_waiting
    uint32_t host_waiting
    Queue slow  # for the router
    Queue shown  # for the learner
    int32_t credit  # frames from the master and the host that may be shown
    Returned *returned  # the first, in the order in which they came back
    Returned *returned_last
    # Frames for the wire are collected over a round: tx_buffers[:tx_length] with tx_sources.
    uint8_t *tx_buffers[BURST]
    mmsghdr tx_messages[BURST]
    iovec tx_iovecs[BURST]
    int32_t tx_sources[BURST]
    uint32_t tx_length
    Spin spin
    int32_t gathering[BURST]  # ports whose sockets have gathered frames
    uint32_t n_gathering
    # With an io_uring: which port's read is to begin anew, and what was queued last for ports.
    Ring ring
    bint doors_ready  # the epoll has something
    bint master_ready  # so may the master
    bint master_armed  # the ring waits for it
    bint master_leaving  # and is told not to
    bint stays  # the frame in hand stays in its place until the round is over, and may be queued
    uint32_t leaving  # doors that the ring has not let go of yet
    int32_t hungry[2]  # first of two lines: ports that got nothing, and those that got something; -1: empty
    int32_t hungry_last[2]
    int32_t source  # whose frame is carried out
    uint32_t unanswered  # frames that were queued for ports
    PacketRing packets  # what the master receives
    bint coalesce  # datagrams of one flow among it
    Train train
    uint8_t *rx_buffer  # for one frame that doesn't stand there

cdef enum EditKind:
    SET_MODE
    SET_MASTER
    ATTACH_MASTER
    DETACH_MASTER
    ATTACH_PORT
    CONNECT_PORT
    SET_PORT
    SET_GROUPS
    SET_LEARNING
    RETURN
    ANNOUNCE
    DETACH_PORT
    ATTACH_HOST
    DETACH_HOST
    SET_ROUTE
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
    Socket *socket  # ATTACH_PORT: NULL for a device
    bint merges
    int inject_fd
    int mode
    int flag
    int access
    bint up
    bint everything
    uint32_t mtu
    uint32_t n_groups
    uint64_t *groups
    uint8_t *frame  # ANNOUNCE, RETURN
    uint32_t length
    int32_t to
    uint64_t *own
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


cdef inline int queue_of(const Worker *w, int32_t port) noexcept nogil:
    """Which of a port's queues this worker reads, if there are so many. Ports begin with different workers; who has the
    first queue does what one worker is to do."""
    return (w.number + w.workers - port % w.workers) % w.workers


cdef inline bint reads_port(const Worker *w, int32_t port) noexcept nogil:
    return queue_of(w, port) < w.ports[port].queues


cdef inline int poll_fd(Worker *w, int fd, uint32_t tag) noexcept nogil:
    """0 or an errno."""
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = tag
    return 0 if epoll_ctl(w.epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 else errno


cdef inline void unpoll_fd(Worker *w, int fd) noexcept nogil:
    epoll_ctl(w.epoll_fd, EPOLL_CTL_DEL, fd, NULL)


cdef inline void read_by_ring(Worker *w, int32_t port) noexcept nogil:
    w.ports[port].armed = True
    w.ports[port].fed = False
    ring_read(&w.ring, w.ports[port].fd, RING_READ | <uint32_t> port)


cdef inline int watch_port(Worker *w, int32_t port) noexcept nogil:
    """0 or an errno: what can't be read when it is ready, epoll says at once."""
    cdef int error = poll_fd(w, w.ports[port].fd, port)
    if not error and w.ring.running:
        unpoll_fd(w, w.ports[port].fd)
        read_by_ring(w, port)
    return error


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


cdef inline int attach_port(Worker *w, const Edit *e) noexcept nogil:
    """0 or an errno. Who reads none of its queues writes to the first."""
    cdef Port *p
    cdef int queue = queue_of(w, e.port)
    if not reserve_ports(w, e.port + 1):
        return ENOMEM
    p = &w.ports[e.port]
    p.fd = e.fds[queue if queue < e.queues else 0]
    p.queues = e.queues
    p.socket = e.socket
    p.merges = e.merges
    p.credit = CREDIT
    w.switch_.rules[e.port].mtu = e.mtu
    w.switch_.rules[e.port].own = e.own
    return watch_port(w, e.port) if e.socket == NULL and reads_port(w, e.port) else 0


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
    rule.everything = e.everything
    return True


cdef inline void detach_master(Worker *w) noexcept nogil:
    if w.master_fd >= 0:
        unpoll_fd(w, w.master_fd)
    packets_unmap(&w.packets)
    w.master_fd = -1
    w.inject_fd = -1
    w.stack_fds[0] = w.stack_fds[1] = -1


cdef inline void detach_host(Worker *w) noexcept nogil:
    if w.host_fd >= 0 and w.number == 0:
        unpoll_fd(w, w.host_fd)
    w.host_fd = -1


cdef inline bint keep_returned(Worker *w, const Edit *e) noexcept nogil:
    """A frame of this worker's, for the loop to carry out. False if there is no memory."""
    cdef Returned *entry
    if (queue_of(w, e.port) if e.port >= 0 else w.number) != 0:
        return True
    entry = <Returned *> malloc(sizeof(Returned) + e.length)
    if entry == NULL:
        return False
    entry.next = NULL
    entry.source = e.port
    entry.to = e.to
    entry.length = e.length
    entry.frame = <uint8_t *> &entry[1]
    memcpy(entry.frame, e.frame, e.length)
    if w.returned == NULL:
        w.returned = entry
    else:
        w.returned_last.next = entry
    w.returned_last = entry
    return True


cdef inline void disown(Queue *q, int32_t port) noexcept nogil:
    cdef uint32_t i
    for i in range(q.tail - q.head):
        if q.entries[(q.head + i) % SLOW].source == port:
            q.entries[(q.head + i) % SLOW].source = FROM_GONE


cdef inline int connect_port(Worker *w, int32_t port, int fd) noexcept nogil:
    """0 or an errno. What was told of who was connected before counts no more."""
    w.ports[port].fd = fd
    take_u32(&w.ports[port].events)
    return socket_connect(w.ports[port].socket, fd, reads_port(w, port), w.epoll_fd, port)


cdef inline void detach_port(Worker *w, int32_t port) noexcept nogil:
    cdef uint32_t i
    disown(&w.slow, port)
    disown(&w.shown, port)
    for i in range(w.backlog_length):
        if w.backlog[(w.backlog_head + i) % BACKLOG].source == port:
            w.backlog[(w.backlog_head + i) % BACKLOG].source = FROM_GONE
    if w.ports[port].fd >= 0 and reads_port(w, port):
        unpoll_fd(w, w.ports[port].fd)
    if w.ports[port].socket != NULL:
        socket_release(w.ports[port].socket)
    free(w.switch_.rules[port].groups)
    memset(&w.switch_.rules[port], 0, sizeof(PortRule))
    memset(&w.ports[port], 0, sizeof(Port))
    w.ports[port].fd = -1


cdef inline uint32_t *waiting_of(Worker *w, int32_t source) noexcept nogil:
    """How many of a door's frames are in the backlog."""
    if source >= 0:
        return &w.ports[source].waiting
    return &w.host_waiting if source == FROM_HOST else &w.master_waiting


cdef inline bint backlog_put(Worker *w, int32_t source, const uint8_t *frame, uint32_t n) noexcept nogil:
    """A group frame with its header, n bytes. False if too many wait, or if there is no memory."""
    cdef uint32_t *waiting = waiting_of(w, source)
    cdef Waiting *entry = &w.backlog[(w.backlog_head + w.backlog_length) % BACKLOG]
    cdef uint8_t *copy
    if waiting[0] >= BACKLOG - w.backlog_length:
        return False
    copy = <uint8_t *> malloc(n)
    if copy == NULL:
        return False
    memcpy(copy, frame, n)
    entry[0] = Waiting(copy, n, source, 0)
    waiting[0] += 1
    w.backlog_length += 1
    return True


cdef inline int apply_edit(Worker *w, const Edit *e) noexcept nogil:
    """0, or the errno of what stood in the way."""
    if e.kind == ATTACH_PORT:
        return attach_port(w, e)
    if e.port >= w.switch_.n_ports and e.kind in (
            BIND, CONNECT_PORT, SET_PORT, SET_GROUPS, SET_LEARNING, ANNOUNCE, DETACH_PORT):
        return ENOMEM  # there was none for the port itself
    if e.kind == BIND:
        return 0 if table_put(&w.switch_.table, &e.address, e.port) else ENOMEM
    elif e.kind == CONNECT_PORT:
        return connect_port(w, e.port, e.fd)
    elif e.kind == SET_ROUTE:
        return 0 if route_put(&w.routes, &e.address, &e.route) else ENOMEM
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
        w.switch_.rules[e.port].learn = e.up
    elif e.kind == RETURN:
        return 0 if keep_returned(w, e) else ENOMEM
    elif e.kind == ANNOUNCE:
        if queue_of(w, e.port) == 0:
            backlog_put(w, e.port, e.frame, e.length)
    elif e.kind == DETACH_PORT:
        detach_port(w, e.port)
    elif e.kind == SET_MODE:
        w.switch_.mode = e.mode
        w.switch_.flag = e.flag
        w.switch_.access = e.access
    elif e.kind == SET_MASTER:
        w.switch_.mac = e.mac
    elif e.kind == ATTACH_MASTER:
        detach_master(w)
        w.switch_.mac = e.mac
        w.master_fd = e.fds[w.number]
        w.inject_fd = e.inject_fd
        w.stack_fds[0] = e.stack_fds[0]
        w.stack_fds[1] = e.stack_fds[1]
        w.master_index = e.master_index
        packets_map(&w.packets, w.master_fd)
        return 0 if w.ring.running else poll_fd(w, w.master_fd, MASTER_EVENT)
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


cdef inline size_t mail_end(const Worker *w, const Batch *batch) noexcept nogil:
    """The first edit that is not made in this round."""
    return min(batch.length, w.mail_read + MAIL)


cdef inline void take_mail(Worker *w) noexcept nogil:
    """Apply the batch in the mailbox, if any: MAIL edits of it."""
    cdef Batch *batch = <Batch *> load_ptr(&w.mailbox)
    cdef size_t end
    cdef int error
    if batch == NULL:
        return
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
