"""An io_uring of one thread, with a buffer pool for multishot reads.

Raw system calls: the liburing of current distributions is older than multishot reads (Linux 6.7). What is queued is
submitted in order by the next `ring_enter`. The kernel works for the ring only inside that call
(IORING_SETUP_DEFER_TASKRUN), so that nothing is read while frames are forwarded.
Sources: io_uring(7), io_uring_setup(2), io_uring_enter(2), io_uring_register_buf_ring(3),
io_uring_prep_read_multishot(3).
"""

from libc.errno cimport EAGAIN, EBUSY, EINTR, ENOSYS, EOPNOTSUPP, ETIME, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap,
)
from posix.unistd cimport close

from ipvsw.datapath.kernel.sys cimport load_u32, sched_yield, store_u16, store_u32


cdef extern from *:
    """
    #include <linux/fs.h>
    #include <linux/io_uring.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* Of the kernel's ABI, newer than the headers of Debian 12. */
    enum { IPVSW_READ_MULTISHOT = 49, IPVSW_ENTER_NO_IOWAIT = 1 << 7, IPVSW_FEAT_NO_IOWAIT = 1 << 17 };
    """
    enum: IPVSW_READ_MULTISHOT
    enum: IPVSW_ENTER_NO_IOWAIT
    enum: IPVSW_FEAT_NO_IOWAIT
    enum: RWF_NOWAIT
    enum: SYS_io_uring_setup
    enum: SYS_io_uring_enter
    enum: SYS_io_uring_register
    long syscall(long number, ...) noexcept nogil

cdef extern from "linux/io_uring.h" nogil:
    enum: IORING_OP_ASYNC_CANCEL
    enum: IORING_OP_POLL_ADD
    enum: IORING_OP_WRITE
    enum: IOSQE_BUFFER_SELECT
    enum: IOSQE_CQE_SKIP_SUCCESS
    enum: IORING_SETUP_CQSIZE
    enum: IORING_SETUP_R_DISABLED
    enum: IORING_SETUP_SUBMIT_ALL
    enum: IORING_SETUP_SINGLE_ISSUER
    enum: IORING_SETUP_DEFER_TASKRUN
    enum: IORING_SETUP_TASKRUN_FLAG
    enum: IORING_SQ_TASKRUN
    enum: IORING_ENTER_EXT_ARG
    enum: IORING_ENTER_GETEVENTS
    enum: IORING_FEAT_SINGLE_MMAP
    enum: IORING_CQE_F_BUFFER
    enum: IORING_CQE_F_MORE
    enum: IORING_CQE_BUFFER_SHIFT
    enum: IORING_OFF_SQ_RING
    enum: IORING_OFF_SQES
    enum: IORING_REGISTER_PROBE
    enum: IORING_REGISTER_ENABLE_RINGS
    enum: IORING_REGISTER_PBUF_RING
    enum: IO_URING_OP_SUPPORTED
    cdef struct io_sqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t flags
        uint32_t array
    cdef struct io_cqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t overflow
        uint32_t cqes
    cdef struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t flags
        uint32_t features
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off
    cdef struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t rw_flags
        uint32_t poll32_events
        uint64_t user_data
        uint16_t buf_group
    cdef struct io_uring_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags
    cdef struct io_uring_buf:
        uint64_t addr
        uint32_t len
        uint16_t bid
    cdef struct io_uring_buf_ring:
        uint16_t tail
    cdef struct io_uring_buf_reg:
        uint64_t ring_addr
        uint32_t ring_entries
        uint16_t bgid
    cdef struct io_uring_getevents_arg:
        uint64_t ts
    cdef struct __kernel_timespec:
        int64_t tv_sec
        long long tv_nsec
    cdef struct io_uring_probe_op:
        uint16_t flags
    cdef struct io_uring_probe:
        uint8_t last_op
        io_uring_probe_op *ops

cdef enum:
    SQ_ENTRIES = 256
    CQ_ENTRIES = 4096  # the kernel keeps completions that don't fit (IORING_FEAT_NODROP)
    POOL = 64  # buffers, a power of two
    POOL_PAGE = 4096  # bytes: the pool's ring of 16-byte entries, on a page of its own

