"""The loop of one worker.

One worker is one thread with one epoll, its own buffers, table and counters, and no GIL. A round is: wait; for
every device that is readable read at most BURST frames and carry each out before the next is read; then send
what has gathered for the wire with one sendmmsg; then a slice of the group frames that wait for their copies. So
a flood, however large, costs unicast at most one slice a round.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from ._flood cimport flood_slice
from ._rx cimport host_rx, master_rx, port_rx
from ._state cimport CONTROL_EVENT, HOST_EVENT, MASTER_EVENT, Worker, take_mail
from ._sys cimport epoll_event, epoll_wait, eventfd_read
from ._tx cimport master_tx

cdef enum:
    EVENTS = 64  # devices served in one round


cdef inline void worker_run(Worker *w) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef uint64_t value
    cdef int count, i
    cdef uint32_t tag
    while not w.stopping:
        count = epoll_wait(w.epoll_fd, events, EVENTS, 0 if w.backlog_length else -1)
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
        flood_slice(w)
        if w.tx_length:
            master_tx(w)
        take_mail(w)
