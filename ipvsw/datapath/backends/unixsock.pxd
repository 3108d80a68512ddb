"""Ports that are unix sockets: frames without a virtio_net_hdr, on a stream or one in each packet.

On a stream each frame is preceded by its length (4 bytes, big endian), as in QEMU's netdevs `stream` and `socket`.
What is sent is collected in the buffer `out`, so that many small frames take one system call. GSO frames are segmented
and, while `out` is empty, sent directly, without copying the payload. What the socket does not take at once stays in
`out`, whose size limits what may wait. A frame is put there whole or dropped, so that the framing is never broken.

One worker reads a socket; every worker writes to it, hence the lock. It is held briefly: no call under it blocks.
"""

from libc.errno cimport EAGAIN, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport read

from ipvsw.datapath.rules.outcome cimport DROP_BAD_HEADER, DROP_FULL, DROP_PORT_DOWN, DROP_TOO_BIG, TO_PORT
from ipvsw.datapath.packet.segment cimport (
    HEAD, Segmenter, segmenter_bytes, segmenter_complete, segmenter_head, segmenter_parse, segmenter_payload,
)
from ipvsw.datapath.kernel.sys cimport (
    EPOLLIN, EPOLLOUT, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RDWR, add_i32,
    be32, epoll_ctl, epoll_event, iovec, mmsghdr, msghdr, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, send, sendmmsg, sendmsg, shutdown,
)
from ipvsw.datapath.packet.headers cimport put16

# How frames are delimited.
cdef enum:
    NO_FRAMING = 0  # not a socket
    STREAM = 1  # by the length before each
    PACKETS = 2  # SOCK_SEQPACKET: each is a packet, an empty one is the end
    DATAGRAMS = 3  # SOCK_DGRAM: each is a packet, and there is no end

cdef enum:
    PREFIX = 4  # bytes of a length
    MAX_FRAME = 65535 + 18  # bytes of a frame: the longest packet behind an Ethernet header and a tag
    IN_ROOM = 1 << 17  # bytes of one read, behind a frame that was incomplete
    OUT_ROOM = 1 << 19  # bytes that may wait; more than any GSO frame becomes (65 KB in MOST_SEGMENTS)
    FLUSH_BYTES = 1 << 16  # bytes that are sent without waiting for more
    IOV_BATCH = 64  # segments in one system call

cdef struct Socket:
    pthread_mutex_t lock
    int32_t users  # workers that have a pointer to it
    int framing
    int fd  # -1: no peer is connected
    int epoll_fd  # the reading worker's, -1 while it doesn't poll
    uint32_t tag  # its tag there
    bint armed  # the reading worker waits for EPOLLOUT
    uint8_t *out_  # OUT_ROOM bytes, from the first frame on; each behind its length, with every framing
    uint32_t out_first
    uint32_t out_end
    # Used by the reading worker alone.
    uint8_t *in_  # IN_ROOM bytes, from the first read on
    uint32_t in_first
    uint32_t in_end

# Segments for one system call.
cdef struct IovBatch:
    uint8_t heads[IOV_BATCH][PREFIX + HEAD]
    iovec iovecs[2 * IOV_BATCH]


# ---------------------------------------------------------------------------- life


cdef inline Socket *socket_new(int framing, int users) noexcept nogil:
    """NULL if there is no memory."""
    cdef Socket *s = <Socket *> calloc(1, sizeof(Socket))
    if s == NULL:
        return NULL
    pthread_mutex_init(&s.lock, NULL)
    s.users = users
    s.framing = framing
    s.fd = s.epoll_fd = -1
    return s


cdef inline void socket_release(Socket *s) noexcept nogil:
    """Called once by each worker; the last one frees it."""
    if add_i32(&s.users, -1):
        return
    pthread_mutex_destroy(&s.lock)
    free(s.out_)
    free(s.in_)
    free(s)


