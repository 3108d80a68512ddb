"""What one worker owns, and its beginning and end.

Every worker has a replica of its own (rules, table, route cache, counters), so nothing that the hot loop touches is
shared or locked; mailbox.pxd keeps the replicas equal.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.unistd cimport close

from ipvsw.datapath.mirror.ring cimport HOST_TAG, NO_TAG, WIRE_TAG, Capture
from ipvsw.datapath.kernel.packetring cimport PacketRing, SendRing, packets_unmap, send_ring_unmap
from ipvsw.datapath.kernel.sys cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, epoll_create1, epoll_ctl,
    epoll_event, eventfd, eventfd_write, iovec, mmsghdr, or_u32,
)
from ipvsw.datapath.kernel.uring cimport Ring, ring_close, ring_read
from ipvsw.datapath.kernel.busypoll cimport BusyPoll, clock_ns
from ipvsw.datapath.backends.unixsock cimport Socket, socket_release
from ipvsw.datapath.packet.gro cimport GroBatch
from ipvsw.datapath.packet.headers cimport Address, Frame
from ipvsw.datapath.packet.longheader cimport LONG_HEADER
from ipvsw.datapath.rules.decide cimport Switch
from ipvsw.datapath.rules.outcome cimport N_OUTCOMES
from ipvsw.datapath.rules.ratelimit cimport Limits
from ipvsw.datapath.rules.routecache cimport Routes
from ipvsw.datapath.rules.table cimport table_free, table_init

cdef enum:
    BURST = 32  # frames read from one device before the next has its turn
    MASTER_BURST = 64  # from the master, behind which are many
    HEADER = 10  # sizeof(struct virtio_net_hdr)
    ROOM = 16  # before the header, so that a VLAN tag can be put back in place
    LONGEST = 65536 + 64  # a GSO packet with its Ethernet header
    BUFFER = ROOM + LONG_HEADER + LONGEST
    # Multicast frames that may wait; from one interface half of it, the kernel driver's IPVLAN_QBACKLOG_LIMIT.
    BACKLOG = 2000
    BACKLOG_OCTETS = 16 << 20  # bytes of them; from one interface half of it
    SLOW = 256  # frames that may wait for Python in one queue; from one interface half of it
    SLOW_OCTETS = 2 << 20  # bytes of them; from one interface half of it
    MARKS = 4  # words in which a port's addresses in use are marked
    CREDIT = 32  # frames that one port may have punted before the snooper gives more
    MASTER_CREDIT = 128  # the same for what comes from the master and from the host
    CONTROL = 64  # one cmsg of struct tpacket_auxdata or of struct in6_pktinfo, padded

cdef enum:
    CONTROL_EVENT = 0xFFFFFFFF  # epoll tags: a port number, or one of these
    MASTER_EVENT = 0xFFFFFFFE
    HOST_EVENT = 0xFFFFFFFD

# What a completion of the ring is for, its tag (user_data): a port's number alone is a read; with RING_WRITE come
# source, port and length.
cdef enum:
    RING_READ = 0
    RING_EPOLL = 0x100000000
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
    FROM_HOST = -3  # the host's stack, through its own interface
    FROM_FIRST = -3

cdef enum:
    EVENT_GONE_BIT = 1
    EVENT_GROUPS_BIT = 2
    EVENT_GUARD_BIT = 4

cdef enum:
    NO_OFFENCE = 0
    OFFENCE_WANTED = 1  # set by the control thread: the worker writes the next
    OFFENCE_KEPT = 2  # set by the worker: the control thread reads it

# What is behind a port.
cdef enum:
    DEVICE = 0  # a descriptor whose frames have their virtio_net_hdr: TAP, macvtap, packet socket
    UNIX_SOCKET = 1  # `Port.socket`

cdef struct Traffic:
    uint64_t rx_frames
    uint64_t rx_bytes
    uint64_t tx_frames
    uint64_t tx_bytes
    uint64_t tx_errors
    uint64_t offload_fixed  # frames that were read and that their virtio_net_hdr did not describe
    uint64_t outcomes[N_OUTCOMES]

# What of a queue is an interface's. Where it is for Python, the control thread takes it back.
cdef struct Held:
    int32_t frames
    int32_t octets

# What a guard has dropped of a port.
cdef struct Offence:
    uint32_t state
    int outcome
    uint64_t mac  # the frame's Ethernet source
    Address address  # what it claims; family NO_ADDRESS: none

cdef struct Port:
    int backend  # DEVICE, or another of these
    int fd  # of the queue that this worker uses; -1: no such port, or no peer is connected to its socket
    int queues  # each of which has its reader
    Socket *socket  # UNIX_SOCKET alone
    uint32_t longer  # bytes that its frames' virtio_net_hdr has more than HEADER: LONGER, or 0
    bint accepts_uso  # takes datagrams that have become one (USO)
    bint special  # no DEVICE, or has MAC NAT, or there are limits to what it gets, or frames are captured
    uint32_t tag  # for captures
    Limits *limits  # shared by all workers; NULL: none
    bint tx_pending  # frames for its socket wait to be sent together
    uint32_t events  # EVENT_* bits that the control thread has not fetched
    Held waiting  # its multicast frames in the backlog
    Held slow  # its frames for the router
    Held punted  # and for the snooper
    bint armed  # the ring reads it
    bint got_frame  # and has, since it began to
    bint leaving  # and that read is being cancelled
    int32_t next_starved
    int32_t credit  # frames that may be punted before Python gives more
    Offence offence
    uint64_t marks[MARKS]  # of the addresses that it has sent from, for a port that learns
    Traffic traffic

# A multicast frame on its way to the ports, one after the other.
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
    int32_t octets  # that wait

# A punted frame that Python has reinjected.
cdef struct Reinjected:
    Reinjected *next
    int32_t source
    int32_t to  # the port that is to have it, or -1 for where the rules send it
    bint copy  # one more, which is not counted
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
    int tunnel_fd  # a TAP whose frames leave on the wire, with the long virtio_net_hdr; -1: none
    int host_fd  # -1: the host has no interface of its own
    int stack_fds[2]  # raw sockets, IPv4 and IPv6; -1: none
    int master_index
    void *mailbox  # Batch *
    size_t mail_read  # edits of that batch that are made already
    bint stopping
    Waiting backlog[BACKLOG]
    uint32_t backlog_head
    uint32_t backlog_length
    int32_t backlog_octets
    uint32_t yielding  # turns for which flooding still yields to other traffic
    uint64_t busy_until  # ns, the clock's
    uint64_t round_ns  # its time in this round; 0: nobody has asked yet
    Held master_waiting
    Held host_waiting
    Queue slow  # for the router
    Queue punted  # for the snooper
    Held punted_inbound  # what of it is from the master and the host
    int32_t credit  # frames from the master and the host that may be punted
    Reinjected *reinjected  # the first, in the order in which they came back
    Reinjected *reinjected_last
    # Frames for the wire are collected over a round: tx_buffers[:tx_length] with tx_sources.
    uint8_t *tx_buffers[BURST]
    mmsghdr tx_messages[BURST]
    iovec tx_iovecs[BURST]
    int32_t tx_sources[BURST]
    uint32_t tx_length
    BusyPoll busypoll
    int32_t gathering[BURST]  # ports whose sockets have buffered frames
    uint32_t n_gathering
    # With an io_uring: which port's read is to begin anew, and what was queued last for ports.
    Ring ring
    bint epoll_ready  # the epoll has something
    bint master_ready  # so may the master
    bint master_armed  # the ring waits for it
    bint master_leaving  # and that poll is being cancelled
    bint may_queue  # the frame in hand stays in its place until the round is over, and may be queued
    uint32_t leaving  # interfaces whose requests are being cancelled
    int32_t starved[2]  # heads of two lists: ports that got no frame, and those that got some; -1: empty
    int32_t starved_last[2]
    int32_t source  # the interface whose frame is being forwarded
    Capture *capture  # NULL: nobody captures frames
    uint32_t inflight_writes  # queued and not yet completed
    PacketRing packets  # what the master receives
    SendRing txring  # short frames for the wire
    bint coalesce  # datagrams of one flow among it
    GroBatch gro
    uint8_t *rx_buffer  # for one frame that doesn't stand there


ctypedef int (*Stage)(Worker *, int32_t, const Frame *) noexcept nogil

cdef extern from *:
    Stage apart "ipvsw_apart"(Stage stage) noexcept nogil  # see kernel/sys.pxd


cdef inline int run_apart(Stage stage, Worker *w, int32_t source, const Frame *f) noexcept nogil:
    """Run a stage that few frames need outside of the hot function. The stage gets a copy: as long as the frame's own
    address goes nowhere, gcc keeps what it says in registers."""
    cdef Frame copy = f[0]
    return apart(stage)(w, source, &copy)


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


cdef inline uint64_t round_ns(Worker *w) noexcept nogil:
    """The clock's time, read once in a round, and only if somebody asks."""
    if w.round_ns == 0:
        w.round_ns = clock_ns()
    return w.round_ns


