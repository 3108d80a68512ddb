"""Frames in hand: decided and carried out, each before the next is read; or handed back by Python, to go on.

Every frame that was read ends in exactly one outcome counter, counted where it ends: a frame for the wire when
sendmmsg took it, one that Python must see when it has come back. Copies of multicast frames count as the
receiving port's tx, not as outcomes.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ipvsw.datapath.rules.ndproxy cimport is_question, neighbour_answer
from ipvsw.datapath.rules.decide cimport (
    ANSWERED, DROP_MULTICAST, L2, TO_HOST, TO_MASTER, TO_PORT, TO_PORTS, TO_ROUTE, Verdict, decide_from_host,
    decide_from_master, decide_from_port,
)
from ipvsw.datapath.loop.flood cimport queue_flood
from ipvsw.datapath.loop.tx_routed cimport route_tx
from ipvsw.datapath.loop.state cimport BURST, FROM_HOST, FROM_MASTER, HEADER, ROOM, Returned, Traffic, Worker
from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_GSO_NONE, virtio_net_hdr
from ipvsw.datapath.loop.tx cimport QUEUED, host_tx, master_tx, port_tx, queue_master_tx, traffic_of


cdef inline void forward_from_port(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """The frame goes where the rules send it, or is answered."""
    cdef Verdict v
    if w.switch_.mode != L2 and w.switch_.rules[port].own != NULL and is_question(buffer + HEADER, n - HEADER):
        w.ports[port].traffic.outcomes[answer(w, port, buffer, n)] += 1
        return
    v = decide_from_port(&w.switch_, buffer + HEADER, n - HEADER,
                         (<virtio_net_hdr *> buffer).gso_type != VIRTIO_NET_HDR_GSO_NONE)
    dispatch(w, &w.ports[port].traffic, port, v, buffer, n)


cdef inline int answer(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """How a question for a neighbour ended."""
    cdef uint32_t length = neighbour_answer(&w.switch_, port, buffer + HEADER, n - HEADER)
    cdef bint may_queue = w.may_queue
    if length == 0:
        return DROP_MULTICAST
    memset(buffer, 0, HEADER)
    w.may_queue = False  # it is counted here, and only once
    port_tx(w, port, buffer, HEADER + length)
    w.may_queue = may_queue
    return ANSWERED


cdef inline void master_frame_on(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    dispatch(w, &w.master, FROM_MASTER, decide_from_master(&w.switch_, buffer + HEADER, n - HEADER), buffer, n)


cdef inline void host_frame_on(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    dispatch(w, &w.host, FROM_HOST, decide_from_host(&w.switch_, buffer + HEADER, n - HEADER), buffer, n)


cdef inline void dispatch(
    Worker *w, Traffic *source, int32_t port, Verdict v, uint8_t *buffer, uint32_t n
) noexcept nogil:
    """`buffer` holds header and frame, n bytes; `port` is where it came from, or FROM_MASTER."""
    cdef int outcome = v.outcome
    if outcome == TO_PORT:
        w.source = port
        outcome = port_tx(w, v.port, buffer, n)
        if outcome == QUEUED:
            return
    elif outcome == TO_MASTER:
        queue_master_tx(w, port, buffer, n)
        return  # counted when it is sent
    elif outcome == TO_PORTS:
        outcome = queue_flood(w, port, buffer, n)
    elif outcome == TO_HOST:
        outcome = host_tx(w, buffer, n)
    elif outcome == TO_ROUTE:
        outcome = route_tx(w, port, buffer, n)
        if outcome == TO_MASTER:
            return
    source.outcomes[outcome] += 1


cdef inline void take_returned(Worker *w) noexcept nogil:
    """Frames that Python has seen go on from where they were, each as from the interface that it was read from."""
    cdef Returned *entry
    cdef uint8_t *buffer
    while w.returned != NULL:
        entry = w.returned
        w.returned = entry.next
        buffer = w.tx_buffers[w.tx_length] + ROOM
        memcpy(buffer, entry.frame, entry.length)
        if entry.to >= 0 and w.switch_.rules[entry.to].up:
            traffic_of(w, entry.source).outcomes[port_tx(w, entry.to, buffer, entry.length)] += 1
        elif entry.source == FROM_MASTER:
            master_frame_on(w, buffer, entry.length)
        elif entry.source == FROM_HOST:
            host_frame_on(w, buffer, entry.length)
        elif w.ports[entry.source].fd >= 0:
            forward_from_port(w, entry.source, buffer, entry.length)
        free(entry)
        if w.tx_length == BURST:
            master_tx(w)
    if w.tx_length:
        master_tx(w)
