"""Receive from the wire: a burst of frames is read from the master, and UDP datagrams of one flow are batched (GRO).

Functions stand in the order in which a frame meets them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove, memset

from ipvsw.datapath.mirror.frames cimport capture_batch, capture_batch_ended
from ipvsw.datapath.rules.prefetch cimport Ahead, ahead_fetch, is_far, collect_ahead
from ipvsw.datapath.rules.decide cimport Verdict, decide_from_master
from ipvsw.datapath.rules.outcome cimport DROP_ERROR, TO_PORT
from ipvsw.datapath.packet.gro cimport GroBatch, gro_merge, gro_checksums_hold, gro_takes
from ipvsw.datapath.kernel.packetring cimport packet_slot, packet_take, packets_waiting
from ipvsw.datapath.loop.offload_fix cimport receive_from_master
from ipvsw.datapath.loop.state cimport (
    CONTROL, FROM_MASTER, HEADER, LONGEST, MASTER_BURST, ROOM, Worker, tag_of,
)
from ipvsw.datapath.kernel.sys cimport (
    CMSG_DATA, CMSG_FIRSTHDR, MSG_DONTWAIT, MSG_TRUNC, PACKET_AUXDATA, SOL_PACKET, TP_STATUS_COPY,
    TP_STATUS_VLAN_TPID_VALID, TP_STATUS_VLAN_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, cmsghdr,
    iovec, msghdr, recvmsg, tpacket2_hdr, tpacket_auxdata, virtio_net_hdr,
)
from ipvsw.datapath.loop.tx cimport drop_read, gro_tx, settle_captured, takes_gro
from ipvsw.datapath.kernel.uring cimport ring_submit
from ipvsw.datapath.packet.headers cimport ETH_P_8021Q, VLAN_HLEN, Frame, frame_parse, put16


cdef inline bint master_rx(Worker *w) noexcept nogil:
    """A burst of the wire's frames: from the receive ring, and those too long for it from the socket's queue. True if
    there may be more. Queued writes read from the ring's slots, which stay the worker's until `packets_release`."""
    cdef uint32_t count = packets_waiting(&w.packets, MASTER_BURST)
    cdef uint32_t _i
    cdef tpacket2_hdr *slot
    cdef bint may_queue = w.ring.running and count > 1  # a frame alone is written at once
    if w.packets.slots == NULL:
        return packet_rx(w)
    if count > 1 and is_far(&w.switch_.table):
        packets_ahead(w, count)
    for _i in range(count):
        slot = packet_take(&w.packets)
        w.may_queue = may_queue
        if slot.tp_status & TP_STATUS_COPY:
            gro_rx(w)
            submit_rx(w)
            w.may_queue = False
            packet_rx(w)
        else:
            slot_rx(w, slot)
    w.may_queue = may_queue
    gro_rx(w)
    w.may_queue = False
    return count == MASTER_BURST


cdef inline void packets_ahead(Worker *w, uint32_t count) noexcept nogil:
    """Prefetch for the next `count` frames of the receive ring, at most AHEAD."""
    cdef Ahead ahead
    cdef tpacket2_hdr *slot
    cdef uint32_t i
    ahead.length = 0
    for i in range(count):
        slot = packet_slot(&w.packets, w.packets.next + i)
        collect_ahead(&w.switch_, &ahead, <uint8_t *> slot + slot.tp_mac, slot.tp_snaplen)
    ahead_fetch(&ahead)


cdef inline void submit_rx(Worker *w) noexcept nogil:
    """Submit queued writes before a frame is written directly, so that frames keep their order."""
    if w.ring.running:
        ring_submit(&w.ring)


cdef inline void slot_rx(Worker *w, tpacket2_hdr *slot) noexcept nogil:
    """Add the frame to the GRO batch, or forward it now."""
    cdef uint8_t *buffer = <uint8_t *> slot + slot.tp_mac - HEADER
    cdef uint32_t n = slot.tp_snaplen + HEADER
    cdef bint truncated = slot.tp_snaplen < slot.tp_len
    if w.coalesce and not truncated and not slot.tp_status & TP_STATUS_VLAN_VALID:
        if gro_takes(&w.gro, buffer, n):
            return
        gro_rx(w)
        if gro_takes(&w.gro, buffer, n):
            return
    master_frame(w, buffer, n, truncated, slot.tp_status, slot.tp_vlan_tpid, slot.tp_vlan_tci)


cdef inline void gro_rx(Worker *w) noexcept nogil:
    """Flush the GRO batch: forward it as one GSO frame where that is possible, else frame by frame."""
    cdef GroBatch *t = &w.gro
    cdef uint32_t i
    if t.count < 2 or not gro_forward(w):
        for i in range(t.count):
            master_frame(w, <uint8_t *> t.frames[i].iov_base, <uint32_t> t.frames[i].iov_len, False, 0, 0, 0)
    t.count = 0
    t.ended = False


cdef inline bint gro_forward(Worker *w) noexcept nogil:
    """Forward the batch as one GSO frame. False if the port does not take such frames."""
    cdef GroBatch *t = &w.gro
    cdef uint64_t total = t.total + <uint64_t> t.count * t.headers
    cdef Frame first
    cdef Verdict v
    cdef int outcome
    cdef bint recorded
    cdef uint64_t start = 0
    if not frame_parse(&first, <uint8_t *> t.frames[0].iov_base + HEADER, <uint32_t> t.frames[0].iov_len - HEADER):
        return False
    v = decide_from_master(&w.switch_, &first)
    if v.outcome != TO_PORT or not takes_gro(w, v.port):
        return False
    if not gro_checksums_hold(t):
        return False
    submit_rx(w)
    recorded = w.capture != NULL and w.capture.wire
    settle_captured(w)
    if recorded:
        start = capture_batch(w.capture, t.frames, t.count, tag_of(w, v.port))
    gro_merge(t)
    w.master.rx_frames += t.count
    w.master.rx_bytes += total
    outcome = gro_tx(w, v.port, t.frames, t.count, t.count, total)
    if recorded:
        capture_batch_ended(w.capture, start, outcome)
    w.master.outcomes[outcome] += t.count
    return True


cdef inline bint packet_rx(Worker *w) noexcept nogil:
    """Read one frame from the queue of the master's socket and forward it while it is still in the cache. False if
    there is none, or on an error."""
    cdef iovec place = iovec(w.rx_buffer + ROOM, HEADER + LONGEST)
    cdef uint8_t control[CONTROL]
    cdef msghdr message
    cdef tpacket_auxdata *aux
    cdef ssize_t n
    memset(&message, 0, sizeof(message))
    message.msg_iov, message.msg_iovlen = &place, 1
    message.msg_control, message.msg_controllen = control, sizeof(control)
    n = recvmsg(w.master_fd, &message, MSG_DONTWAIT)
    if n < 0:
        return False
    if n >= HEADER:
        aux = auxiliary(&message)
        master_frame(w, w.rx_buffer + ROOM, <uint32_t> n, message.msg_flags & MSG_TRUNC,
                     aux.tp_status if aux != NULL else 0, aux.tp_vlan_tpid if aux != NULL else 0,
                     aux.tp_vlan_tci if aux != NULL else 0)
    return True


cdef inline tpacket_auxdata *auxiliary(msghdr *message) noexcept nogil:
    """The frame's PACKET_AUXDATA, or NULL."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(message)
    if control == NULL or control.cmsg_level != SOL_PACKET or control.cmsg_type != PACKET_AUXDATA:
        return NULL
    return <tpacket_auxdata *> CMSG_DATA(control)