cdef inline void unpoll_fd(Worker *w, int fd) noexcept nogil:
    epoll_ctl(w.epoll_fd, EPOLL_CTL_DEL, fd, NULL)


cdef inline void raise_event(Worker *w, int32_t port, uint32_t bit) noexcept nogil:
    """For the control thread, which `notify_fd` wakes."""
    if not or_u32(&w.ports[port].events, bit) & bit:
        eventfd_write(w.notify_fd, 1)


cdef inline void read_by_ring(Worker *w, int32_t port) noexcept nogil:
    w.ports[port].armed = True
    w.ports[port].got_frame = False
    ring_read(&w.ring, w.ports[port].fd, RING_READ | <uint32_t> port)


cdef inline uint32_t tag_of(const Worker *w, int32_t source) noexcept nogil:
    """Of an interface, for captures."""
    if source >= 0:
        return w.ports[source].tag
    return WIRE_TAG if source == FROM_MASTER else HOST_TAG if source == FROM_HOST else NO_TAG


cdef inline Held *waiting_of(Worker *w, int32_t source) noexcept nogil:
    """What of the backlog is an interface's."""
    if source >= 0:
        return &w.ports[source].waiting
    return &w.host_waiting if source == FROM_HOST else &w.master_waiting


cdef inline Held *punted_by(Worker *w, int32_t source) noexcept nogil:
    return &w.ports[source].punted if source >= 0 else &w.punted_inbound


