"""Frames copied for readers in other processes: one ring for each worker, in memory that the readers may only read.

The writer never looks at who reads, how many there are and how far: it overwrites the oldest records. A reader copies
what it wants, then sees whether the writer has come that way meanwhile, and knows by the numbers of the records how
many it has missed. So a slow reader costs the traffic nothing, and a hostile one has nothing to write to.

One memfd has the rings one behind the other, each after a page with its RingHead. It is sealed: nobody can make it
shorter, which would kill the writer, nor map it to write.
"""

from libc.errno cimport errno
from libc.stdint cimport int16_t, int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close, ftruncate

from ipvsw.datapath.kernel.sys cimport (
    CLOCK_REALTIME, F_ADD_SEALS, F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, MFD_ALLOW_SEALING,
    MFD_CLOEXEC, clock_gettime, fcntl, fence_release, memfd_create, store_u64, timespec, virtio_net_hdr,
)
from ipvsw.datapath.rules.outcome cimport N_OUTCOMES

cdef enum:
    RING_HEAD = 4096  # bytes of the page before a ring
    RING_BYTES = 16 << 20  # of a ring: a power of two
    PADDING = 0xFFFFFFFF  # in the place of a frame's length: there is nothing until the ring's end
    WIRE_TAG = 1  # which interface a record is about: the master,
    HOST_TAG = 2  # the host's stack, or a port's tag, which no other port ever had
    NO_TAG = 0
    PENDING = 1024  # frames that are written by an io_uring which has not said yet how that ended
    BATCH = 32  # frames for the wire: a worker's BURST

cdef enum:
    VOID = 0  # of no frame
    RX = 1  # as the switch read it, with its outcome
    TX = 2  # as the switch wrote it

cdef enum:
    AGAIN = 1  # `flags`: it was held before, until the control thread had seen it
    NO_RECORD = 0xFFFFFFFFFFFFFFFFu

# Counted in bytes since the ring was opened.
cdef struct RingHead:
    uint64_t tail  # where the whole records end
    uint64_t reserved  # where the writer may be writing; what is RING_BYTES behind that is lost
    uint64_t number  # of the record that will be at `tail`

# `length` bytes with frame and padding, a multiple of 8.
cdef struct Record:
    uint32_t length
    uint32_t frame  # bytes of the frame that follows; PADDING: none, and no other member counts
    uint64_t time  # ns since the epoch
    uint32_t number  # of this record in its ring, one more than the last's
    uint32_t interface  # a tag
    uint32_t peer  # of RX the port that it goes to, of TX where it came from; NO_TAG: several, or none
    int16_t outcome  # of RX; NO_OUTCOME: it was held, see AGAIN
    uint8_t direction
    uint8_t flags
    virtio_net_hdr header

# A frame that an io_uring writes: its records, if it has them.
cdef struct PendingWrite:
    uint64_t tag
    uint64_t rx
    uint64_t tx

# What one worker writes to.
cdef struct Capture:
    RingHead *head
    uint8_t *ring
    uint64_t next  # where the next record goes, counted as in RingHead
    uint32_t number
    bint wire  # whether the master's frames are captured,
    bint host  # and what goes to and comes from the host's stack
    uint64_t rx  # the record of the frame in hand
    int32_t source  # where it was read
    uint64_t before[N_OUTCOMES]  # that interface's outcomes then
    uint32_t tx_length  # and the worker's batch for the wire
    uint64_t on_wire[BATCH]  # records of the frames in that batch
    PendingWrite pending[PENDING]
    uint64_t pushed_writes  # ever; the last `n_pending` of them are there
    uint32_t n_pending


