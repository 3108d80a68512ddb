"""A frame's way through the switch: its stages, in the order in which a frame meets them.

  stage       what it does                                              where                  functions
  1 parse     once; every later stage has the `Frame`                   packet/headers.pxd     frame_parse
  2 MAC NAT   a port's own MAC address becomes the master's             rules/macnat.pxd       macnat_rewrite
  3 guard     may the port send this at all                             rules/guard.pxd        guard_check
    limit     may it send so much                                       rules/ratelimit.pxd    limit_frame
  4 punt      waits until Python has seen it, and goes on with stage 5  loop/punt.pxd          punt_new_address,
                                                                                               punt_report,
                                                                                               punt_control,
                                                                                               punt_to_port
  5 ND proxy  replies to ARP and neighbour solicitations in l3          rules/ndproxy.pxd      neighbour_reply
  6 decide    a verdict, from the rules and the table                   rules/decide.pxd       decide_from_*
  7 dispatch  acts on the verdict                                       here                   dispatch
                TO_PORT    to the port, restoring its own MAC address   loop/tx.pxd            port_tx
                TO_PORTS   to the backlog, and from there in slices     loop/flood.pxd         queue_flood, flood_slice
                TO_MASTER  to the batch that leaves with the round      loop/tx.pxd            queue_master_tx
                TO_HOST    into the host's stack, if guards let it      loop/tx.pxd            host_tx
                TO_ROUTE   by the route cache, host or Python           loop/tx_routed.pxd     route_tx

A port's frame passes all stages; one test says that a port needs neither MAC NAT, guards nor learning. What comes from
the master or from the host passes 1, 4, 6 and 7. Datagrams that arrived from the master one behind the other may be
forwarded as one GSO frame, by `gro_forward` in rx_master.pxd. A frame that its virtio_net_hdr does not describe never
comes here: offload_fix.pxd forwards what it stands for.

Every frame that was read ends in exactly one outcome counter, counted where it ends: a frame for the wire when the
kernel took it, one that was punted when it has come back. Copies of multicast frames count as the receiving port's tx,
not as outcomes.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ipvsw.datapath.mirror.frames cimport capture_again
from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_GSO_NONE, unlikely
from ipvsw.datapath.loop.flood cimport note_report, queue_flood
from ipvsw.datapath.loop.guards cimport note_offence, stopped_by_guard
from ipvsw.datapath.loop.punt cimport punt_control, punt_new_address, punt_report, punt_to_port
from ipvsw.datapath.loop.state cimport (
    BURST, FROM_GONE, FROM_HOST, FROM_MASTER, HEADER, ROOM, Reinjected, Traffic, Worker, round_ns,
    run_apart,
)
from ipvsw.datapath.loop.tx cimport (
    begin_captured, drop_read, host_tx, is_captured, master_tx, port_tx, queue_master_tx, settle_captured, traffic_of,
)
from ipvsw.datapath.loop.tx_routed cimport route_tx
from ipvsw.datapath.packet.headers cimport Frame, frame_header, frame_is_multicast, frame_parse
from ipvsw.datapath.rules.decide cimport (
    CAPTURED, L2, LEARNING, LIMITED, MAC_NAT, REPORTING, VEPA, Verdict, decide_from_host, decide_from_master,
    decide_from_port, deliver_to_sibling,
)
from ipvsw.datapath.rules.guard cimport guard_host
from ipvsw.datapath.rules.macnat cimport macnat_rewrite
from ipvsw.datapath.rules.ndproxy cimport is_neighbour_query, neighbour_reply
from ipvsw.datapath.rules.outcome cimport (
    ANSWERED, DROP_MULTICAST, DROP_RUNT, GUARD_HOST, NO_OUTCOME, TO_HOST, TO_MASTER, TO_PORT, TO_PORTS, TO_ROUTE,
)
from ipvsw.datapath.rules.ratelimit cimport RX, limit_frame


cdef inline void forward_from_port(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """A frame that was read from a port: `buffer` holds its virtio_net_hdr and itself, n bytes, and stays until the
    round is over if the frame is for the wire or `may_queue` is set."""
    cdef Traffic *traffic = &w.ports[port].traffic
    cdef uint8_t extra
    cdef Frame f
    traffic.rx_frames += 1
    traffic.rx_bytes += n - HEADER
    if not frame_parse(&f, buffer + HEADER, n - HEADER):  # 1
        drop_read(w, port, buffer, n, DROP_RUNT)
        return
    extra = w.switch_.rules[port].extra_stages
    if unlikely(extra):
        if ended_in_extra_stage(w, port, extra, &f):  # 2 to 4
            return
    elif punt_control(w, port, &f):  # 4
        return
    resume_from_port(w, port, &f)


cdef inline bint ended_in_extra_stage(Worker *w, int32_t port, uint8_t extra, Frame *f) noexcept nogil:
    """Whether stages 2 to 4 keep the frame of a port that has more of them than others."""
    cdef int outcome
    if extra & (CAPTURED | MAC_NAT):  # one test for a port that has guards alone
        if extra & CAPTURED:
            run_apart(begin_captured, w, port, f)
        outcome = NO_OUTCOME
        if extra & MAC_NAT:  # 2
            outcome = macnat_rewrite(w.switch_.rules[port].own, w.switch_.mac, frame_header(f), f)
        if outcome != NO_OUTCOME:
            w.ports[port].traffic.outcomes[outcome] += 1
            return True
    if w.switch_.rules[port].guards and stopped_by_guard(w, port, f, False):  # 3
        return True
    if extra & (LIMITED | LEARNING | REPORTING):  # and one more
        if extra & LIMITED:
            outcome = limit_frame(w.ports[port].limits, RX, f.data - HEADER, f.length + HEADER, round_ns(w))
            if outcome != NO_OUTCOME:
                w.ports[port].traffic.outcomes[outcome] += 1
                return True
        if extra & LEARNING and punt_new_address(w, port, f):  # 4
            return True
        if extra & REPORTING and frame_is_multicast(f) and run_apart(punt_report, w, port, f):
            return True
    return punt_control(w, port, f)


cdef inline void resume_from_port(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """From stage 5 on."""
    cdef Verdict v
    if w.switch_.mode != L2 and w.switch_.rules[port].own != NULL and is_neighbour_query(f):  # 5
        w.ports[port].traffic.outcomes[run_apart(reply_to_query, w, port, f)] += 1
        return
    v = decide_from_port(&w.switch_, f, frame_header(f).gso_type != VIRTIO_NET_HDR_GSO_NONE)  # 6
    dispatch(w, &w.ports[port].traffic, port, v, f)  # 7


cdef inline void forward_from_master(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    """A frame from the wire, with its VLAN tag in place. ROOM bytes before it are free."""
    cdef Frame f
    w.master.rx_frames += 1
    w.master.rx_bytes += n - HEADER
    if not frame_parse(&f, buffer + HEADER, n - HEADER):  # 1
        drop_read(w, FROM_MASTER, buffer, n, DROP_RUNT)
        return
    if unlikely(w.capture != NULL) and w.capture.wire:
        run_apart(begin_captured, w, FROM_MASTER, &f)
    if not punt_to_port(w, FROM_MASTER, &f):  # 4
        dispatch(w, &w.master, FROM_MASTER, decide_from_master(&w.switch_, &f), &f)  # 6, 7


cdef inline void forward_from_host(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    """A frame that the host's stack sends through its own interface."""
    cdef Frame f
    w.host.rx_frames += 1
    w.host.rx_bytes += n - HEADER
    if not frame_parse(&f, buffer + HEADER, n - HEADER):  # 1
        drop_read(w, FROM_HOST, buffer, n, DROP_RUNT)
        return
    if unlikely(w.capture != NULL) and w.capture.host:
        run_apart(begin_captured, w, FROM_HOST, &f)
    if not punt_to_port(w, FROM_HOST, &f):  # 4
        dispatch(w, &w.host, FROM_HOST, decide_from_host(&w.switch_, &f), &f)  # 6, 7


