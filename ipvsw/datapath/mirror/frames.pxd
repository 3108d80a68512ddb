"""What a capture records of a frame: as it was read, with how it ended, and as it was written, on each interface.

A frame's end is one of its interface's outcome counters. So a frame that was read is recorded first, and gets the
outcome whose counter has moved since: before that can be another frame's, `settle_captured` in loop/tx.pxd looks. If
none has, it is in the batch for the wire, or written by the io_uring: then its record waits, and with it all that come
after it, until that has ended. Else it is held for the control thread, and recorded once more, as AGAIN, when it comes
back. Where it went is noted when it is written: while there is a capture every port's writes pass here.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ipvsw.datapath.mirror.ring cimport (
    AGAIN, NO_RECORD, NO_TAG, PADDING, PENDING, RING_BYTES, RX, TX, VOID, WIRE_TAG, Capture, PendingWrite, Record,
    record_at, record_frame, record_put,
)
from ipvsw.datapath.kernel.sys cimport iovec, virtio_net_hdr
from ipvsw.datapath.rules.outcome cimport N_OUTCOMES, TO_MASTER


cdef inline void capture_read(
    Capture *c, int32_t source, uint32_t interface, const uint8_t *buffer, uint32_t n, const uint64_t *outcomes,
    uint32_t tx_length
) noexcept nogil:
    """A frame of n bytes with its virtio_net_hdr begins its way. `outcomes` are those of its interface, `source`;
    `tx_length` frames are in the batch for the wire."""
    c.rx = record_frame(c, interface, RX, NO_TAG, buffer, n)
    c.source, c.tx_length = source, tx_length
    memcpy(c.before, outcomes, sizeof(c.before))


cdef inline void capture_again(Capture *c) noexcept nogil:
    """The frame in hand has been held before."""
    record_at(c, c.rx).flags = AGAIN


cdef inline void capture_ended(Capture *c, const uint64_t *outcomes, bint on_wire) noexcept nogil:
    """It has passed its stages; `on_wire`: and waits in the batch for the wire, where it was the first after it was
    read."""
    cdef uint64_t at = c.rx
    cdef int k
    c.rx = NO_RECORD
    for k in range(N_OUTCOMES):
        if outcomes[k] != c.before[k]:
            set_outcome(c, at, k)
            return
    if on_wire:
        c.on_wire[c.tx_length] = at


cdef inline void capture_dropped(
    Capture *c, uint32_t interface, const uint8_t *buffer, uint32_t n, int outcome
) noexcept nogil:
    """A frame that was dropped before its first stage."""
    set_outcome(c, record_frame(c, interface, RX, NO_TAG, buffer, n), outcome)


cdef inline void set_outcome(Capture *c, uint64_t place, int outcome) noexcept nogil:
    """Unless there is no such record, or it is overwritten already: frames of a round may be more than a ring holds."""
    if place != NO_RECORD and c.next - place <= RING_BYTES:
        record_at(c, place).outcome = outcome


# ---------------------------------------------------------------------------- written


cdef inline void capture_written(
    Capture *c, uint32_t interface, bint recorded, int32_t source, uint32_t peer, const uint8_t *buffer, uint32_t n,
    uint64_t queued
) noexcept nogil:
    """A frame from `source`, whose tag is `peer`, was written, or its write was queued with that tag. `recorded`: not
    only where the frame in hand went."""
    cdef uint64_t rx = note_receiver(c, interface, source)
    cdef uint64_t tx = record_frame(c, interface, TX, peer, buffer, n) if recorded else NO_RECORD
    if queued and (rx != NO_RECORD or tx != NO_RECORD):
        push_write(c, queued, rx, tx)
        c.rx = NO_RECORD


cdef inline uint64_t note_receiver(Capture *c, uint32_t interface, int32_t source) noexcept nogil:
    """If the frame in hand is from `source`, `interface` is where it went. Its record."""
    if c.rx == NO_RECORD or c.source != source or c.next - c.rx > RING_BYTES:
        return NO_RECORD
    record_at(c, c.rx).peer = interface
    return c.rx


cdef inline void capture_pieces(
    Capture *c, uint32_t interface, bint recorded, int32_t source, const iovec *pieces, uint32_t n
) noexcept nogil:
    """The same for one from the wire, that consists of n pieces, of which the first begins with its virtio_net_hdr."""
    cdef const uint8_t *first = <const uint8_t *> pieces[0].iov_base
    cdef size_t length = 0
    cdef uint8_t *to
    cdef uint32_t i
    note_receiver(c, interface, source)
    if not recorded:
        return
    for i in range(n):
        length += pieces[i].iov_len
    length -= sizeof(virtio_net_hdr)
    to = <uint8_t *> &record_at(c, record_put(
        c, interface, TX, WIRE_TAG, <const virtio_net_hdr *> first, <uint32_t> length))[1]
    memcpy(to, first + sizeof(virtio_net_hdr), pieces[0].iov_len - sizeof(virtio_net_hdr))
    to += pieces[0].iov_len - sizeof(virtio_net_hdr)
    for i in range(1, n):
        memcpy(to, pieces[i].iov_base, pieces[i].iov_len)
        to += pieces[i].iov_len


cdef inline void capture_sent(
    Capture *c, uint32_t number, uint32_t peer, const uint8_t *buffer, uint32_t n, int outcome
) noexcept nogil:
    """A frame of the batch for the wire was sent, or not."""
    set_outcome(c, c.on_wire[number], outcome)
    c.on_wire[number] = NO_RECORD
    if c.wire and outcome == TO_MASTER:
        record_frame(c, WIRE_TAG, TX, peer, buffer, n)


cdef inline void push_write(Capture *c, uint64_t tag, uint64_t rx, uint64_t tx) noexcept nogil:
    """Of too many the oldest is left as it is."""
    c.pending[c.pushed_writes % PENDING] = PendingWrite(tag, rx, tx)
    c.pushed_writes += 1
    c.n_pending = min(c.n_pending + 1, <uint32_t> PENDING)


cdef inline void capture_completed(Capture *c, uint64_t tag, int outcome, bint written) noexcept nogil:
    """A queued write has ended: the first with that tag, and mostly the first of all. One that another has overtaken is
    found when its turn comes."""
    cdef PendingWrite *write
    cdef uint32_t i
    for i in range(c.n_pending):
        write = &c.pending[(c.pushed_writes - c.n_pending + i) % PENDING]
        if write.tag == tag:
            set_outcome(c, write.rx, outcome)
            if write.tx != NO_RECORD and not written:
                record_at(c, write.tx).direction = VOID
            write.tag = 0
            break
    while c.n_pending and c.pending[(c.pushed_writes - c.n_pending) % PENDING].tag == 0:
        c.n_pending -= 1


# ---------------------------------------------------------------------------- datagrams that become one frame


cdef inline uint64_t capture_batch(Capture *c, const iovec *frames, uint32_t n, uint32_t peer) noexcept nogil:
    """n frames from the wire, each with its virtio_net_hdr, that go to `peer` as one: where their records begin."""
    cdef uint64_t start = c.next
    cdef uint32_t i
    for i in range(n):
        record_frame(c, WIRE_TAG, RX, peer, <const uint8_t *> frames[i].iov_base, <uint32_t> frames[i].iov_len)
    return start


cdef inline void capture_batch_ended(Capture *c, uint64_t start, int outcome) noexcept nogil:
    cdef Record *record
    if c.next - start > RING_BYTES:
        return
    while start < c.next:
        record = record_at(c, start)
        if record.frame != PADDING and record.direction == RX:
            record.outcome = outcome
        start += record.length
