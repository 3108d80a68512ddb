"""Doors that a worker waits for with its epoll: all of them, or what an io_uring does not read."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from ._rx cimport host_rx, master_rx, port_rx
from ._state cimport CONTROL_EVENT, HOST_EVENT, MASTER_EVENT, Worker
from ._sys cimport epoll_event, epoll_wait, eventfd_read

cdef enum:
    EVENTS = 64  # devices served in one round


cdef inline void serve_doors(Worker *w, int timeout) noexcept nogil:
    """Read a burst from every door that is readable; `timeout` in ms, -1 for ever."""
    cdef epoll_event events[EVENTS]
    cdef uint64_t value
    cdef int count, i
    cdef uint32_t tag
    count = epoll_wait(w.epoll_fd, events, EVENTS, timeout)
    for i in range(count):
        tag = <uint32_t> events[i].data.u64
        if tag == CONTROL_EVENT:
            eventfd_read(w.control_fd, &value)
        elif tag == MASTER_EVENT:
            master_rx(w)
        elif tag == HOST_EVENT:
            host_rx(w)
        else:
            port_rx(w, <int32_t> tag)
