"""A worker's beginning and end."""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport close

from ipvsw.datapath.kernel.packetring cimport packets_unmap
from ipvsw.datapath.kernel.sendring cimport send_ring_unmap
from ipvsw.datapath.loop.state cimport (
    BACKLOG, BUFFER, BURST, CONTROL_EVENT, MASTER_CREDIT, SLOW, Queue, Returned, Worker, poll_fd,
)
from ipvsw.datapath.loop.unixsock cimport socket_release
from ipvsw.datapath.kernel.sys cimport EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, epoll_create1, eventfd
from ipvsw.datapath.rules.table cimport table_free, table_init
from ipvsw.datapath.kernel.uring cimport ring_close


cdef inline Worker *worker_new(int number, int workers, int notify_fd, uint64_t key, int *error) noexcept nogil:
    """One of so many, without interfaces; NULL and an errno if it can't be had."""
    cdef Worker *w = <Worker *> calloc(1, sizeof(Worker))
    if w == NULL:
        error[0] = ENOMEM
        return NULL
    w.number, w.workers, w.notify_fd = number, workers, notify_fd
    w.master_fd = w.inject_fd = w.host_fd = w.epoll_fd = w.control_fd = w.ring.fd = -1
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
    cdef Returned *returned
    cdef uint32_t k
    for i in range(w.switch_.n_ports):
        free(w.switch_.rules[i].groups)
        if w.ports[i].socket != NULL:
            socket_release(w.ports[i].socket)
    free(w.switch_.rules)
    free(w.ports)
    table_free(&w.switch_.table)
    table_free(&w.routes.table)
    free(w.routes.entries)
    queue_free(&w.slow)
    queue_free(&w.punted)
    while w.returned != NULL:
        returned = w.returned
        w.returned = returned.next
        free(returned)
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
