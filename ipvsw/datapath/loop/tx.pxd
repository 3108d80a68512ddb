"""Transmit: to a port, to the host, on the wire. Functions return the outcome of the frame, or count it."""

from libc.errno cimport EAGAIN, EBADFD, EINVAL, EIO, ENETDOWN, ENOBUFS, ENOMEM, ENXIO, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from posix.unistd cimport write

from ipvsw.datapath.mirror.frames cimport (
    capture_completed, capture_dropped, capture_ended, capture_pieces, capture_read, capture_sent, capture_written,
)
from ipvsw.datapath.mirror.ring cimport HOST_TAG, NO_RECORD, Capture, ring_publish
from ipvsw.datapath.rules.decide cimport CAPTURED, L2
from ipvsw.datapath.rules.outcome cimport (
    DROP_BAD_HEADER, DROP_ERROR, DROP_FULL, DROP_NO_MASTER, DROP_PORT_DOWN, NO_OUTCOME, TO_HOST, TO_MASTER, TO_PORT,
)
from ipvsw.datapath.rules.macnat cimport macnat_restore
from ipvsw.datapath.rules.ratelimit cimport TX, limit_frame, limits_direction
from ipvsw.datapath.kernel.packetring cimport send_ring_put, send_ring_send
from ipvsw.datapath.loop.state cimport (
    BURST, FROM_FIRST, FROM_HOST, FROM_MASTER, HEADER, RING_LENGTHS, RING_PORT, RING_PORTS,
    RING_SOURCE, RING_WRITE, UNIX_SOCKET,
    Port, Traffic, Worker, round_ns, tag_of,
)
from ipvsw.datapath.backends.unixsock cimport socket_send, socket_tx
from ipvsw.datapath.kernel.sys cimport MSG_DONTWAIT, iovec, send, sendmmsg, unlikely, writev
from ipvsw.datapath.kernel.uring cimport ring_write
from ipvsw.datapath.packet.headers cimport Frame
from ipvsw.datapath.packet.longheader cimport LONG_HEADER, LONGER, header_lengthen, header_restore

ctypedef int (*Tx)(Worker *, int32_t, uint8_t *, uint32_t) noexcept nogil
ctypedef void (*Settle)(Worker *) noexcept nogil

cdef extern from *:
    Tx apart "ipvsw_apart"(Tx f) noexcept nogil  # see kernel/sys.pxd
    Settle apart_settle "ipvsw_apart"(Settle f) noexcept nogil