cdef struct Ring:
    int fd  # -1: there is none
    bint running  # the thread that started it alone may use it; False again once the kernel fails it
    uint32_t enter_flags
    uint32_t *sq_tail
    uint32_t *sq_flags
    uint32_t tail  # its next value
    uint32_t sq_mask
    uint32_t queued  # and not yet submitted
    io_uring_sqe *sqes
    uint32_t *cq_head
    uint32_t *cq_tail
    uint32_t cq_mask
    uint32_t *cq_dropped  # completions that the kernel had no memory for
    io_uring_cqe *cqes
    void *rings
    size_t rings_size
    size_t sqes_size
    io_uring_buf_ring *pool
    uint16_t pool_tail
    uint8_t *buffers  # POOL of buffer_size
    size_t buffer_size
    size_t room  # bytes of each before what is read


cdef inline int ring_supported(int fd) noexcept nogil:
    """0 if the kernel knows multishot reads, else an errno."""
    cdef size_t size = sizeof(io_uring_probe) + 64 * sizeof(io_uring_probe_op)
    cdef io_uring_probe *probe = <io_uring_probe *> malloc(size)
    cdef int result = EOPNOTSUPP
    if probe == NULL:
        return ENOSYS
    memset(probe, 0, size)
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_PROBE, probe, 64) == 0
            and probe.last_op >= IPVSW_READ_MULTISHOT
            and probe.ops[IPVSW_READ_MULTISHOT].flags & IO_URING_OP_SUPPORTED):
        result = 0
    free(probe)
    return result


cdef inline int ring_open(Ring *r, size_t buffer_size, size_t room) noexcept nogil:
    """Set it up for `ring_start`. 0 or an errno: ENOSYS, EPERM where it is switched off; EINVAL, EOPNOTSUPP where the
    kernel is too old; ENOMEM. The caller calls `ring_close` in any case."""
    cdef io_uring_params p
    cdef io_uring_buf_reg reg
    cdef uint32_t *array
    cdef uint8_t *base
    cdef uint32_t i
    cdef int error
    memset(r, 0, sizeof(Ring))
    memset(&p, 0, sizeof(p))
    p.flags = (IORING_SETUP_CQSIZE | IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER
               | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG)
    p.cq_entries = CQ_ENTRIES
    r.fd = <int> syscall(SYS_io_uring_setup, <long> SQ_ENTRIES, &p)
    if r.fd < 0:
        return errno
    error = ring_supported(r.fd)
    if error:
        return error
    if not p.features & IORING_FEAT_SINGLE_MMAP:
        return EOPNOTSUPP
    r.enter_flags = IORING_ENTER_GETEVENTS | (IPVSW_ENTER_NO_IOWAIT if p.features & IPVSW_FEAT_NO_IOWAIT else 0)
    r.rings_size = max(p.sq_off.array + p.sq_entries * sizeof(uint32_t),
                       p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe))
    r.sqes_size = p.sq_entries * sizeof(io_uring_sqe)
    r.rings = ring_map(r.fd, r.rings_size, IORING_OFF_SQ_RING)
    r.sqes = <io_uring_sqe *> ring_map(r.fd, r.sqes_size, IORING_OFF_SQES)
    r.pool = <io_uring_buf_ring *> ring_map(-1, POOL_PAGE, 0)
    r.buffers = <uint8_t *> malloc(POOL * buffer_size)
    if r.rings == NULL or r.sqes == NULL or r.pool == NULL or r.buffers == NULL:
        return errno
    base = <uint8_t *> r.rings
    r.sq_tail = <uint32_t *> (base + p.sq_off.tail)
    r.sq_flags = <uint32_t *> (base + p.sq_off.flags)
    r.sq_mask = (<uint32_t *> (base + p.sq_off.ring_mask))[0]
    r.cq_head = <uint32_t *> (base + p.cq_off.head)
    r.cq_tail = <uint32_t *> (base + p.cq_off.tail)
    r.cq_mask = (<uint32_t *> (base + p.cq_off.ring_mask))[0]
    r.cq_dropped = <uint32_t *> (base + p.cq_off.overflow)
    r.cqes = <io_uring_cqe *> (base + p.cq_off.cqes)
    array = <uint32_t *> (base + p.sq_off.array)
    for i in range(p.sq_entries):
        array[i] = i
    r.buffer_size, r.room = buffer_size, room
    memset(&reg, 0, sizeof(reg))
    reg.ring_addr = <uint64_t> r.pool
    reg.ring_entries = POOL
    if syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_PBUF_RING, &reg, 1) < 0:
        return errno
    for i in range(<uint32_t> POOL):
        ring_recycle(r, i)
    ring_publish(r)
    return 0