cdef inline uint64_t record_put(
    Capture *c, uint32_t interface, int direction, uint32_t peer, const virtio_net_hdr *header, uint32_t n
) noexcept nogil:
    """Room for a frame of n bytes, which the caller puts behind the record: its place."""
    cdef uint64_t length = (sizeof(Record) + n + 7) & ~<uint64_t> 7
    cdef uint64_t left = RING_BYTES - (c.next & (RING_BYTES - 1))
    cdef uint64_t at
    cdef Record *record
    cdef timespec now
    if left < length:
        reserve(c, left)
        record = record_at(c, c.next)
        record.length = <uint32_t> left
        record.frame = PADDING
        c.next += left
    reserve(c, length)
    at = c.next
    record = record_at(c, at)
    c.next += length
    clock_gettime(CLOCK_REALTIME, &now)
    record.length, record.frame = <uint32_t> length, n
    record.time = <uint64_t> now.tv_sec * 1_000_000_000 + <uint64_t> now.tv_nsec
    record.number, record.interface, record.peer = c.number, interface, peer
    record.outcome, record.direction, record.flags = -1, <uint8_t> direction, 0
    record.header = header[0]
    c.number += 1
    return at


cdef inline void reserve(Capture *c, uint64_t length) noexcept nogil:
    """Tell readers first. Records that are still pending are left as they are before they are overwritten."""
    cdef uint64_t end = c.next + length
    if c.n_pending and end - first_pending(c) > RING_BYTES:
        c.n_pending = 0
    store_u64(&c.head.reserved, end)
    fence_release()


cdef inline uint64_t record_frame(
    Capture *c, uint32_t interface, int direction, uint32_t peer, const uint8_t *buffer, uint32_t n
) noexcept nogil:
    """A frame with its virtio_net_hdr, n bytes: the place of its record."""
    cdef uint32_t length = n - <uint32_t> sizeof(virtio_net_hdr)
    cdef uint64_t at = record_put(c, interface, direction, peer, <const virtio_net_hdr *> buffer, length)
    memcpy(&record_at(c, at)[1], buffer + sizeof(virtio_net_hdr), length)
    return at


cdef inline Record *record_at(Capture *c, uint64_t place) noexcept nogil:
    return <Record *> (c.ring + (place & (RING_BYTES - 1)))


cdef inline uint64_t first_pending(Capture *c) noexcept nogil:
    """The place of the oldest record that waits for the end of a write."""
    cdef PendingWrite *write = &c.pending[(c.pushed_writes - c.n_pending) % PENDING]
    return min(write.rx, write.tx)


cdef inline void ring_publish(Capture *c, bint all_written) noexcept nogil:
    """Let readers have what is complete. `all_written`: nothing is being written."""
    if all_written:
        c.n_pending = 0
    if c.n_pending:
        c.head.number = record_at(c, first_pending(c)).number
        store_u64(&c.head.tail, first_pending(c))
    else:
        c.head.number = c.number
        store_u64(&c.head.tail, c.next)


# ---------------------------------------------------------------------------- beginning and end


cdef inline Capture *captures_open(int n, int *fd, int *error) noexcept nogil:
    """A ring for each of n workers, and the memfd that has them; NULL and an errno if they can't be had."""
    cdef size_t total = <size_t> n * (RING_HEAD + RING_BYTES)
    cdef Capture *captures = <Capture *> calloc(n, sizeof(Capture))
    cdef uint8_t *memory = <uint8_t *> MAP_FAILED
    cdef int i, k
    fd[0] = memfd_create("ipvsw-capture", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    if captures != NULL and fd[0] >= 0 and ftruncate(fd[0], total) == 0:
        memory = <uint8_t *> mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED, fd[0], 0)
    if memory == <uint8_t *> MAP_FAILED or fcntl(
            fd[0], F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0:
        error[0] = errno
        if memory != <uint8_t *> MAP_FAILED:
            munmap(memory, total)
        if fd[0] >= 0:
            close(fd[0])
        free(captures)
        return NULL
    for i in range(n):
        captures[i].head = <RingHead *> (memory + <size_t> i * (RING_HEAD + RING_BYTES))
        captures[i].ring = <uint8_t *> captures[i].head + RING_HEAD
        captures[i].rx = NO_RECORD
        for k in range(BATCH):
            captures[i].on_wire[k] = NO_RECORD
    error[0] = 0
    return captures


cdef inline void captures_close(Capture *captures, int n, int fd) noexcept nogil:
    munmap(captures[0].head, <size_t> n * (RING_HEAD + RING_BYTES))
    close(fd)
    free(captures)
