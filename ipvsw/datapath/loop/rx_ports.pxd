"""Frames on their way in from ports and from the host: a burst is read from one interface, each frame forwarded before
the next is read.
"""

from libc.errno cimport EAGAIN, ECONNREFUSED, EINTR, EIO, ENETDOWN, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset
from posix.unistd cimport read

from ipvsw.datapath.kernel.sys cimport MSG_DONTWAIT, MSG_TRUNC, recv
from ipvsw.datapath.loop.forward cimport forward_from_host, forward_from_port
from ipvsw.datapath.loop.offload_fix cimport receive_from_port
from ipvsw.datapath.loop.state cimport (
    BURST, EVENT_GONE_BIT, HEADER, LONGEST, ROOM, UNIX_SOCKET, Worker, raise_event, unpoll_fd,
)
from ipvsw.datapath.loop.tx cimport drop_read, master_tx, settle_captured
from ipvsw.datapath.packet.longheader cimport LONG_HEADER, header_shorten
from ipvsw.datapath.backends.unixsock cimport (
    DATAGRAMS, STREAM, Socket, socket_end, socket_send, stream_fill, stream_next,
)
from ipvsw.datapath.rules.outcome cimport DROP_BAD_HEADER, DROP_ERROR


cdef inline void port_rx(Worker *w, int32_t port) noexcept nogil:
    cdef uint32_t longer = w.ports[port].longer
    cdef uint8_t *buffer
    cdef ssize_t n
    cdef int _i
    if w.ports[port].backend == UNIX_SOCKET:
        socket_rx(w, port)
        return
    for _i in range(BURST):
        # Where the next frame for the wire would stay; any other leaves it free, and warm, for the next read.
        buffer = w.tx_buffers[w.tx_length] + ROOM
        n = read(w.ports[port].fd, buffer, LONG_HEADER + LONGEST)
        if n < HEADER + longer:
            if n >= 0:
                port_rx_over(w, port, 0)
            elif errno != EAGAIN:
                port_rx_over(w, port, errno)
            return
        if longer:
            buffer = header_shorten(buffer)
            n -= longer
        receive_from_port(w, port, buffer, n)
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
    """What one read brings: so many bytes at most before other interfaces have their turn."""
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
        forward_from_port(w, port, buffer, HEADER + length)
        if w.tx_length == BURST:
            master_tx(w)
    if length < 0:
        settle_captured(w)
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
            drop_read(w, port, buffer, HEADER + LONGEST, DROP_ERROR)
            continue
        forward_from_port(w, port, buffer, HEADER + n)
        if w.tx_length == BURST:
            master_tx(w)


cdef inline void socket_rx_failed(Worker *w, int32_t port, ssize_t n) noexcept nogil:
    """The end of the connection, an error, or a length that no frame has. A datagram socket reports a peer that has
    left, and is read on."""
    if n < 0 and (errno == EINTR or errno == ECONNREFUSED):
        return
    socket_end(w.ports[port].socket)
    raise_event(w, port, EVENT_GONE_BIT)


cdef inline bint port_rx_over(Worker *w, int32_t port, int error) noexcept nogil:
    """End of file (0), or an error: EBADFD once the device is gone, for good. A packet socket reports once that its
    device was set down. False if there will be more."""
    if error == EINTR or error == EIO or error == ENETDOWN:
        return False
    unpoll_fd(w, w.ports[port].fd)
    raise_event(w, port, EVENT_GONE_BIT)
    return True


cdef inline void host_rx(Worker *w) noexcept nogil:
    """What the host's stack sends to the ports, through a TAP of its own."""
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
        forward_from_host(w, buffer, n)