cdef inline int socket_connect(Socket *s, int fd, bint reads, int epoll_fd, uint32_t tag) noexcept nogil:
    """Called by each worker: a peer has connected, `fd` is its socket; -1: it has disconnected. What is buffered for an
    earlier peer is discarded. 0 or an errno."""
    cdef int error = 0
    pthread_mutex_lock(&s.lock)
    if reads and s.epoll_fd >= 0:
        epoll_ctl(s.epoll_fd, EPOLL_CTL_DEL, s.fd, NULL)
        s.epoll_fd = -1
    if s.fd != fd:
        s.fd = fd
        s.out_first = s.out_end = 0
        s.armed = False
    if reads:
        s.in_first = s.in_end = 0
        if fd >= 0:
            s.epoll_fd, s.tag = epoll_fd, tag
            error = socket_poll(s, EPOLL_CTL_ADD)
            if error:
                s.epoll_fd = -1
    pthread_mutex_unlock(&s.lock)
    return error


cdef inline void socket_end(Socket *s) noexcept nogil:
    """The peer has disconnected or broken the framing: stop reading and writing."""
    pthread_mutex_lock(&s.lock)
    if s.epoll_fd >= 0:
        epoll_ctl(s.epoll_fd, EPOLL_CTL_DEL, s.fd, NULL)
    s.epoll_fd = s.fd = -1
    s.out_first = s.out_end = 0
    pthread_mutex_unlock(&s.lock)


cdef inline int socket_poll(Socket *s, int operation) noexcept nogil:
    """0 or an errno."""
    cdef epoll_event event
    event.events = EPOLLIN | (EPOLLOUT if s.armed else 0)
    event.data.u64 = s.tag
    return 0 if epoll_ctl(s.epoll_fd, operation, s.fd, &event) == 0 else errno


cdef inline void socket_arm(Socket *s, bint armed) noexcept nogil:
    if s.armed != armed:
        s.armed = armed
        if s.epoll_fd >= 0:
            socket_poll(s, EPOLL_CTL_MOD)


# ---------------------------------------------------------------------------- reading


cdef inline ssize_t stream_fill(Socket *s, int fd) noexcept nogil:
    """Read what there is; returns what read() did, -1 with ENOMEM if there is no memory. `fd`: the reading worker's
    copy of `s.fd`, which another worker may have reset already."""
    cdef ssize_t n
    if s.in_ == NULL:
        s.in_ = <uint8_t *> malloc(IN_ROOM)
        if s.in_ == NULL:
            return -1
    if s.in_first:
        memmove(s.in_, s.in_ + s.in_first, s.in_end - s.in_first)
        s.in_end -= s.in_first
        s.in_first = 0
    n = read(fd, s.in_ + s.in_end, IN_ROOM - s.in_end)
    if n > 0:
        s.in_end += n
    return n


cdef inline int32_t stream_next(Socket *s, const uint8_t **frame) noexcept nogil:
    """The length of the next frame; 0 if it is incomplete; -1 if the length is not that of a frame."""
    cdef uint32_t left = s.in_end - s.in_first
    cdef uint32_t length
    if left < PREFIX:
        return 0
    length = be32(s.in_ + s.in_first)
    if length == 0 or length > MAX_FRAME:
        return -1
    if left - PREFIX < length:
        return 0
    frame[0] = s.in_ + s.in_first + PREFIX
    s.in_first += PREFIX + length
    return length


# ---------------------------------------------------------------------------- writing


cdef inline int socket_tx(
    Socket *s, const uint8_t *buffer, uint32_t n, uint32_t *frames, uint64_t *bytes_
) noexcept nogil:
    """Send a frame with its virtio_net_hdr; returns its outcome. `frames`, `bytes_`: how much it became. What is no GSO
    frame is buffered until `socket_send`."""
    cdef Segmenter c
    cdef int outcome
    if not segmenter_parse(&c, buffer, n):
        return DROP_BAD_HEADER
    if not c.size and c.length > MAX_FRAME:
        return DROP_TOO_BIG
    frames[0] = c.count
    bytes_[0] = segmenter_bytes(&c)
    pthread_mutex_lock(&s.lock)
    if s.fd < 0:
        outcome = DROP_PORT_DOWN
    elif not socket_has_room(s, bytes_[0] + c.count * PREFIX):
        outcome = DROP_FULL
    elif not c.size:
        gather(s, &c)
        if s.out_end - s.out_first >= FLUSH_BYTES:
            out_send(s)
        outcome = TO_PORT
    else:
        outcome = segments_tx(s, &c)
    pthread_mutex_unlock(&s.lock)
    return outcome