cdef inline int reply_to_query(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """How an ARP request or neighbour solicitation ended. The reply takes its place."""
    cdef uint32_t length = neighbour_reply(&w.switch_, port, f)
    cdef bint may_queue = w.may_queue
    if length == 0:
        return DROP_MULTICAST
    memset(frame_header(f), 0, HEADER)
    w.may_queue = False  # it is counted here, and only once
    w.source = FROM_GONE
    port_tx(w, port, f.data - HEADER, HEADER + length)
    w.may_queue = may_queue
    return ANSWERED


cdef inline void dispatch(Worker *w, Traffic *traffic, int32_t source, Verdict v, const Frame *f) noexcept nogil:
    """`source`: a port, FROM_MASTER or FROM_HOST, whose `traffic` counts how the frame ended."""
    cdef uint8_t *buffer = f.data - HEADER
    cdef uint32_t n = f.length + HEADER
    cdef int outcome = v.outcome
    if outcome == TO_PORT:
        w.source = source
        outcome = port_tx(w, v.port, buffer, n)
    elif outcome == TO_PORTS:
        outcome = run_apart(queue_flood, w, source, f)
    elif outcome == TO_MASTER:
        queue_master_tx(w, source, buffer, n)
        return
    elif outcome == TO_HOST:
        outcome = run_apart(forward_to_host, w, source, f)
    elif outcome == TO_ROUTE:
        outcome = run_apart(route_tx, w, source, f)
    elif outcome == DROP_MULTICAST:
        run_apart(note_report, w, source, f)
    if outcome != NO_OUTCOME:
        traffic.outcomes[outcome] += 1


cdef inline int forward_to_host(Worker *w, int32_t source, const Frame *f) noexcept nogil:
    """Guards once more: what reaches the host is known only now."""
    w.source = source
    note_report(w, source, f)
    if source >= 0 and w.switch_.rules[source].guards and guard_host(&w.switch_, source, f):
        note_offence(w, source, GUARD_HOST, f)
        return GUARD_HOST
    return host_tx(w, f.data - HEADER, f.length + HEADER)


cdef inline bint goes_to_port(const Worker *w, const Reinjected *entry) noexcept nogil:
    """Not by the rules; with VEPA whatever a port sends leaves on the wire first."""
    return entry.to >= 0 and w.switch_.rules[entry.to].up and (entry.source < 0 or w.switch_.flag != VEPA)


cdef inline void deliver_reinjected(Worker *w, const Reinjected *entry, const Frame *f) noexcept nogil:
    """To the one port that it was given back for."""
    cdef Verdict v = Verdict(TO_PORT, entry.to)
    if entry.source >= 0:
        if w.ports[entry.source].fd < 0:
            return
        if not entry.copy and w.switch_.rules[entry.source].guards and stopped_by_guard(w, entry.source, f, True):
            return
        v = deliver_to_sibling(&w.switch_, entry.to, f, frame_header(f).gso_type != VIRTIO_NET_HDR_GSO_NONE)
    if v.outcome == TO_PORT:
        w.source = entry.source
        v.outcome = port_tx(w, entry.to, f.data - HEADER, f.length + HEADER)
    if not entry.copy:
        traffic_of(w, entry.source).outcomes[v.outcome] += 1


cdef inline void take_reinjected(Worker *w) noexcept nogil:
    """Punted frames that Python has given back go on with stage 5, each as from the interface that it was read from, a
    port's after stage 3 once more; or to the one port that it was given back for."""
    cdef Reinjected *entry
    cdef uint8_t *buffer
    cdef Frame f
    while w.reinjected != NULL:
        entry = w.reinjected
        w.reinjected = entry.next
        buffer = w.tx_buffers[w.tx_length] + ROOM
        memcpy(buffer, entry.frame, entry.length)
        if not frame_parse(&f, buffer + HEADER, entry.length - HEADER):
            traffic_of(w, entry.source).outcomes[DROP_RUNT] += 1
            free(entry)
            continue
        settle_captured(w)
        if is_captured(w, entry.source) and not entry.copy:
            run_apart(begin_captured, w, entry.source, &f)
            capture_again(w.capture)
        if goes_to_port(w, entry):
            deliver_reinjected(w, entry, &f)
        elif entry.copy:
            pass
        elif entry.source == FROM_MASTER:
            dispatch(w, &w.master, FROM_MASTER, decide_from_master(&w.switch_, &f), &f)
        elif entry.source == FROM_HOST:
            dispatch(w, &w.host, FROM_HOST, decide_from_host(&w.switch_, &f), &f)
        elif w.ports[entry.source].fd >= 0:
            if not w.switch_.rules[entry.source].guards or not stopped_by_guard(w, entry.source, &f, True):
                resume_from_port(w, entry.source, &f)
        free(entry)
        if w.tx_length == BURST:
            master_tx(w)
    if w.tx_length:
        master_tx(w)
