"""Frames on their way in: read a burst from one door, decide, carry each out before the next.

Every frame that was read ends in exactly one outcome counter, counted where it ends: a frame for the wire when
sendmmsg took it, one that Python must see when it has come back. Copies of group frames count as the
receiving port's tx, not as outcomes.

Functions stand in the order in which a frame meets them.
"""

from libc.errno cimport EAGAIN, ECONNREFUSED, EINTR, EIO, ENETDOWN, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport read

from ._ahead cimport Ahead, ahead_fetch, is_far, look_ahead
from ._answer cimport is_question, neighbour_answer
from ._decide cimport (
    ANSWERED, DROP_BAD_HEADER, DROP_ERROR, DROP_GROUP, L2, TO_HOST, TO_MASTER, TO_PORT, TO_PORTS, TO_ROUTE, Verdict,
    decide_from_host, decide_from_master, decide_from_port,
)
from ._flood cimport queue_flood, tell
from ._gro cimport Train, train_couple, train_is_whole, train_takes
from ._l3 cimport route_tx
from ._own cimport CLEAN, own_to_master
from ._packetring cimport packet_slot, packet_take, packets_waiting
from ._show cimport show_from_port, show_to_port
from ._state cimport (
    BURST, CONTROL, EVENT_GONE_BIT, FROM_HOST, FROM_MASTER, HEADER, LONGEST, MASTER_BURST, ROOM, Returned, Traffic,
    Worker, unpoll_fd,
)
from ._stream cimport DATAGRAMS, STREAM, Socket, socket_end, socket_send, stream_fill, stream_next
from ._sys cimport (
    CMSG_DATA, CMSG_FIRSTHDR, MSG_DONTWAIT, MSG_TRUNC, PACKET_AUXDATA, SOL_PACKET, TP_STATUS_COPY,
    TP_STATUS_VLAN_TPID_VALID, TP_STATUS_VLAN_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, cmsghdr,
    iovec, msghdr, recv, recvmsg, tpacket2_hdr, tpacket_auxdata, virtio_net_hdr,
)
from ._tx cimport QUEUED, host_tx, master_tx, port_tx, queue_master_tx, traffic_of, train_tx
from ._uring cimport ring_submit
from ._wire cimport ETH_P_8021Q, VLAN_HLEN, put16


cdef inline void port_rx(Worker *w, int32_t port) noexcept nogil:
    cdef uint8_t *buffer
    cdef ssize_t n
    cdef int _i
    if w.ports[port].socket != NULL:
        socket_rx(w, port)
        return
    for _i in range(BURST):
        # Where the next frame for the wire would stay; any other leaves it free, and warm, for the next read.
        buffer = w.tx_buffers[w.tx_length] + ROOM
        n = read(w.ports[port].fd, buffer, HEADER + LONGEST)
        if n < HEADER:
            if n >= 0:
                port_rx_over(w, port, 0)
            elif errno != EAGAIN:
                port_rx_over(w, port, errno)
            return
        port_frame(w, port, buffer, n)
        if w.tx_length == BURST:
            master_tx(w)


cdef inline void socket_rx(Worker *w, int32_t port) noexcept nogil:
    """Room to write, or something to read, or the end."""
    cdef Socket *s = w.ports[port].socket
    if s.armed:
        socket_send(s)
    if s.framing == STREAM:
        stream_rx(w, port, s)
    else:
        packets_rx(w, port, s)


cdef inline void stream_rx(Worker *w, int32_t port, Socket *s) noexcept nogil:
    """What one read brings: its bytes are the limit for what is done before others have their turn."""
    cdef const uint8_t *frame = NULL
    cdef uint8_t *buffer
    cdef int32_t length
    cdef ssize_t n = stream_fill(s, w.ports[port].fd)
    if n <= 0:
        if n == 0 or errno != EAGAIN:
            socket_rx_failed(w, port, n)
        return
    while True:
        length = stream_next(s, &frame)
        if length <= 0:
            break
        buffer = w.tx_buffers[w.tx_length] + ROOM
        memset(buffer, 0, HEADER)
        memcpy(buffer + HEADER, frame, length)
        port_frame(w, port, buffer, HEADER + length)
        if w.tx_length == BURST:
            master_tx(w)
    if length < 0:
        w.ports[port].traffic.rx_frames += 1
        w.ports[port].traffic.outcomes[DROP_BAD_HEADER] += 1
        socket_rx_failed(w, port, 0)


cdef inline void packets_rx(Worker *w, int32_t port, Socket *s) noexcept nogil:
    cdef uint8_t *buffer
    cdef ssize_t n
    cdef int _i
    for _i in range(BURST):
        buffer = w.tx_buffers[w.tx_length] + ROOM
        memset(buffer, 0, HEADER)
        n = recv(w.ports[port].fd, buffer + HEADER, LONGEST, MSG_DONTWAIT | MSG_TRUNC)
        if n < 0 or (n == 0 and s.framing != DATAGRAMS):
            if n == 0 or errno != EAGAIN:
                socket_rx_failed(w, port, n)
            return
        if n > LONGEST:
            w.ports[port].traffic.rx_frames += 1
            w.ports[port].traffic.rx_bytes += n
            w.ports[port].traffic.outcomes[DROP_ERROR] += 1
            continue
        port_frame(w, port, buffer, HEADER + n)
        if w.tx_length == BURST:
            master_tx(w)