cdef inline void socket_send(Socket *s) noexcept nogil:
    """Flush `out`."""
    pthread_mutex_lock(&s.lock)
    out_send(s)
    pthread_mutex_unlock(&s.lock)


cdef inline bint socket_has_room(Socket *s, uint64_t need) noexcept nogil:
    """Whether `out` has `need` bytes free at its end; to make room its contents are sent, then moved to the front."""
    if s.out_ == NULL:
        s.out_ = <uint8_t *> malloc(OUT_ROOM)
        if s.out_ == NULL:
            return False
    if s.out_end + need <= OUT_ROOM:
        return True
    out_send(s)
    if s.out_end - s.out_first + need > OUT_ROOM:
        return False
    memmove(s.out_, s.out_ + s.out_first, s.out_end - s.out_first)
    s.out_end -= s.out_first
    s.out_first = 0
    return True


cdef inline void put_prefix(uint8_t *p, uint32_t length) noexcept nogil:
    put16(p, length >> 16)
    put16(p + 2, length)


cdef inline void gather(Socket *s, const Segmenter *c) noexcept nogil:
    """Append a frame that is no GSO frame to `out`, which has room for it."""
    cdef uint8_t *p = s.out_ + s.out_end
    put_prefix(p, c.length)
    memcpy(p + PREFIX, c.frame, c.length)
    segmenter_complete(c, p + PREFIX)
    s.out_end += PREFIX + c.length


cdef inline void gather_segments(Socket *s, const Segmenter *c, uint32_t number) noexcept nogil:
    """Append a GSO frame's segments from `number` on to `out`, which has room for them."""
    cdef uint32_t payload
    cdef uint8_t *p
    while number < c.count:
        p = s.out_ + s.out_end
        payload = segmenter_payload(c, number)
        put_prefix(p, c.head + payload)
        segmenter_head(c, number, p + PREFIX)
        memcpy(p + PREFIX + c.head, c.frame + c.head + number * c.size, payload)
        s.out_end += PREFIX + c.head + payload
        number += 1


cdef inline int segments_tx(Socket *s, const Segmenter *c) noexcept nogil:
    """Send a GSO frame's segments directly while `out` is empty, else through `out`, which has room for all of them."""
    cdef IovBatch batch
    cdef uint32_t number = 0
    cdef uint32_t count
    cdef int sent
    if s.out_first < s.out_end:
        out_send(s)
    while number < c.count and s.out_first == s.out_end:
        count = min(c.count - number, <uint32_t> IOV_BATCH)
        bind_iovecs(&batch, c, number, count, s.framing == STREAM)
        sent = iovs_stream(s, &batch, count) if s.framing == STREAM else iovs_packets(s, &batch, count)
        if sent < 0:
            return DROP_PORT_DOWN
        number += sent
        if <uint32_t> sent < count and s.out_first == s.out_end:
            break  # the socket is full, between two frames
    if number < c.count:
        if s.out_first == s.out_end:
            s.out_first = s.out_end = 0
        gather_segments(s, c, number)
    if s.out_end > s.out_first:
        socket_arm(s, True)
    return TO_PORT


cdef inline void bind_iovecs(
    IovBatch *batch, const Segmenter *c, uint32_t number, uint32_t count, bint prefixed
) noexcept nogil:
    """`count` segments from `number` on, two iovecs each: headers, written here, and the payload in the GSO frame."""
    cdef uint32_t before = PREFIX if prefixed else 0
    cdef uint32_t i, payload
    cdef uint8_t *head
    for i in range(count):
        payload = segmenter_payload(c, number + i)
        head = &batch.heads[i][PREFIX]
        put_prefix(head - PREFIX, c.head + payload)
        segmenter_head(c, number + i, head)
        batch.iovecs[2 * i].iov_base = head - before
        batch.iovecs[2 * i].iov_len = before + c.head
        batch.iovecs[2 * i + 1].iov_base = <void *> (c.frame + c.head + (number + i) * c.size)
        batch.iovecs[2 * i + 1].iov_len = payload


