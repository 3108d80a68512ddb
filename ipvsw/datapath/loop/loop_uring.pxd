"""The round of a worker over an io_uring: ports are read without being asked, frames for them leave in one go.

A port's reads go on by themselves into buffers that all ports share, and the master's frames stand in a ring of its
own. They are carried out frame by frame; frames for ports are queued where they stand and leave with the call that
waits for the next ones, so that a round has one system call however many frames and ports it has. Everything else
(host, sockets, mailbox) stays with the epoll, which is one more thing that the ring waits for.

Order is kept: a port's frames come in order, leave in the order in which they were queued, and nothing is written past
the queue without emptying it first.
"""

from libc.errno cimport ENOBUFS
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from ipvsw.datapath.rules.prefetch cimport Ahead, ahead_fetch, is_far, collect_ahead
from ipvsw.datapath.loop.loop_epoll cimport serve_epoll
from ipvsw.datapath.loop.flood cimport note_activity, flood_pause, flood_slice
from ipvsw.datapath.loop.mailbox cimport ATTACH_MASTER, DETACH_MASTER, DETACH_PORT, STOP, Batch, mail_end, take_mail
from ipvsw.datapath.loop.rx_master cimport master_rx, packet_rx
from ipvsw.datapath.loop.rx_ports cimport port_rx_over
from ipvsw.datapath.kernel.packetring cimport packets_release, packets_waiting
from ipvsw.datapath.loop.forward cimport forward_from_port, take_reinjected
from ipvsw.datapath.loop.state cimport (
    BURST, DEVICE, HEADER, RING_CANCEL, RING_EPOLL, RING_MASTER, RING_READ, RING_WRITE, Port, Worker, read_by_ring,
    reads_port, unpoll_fd,
)
from ipvsw.datapath.loop.busypoll cimport clock_ns, busypoll_learn, busypoll_on, busypoll_pays
from ipvsw.datapath.kernel.sys cimport EPOLLERR, EPOLLIN, load_ptr
from ipvsw.datapath.loop.tx cimport master_tx, port_tx_ended, sockets_tx
from ipvsw.datapath.kernel.uring cimport (
    IORING_CQE_BUFFER_SHIFT, IORING_CQE_F_BUFFER, IORING_CQE_F_MORE, io_uring_cqe, ring_completions, ring_buffer,
    ring_cancel, ring_enter, ring_recycle, ring_peek, ring_poll, ring_publish, ring_stirs, ring_submit, ring_take,
)


cdef inline void ring_run(Worker *w) noexcept nogil:
    cdef Batch *batch
    cdef uint32_t waiting
    ring_begin(w)
    while not w.stopping:
        if w.epoll_ready or w.master_ready or w.mail_read or w.inflight_writes:
            ring_enter(&w.ring, False)
        elif w.backlog_length:
            ring_await_master(w)
            flood_pause(w)
        else:
            ring_wait(w)
        packets_release(&w.packets)  # what was to be written from there is
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
            ring_feed(w)  # who leaves may not stand in line
            ring_settle(w, batch)
            take_mail(w)
            take_reinjected(w)
        if w.n_gathering:
            sockets_tx(w)
        ring_publish(&w.ring)
        ring_feed(w)


cdef inline void ring_begin(Worker *w) noexcept nogil:
    """The ports that were attached before there was a thread."""
    cdef int32_t port
    for port in range(w.switch_.n_ports):
        if w.ports[port].fd >= 0 and w.ports[port].backend == DEVICE and reads_port(w, port):
            unpoll_fd(w, w.ports[port].fd)
            read_by_ring(w, port)
    if w.master_fd >= 0:
        unpoll_fd(w, w.master_fd)
    ring_await_epoll(w)


cdef inline void ring_wait(Worker *w) noexcept nogil:
    """Until there is something: awake for a moment, where that pays, and then asleep."""
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
    return ring_completions(&w.ring) or packets_waiting(&w.packets, 1)


cdef inline void ring_sleep(Worker *w) noexcept nogil:
    ring_await_master(w)
    ring_enter(&w.ring, True)


cdef inline void ring_await_master(Worker *w) noexcept nogil:
    """Once: who watches the master's ring anyway is not to be woken for each frame, which its sender would pay."""
    if w.master_fd >= 0 and not w.master_armed:
        w.master_armed = True
        ring_poll(&w.ring, w.master_fd, EPOLLIN, RING_MASTER)