cdef inline void *ring_map(int fd, size_t size, uint64_t offset) noexcept nogil:
    """Memory shared with the kernel, or with fd -1 anonymous memory. NULL with errno."""
    cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS if fd < 0 else MAP_SHARED | MAP_POPULATE
    cdef void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, offset)
    return NULL if p == MAP_FAILED else p


cdef inline void ring_close(Ring *r) noexcept nogil:
    if r.rings != NULL:
        munmap(r.rings, r.rings_size)
    if r.sqes != NULL:
        munmap(r.sqes, r.sqes_size)
    if r.fd >= 0:
        close(r.fd)
    if r.pool != NULL:
        munmap(r.pool, POOL_PAGE)
    free(r.buffers)
    memset(r, 0, sizeof(Ring))
    r.fd = -1


cdef inline bint ring_start(Ring *r) noexcept nogil:
    """From here on the calling thread alone may use it. False if the kernel refuses."""
    r.running = r.fd >= 0 and syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) == 0
    return r.running


cdef inline void ring_submit(Ring *r) noexcept nogil:
    """Submit all that is queued."""
    if r.queued:
        ring_call(r, 0, 0, NULL, 0)


cdef inline void ring_enter(Ring *r, bint wait) noexcept nogil:
    """Submit all that is queued and have the kernel complete what is ready; `wait` for one completion at least."""
    ring_call(r, wait, r.enter_flags, NULL, 0)


cdef inline void ring_enter_for(Ring *r, uint64_t ns) noexcept nogil:
    """As `ring_enter` with `wait`, but at most so long (under a second), give or take the timers' slack."""
    cdef io_uring_getevents_arg arg
    cdef __kernel_timespec time
    memset(&arg, 0, sizeof(arg))
    time.tv_sec, time.tv_nsec = 0, <long long> ns
    arg.ts = <uint64_t> &time
    ring_call(r, 1, r.enter_flags | IORING_ENTER_EXT_ARG, &arg, sizeof(arg))


cdef inline void ring_call(Ring *r, uint32_t completions, uint32_t flags, const void *arg, size_t size) noexcept nogil:
    """io_uring_enter(2), until all that is queued is submitted: the caller may reuse the memory that writes name.

    The kernel takes a part, or nothing with EAGAIN, where it has no memory for more requests, and does then neither
    wait nor read. When all is taken, such an error is one of waiting: a caller looks for completions anyway.

    Any other error is permanent, and a lost completion can't be told from one that is still to come: the ring is not
    `running` any more, and nothing more is submitted.
    """
    cdef long n
    store_u32(r.sq_tail, r.tail)
    while r.running:
        n = syscall(SYS_io_uring_enter, r.fd, r.queued, completions, flags, arg, size)
        if n > 0:
            r.queued -= <uint32_t> n
        elif n < 0 and errno != EINTR and errno != EAGAIN and errno != EBUSY and errno != ETIME:
            r.running = False
        if load_u32(r.cq_dropped):
            r.running = False
        if r.queued == 0:
            return
        sched_yield()


cdef inline bint ring_withdraw(Ring *r, uint64_t *tag) noexcept nogil:
    """Take back what was queued last and not submitted. False if there is nothing."""
    if r.queued == 0:
        return False
    r.queued -= 1
    r.tail -= 1
    tag[0] = r.sqes[r.tail & r.sq_mask].user_data
    return True


cdef inline io_uring_sqe *ring_sqe(Ring *r) noexcept nogil:
    """The next free submission entry, zeroed. NULL if there is none: the ring does not run any more."""
    cdef io_uring_sqe *sqe
    if r.queued > r.sq_mask:
        ring_submit(r)
        if r.queued:
            return NULL
    sqe = &r.sqes[r.tail & r.sq_mask]
    r.tail += 1
    r.queued += 1
    memset(sqe, 0, sizeof(io_uring_sqe))
    return sqe


