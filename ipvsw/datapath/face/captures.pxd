"""The capture rings of a datapath, from the commit with which workers begin to write to them to that with which they
have ended."""

from libc.stdint cimport uint32_t

from ipvsw.datapath.mirror.ring cimport (
    RING_BYTES, RING_HEAD, Capture, Record, captures_close, captures_open,
)

import os

cdef struct Captures:
    Capture *rings  # one for each worker; NULL: nothing is captured
    int workers
    int fd  # the memfd that has them
    bint closing  # after the next commit nobody writes there


cdef inline Capture *captures_start(Captures *c, int workers) except NULL:
    cdef int error
    if c.rings != NULL:
        raise RuntimeError("frames are captured already")
    c.rings = captures_open(workers, &c.fd, &error)
    if c.rings == NULL:
        raise OSError(error, os.strerror(error))
    c.workers, c.closing = workers, False
    return c.rings


cdef inline void captures_end(Captures *c) noexcept:
    if c.rings != NULL:
        captures_close(c.rings, c.workers, c.fd)
    c.rings, c.closing = NULL, False


cdef inline void captures_committed(Captures *c) noexcept:
    if c.closing:
        captures_end(c)


cdef inline tuple capture_layout():
    return <uint32_t> RING_HEAD, <uint32_t> RING_BYTES, <uint32_t> sizeof(Record)
