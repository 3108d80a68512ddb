"""A worker's round with io_uring: multishot reads on the ports, batched writes to them.

Each port has a multishot read into a pool of buffers that all ports share; the master's frames are in its own receive
ring (packetring.pxd). Frames are forwarded one by one. A write to a port is queued, with the frame in the buffer where
it was received, and submitted by the io_uring_enter() that waits for the next completions: one system call a round,
however many frames and ports. Everything else (host, unix sockets, mailbox) stays with the epoll, whose descriptor the
ring polls.

Order is kept: completions of a port's reads come in order, writes are done in the order in which they were queued, and
the queue is submitted before anything is written directly.
"""

from libc.errno cimport EBADF, EEXIST, ENOBUFS
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from ipvsw.datapath.rules.prefetch cimport Ahead, ahead_fetch, is_far, collect_ahead
from ipvsw.datapath.loop.loop_epoll cimport serve_epoll
from ipvsw.datapath.loop.flood cimport note_activity, flood_pause, flood_slice
from ipvsw.datapath.loop.mailbox cimport ATTACH_MASTER, DETACH_MASTER, DETACH_PORT, STOP, Batch, mail_end, take_mail
from ipvsw.datapath.loop.rx_master cimport master_rx, packet_rx
from ipvsw.datapath.loop.rx_ports cimport port_rx_over
from ipvsw.datapath.kernel.packetring cimport packets_release, packets_waiting
from ipvsw.datapath.loop.forward cimport take_reinjected
from ipvsw.datapath.loop.offload_fix cimport receive_from_port
from ipvsw.datapath.loop.state cimport (
    BURST, DEVICE, EVENT_GONE_BIT, HEADER, MASTER_EVENT, RING_CANCEL, RING_EPOLL, RING_MASTER, RING_READ, RING_WRITE,
    Port, Worker, poll_fd, raise_event, read_by_ring, reads_port, unpoll_fd,
)
from ipvsw.datapath.kernel.busypoll cimport clock_ns, busypoll_learn, busypoll_on, busypoll_pays
from ipvsw.datapath.kernel.sys cimport EPOLLERR, EPOLLIN, eventfd_write, load_ptr
from ipvsw.datapath.loop.tx cimport master_tx, port_tx_ended, publish_captured, sockets_tx
from ipvsw.datapath.packet.longheader cimport LONG_HEADER, LONGER, header_shorten
from ipvsw.datapath.kernel.uring cimport (
    IORING_CQE_BUFFER_SHIFT, IORING_CQE_F_BUFFER, IORING_CQE_F_MORE, io_uring_cqe, ring_completions, ring_buffer,
    ring_cancel, ring_enter, ring_recycle, ring_peek, ring_poll, ring_publish, ring_stirs, ring_submit, ring_take,
    ring_withdraw,
)


cdef inline void ring_run(Worker *w) noexcept nogil:
    cdef Batch *batch
    cdef uint32_t waiting
    ring_begin(w)
    while not w.stopping and w.ring.running:
        w.round_ns = 0
        if w.epoll_ready or w.master_ready or w.mail_read or w.inflight_writes:
            ring_enter(&w.ring, False)
        elif w.backlog_length:
            ring_await_master(w)
            flood_pause(w)
        else:
            ring_wait(w)
        packets_release(&w.packets)  # the writes that named its slots are submitted
        ring_reap(w)
        if w.master_ready or packets_waiting(&w.packets, 1):
            waiting = w.backlog_length
            w.master_ready = master_rx(w)
            note_activity(w, waiting)
        if w.epoll_ready:
            serve_epoll(w, 0)
            ring_await_epoll(w)
        if w.backlog_length:
            ring_submit(&w.ring)  # unicast frames that came before a multicast frame leave before it
            flood_slice(w)
        if w.tx_length:
            master_tx(w)
        batch = <Batch *> load_ptr(&w.mailbox)
        if batch != NULL:
            ring_feed(w)  # no port may be in the list when it is detached
            if ring_settle(w, batch):
                take_mail(w)
                take_reinjected(w)
        if w.n_gathering:
            sockets_tx(w)
        publish_captured(w)
        ring_publish(&w.ring)
        ring_feed(w)
    if not w.stopping:
        ring_abandon(w)


cdef inline void ring_begin(Worker *w) noexcept nogil:
    """Move the ports and the master, attached before the thread ran, from the epoll to the ring."""
    cdef int32_t port
    for port in range(w.switch_.n_ports):
        if w.ports[port].fd >= 0 and w.ports[port].backend == DEVICE and reads_port(w, port):
            unpoll_fd(w, w.ports[port].fd)
            read_by_ring(w, port)
    if w.master_fd >= 0:
        unpoll_fd(w, w.master_fd)
    ring_await_epoll(w)


