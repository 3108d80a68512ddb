"""What one worker owns.

Every worker has a replica of its own (rules, table, counters), so nothing that the hot loop touches is shared or
locked; how all come to have the same is told in `_mail`.
"""

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from ipvsw.datapath.rules.decide cimport N_OUTCOMES, Switch
from ipvsw.datapath.packet.gro cimport GroBatch
from ipvsw.datapath.kernel.packetring cimport PacketRing
from ipvsw.datapath.rules.routecache cimport Routes
from ipvsw.datapath.kernel.sendring cimport SendRing
from ipvsw.datapath.loop.busypoll cimport BusyPoll
from ipvsw.datapath.loop.unixsock cimport Socket
from ipvsw.datapath.kernel.sys cimport EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, epoll_ctl, epoll_event, iovec, mmsghdr
from ipvsw.datapath.kernel.uring cimport Ring, ring_read

cdef enum:
    BURST = 32  # frames read from one device before the next has its turn
    MASTER_BURST = 64  # from the master, behind which are many
    HEADER = 10  # sizeof(struct virtio_net_hdr)
    ROOM = 16  # before the header, so that a VLAN tag can be put back in place
    LONGEST = 65536 + 64  # a GSO packet with its Ethernet header
    BUFFER = ROOM + HEADER + LONGEST
    # Multicast frames that may wait; from one interface half of it, the kernel driver's IPVLAN_QBACKLOG_LIMIT.
    BACKLOG = 2000
    SLOW = 256  # frames that may wait for Python in one queue
    MARKS = 4  # words in which a port's addresses in use are marked
    CREDIT = 32  # frames of one port that may be shown to the snooper before it gives more
    MASTER_CREDIT = 128  # the same for what comes from the master and from the host
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
    FROM_HOST = -3  # the host's stack, through its own interface
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
    bint accepts_uso  # takes datagrams that have become one (USO)
    bint tx_pending  # frames for its socket wait to be sent together
    uint32_t events  # EVENT_* bits that the control thread has not fetched
    uint32_t waiting  # its multicast frames in the backlog
    bint armed  # the ring reads it
    bint got_frame  # and has, since it began to
    bint leaving  # and is told not to
    int32_t next_hungry
    int32_t credit  # frames that may be shown to Python before Python gives more
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
    int host_fd  # -1: the host has no interface of its own
    int stack_fds[2]  # raw sockets, IPv4 and IPv6; -1: none
    int master_index
    void *mailbox  # Batch *
    size_t mail_read  # edits of that batch that are made already
    bint stopping
    Waiting backlog[BACKLOG]
    uint32_t backlog_head
    uint32_t backlog_length
    uint32_t yielding  # turns that the backlog still gives to those who have got frames
    uint64_t busy_until  # ns, the clock's
    uint32_t master_waiting
    uint32_t host_waiting
    Queue slow  # for the router
    Queue punted  # for the snooper
    int32_t credit  # frames from the master and the host that may be shown
    Returned *returned  # the first, in the order in which they came back
    Returned *returned_last
    # Frames for the wire are collected over a round: tx_buffers[:tx_length] with tx_sources.
    uint8_t *tx_buffers[BURST]
    mmsghdr tx_messages[BURST]
    iovec tx_iovecs[BURST]
    int32_t tx_sources[BURST]
    uint32_t tx_length
    BusyPoll busypoll
    int32_t gathering[BURST]  # ports whose sockets have gathered frames
    uint32_t n_gathering
    # With an io_uring: which port's read is to begin anew, and what was queued last for ports.
    Ring ring
    bint doors_ready  # the epoll has something
    bint master_ready  # so may the master
    bint master_armed  # the ring waits for it
    bint master_leaving  # and is told not to
    bint may_queue  # the frame in hand stays in its place until the round is over, and may be queued
    uint32_t leaving  # interfaces that the ring has not let go of yet
    int32_t starved[2]  # first of two lines: ports that got nothing, and those that got something; -1: empty
    int32_t hungry_last[2]
    int32_t source  # whose frame is carried out
    uint32_t inflight_writes  # frames that were queued for ports
    PacketRing packets  # what the master receives
    SendRing txring  # short frames for the wire
    bint coalesce  # datagrams of one flow among it
    GroBatch train
    uint8_t *rx_buffer  # for one frame that doesn't stand there


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
    w.ports[port].got_frame = False
    ring_read(&w.ring, w.ports[port].fd, RING_READ | <uint32_t> port)


cdef inline uint32_t *waiting_of(Worker *w, int32_t source) noexcept nogil:
    """How many of an interface's frames are in the backlog."""
    if source >= 0:
        return &w.ports[source].waiting
    return &w.host_waiting if source == FROM_HOST else &w.master_waiting


cdef inline bint backlog_put(Worker *w, int32_t source, const uint8_t *frame, uint32_t n) noexcept nogil:
    """A multicast frame with its header, n bytes. False if too many wait, or if there is no memory."""
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