cdef inline void ring_read(Ring *r, int fd, uint64_t tag) noexcept nogil:
    """Multishot read into buffers of the pool, until a completion without IORING_CQE_F_MORE."""
    cdef io_uring_sqe *sqe = ring_sqe(r)
    if sqe == NULL:
        return
    sqe.opcode = IPVSW_READ_MULTISHOT
    sqe.flags = IOSQE_BUFFER_SELECT
    sqe.fd = fd
    sqe.off = <uint64_t> -1
    sqe.user_data = tag


cdef inline void ring_poll(Ring *r, int fd, uint32_t events, uint64_t tag) noexcept nogil:
    """One completion, when `fd` is ready."""
    cdef io_uring_sqe *sqe = ring_sqe(r)
    if sqe == NULL:
        return
    sqe.opcode = IORING_OP_POLL_ADD
    sqe.fd = fd
    sqe.poll32_events = events
    sqe.user_data = tag


cdef inline void ring_cancel(Ring *r, uint64_t tag, uint64_t own_tag) noexcept nogil:
    """Cancel the request with that tag, whose completion says so. One with `own_tag` says that there was none."""
    cdef io_uring_sqe *sqe = ring_sqe(r)
    if sqe == NULL:
        return
    sqe.opcode = IORING_OP_ASYNC_CANCEL
    sqe.flags = IOSQE_CQE_SKIP_SUCCESS
    sqe.fd = -1
    sqe.addr = tag
    sqe.user_data = own_tag


cdef inline bint ring_write(Ring *r, int fd, const void *data, uint32_t n, uint64_t tag) noexcept nogil:
    """As a non-blocking write(), in order. `data` must stay until it is submitted. The completion of a failed write may
    come after those of later ones. False if the ring does not run any more."""
    cdef io_uring_sqe *sqe = ring_sqe(r)
    if sqe == NULL:
        return False
    sqe.opcode = IORING_OP_WRITE
    sqe.fd = fd
    sqe.off = <uint64_t> -1
    sqe.addr = <uint64_t> data
    sqe.len = n
    sqe.rw_flags = RWF_NOWAIT
    sqe.user_data = tag
    return True


cdef inline uint32_t ring_completions(Ring *r) noexcept nogil:
    """How many completions there are."""
    return load_u32(r.cq_tail) - r.cq_head[0]


cdef inline bint ring_stirs(Ring *r) noexcept nogil:
    """Whether `ring_enter` would have something to do."""
    return load_u32(r.sq_flags) & IORING_SQ_TASKRUN


cdef inline io_uring_cqe *ring_peek(Ring *r, uint32_t number) noexcept nogil:
    """The completion with that index, from 0; it stays in the queue."""
    return &r.cqes[(r.cq_head[0] + number) & r.cq_mask]


cdef inline bint ring_take(Ring *r, io_uring_cqe *completion) noexcept nogil:
    """The next completion, taken from the queue. False if there is none."""
    cdef uint32_t head = r.cq_head[0]
    if head == load_u32(r.cq_tail):
        return False
    completion[0] = r.cqes[head & r.cq_mask]
    store_u32(r.cq_head, head + 1)
    return True


cdef inline uint8_t *ring_buffer(Ring *r, uint32_t number) noexcept nogil:
    """Where data is read to in that buffer."""
    return r.buffers + number * r.buffer_size + r.room


cdef inline void ring_recycle(Ring *r, uint32_t number) noexcept nogil:
    """Return a buffer to the pool, with the next `ring_publish`."""
    cdef io_uring_buf *entry = &(<io_uring_buf *> r.pool)[r.pool_tail & (POOL - 1)]
    entry.addr = <uint64_t> ring_buffer(r, number)
    entry.len = <uint32_t> (r.buffer_size - r.room)
    entry.bid = number
    r.pool_tail += 1


cdef inline void ring_publish(Ring *r) noexcept nogil:
    store_u16(&r.pool.tail, r.pool_tail)
