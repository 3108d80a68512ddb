"""Flooding of multicast frames: queued, copied to the ports that listen a slice at a time, then sent on the wire.

The kernel's driver does the same from a work queue (`ipvlan_process_multicast`), with the same limit for what one
sender may have in it. The driver's senders share the queue; here one sender's flood never fills it: an interface may
hold as many places as are free, so that the ARP and ND queries of others still find one.

A thousand copies take milliseconds, during which the scheduler may leave the worker on the CPU that the receivers of
other frames are waiting for. So while there is other traffic, slices are small, and with io_uring the worker sleeps
between them.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from ipvsw.datapath.rules.decide cimport BROADCAST, L2, host_hears_group, port_accepts, port_listens
from ipvsw.datapath.rules.outcome cimport DROP_BACKLOG, LIMIT_BROADCAST, TO_PORTS
from ipvsw.datapath.rules.ratelimit cimport may_fan_out
from ipvsw.datapath.rules.macnat cimport put_mac
from ipvsw.datapath.loop.state cimport (
    BACKLOG, BURST, EVENT_GROUPS_BIT, FROM_GONE, FROM_MASTER, HEADER, ROOM, Held, Waiting, Worker, backlog_put,
    raise_event, round_ns, waiting_of,
)
from ipvsw.datapath.kernel.busypoll cimport clock_ns
from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_GSO_NONE, mac48, virtio_net_hdr
from ipvsw.datapath.loop.tx cimport host_tx, master_tx, port_tx, queue_master_tx, settle_captured
from ipvsw.datapath.kernel.uring cimport ring_enter, ring_enter_for
from ipvsw.datapath.packet.headers cimport Frame, frame_is_membership_report, frame_parse, frame_received, packet_group

cdef enum:
    SLICE = 8  # copies written in one round: some 20 us, with what wakes up in the receivers
    SMALL = 1  # the same while there is other traffic
    YIELD_TURNS = 4  # pauses, or rounds, after the last frame of that
    PAUSE = 50_000  # ns at most; the kernel's timers may add as much
    PATIENCE = 16  # queued multicast frames: with more of them copying gets more time than pausing


cdef inline int note_report(Worker *w, int32_t source, const Frame *f) noexcept nogil:
    """Of a multicast frame that goes to no port: it may still tell which groups its sender listens to."""
    if source >= 0 and frame_is_membership_report(f):
        raise_event(w, source, EVENT_GROUPS_BIT)
    return 0


cdef inline int queue_flood(Worker *w, int32_t source, const Frame *f) noexcept nogil:
    note_report(w, source, f)
    if source >= 0 and w.ports[source].limits != NULL and not may_fan_out(
            w.ports[source].limits, f.data - HEADER, f.length + HEADER, round_ns(w)):
        return LIMIT_BROADCAST
    return TO_PORTS if backlog_put(w, source, f.data - HEADER, f.length + HEADER) else DROP_BACKLOG


cdef inline void flood_slice(Worker *w) noexcept nogil:
    """A few copies; a frame from a port goes on the wire after its last copy."""
    cdef int budget = SMALL if w.yielding else SLICE
    cdef Waiting *entry
    cdef Held *held
    settle_captured(w)
    while w.backlog_length and budget > 0:
        entry = &w.backlog[w.backlog_head]
        budget -= flood_ports(w, entry, budget)
        if entry.next < w.switch_.n_ports:
            return
        if entry.source >= 0 or entry.source == FROM_GONE:
            flood_host(w, entry)
            memcpy(w.tx_buffers[w.tx_length] + ROOM, entry.frame, entry.length)
            if w.switch_.mode != L2:  # as everything that is routed, and known by that if it comes back
                put_mac(w.tx_buffers[w.tx_length] + ROOM + HEADER + 6, w.switch_.mac)
            # Its outcome is counted already.
            queue_master_tx(w, FROM_GONE, w.tx_buffers[w.tx_length] + ROOM, entry.length)
            if w.tx_length == BURST:
                master_tx(w)
        if entry.source != FROM_GONE:
            held = waiting_of(w, entry.source)
            held.frames -= 1
            held.octets -= <int32_t> entry.length
        w.backlog_octets -= <int32_t> entry.length
        free(entry.frame)
        w.backlog_head = (w.backlog_head + 1) % BACKLOG
        w.backlog_length -= 1


cdef inline void note_activity(Worker *w, uint32_t waiting) noexcept nogil:
    """Frames were read; `waiting`: how many multicast frames were queued before. If none was added, it was unicast."""
    if w.backlog_length == waiting:
        w.yielding = YIELD_TURNS


cdef inline void flood_pause(Worker *w) noexcept nogil:
    """Enter the ring between two slices. After other traffic, sleep until there is a completion: sched_yield() does
    nothing for a receiver in another control group. The longer the queue, the longer until the next pause."""
    cdef uint64_t before = clock_ns() if w.yielding else 0
    cdef uint64_t after
    if not w.yielding or before < w.busy_until:
        ring_enter(&w.ring, False)
        return
    w.yielding -= 1
    ring_enter_for(&w.ring, PAUSE)
    after = clock_ns()
    w.busy_until = after + (after - before) * w.backlog_length // PATIENCE


cdef inline void flood_host(Worker *w, Waiting *entry) noexcept nogil:
    """A copy for the host's stack, if it may receive the ports' multicast frames."""
    cdef Frame f
    w.source = entry.source
    if frame_parse(&f, entry.frame + HEADER, entry.length - HEADER) and host_hears_group(&w.switch_, &f):
        host_tx(w, entry.frame, entry.length)


cdef inline uint64_t group_of_unicast(const Waiting *entry) noexcept nogil:
    """Whose ports are to have a frame to a unicast MAC address: those of its packet's group, or all."""
    cdef Frame f
    cdef Frame received
    if not frame_parse(&f, entry.frame + HEADER, entry.length - HEADER):
        return BROADCAST
    received = frame_received(&f)
    return packet_group(&received) or BROADCAST


cdef inline int flood_ports(Worker *w, Waiting *entry, int budget) noexcept nogil:
    """Copies for the next ports that listen. Returns what it used of the budget."""
    cdef uint64_t destination = mac48(entry.frame + HEADER)
    cdef uint64_t group = destination if entry.frame[HEADER] & 1 else group_of_unicast(entry)
    cdef bint gso = (<virtio_net_hdr *> entry.frame).gso_type != VIRTIO_NET_HDR_GSO_NONE
    cdef int used = 0
    cdef int32_t port
    w.source = entry.source
    while entry.next < w.switch_.n_ports and used < budget:
        port = entry.next
        entry.next += 1
        if port == entry.source or not port_listens(&w.switch_.rules[port], group):
            continue
        used += 1
        if entry.source != FROM_MASTER and not port_accepts(&w.switch_.rules[port], entry.length - HEADER, gso):
            w.ports[port].traffic.tx_errors += 1
        else:
            port_tx(w, port, entry.frame, entry.length)
            put_mac(entry.frame + HEADER, destination)  # which was made the port's own, if it is no group
    return used + 1