cdef inline int iovs_stream(Socket *s, const IovBatch *batch, uint32_t count) noexcept nogil:
    """How many segments are sent; of the last one a part may be left, which is in `out` then. -1: the peer is gone."""
    cdef msghdr message
    cdef size_t left
    cdef ssize_t n
    cdef uint32_t i
    memset(&message, 0, sizeof(message))
    message.msg_iov = <iovec *> batch.iovecs
    message.msg_iovlen = 2 * count
    n = sendmsg(s.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
    if n <= 0:
        return 0 if n == 0 or is_full() else -1
    left = n
    for i in range(2 * count):
        if left < batch.iovecs[i].iov_len:
            if i & 1 == 0 and left == 0:
                return i // 2
            s.out_first = s.out_end = 0
            keep(s, &batch.iovecs[i], left)
            if i & 1 == 0:
                keep(s, &batch.iovecs[i + 1], 0)
            return i // 2 + 1
        left -= batch.iovecs[i].iov_len
    return count


cdef inline void keep(Socket *s, const iovec *piece, size_t start) noexcept nogil:
    """Append to `out` what of a piece was not sent."""
    memcpy(s.out_ + s.out_end, <const uint8_t *> piece.iov_base + start, piece.iov_len - start)
    s.out_end += piece.iov_len - start


cdef inline int iovs_packets(Socket *s, const IovBatch *batch, uint32_t count) noexcept nogil:
    """How many segments are sent; -1: the peer is gone."""
    cdef mmsghdr messages[IOV_BATCH]
    cdef uint32_t i
    cdef int sent
    memset(messages, 0, count * sizeof(mmsghdr))
    for i in range(count):
        messages[i].msg_hdr.msg_iov = <iovec *> &batch.iovecs[2 * i]
        messages[i].msg_hdr.msg_iovlen = 2
    sent = sendmmsg(s.fd, messages, count, MSG_DONTWAIT | MSG_NOSIGNAL)
    return sent if sent >= 0 else 0 if is_full() else -1


cdef inline bint is_full() noexcept nogil:
    """Whether errno is that of a socket whose buffer is full."""
    return errno == EAGAIN or errno == ENOBUFS or errno == ENOMEM


cdef inline void out_send(Socket *s) noexcept nogil:
    """Send what is in `out`, as far as the socket takes it; if the peer is gone it is discarded."""
    cdef int32_t n = 0
    while s.fd >= 0 and s.out_first < s.out_end:
        n = out_stream(s) if s.framing == STREAM else out_packets(s)
        if n <= 0:
            break
        s.out_first += n
    if n < 0 or s.out_first == s.out_end:
        s.out_first = s.out_end = 0
    socket_arm(s, s.out_end > 0)
    if n < 0 and s.framing == STREAM and s.fd >= 0:
        shutdown(s.fd, SHUT_RDWR)  # a frame may have been sent in part: the peer must not read on


cdef inline int32_t out_stream(Socket *s) noexcept nogil:
    """Bytes sent, 0 if the socket is full, -1 if the peer is gone."""
    cdef ssize_t n = send(s.fd, s.out_ + s.out_first, s.out_end - s.out_first, MSG_DONTWAIT | MSG_NOSIGNAL)
    return n if n >= 0 else 0 if is_full() else -1


cdef inline int32_t out_packets(Socket *s) noexcept nogil:
    """Bytes of `out` that were sent, 0 if the socket is full, -1 if the peer is gone."""
    cdef mmsghdr messages[IOV_BATCH]
    cdef iovec iovecs[IOV_BATCH]
    cdef uint32_t at = s.out_first
    cdef int32_t done = 0
    cdef int count = 0
    cdef int sent, i
    while at < s.out_end and count < IOV_BATCH:
        iovecs[count].iov_base = s.out_ + at + PREFIX
        iovecs[count].iov_len = be32(s.out_ + at)
        at += PREFIX + iovecs[count].iov_len
        count += 1
    memset(messages, 0, count * sizeof(mmsghdr))
    for i in range(count):
        messages[i].msg_hdr.msg_iov = &iovecs[i]
        messages[i].msg_hdr.msg_iovlen = 1
    sent = sendmmsg(s.fd, messages, count, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        return 0 if is_full() else -1
    for i in range(sent):
        done += PREFIX + iovecs[i].iov_len
    return done
