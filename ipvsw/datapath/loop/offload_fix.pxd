"""Frames whose virtio_net_hdr does not describe them: completed or segmented before anything else sees them. And those
of guarded ports whose checksum would be written over what the guards look at: they end here.

packet/offload.pxd says which those are. They come from packet sockets: from the master, and from devices of which one
reads the frames. What goes on in their place has a header that describes it, so that no interface and no rule need know
of them:

- a CRC32c is written into the frame;
- a GSO frame of a UDP tunnel stays one for TAPs with the long header (packet/longheader.pxd): ports, and the TAP
  whose frames leave on the wire;
- for another port that takes UDP GSO frames it becomes such frames (`forward_datagrams`): its datagrams are of equal
  length, as the segments in them are;
- any other becomes its segments, each of them a frame of its own.

A frame counts as those that it becomes, and once in `offload_fixed`, unless it came with a long header and stays whole.
"""

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ipvsw.datapath.kernel.sys cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, iovec, unlikely, virtio_net_hdr,
)
from ipvsw.datapath.kernel.uring cimport ring_submit
from ipvsw.datapath.loop.forward cimport forward_from_master, forward_from_port
from ipvsw.datapath.loop.state cimport BURST, FROM_MASTER, HEADER, ROOM, Port, Traffic, Worker, tag_of
from ipvsw.datapath.loop.tx cimport (
    begin_captured, count_master_tx, drop_read, gro_tx, is_captured, master_tx, port_failure, queue_master_tx,
    settle_captured, takes_gro, takes_merged, traffic_of, write_behind,
)
from ipvsw.datapath.mirror.frames cimport capture_written
from ipvsw.datapath.packet.gro cimport MAX_BATCH, UDP_CHECK, UDP_HLEN
from ipvsw.datapath.packet.headers cimport Frame, frame_header, frame_parse
from ipvsw.datapath.packet.longheader cimport LONG_HEADER, LONGER, header_of_tunnel
from ipvsw.datapath.packet.offload cimport GSO_UDP_L4, asks_for_offload, offload_fits
from ipvsw.datapath.packet.segment cimport (
    HEAD, Segmenter, segmenter_complete, segmenter_head, segmenter_parse, segmenter_payload,
)
from ipvsw.datapath.packet.tunnel cimport carries_datagrams, tunnel_merge
from ipvsw.datapath.rules.decide cimport CAPTURED, Verdict, decide_from_master, decide_from_port
from ipvsw.datapath.rules.guard cimport guard_checksum
from ipvsw.datapath.rules.outcome cimport DROP_BAD_HEADER, TO_MASTER, TO_PORT, TO_ROUTE
from ipvsw.datapath.rules.routecache cimport BY_NEXTHOP, Route, route_find, route_rewrite, wire_length

cdef enum:
    MOST_PACKET = 65535  # bytes

# Segments that are written as one UDP GSO frame: headers of their own, and payloads where they are.
cdef struct Datagrams:
    uint8_t room[LONGER]
    uint8_t first[HEADER + HEAD]  # what is in front of the first datagram's payload
    uint8_t heads[MAX_BATCH][HEAD]
    iovec pieces[1 + 2 * MAX_BATCH]
    uint32_t n_pieces
    uint32_t count
    uint64_t total  # bytes of the frames that it stands for