cdef inline void ring_wait(Worker *w) noexcept nogil:
    """Wait for completions or frames from the master: poll for a moment, where that pays, then sleep."""
    cdef uint64_t start, now
    if w.busypoll.budget == 0:
        ring_sleep(w)
        return
    if w.packets.slots == NULL:
        ring_await_master(w)
    start = now = clock_ns()
    if busypoll_pays(&w.busypoll, now):
        ring_enter(&w.ring, False)
        while not ring_has_work(w):
            if ring_stirs(&w.ring):
                ring_enter(&w.ring, False)
            elif not busypoll_on(&w.busypoll, start, &now):
                break
    if not ring_has_work(w):
        ring_sleep(w)
        now = clock_ns()
    busypoll_learn(&w.busypoll, now - start)


cdef inline bint ring_has_work(Worker *w) noexcept nogil:
    return ring_completions(&w.ring) or packets_waiting(&w.packets, 1) or not w.ring.running


cdef inline void ring_sleep(Worker *w) noexcept nogil:
    ring_await_master(w)
    ring_enter(&w.ring, True)


cdef inline void ring_await_master(Worker *w) noexcept nogil:
    """Only before sleeping: while the worker polls the receive ring, waking it would cost the sender of each frame."""
    if w.master_fd >= 0 and not w.master_armed:
        w.master_armed = True
        ring_poll(&w.ring, w.master_fd, EPOLLIN, RING_MASTER)


cdef inline void ring_await_epoll(Worker *w) noexcept nogil:
    w.epoll_ready = False
    ring_poll(&w.ring, w.epoll_fd, EPOLLIN, RING_EPOLL)


cdef inline void ring_reap(Worker *w) noexcept nogil:
    """Process the completions in their order. If there is only one its frame is written directly, so that the receiver
    runs a little earlier."""
    cdef io_uring_cqe cqe
    w.may_queue = ring_completions(&w.ring) > 1 and w.ring.running
    if w.may_queue and is_far(&w.switch_.table):
        ring_collect_ahead(w)
    while ring_take(&w.ring, &cqe):
        if cqe.user_data & RING_WRITE:
            port_tx_ended(w, cqe.user_data, cqe.res)
        elif cqe.user_data & RING_MASTER:
            ring_master(w, &cqe)
        elif cqe.user_data & RING_EPOLL:
            w.epoll_ready = True
        elif not cqe.user_data & RING_CANCEL:
            ring_rx(w, <int32_t> <uint32_t> cqe.user_data, &cqe)
    w.may_queue = False


cdef inline void ring_collect_ahead(Worker *w) noexcept nogil:
    """Prefetch for all frames among the completions before the first of them is forwarded."""
    cdef Ahead ahead
    cdef io_uring_cqe *cqe
    cdef uint8_t *buffer
    cdef uint32_t header
    cdef uint32_t i
    ahead.length = 0
    for i in range(ring_completions(&w.ring)):
        cqe = ring_peek(&w.ring, i)
        if cqe.flags & IORING_CQE_F_BUFFER and cqe.res >= LONG_HEADER:
            header = HEADER + w.ports[<uint32_t> cqe.user_data].longer
            buffer = ring_buffer(&w.ring, cqe.flags >> IORING_CQE_BUFFER_SHIFT)
            collect_ahead(&w.switch_, &ahead, buffer + header, cqe.res - header)
    ahead_fetch(&ahead)


cdef inline void ring_master(Worker *w, const io_uring_cqe *cqe) noexcept nogil:
    """The master is readable, or its poll was cancelled."""
    w.master_armed = False
    if w.master_leaving:
        w.master_leaving = False
        w.leaving -= 1
        return
    w.master_ready = True
    if cqe.res > 0 and cqe.res & EPOLLERR:
        packet_rx(w)  # reading clears the socket's error


cdef inline void ring_rx(Worker *w, int32_t port, const io_uring_cqe *cqe) noexcept nogil:
    """A frame from a port, or the end of its multishot read."""
    cdef Port *p = &w.ports[port]
    cdef uint32_t number = cqe.flags >> IORING_CQE_BUFFER_SHIFT
    cdef uint32_t waiting
    if cqe.flags & IORING_CQE_F_BUFFER:
        ring_recycle(&w.ring, number)  # for the next round
    if cqe.res >= HEADER:
        p.got_frame = True
        waiting = w.backlog_length
        ring_frame(w, port, ring_buffer(&w.ring, number), cqe.res)
        note_activity(w, waiting)
        if w.tx_length == BURST:
            master_tx(w)
    if cqe.flags & IORING_CQE_F_MORE:
        return
    p.armed = False
    if p.leaving:
        w.leaving -= 1
    elif cqe.res >= HEADER or cqe.res == -ENOBUFS or not port_rx_over(w, port, max(0, -cqe.res)):
        ring_starved(w, port)