cdef inline int port_tx(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """The outcome; NO_OUTCOME if the write was queued on the io_uring, whose completion counts it."""
    if w.ports[port].special:
        return apart(special_tx)(w, port, buffer, n)
    return device_tx(w, port, buffer, n)


cdef inline int special_tx(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """To a port that has MAC NAT or limits or is a unix socket, or to any while frames are captured."""
    cdef Port *p = &w.ports[port]
    cdef uint64_t *own = w.switch_.rules[port].own
    cdef bint may_queue = w.may_queue
    cdef int outcome
    if own != NULL:
        macnat_restore(own, w.switch_.mac, w.switch_.mode != L2, buffer + HEADER, n - HEADER)
    outcome = limit_tx(w, p, buffer, n)
    if outcome != NO_OUTCOME:
        return outcome
    if p.longer and w.capture != NULL:
        w.may_queue = False  # it would lose the header that is recorded
    outcome = socket_port_tx(w, port, buffer, n) if p.backend == UNIX_SOCKET else device_tx(w, port, buffer, n)
    w.may_queue = may_queue
    if w.capture != NULL and (outcome == TO_PORT or outcome == NO_OUTCOME):
        capture_written(w.capture, p.tag, is_captured(w, port), w.source, tag_of(w, w.source), buffer, n,
                        write_tag(w, port, n) if outcome == NO_OUTCOME else 0)
    return outcome


cdef inline int device_tx(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    cdef Port *p = &w.ports[port]
    if w.may_queue and queue_port_tx(w, port, buffer, n):
        return NO_OUTCOME
    if (write_long(p.fd, buffer, n) if p.longer else write(p.fd, buffer, n)) < 0:
        p.traffic.tx_errors += 1
        return port_failure(errno)
    p.traffic.tx_frames += 1
    p.traffic.tx_bytes += n - HEADER
    return TO_PORT


cdef inline ssize_t write_long(int fd, uint8_t *buffer, uint32_t n) noexcept nogil:
    """write() with a long virtio_net_hdr. The frame is as it was afterwards: others may be to have it too."""
    cdef uint8_t header[LONG_HEADER]
    header_lengthen(buffer, header)
    return write_behind(fd, header, buffer + HEADER, n - HEADER)


cdef inline ssize_t write_behind(int fd, uint8_t *header, uint8_t *frame, uint32_t n) noexcept nogil:
    """write() of a frame behind a long virtio_net_hdr that stands elsewhere."""
    cdef iovec pieces[2]
    pieces[0], pieces[1] = iovec(header, LONG_HEADER), iovec(frame, n)
    return writev(fd, pieces, 2)


cdef inline int limit_tx(Worker *w, Port *p, const uint8_t *buffer, uint32_t n) noexcept nogil:
    """NO_OUTCOME if the port may get the frame."""
    cdef int outcome = NO_OUTCOME
    if p.limits != NULL and limits_direction(p.limits, TX):
        outcome = limit_frame(p.limits, TX, buffer, n, round_ns(w))
        p.traffic.tx_errors += outcome != NO_OUTCOME
    return outcome


cdef inline bint takes_gro(const Worker *w, int32_t port) noexcept nogil:
    """Whether a port takes UDP GSO frames."""
    return w.ports[port].accepts_uso and takes_merged(w, port)


cdef inline bint takes_merged(const Worker *w, int32_t port) noexcept nogil:
    """Whether a port may get packets as one frame: not with MAC NAT nor with limits, which look at each."""
    cdef const Port *p = &w.ports[port]
    return not p.special or (
        w.switch_.rules[port].own == NULL and (p.limits == NULL or not limits_direction(p.limits, TX)))


cdef inline int gro_tx(
    Worker *w, int32_t port, iovec *pieces, uint32_t n, uint32_t count, uint64_t total
) noexcept nogil:
    """Write n pieces as one GSO frame, of which the first has LONGER bytes of room before it. Counted are the datagrams
    that it is made of, `total` bytes."""
    cdef Port *p = &w.ports[port]
    if (writev_long(p.fd, pieces, n) if p.longer else writev(p.fd, pieces, n)) < 0:
        p.traffic.tx_errors += count
        return port_failure(errno)
    p.traffic.tx_frames += count
    p.traffic.tx_bytes += total
    if unlikely(p.special) and w.capture != NULL:
        capture_pieces(w.capture, p.tag, is_captured(w, port), FROM_MASTER, pieces, n)
    return TO_PORT


cdef inline ssize_t writev_long(int fd, iovec *pieces, uint32_t n) noexcept nogil:
    """The same as writev()."""
    cdef iovec first = pieces[0]
    cdef uint8_t *buffer = <uint8_t *> first.iov_base
    cdef ssize_t written
    header_lengthen(buffer, buffer - LONGER)
    pieces[0] = iovec(buffer - LONGER, first.iov_len + LONGER)
    written = writev(fd, pieces, n)
    pieces[0] = first
    header_restore(buffer)
    return written


cdef inline bint queue_port_tx(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """The completion's tag has all that `port_tx_ended` counts: source, port, length. False if the ring has failed. A
    frame that may be queued has LONGER bytes of room before it, and nobody else is to have it."""
    cdef uint32_t longer = w.ports[port].longer
    cdef bint queued
    if longer:
        header_lengthen(buffer, buffer - LONGER)
    queued = ring_write(&w.ring, w.ports[port].fd, buffer - longer, n + longer, write_tag(w, port, n))
    w.inflight_writes += queued
    if longer and not queued:
        header_restore(buffer)
    return queued


cdef inline uint64_t write_tag(const Worker *w, int32_t port, uint32_t n) noexcept nogil:
    return RING_WRITE | <uint64_t> (w.source - FROM_FIRST) << RING_SOURCE | <uint64_t> port << RING_PORT | n


cdef inline void port_tx_ended(Worker *w, uint64_t tag, int result) noexcept nogil:
    """Count a queued write that has completed. `result`: what write() would have returned, or a negative errno."""
    cdef Traffic *to = &w.ports[tag >> RING_PORT & RING_PORTS].traffic
    cdef Traffic *source = traffic_of(w, <int32_t> (tag >> RING_SOURCE & RING_PORTS) + FROM_FIRST)
    w.inflight_writes -= 1
    if unlikely(w.capture != NULL):
        settle_captured(w)
        capture_completed(w.capture, tag, TO_PORT if result >= 0 else port_failure(-result), result >= 0)
    if result < 0:
        to.tx_errors += 1
        source.outcomes[port_failure(-result)] += 1
    else:
        to.tx_frames += 1
        to.tx_bytes += (tag & RING_LENGTHS) - HEADER
        source.outcomes[TO_PORT] += 1


cdef inline Traffic *traffic_of(Worker *w, int32_t source) noexcept nogil:
    if source >= 0:
        return &w.ports[source].traffic
    return &w.host if source == FROM_HOST else &w.master


cdef inline bint is_captured(const Worker *w, int32_t source) noexcept nogil:
    """Whether what is read from an interface is recorded for readers."""
    if w.capture == NULL:
        return False
    if source >= 0:
        return w.switch_.rules[source].extra_stages & CAPTURED
    return w.capture.wire if source == FROM_MASTER else source == FROM_HOST and w.capture.host


cdef inline int begin_captured(Worker *w, int32_t source, const Frame *f) noexcept nogil:
    """A frame that is recorded for readers begins its way."""
    settle_captured(w)
    capture_read(w.capture, source, tag_of(w, source), f.data - HEADER, f.length + HEADER,
                 traffic_of(w, source).outcomes, w.tx_length)
    return 0


cdef inline void settle_captured(Worker *w) noexcept nogil:
    """What has become of the last such frame, before anything else is done that counts for its interface."""
    if w.capture != NULL and w.capture.rx != NO_RECORD:
        apart_settle(settle)(w)


cdef inline void settle(Worker *w) noexcept nogil:
    cdef Capture *c = w.capture
    capture_ended(c, traffic_of(w, c.source).outcomes,
                  w.tx_length > c.tx_length and w.tx_sources[c.tx_length] == c.source)


cdef inline void publish_captured(Worker *w) noexcept nogil:
    """Once in a round: what readers may have."""
    if w.capture != NULL:
        settle_captured(w)
        ring_publish(w.capture, w.inflight_writes == 0 and w.tx_length == 0)


cdef inline void drop_read(Worker *w, int32_t source, const uint8_t *buffer, uint32_t n, int outcome) noexcept nogil:
    """A frame that was read and goes no further: before its stages begin."""
    settle_captured(w)
    traffic_of(w, source).outcomes[outcome] += 1
    if is_captured(w, source):
        capture_dropped(w.capture, tag_of(w, source), buffer, n, outcome)


cdef inline int port_failure(int error) noexcept nogil:
    return DROP_PORT_DOWN if error == ENETDOWN or error == ENXIO else failure(error)


cdef inline int socket_port_tx(Worker *w, int32_t port, const uint8_t *buffer, uint32_t n) noexcept nogil:
    """A GSO frame counts as its segments. What is buffered is sent at the end of the round at the latest."""
    cdef Port *p = &w.ports[port]
    cdef uint32_t frames = 0
    cdef uint64_t total = 0
    cdef int outcome = socket_tx(p.socket, buffer, n, &frames, &total)
    if outcome != TO_PORT:
        p.traffic.tx_errors += 1
        return outcome
    p.traffic.tx_frames += frames
    p.traffic.tx_bytes += total
    if not p.tx_pending:
        if w.n_gathering == BURST:
            sockets_tx(w)
        p.tx_pending = True
        w.gathering[w.n_gathering] = port
        w.n_gathering += 1
    return TO_PORT


cdef inline void sockets_tx(Worker *w) noexcept nogil:
    """Flush the unix sockets that have buffered frames."""
    cdef uint32_t i
    for i in range(w.n_gathering):
        w.ports[w.gathering[i]].tx_pending = False
        if w.ports[w.gathering[i]].backend == UNIX_SOCKET:  # it may have been detached
            socket_send(w.ports[w.gathering[i]].socket)
    w.n_gathering = 0


cdef inline int tx_failure() noexcept nogil:
    return failure(errno)


cdef inline int failure(int error) noexcept nogil:
    """The outcome of a frame that a device refused with this errno."""
    if error == EAGAIN or error == ENOBUFS or error == ENOMEM:
        return DROP_FULL
    if error == EIO or error == EBADFD:
        return DROP_PORT_DOWN
    if error == ENETDOWN or error == ENXIO:
        return DROP_NO_MASTER
    if error == EINVAL:
        return DROP_BAD_HEADER
    return DROP_ERROR


cdef inline int host_tx(Worker *w, uint8_t *buffer, uint32_t n) noexcept nogil:
    """Deliver to the host's stack: as received on the master; in l3 and l3s, where the host's routes to the ports lead
    through the host port, as received on that (the reverse path filter would drop it otherwise). Multicast frames are
    always the master's."""
    cdef bint by_host_port = w.switch_.mode != L2 and not buffer[HEADER] & 1
    cdef ssize_t sent
    if (w.host_fd if by_host_port else w.inject_fd) < 0:
        return DROP_NO_MASTER
    sent = write(w.host_fd, buffer, n) if by_host_port else send(w.inject_fd, buffer, n, MSG_DONTWAIT)
    if sent < 0:
        return tx_failure()
    if unlikely(w.capture != NULL) and w.capture.host:
        capture_written(w.capture, HOST_TAG, True, w.source, tag_of(w, w.source), buffer, n, 0)
    return TO_HOST


cdef inline void queue_master_tx(Worker *w, int32_t port, uint8_t *buffer, uint32_t n) noexcept nogil:
    """The frame stays in `buffer` until the round is over: in tx_buffers[tx_length], or where the ring has read it."""
    w.tx_iovecs[w.tx_length].iov_base = buffer
    w.tx_iovecs[w.tx_length].iov_len = n
    w.tx_sources[w.tx_length] = port
    w.tx_length += 1


cdef inline void master_tx(Worker *w) noexcept nogil:
    """Send the round's batch for the wire and count the outcome of each frame."""
    cdef uint32_t done = 0
    cdef int count, _i
    if w.txring.slots != NULL:
        done = txring_tx(w)
    while done < w.tx_length:
        count = 0
        if w.master_fd >= 0:
            count = sendmmsg(w.master_fd, &w.tx_messages[done], w.tx_length - done, MSG_DONTWAIT)
        for _i in range(max(count, 0)):
            count_master_tx(w, done, TO_MASTER)
            done += 1
        if count <= 0:
            count_master_tx(w, done, tx_failure() if count < 0 else DROP_NO_MASTER)
            done += 1
    w.tx_length = 0


cdef inline uint32_t txring_tx(Worker *w) noexcept nogil:
    """Send the batch's frames up to the first that is too long for a slot of the transmit ring. Returns how many were
    sent or counted as failed; the ring had no free slot for the others."""
    cdef uint32_t count = 0
    cdef uint32_t done
    cdef uint32_t i
    cdef int error
    while count < w.tx_length and send_ring_put(
            &w.txring, <uint8_t *> w.tx_iovecs[count].iov_base, <uint32_t> w.tx_iovecs[count].iov_len):
        count += 1
    if count == 0:
        return 0
    done = send_ring_send(&w.txring, &error)
    for i in range(done):
        count_master_tx(w, i, TO_MASTER)
    if error and done < count:
        count_master_tx(w, done, failure(error))
        done += 1
    return done


cdef inline void count_master_tx(Worker *w, uint32_t number, int outcome) noexcept nogil:
    """Count the outcome of one frame of the batch."""
    cdef int32_t source = w.tx_sources[number]
    if unlikely(w.capture != NULL):
        settle_captured(w)
        capture_sent(w.capture, number, tag_of(w, source), <const uint8_t *> w.tx_iovecs[number].iov_base,
                     <uint32_t> w.tx_iovecs[number].iov_len, outcome)
    if outcome == TO_MASTER:
        w.master.tx_frames += 1
        w.master.tx_bytes += w.tx_iovecs[number].iov_len - HEADER
    else:
        w.master.tx_errors += 1
    if source >= 0:
        w.ports[source].traffic.outcomes[outcome] += 1
