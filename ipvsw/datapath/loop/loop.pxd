"""A worker's round, and the theory of operation of the data plane.

A worker is one thread without the GIL, with its own buffers, table and counters. In a round it waits; forwards what the
interfaces have, a burst from each; copies a slice of the queued multicast frames; then sends the batch for the wire. So
a flood, however large, delays unicast by at most one slice a round.

  an interface is readable                                    loop_epoll.pxd, or with an io_uring loop_uring.pxd
    -> a burst of frames is read                              rx_ports.pxd, rx_master.pxd
      -> each passes the stages of a frame's way              forward.pxd
        -> and leaves at once, with the round, or in slices   tx.pxd, tx_routed.pxd, flood.pxd
  between two rounds                                          mailbox.pxd: edits that the control thread has committed

Frames keep their virtio_net_hdr end to end, so a TCP GSO frame crosses as one read and one write and no checksum is
computed on the way. A unix socket has no such header: backends/unixsock.pxd completes checksums and segments for it.

The same functions run over an epoll and over an io_uring. With epoll a worker reads from what is readable and writes
each frame before it reads the next. With io_uring it has multishot reads, queues writes of frames in place, and needs
one system call a round; if the kernel fails the ring it goes on with epoll. How long an idle worker polls before it
sleeps is up to busypoll.pxd.
"""

from ipvsw.datapath.loop.forward cimport take_reinjected
from ipvsw.datapath.loop.loop_epoll cimport serve_epoll
from ipvsw.datapath.loop.flood cimport flood_slice
from ipvsw.datapath.loop.mailbox cimport take_mail
from ipvsw.datapath.loop.loop_uring cimport ring_run
from ipvsw.datapath.loop.state cimport Worker
from ipvsw.datapath.loop.tx cimport master_tx, publish_captured, sockets_tx
from ipvsw.datapath.kernel.packetring cimport packets_release
from ipvsw.datapath.kernel.uring cimport ring_close, ring_start


cdef inline void worker_run(Worker *w) noexcept nogil:
    if ring_start(&w.ring):
        ring_run(w)
    ring_close(&w.ring)
    epoll_run(w)
    worker_drain(w)


cdef inline void worker_drain(Worker *w) noexcept nogil:
    """What was read leaves, and the ring's slots are the kernel's: another process may go on."""
    while w.backlog_length:
        flood_slice(w)
    if w.tx_length:
        master_tx(w)
    if w.n_gathering:
        sockets_tx(w)
    packets_release(&w.packets)
    publish_captured(w)


cdef inline void epoll_run(Worker *w) noexcept nogil:
    while not w.stopping:
        w.round_ns = 0
        serve_epoll(w, 0 if w.backlog_length or w.mail_read else -1)
        flood_slice(w)
        if w.tx_length:
            master_tx(w)
        take_mail(w)
        take_reinjected(w)
        if w.n_gathering:
            sockets_tx(w)
        publish_captured(w)
