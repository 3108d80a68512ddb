"""The loop of one worker.

One worker is one thread with its own buffers, table and counters, and no GIL. A round is: wait; carry out what the
interfaces have, a burst from each; send what has gathered for the wire together; then a slice of the multicast frames
that wait for their copies. So a flood, however large, costs unicast at most one slice a round.
"""

from ipvsw.datapath.loop.forward cimport take_reinjected
from ipvsw.datapath.loop.loop_epoll cimport serve_epoll
from ipvsw.datapath.loop.flood cimport flood_slice
from ipvsw.datapath.loop.mailbox cimport take_mail
from ipvsw.datapath.loop.loop_uring cimport ring_run
from ipvsw.datapath.loop.state cimport Worker
from ipvsw.datapath.loop.tx cimport master_tx, sockets_tx
from ipvsw.datapath.kernel.uring cimport ring_start


cdef inline void worker_run(Worker *w) noexcept nogil:
    if ring_start(&w.ring):
        ring_run(w)
    else:
        epoll_run(w)


cdef inline void epoll_run(Worker *w) noexcept nogil:
    while not w.stopping:
        serve_epoll(w, 0 if w.backlog_length or w.mail_read else -1)
        flood_slice(w)
        if w.tx_length:
            master_tx(w)
        take_mail(w)
        take_reinjected(w)
        if w.n_gathering:
            sockets_tx(w)