cdef inline void ring_frame(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """As it was read, n bytes."""
    if not w.ports[port].longer:
        receive_from_port(w, port, buffer, n)
    elif n >= LONG_HEADER:
        receive_from_port(w, port, header_shorten(buffer), n - LONGER)


cdef inline void ring_starved(Worker *w, int32_t port) noexcept nogil:
    """The pool was empty: the port's read is restarted at the end of the round. Ports that got no frame come before
    those that did, so that one port's flood cannot starve the others."""
    cdef int line = w.ports[port].got_frame
    w.ports[port].next_starved = -1
    if w.starved[line] < 0:
        w.starved[line] = port
    else:
        w.ports[w.starved_last[line]].next_starved = port
    w.starved_last[line] = port


cdef inline void ring_feed(Worker *w) noexcept nogil:
    """Restart the reads of the starved ports."""
    cdef int32_t port
    cdef int line
    for line in range(2):
        port = w.starved[line]
        w.starved[line] = -1
        while port >= 0:
            if w.ports[port].fd >= 0 and not w.ports[port].armed:
                read_by_ring(w, port)
            port = w.ports[port].next_starved


cdef inline bint ring_settle(Worker *w, const Batch *batch) noexcept nogil:
    """Before the next edits: complete all writes, and cancel the reads of the ports that these edits detach. Buffers
    are not returned to the pool meanwhile, so that this ends. False if the ring has failed."""
    cdef size_t i
    cdef int32_t port
    for i in range(w.mail_read, mail_end(w, batch)):
        if batch.edits[i].kind == DETACH_PORT and batch.edits[i].port < w.switch_.n_ports:
            ring_leave(w, batch.edits[i].port)
        elif batch.edits[i].kind == ATTACH_MASTER or batch.edits[i].kind == DETACH_MASTER:
            ring_leave_master(w)
        elif batch.edits[i].kind == STOP:
            ring_leave_master(w)
            for port in range(w.switch_.n_ports):
                ring_leave(w, port)
    while w.ring.running:
        ring_enter(&w.ring, w.leaving > 0 or w.inflight_writes > 0)
        ring_reap(w)
        if w.tx_length:
            master_tx(w)
        if not w.leaving and not w.inflight_writes and not w.ring.queued:
            return True
    return False


cdef inline void ring_leave_master(Worker *w) noexcept nogil:
    if w.master_armed and not w.master_leaving:
        w.master_leaving = True
        w.leaving += 1
        ring_cancel(&w.ring, RING_MASTER, RING_CANCEL)


cdef inline void ring_leave(Worker *w, int32_t port) noexcept nogil:
    if w.ports[port].armed and not w.ports[port].leaving:
        w.ports[port].leaving = True
        w.leaving += 1
        ring_cancel(&w.ring, RING_READ | <uint32_t> port, RING_CANCEL)


cdef inline void ring_abandon(Worker *w) noexcept nogil:
    """The kernel has failed the ring: process what it has completed, count the writes that it has not taken, and leave
    all interfaces to the epoll. Writes whose completions it has lost have an unknown outcome and are not counted."""
    cdef uint64_t tag
    cdef int32_t port
    cdef int error
    ring_reap(w)
    while ring_withdraw(&w.ring, &tag):
        if tag & RING_WRITE:
            port_tx_ended(w, tag, -EBADF)
    if w.tx_length:
        master_tx(w)  # its frames may stand in the pool
    packets_release(&w.packets)
    w.inflight_writes = w.leaving = 0
    w.master_armed = w.master_leaving = w.master_ready = w.epoll_ready = False
    w.starved[0] = w.starved[1] = -1
    for port in range(w.switch_.n_ports):
        w.ports[port].armed = w.ports[port].leaving = False
        if w.ports[port].fd >= 0 and w.ports[port].backend == DEVICE and reads_port(w, port):
            error = poll_fd(w, w.ports[port].fd, port)
            if error and error != EEXIST:
                raise_event(w, port, EVENT_GONE_BIT)
    if w.master_fd >= 0:
        poll_fd(w, w.master_fd, MASTER_EVENT)
    eventfd_write(w.control_fd, 1)  # there may be a batch whose event was read
