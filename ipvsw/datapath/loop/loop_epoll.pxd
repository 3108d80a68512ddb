"""The interfaces in a worker's epoll: all of them, or with io_uring those that the ring does not read."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from ipvsw.datapath.loop.flood cimport note_activity
from ipvsw.datapath.loop.rx_master cimport master_rx, packet_rx
from ipvsw.datapath.kernel.packetring cimport packets_release
from ipvsw.datapath.loop.rx_ports cimport host_rx, port_rx
from ipvsw.datapath.loop.state cimport CONTROL_EVENT, HOST_EVENT, MASTER_EVENT, Worker
from ipvsw.datapath.kernel.busypoll cimport clock_ns, busypoll_learn, busypoll_on, busypoll_pays
from ipvsw.datapath.kernel.sys cimport EPOLLERR, epoll_event, epoll_wait, eventfd_read

cdef enum:
    EVENTS = 64  # devices served in one round


cdef inline void serve_epoll(Worker *w, int timeout) noexcept nogil:
    """Read a burst from every interface that is readable; `timeout` 0, or -1 to wait for one."""
    cdef epoll_event events[EVENTS]
    cdef uint64_t value
    cdef int count, i
    cdef uint32_t tag, waiting = w.backlog_length
    count = epoll_wait(w.epoll_fd, events, EVENTS, timeout) if timeout == 0 else await_epoll(w, events)
    for i in range(count):
        tag = <uint32_t> events[i].data.u64
        if tag == CONTROL_EVENT:
            eventfd_read(w.control_fd, &value)
        elif tag == MASTER_EVENT:
            if events[i].events & EPOLLERR:
                packet_rx(w)  # reading clears the socket's error, which would be reported again and again
            master_rx(w)
            packets_release(&w.packets)
        elif tag == HOST_EVENT:
            host_rx(w)
        else:
            port_rx(w, <int32_t> tag)
    if count > 0:
        note_activity(w, waiting)
    elif w.yielding:
        w.yielding -= 1


cdef inline int await_epoll(Worker *w, epoll_event *events) noexcept nogil:
    """Wait for events: poll for a moment, where that pays, then sleep. Returns how many, or -1."""
    cdef uint64_t start, now
    cdef int count = 0
    if w.busypoll.budget == 0:
        return epoll_wait(w.epoll_fd, events, EVENTS, -1)
    start = now = clock_ns()
    if busypoll_pays(&w.busypoll, now):
        count = epoll_wait(w.epoll_fd, events, EVENTS, 0)
        while count == 0 and busypoll_on(&w.busypoll, start, &now):
            count = epoll_wait(w.epoll_fd, events, EVENTS, 0)
    if count == 0:
        count = epoll_wait(w.epoll_fd, events, EVENTS, -1)
        now = clock_ns()
    busypoll_learn(&w.busypoll, now - start)
    return count