cdef inline void socket_rx_failed(Worker *w, int32_t port, ssize_t n) noexcept nogil:
    """Its end, an error, or what is no frame. A datagram socket hears of a peer that has left, and reads on."""
    if n < 0 and (errno == EINTR or errno == ECONNREFUSED):
        return
    socket_end(w.ports[port].socket)
    tell(w, port, EVENT_GONE_BIT)


cdef inline void port_frame(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """A port's frame, with its header n bytes, in the next of the buffers for the wire."""
    cdef Traffic *traffic = &w.ports[port].traffic
    cdef uint64_t *own = w.switch_.rules[port].own
    cdef int outcome
    traffic.rx_frames += 1
    traffic.rx_bytes += n - HEADER
    if own != NULL:
        outcome = own_to_master(own, w.switch_.mac, <virtio_net_hdr *> buffer, buffer + HEADER, n - HEADER)
        if outcome != CLEAN:
            traffic.outcomes[outcome] += 1
            return
    if not show_from_port(w, port, buffer, n):
        port_frame_on(w, port, buffer, n)


cdef inline void port_frame_on(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """The frame goes where the rules send it, or is answered."""
    cdef Verdict v
    if w.switch_.mode != L2 and w.switch_.rules[port].own != NULL and is_question(buffer + HEADER, n - HEADER):
        w.ports[port].traffic.outcomes[answer(w, port, buffer, n)] += 1
        return
    v = decide_from_port(&w.switch_, buffer + HEADER, n - HEADER,
                         (<virtio_net_hdr *> buffer).gso_type != VIRTIO_NET_HDR_GSO_NONE)
    carry_out(w, &w.ports[port].traffic, port, v, buffer, n)


cdef inline int answer(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """How a question for a neighbour ended."""
    cdef uint32_t length = neighbour_answer(&w.switch_, port, buffer + HEADER, n - HEADER)
    cdef bint stays = w.stays
    if length == 0:
        return DROP_GROUP
    memset(buffer, 0, HEADER)
    w.stays = False  # it is counted here, and only once
    port_tx(w, port, buffer, HEADER + length)
    w.stays = stays
    return ANSWERED


cdef inline bint port_rx_over(Worker *w, int32_t port, int error) noexcept nogil:
    """End of file (0), or an error: EBADFD once the device is gone, for good. A packet socket tells once that its
    device was set down. False if there will be more."""
    if error == EINTR or error == EIO or error == ENETDOWN:
        return False
    unpoll_fd(w, w.ports[port].fd)
    tell(w, port, EVENT_GONE_BIT)
    return True


cdef inline bint master_rx(Worker *w) noexcept nogil:
    """A burst of the wire's frames: from the ring, and those too long for it from the socket's queue. True if there
    may be more. What is queued for ports stands in the ring until it is given back."""
    cdef uint32_t count = packets_waiting(&w.packets, MASTER_BURST)
    cdef uint32_t _i
    cdef tpacket2_hdr *slot
    cdef bint stays = w.ring.running and count > 1  # a frame alone is written at once
    if w.packets.slots == NULL:
        return packet_rx(w)
    if count > 1 and is_far(&w.switch_.table):
        packets_ahead(w, count)
    for _i in range(count):
        slot = packet_take(&w.packets)
        w.stays = stays
        if slot.tp_status & TP_STATUS_COPY:
            train_rx(w)
            submit_rx(w)
            w.stays = False
            packet_rx(w)
        else:
            slot_rx(w, slot)
    w.stays = stays
    train_rx(w)
    w.stays = False
    return count == MASTER_BURST


cdef inline void packets_ahead(Worker *w, uint32_t count) noexcept nogil:
    """For the next so many frames, at most AHEAD, which stand in the ring."""
    cdef Ahead ahead
    cdef tpacket2_hdr *slot
    cdef uint32_t i
    ahead.length = 0
    for i in range(count):
        slot = packet_slot(&w.packets, w.packets.next + i)
        look_ahead(&w.switch_, &ahead, <uint8_t *> slot + slot.tp_mac, slot.tp_snaplen)
    ahead_fetch(&ahead)


cdef inline void submit_rx(Worker *w) noexcept nogil:
    """What came before leaves before that which is written past the ring."""
    if w.ring.running:
        ring_submit(&w.ring)


cdef inline void slot_rx(Worker *w, tpacket2_hdr *slot) noexcept nogil:
    """A frame that is carried out now, or travels with others like it."""
    cdef uint8_t *buffer = <uint8_t *> slot + slot.tp_mac - HEADER
    cdef uint32_t n = slot.tp_snaplen + HEADER
    cdef bint is_cut = slot.tp_snaplen < slot.tp_len
    if w.coalesce and not is_cut and not slot.tp_status & TP_STATUS_VLAN_VALID:
        if train_takes(&w.train, buffer, n):
            return
        train_rx(w)
        if train_takes(&w.train, buffer, n):
            return
    master_frame(w, buffer, n, is_cut, slot.tp_status, slot.tp_vlan_tpid, slot.tp_vlan_tci)


cdef inline void train_rx(Worker *w) noexcept nogil:
    """Carry out the frames that were held back: as one, where they can be."""
    cdef Train *t = &w.train
    cdef uint32_t i
    if t.count < 2 or not train_goes_on(w):
        for i in range(t.count):
            master_frame(w, <uint8_t *> t.frames[i].iov_base, <uint32_t> t.frames[i].iov_len, False, 0, 0, 0)
    t.count = 0
    t.ended = False


cdef inline bint train_goes_on(Worker *w) noexcept nogil:
    """Whether a port has them as one super-frame now: it must take such, and its endpoint use the master's MAC."""
    cdef Train *t = &w.train
    cdef uint64_t total = t.total + <uint64_t> t.count * t.headers
    cdef Verdict v = decide_from_master(&w.switch_, <uint8_t *> t.frames[0].iov_base + HEADER,
                                        <uint32_t> t.frames[0].iov_len - HEADER)
    cdef int outcome
    if v.outcome != TO_PORT or not w.ports[v.port].merges or w.switch_.rules[v.port].own != NULL:
        return False
    if not train_is_whole(t):
        return False
    submit_rx(w)
    train_couple(t)
    w.master.rx_frames += t.count
    w.master.rx_bytes += total
    outcome = train_tx(w, v.port, total)
    w.master.outcomes[outcome] += t.count
    return True


cdef inline bint packet_rx(Worker *w) noexcept nogil:
    """One frame from the queue of the master's socket, written on while it is still in the cache. False if there is
    none, or an error."""
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
    """What the kernel says beside a frame, or NULL."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(message)
    if control == NULL or control.cmsg_level != SOL_PACKET or control.cmsg_type != PACKET_AUXDATA:
        return NULL
    return <tpacket_auxdata *> CMSG_DATA(control)


cdef inline void master_frame(
    Worker *w, uint8_t *buffer, uint32_t n, bint is_cut, uint32_t status, uint16_t tpid, uint16_t tci
) noexcept nogil:
    """A frame from the wire, with its header n bytes, ROOM of the tag before it. `status`: TP_STATUS_* bits."""
    if status & TP_STATUS_VLAN_VALID and n >= HEADER + 12:
        buffer = restore_tag(buffer, tpid if status & TP_STATUS_VLAN_TPID_VALID else ETH_P_8021Q, tci)
        n += VLAN_HLEN
    w.master.rx_frames += 1
    w.master.rx_bytes += n - HEADER
    if is_cut:
        w.master.outcomes[DROP_ERROR] += 1
    elif not show_to_port(w, FROM_MASTER, buffer, n):
        master_frame_on(w, buffer, n)


cdef inline uint8_t *restore_tag(uint8_t *buffer, uint16_t tpid, uint16_t tci) noexcept nogil:
    """The kernel hands a VLAN tag over beside the frame: put it back, 4 bytes to the front of `buffer`."""
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


cdef inline void master_frame_on(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    carry_out(w, &w.master, FROM_MASTER, decide_from_master(&w.switch_, buffer + HEADER, n - HEADER), buffer, n)


cdef inline void host_rx(Worker *w) noexcept nogil:
    """The host's stack talks to the ports through a TAP of its own."""
    cdef uint8_t *buffer
    cdef ssize_t n
    cdef int _i
    for _i in range(BURST):
        buffer = w.tx_buffers[w.tx_length] + ROOM
        n = read(w.host_fd, buffer, HEADER + LONGEST)
        if n < HEADER:
            if n < 0 and errno != EAGAIN and errno != EINTR and errno != EIO:
                unpoll_fd(w, w.host_fd)
            return
        w.host.rx_frames += 1
        w.host.rx_bytes += n - HEADER
        if not show_to_port(w, FROM_HOST, buffer, n):
            host_frame_on(w, buffer, n)


cdef inline void host_frame_on(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    carry_out(w, &w.host, FROM_HOST, decide_from_host(&w.switch_, buffer + HEADER, n - HEADER), buffer, n)


cdef inline void take_returned(Worker *w) noexcept nogil:
    """Frames that Python has seen go on from where they were, each as from the door that it was read from."""
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
            port_frame_on(w, entry.source, buffer, entry.length)
        free(entry)
        if w.tx_length == BURST:
            master_tx(w)
    if w.tx_length:
        master_tx(w)


cdef inline void carry_out(
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