cdef inline void master_frame(
    Worker *w, uint8_t *buffer, uint32_t n, bint truncated, uint32_t status, uint16_t tpid, uint16_t tci
) noexcept nogil:
    """Forward a frame from the wire: n bytes with its virtio_net_hdr, and room for a VLAN tag before them. `status`:
    TP_STATUS_* bits."""
    if status & TP_STATUS_VLAN_VALID and n >= HEADER + 12:
        buffer = restore_tag(buffer, tpid if status & TP_STATUS_VLAN_TPID_VALID else ETH_P_8021Q, tci)
        n += VLAN_HLEN
    if not truncated:
        receive_from_master(w, buffer, n)
        return
    w.master.rx_frames += 1
    w.master.rx_bytes += n - HEADER
    drop_read(w, FROM_MASTER, buffer, n, DROP_ERROR)


cdef inline uint8_t *restore_tag(uint8_t *buffer, uint16_t tpid, uint16_t tci) noexcept nogil:
    """Put the VLAN tag that the kernel has taken out back into the frame, which starts 4 bytes earlier then."""
    cdef virtio_net_hdr *header
    memmove(buffer - VLAN_HLEN, buffer, HEADER + 12)
    buffer -= VLAN_HLEN
    put16(buffer + HEADER + 12, tpid)
    put16(buffer + HEADER + 14, tci)
    header = <virtio_net_hdr *> buffer
    if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        header.csum_start += VLAN_HLEN
    if header.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        header.hdr_len += VLAN_HLEN
    return buffer