cdef inline bint backlog_put(Worker *w, int32_t source, const uint8_t *frame, uint32_t n) noexcept nogil:
    """A multicast frame with its header, n bytes. False if too many wait, or if there is no memory."""
    cdef Held *held = waiting_of(w, source)
    cdef Waiting *entry = &w.backlog[(w.backlog_head + w.backlog_length) % BACKLOG]
    cdef uint8_t *copy
    if held.frames >= <int32_t> (BACKLOG - w.backlog_length):
        return False
    if held.octets + <int32_t> n > BACKLOG_OCTETS - w.backlog_octets:
        return False
    copy = <uint8_t *> malloc(n)
    if copy == NULL:
        return False
    memcpy(copy, frame, n)
    entry[0] = Waiting(copy, n, source, 0)
    held.frames += 1
    held.octets += <int32_t> n
    w.backlog_length += 1
    w.backlog_octets += <int32_t> n
    return True


# ---------------------------------------------------------------------------- beginning and end


cdef inline Worker *worker_new(int number, int workers, int notify_fd, uint64_t key, int *error) noexcept nogil:
    """One of so many, without interfaces; NULL and an errno if it can't be had."""
    cdef Worker *w = <Worker *> calloc(1, sizeof(Worker))
    if w == NULL:
        error[0] = ENOMEM
        return NULL
    w.number, w.workers, w.notify_fd = number, workers, notify_fd
    w.master_fd = w.inject_fd = w.tunnel_fd = w.host_fd = w.epoll_fd = w.control_fd = w.ring.fd = -1
    w.starved[0] = w.starved[1] = -1
    w.stack_fds[0] = w.stack_fds[1] = -1
    w.credit = MASTER_CREDIT
    error[0] = open_mailbox(w)
    if not error[0] and not reserve(w, key):
        error[0] = ENOMEM
    if error[0]:
        worker_free(w)
        return NULL
    return w


cdef inline int open_mailbox(Worker *w) noexcept nogil:
    """0 or an errno."""
    w.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    if w.epoll_fd < 0:
        return errno
    w.control_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if w.control_fd < 0:
        return errno
    return poll_fd(w, w.control_fd, CONTROL_EVENT)


cdef inline bint reserve(Worker *w, uint64_t key) noexcept nogil:
    """Whether there is memory for tables and buffers."""
    cdef int i
    if not table_init(&w.switch_.table, key) or not table_init(&w.routes.table, key):
        return False
    w.rx_buffer = <uint8_t *> malloc(BUFFER)
    if w.rx_buffer == NULL:
        return False
    for i in range(BURST):
        w.tx_buffers[i] = <uint8_t *> malloc(BUFFER)
        if w.tx_buffers[i] == NULL:
            return False
        w.tx_messages[i].msg_hdr.msg_iov = &w.tx_iovecs[i]
        w.tx_messages[i].msg_hdr.msg_iovlen = 1
    return True


cdef inline void worker_free(Worker *w) noexcept nogil:
    cdef int32_t i
    cdef Reinjected *reinjected
    cdef uint32_t k
    for i in range(w.switch_.n_ports):
        free(w.switch_.rules[i].groups)
        if w.ports[i].backend == UNIX_SOCKET:
            socket_release(w.ports[i].socket)
    free(w.switch_.rules)
    free(w.ports)
    table_free(&w.switch_.table)
    table_free(&w.routes.table)
    free(w.routes.entries)
    queue_free(&w.slow)
    queue_free(&w.punted)
    while w.reinjected != NULL:
        reinjected = w.reinjected
        w.reinjected = reinjected.next
        free(reinjected)
    for k in range(w.backlog_length):
        free(w.backlog[(w.backlog_head + k) % BACKLOG].frame)
    for i in range(BURST):
        free(w.tx_buffers[i])
    free(w.rx_buffer)
    packets_unmap(&w.packets)
    send_ring_unmap(&w.txring)
    ring_close(&w.ring)
    if w.epoll_fd >= 0:
        close(w.epoll_fd)
    if w.control_fd >= 0:
        close(w.control_fd)
    free(w)


cdef inline void queue_free(Queue *q) noexcept nogil:
    while q.head != q.tail:
        free(q.entries[q.head % SLOW].frame)
        q.head += 1