cdef inline void receive_from_port(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """`forward_from_port` for a frame of which the header may not be true. Only a GSO frame's can't be: a TAP has no
    SCTP offload."""
    if w.switch_.rules[port].guards and unlikely(asks_for_offload(buffer)) and not guard_checksum(buffer, n):
        drop_bad_header(w, port, buffer, n)
    elif unlikely((<virtio_net_hdr *> buffer).gso_type != VIRTIO_NET_HDR_GSO_NONE) and not offload_fits(buffer, n):
        fix_from_port(w, port, buffer, n)
    else:
        forward_from_port(w, port, buffer, n)


cdef inline void drop_bad_header(Worker *w, int32_t source, const uint8_t *buffer, uint32_t n) noexcept nogil:
    cdef Traffic *traffic = traffic_of(w, source)
    traffic.rx_frames += 1
    traffic.rx_bytes += n - HEADER
    drop_read(w, source, buffer, n, DROP_BAD_HEADER)


cdef inline void receive_from_master(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    """The same for `forward_from_master`."""
    if not (unlikely(asks_for_offload(buffer)) and not offload_fits(buffer, n) and fix_from_master(w, buffer, n)):
        forward_from_master(w, buffer, n)


cdef inline void fix_from_port(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    cdef uint8_t *frame = w.rx_buffer + ROOM  # where it stands its own segments would be
    cdef Segmenter c
    cdef uint32_t number
    if not parsed(w, port, &c, buffer, n) or tunnel_from_port(w, port, &c, buffer, n):
        return
    w.ports[port].traffic.offload_fixed += 1
    memcpy(frame, buffer, n)
    c.frame = frame + HEADER
    for number in range(c.count):
        buffer = w.tx_buffers[w.tx_length] + ROOM
        forward_from_port(w, port, buffer, put_segment(&c, number, buffer))
        if w.tx_length == BURST:
            master_tx(w)


cdef inline bint fix_from_master(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    """Whether the frame is done with; if not, its header is true now."""
    cdef Segmenter c
    cdef uint32_t number
    if not parsed(w, FROM_MASTER, &c, buffer, n):
        return True
    w.master.offload_fixed += 1
    if not c.size:
        segmenter_complete(&c, buffer + HEADER)
        memset(buffer, 0, HEADER)
        return False
    if tunnel_from_master(w, &c, buffer, n) or forward_datagrams(w, &c, buffer, n):
        return True
    for number in range(c.count):
        buffer = w.tx_buffers[w.tx_length] + ROOM
        forward_from_master(w, buffer, put_segment(&c, number, buffer))
    return True


cdef inline bint parsed(Worker *w, int32_t source, Segmenter *c, const uint8_t *buffer, uint32_t n) noexcept nogil:
    """False for a frame that can't be completed or segmented: a contradiction, or an encapsulation that isn't known.
    What follows is written at once, behind what is queued."""
    if not segmenter_parse(c, buffer, n):
        drop_bad_header(w, source, buffer, n)
        return False
    if w.ring.running:
        ring_submit(&w.ring)
    w.may_queue = False
    return True


cdef inline uint32_t put_segment(const Segmenter *c, uint32_t number, uint8_t *buffer) noexcept nogil:
    """A frame that needs nothing more, with its virtio_net_hdr; returns the length of both."""
    cdef uint32_t payload = segmenter_payload(c, number)
    memset(buffer, 0, HEADER)
    segmenter_head(c, number, buffer + HEADER)
    memcpy(buffer + HEADER + c.head, c.frame + c.head + number * c.size, payload)
    return HEADER + c.head + payload


cdef inline bint tunnel_from_master(Worker *w, const Segmenter *c, uint8_t *buffer, uint32_t n) noexcept nogil:
    """Forward a UDP tunnel's GSO frame whole. False if it is none, or if it is not for a port that takes it."""
    cdef uint8_t header[LONG_HEADER]
    cdef Verdict v
    cdef Frame f
    if not header_of_tunnel(c, header) or not frame_parse(&f, buffer + HEADER, n - HEADER):
        return False
    v = decide_from_master(&w.switch_, &f)
    if v.outcome != TO_PORT or not w.ports[v.port].longer or not takes_merged(w, v.port):
        return False
    begin_whole(w, FROM_MASTER, &f)
    w.master.outcomes[tunnel_port_tx(w, FROM_MASTER, v.port, header, &f)] += 1
    return True


cdef inline bint tunnel_from_port(
    Worker *w, int32_t port, const Segmenter *c, uint8_t *buffer, uint32_t n
) noexcept nogil:
    """The same for one from a port that needs no more stages than decide and dispatch."""
    cdef uint8_t header[LONG_HEADER]
    cdef Verdict v
    cdef Frame f
    if w.switch_.rules[port].extra_stages & ~CAPTURED or not header_of_tunnel(c, header):
        return False
    if not frame_parse(&f, buffer + HEADER, n - HEADER):
        return False
    v = decide_from_port(&w.switch_, &f, True)
    if v.outcome == TO_PORT and w.ports[v.port].longer and takes_merged(w, v.port):
        begin_whole(w, port, &f)
        w.ports[port].traffic.outcomes[tunnel_port_tx(w, port, v.port, header, &f)] += 1
        return True
    if w.tunnel_fd < 0:
        return False
    if v.outcome == TO_ROUTE and not is_captured(w, port) and routed_to_wire(w, &f):  # recorded is what was read
        v.outcome = TO_MASTER
    return v.outcome == TO_MASTER and tunnel_master_tx(w, port, header, &f)


cdef inline void begin_whole(Worker *w, int32_t source, const Frame *f) noexcept nogil:
    """It will be forwarded as it is."""
    cdef Traffic *traffic = traffic_of(w, source)
    traffic.rx_frames += 1
    traffic.rx_bytes += f.length
    if is_captured(w, source):
        begin_captured(w, source, f)
    else:
        settle_captured(w)


cdef inline bint routed_to_wire(Worker *w, const Frame *f) noexcept nogil:
    """Whether the route cache has the next hop of a packet that fits the path's MTU, which gets its Ethernet header."""
    cdef Route *route = route_find(&w.routes, f)
    if route == NULL or route.kind != BY_NEXTHOP or wire_length(f, frame_header(f)) > route.mtu:
        return False
    route.used = True
    route_rewrite(f, route, w.switch_.mac)
    return True


cdef inline int tunnel_port_tx(
    Worker *w, int32_t source, int32_t port, uint8_t *header, const Frame *f
) noexcept nogil:
    """The outcome."""
    cdef Port *p = &w.ports[port]
    if write_behind(p.fd, header, f.data, f.length) < 0:
        p.traffic.tx_errors += 1
        return port_failure(errno)
    p.traffic.tx_frames += 1
    p.traffic.tx_bytes += f.length
    if w.capture != NULL:
        capture_written(w.capture, p.tag, is_captured(w, port), source, tag_of(w, source), f.data - HEADER,
                        f.length + HEADER, 0)
    return TO_PORT


cdef inline bint tunnel_master_tx(Worker *w, int32_t port, uint8_t *header, const Frame *f) noexcept nogil:
    """False if the TAP is not there any more, or down. Else the frame is a batch for the wire by itself."""
    master_tx(w)  # what came before it
    if write_behind(w.tunnel_fd, header, f.data, f.length) < 0:
        return False
    begin_whole(w, port, f)
    queue_master_tx(w, port, f.data - HEADER, f.length + HEADER)
    count_master_tx(w, 0, TO_MASTER)
    w.tx_length = 0
    return True


cdef inline bint forward_datagrams(Worker *w, const Segmenter *c, uint8_t *buffer, uint32_t n) noexcept nogil:
    """Write a tunnel's datagrams as UDP GSO frames. False if there are none, or if the port does not take such
    frames."""
    cdef Datagrams d
    cdef uint32_t number = 0
    cdef Verdict v
    cdef Frame f
    cdef int outcome
    if not carries_datagrams(&c.outer) or not frame_parse(&f, buffer + HEADER, n - HEADER):
        return False
    v = decide_from_master(&w.switch_, &f)
    if v.outcome != TO_PORT or not takes_gro(w, v.port):
        return False
    if is_captured(w, FROM_MASTER):
        begin_captured(w, FROM_MASTER, &f)
    while number < c.count:
        gather_datagrams(&d, c, number)
        number += d.count
        w.master.rx_frames += d.count
        w.master.rx_bytes += d.total
        outcome = gro_tx(w, v.port, d.pieces, d.n_pieces, d.count, d.total)
        w.master.outcomes[outcome] += d.count
    return True


cdef inline void gather_datagrams(Datagrams *d, const Segmenter *c, uint32_t number) noexcept nogil:
    """As many from `number` on as a GSO frame takes."""
    cdef uint32_t udp = c.outer.layers[1].at
    cdef uint32_t start = udp + UDP_HLEN  # of a datagram's payload
    cdef uint32_t left = MOST_PACKET - (start - c.outer.layers[0].at)
    cdef uint32_t payload
    cdef virtio_net_hdr *header = <virtio_net_hdr *> d.first
    d.count, d.n_pieces, d.total = 0, 1, 0
    while number < c.count and d.count < MAX_BATCH:
        payload = segmenter_payload(c, number)
        if c.head - start + payload > left:
            break
        left -= c.head - start + payload
        segmenter_head(c, number, d.heads[d.count])
        d.pieces[d.n_pieces] = iovec(&d.heads[d.count][start], c.head - start)
        d.pieces[d.n_pieces + 1] = iovec(<void *> (c.frame + c.head + number * c.size), payload)
        d.total += c.head + payload
        d.n_pieces += 2
        d.count += 1
        number += 1
    memset(header, 0, HEADER)
    memcpy(d.first + HEADER, d.heads[0], start)
    d.pieces[0] = iovec(&d.first[0], HEADER + start)
    if d.count == 1:
        return
    header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    header.gso_type = GSO_UDP_L4
    header.hdr_len = start
    header.gso_size = c.head - start + c.size
    header.csum_start = udp
    header.csum_offset = UDP_CHECK
    tunnel_merge(&c.outer, d.first + HEADER, d.total - (d.count - 1) * <uint64_t> start)