cdef inline void ring_await_epoll(Worker *w) noexcept nogil:
    w.epoll_ready = False
    ring_poll(&w.ring, w.epoll_fd, EPOLLIN, RING_EPOLL)


cdef inline void ring_reap(Worker *w) noexcept nogil:
    """Carry out what has come, in the order in which it came. A frame alone is written at once: that has the receiver
    run a little earlier."""
    cdef io_uring_cqe answer
    w.may_queue = ring_completions(&w.ring) > 1
    if w.may_queue and is_far(&w.switch_.table):
        ring_collect_ahead(w)
    while ring_take(&w.ring, &answer):
        if answer.user_data & RING_WRITE:
            port_tx_ended(w, answer.user_data, answer.res)
        elif answer.user_data & RING_MASTER:
            ring_master(w, &answer)
        elif answer.user_data & RING_EPOLL:
            w.epoll_ready = True
        elif not answer.user_data & RING_CANCEL:
            ring_rx(w, <int32_t> <uint32_t> answer.user_data, &answer)
    w.may_queue = False


cdef inline void ring_collect_ahead(Worker *w) noexcept nogil:
    """The frames among the answers that wait, before the first of them is carried out."""
    cdef Ahead ahead
    cdef io_uring_cqe *answer
    cdef uint8_t *buffer
    cdef uint32_t i
    ahead.length = 0
    for i in range(ring_completions(&w.ring)):
        answer = ring_peek(&w.ring, i)
        if answer.flags & IORING_CQE_F_BUFFER and answer.res >= HEADER:
            buffer = ring_buffer(&w.ring, answer.flags >> IORING_CQE_BUFFER_SHIFT)
            collect_ahead(&w.switch_, &ahead, buffer + HEADER, answer.res - HEADER)
    ahead_fetch(&ahead)


cdef inline void ring_master(Worker *w, const io_uring_cqe *answer) noexcept nogil:
    """The master has something, or is not waited for any more."""
    w.master_armed = False
    if w.master_leaving:
        w.master_leaving = False
        w.leaving -= 1
        return
    w.master_ready = True
    if answer.res > 0 and answer.res & EPOLLERR:
        packet_rx(w)  # takes note of it


cdef inline void ring_rx(Worker *w, int32_t port, const io_uring_cqe *answer) noexcept nogil:
    """One frame of a port's, or why there are no more."""
    cdef Port *p = &w.ports[port]
    cdef uint32_t number = answer.flags >> IORING_CQE_BUFFER_SHIFT
    cdef uint32_t waiting
    if answer.flags & IORING_CQE_F_BUFFER:
        ring_recycle(&w.ring, number)  # for the next round
    if answer.res >= HEADER:
        p.got_frame = True
        waiting = w.backlog_length
        forward_from_port(w, port, ring_buffer(&w.ring, number), answer.res)
        note_activity(w, waiting)
        if w.tx_length == BURST:
            master_tx(w)
    if answer.flags & IORING_CQE_F_MORE:
        return
    p.armed = False
    if p.leaving:
        w.leaving -= 1
    elif answer.res >= HEADER or answer.res == -ENOBUFS or not port_rx_over(w, port, max(0, -answer.res)):
        ring_starved(w, port)


cdef inline void ring_starved(Worker *w, int32_t port) noexcept nogil:
    """The pool was empty: read on when the round is over. Who got nothing has its turn before who got something, so
    that a flood takes nobody's."""
    cdef int line = w.ports[port].got_frame
    w.ports[port].next_starved = -1
    if w.starved[line] < 0:
        w.starved[line] = port
    else:
        w.ports[w.starved_last[line]].next_starved = port
    w.starved_last[line] = port


cdef inline void ring_feed(Worker *w) noexcept nogil:
    cdef int32_t port
    cdef int line
    for line in range(2):
        port = w.starved[line]
        w.starved[line] = -1
        while port >= 0:
            if w.ports[port].fd >= 0 and not w.ports[port].armed:
                read_by_ring(w, port)
            port = w.ports[port].next_starved


cdef inline void ring_settle(Worker *w, const Batch *batch) noexcept nogil:
    """Before the next edits are made: what was queued is written, and the ring has let go of the ports that leave. The
    pool gets nothing back meanwhile, so that this ends."""
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
    while True:
        ring_enter(&w.ring, w.leaving > 0 or w.inflight_writes > 0)
        ring_reap(w)
        if w.tx_length:
            master_tx(w)
        if not w.leaving and not w.inflight_writes and not w.ring.queued:
            return


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
