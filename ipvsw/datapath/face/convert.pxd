"""Values between Python and the data plane. Errors: ValueError for bytes that are no address."""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport free

from ipvsw.datapath.kernel.sys cimport add_i32, load_u32, mac48, store_u32
from ipvsw.datapath.loop.state cimport FROM_GONE, SLOW, Held, Queue, Slow, Worker, punted_by
from ipvsw.datapath.packet.headers cimport IPV4, Address, ipv4_address, ipv6_address
from ipvsw.datapath.rules.decide cimport GROUPS


cdef inline list queue_take(Worker *w, Queue *q):
    """(source, frame) of all that wait."""
    cdef Slow *entry
    cdef Held *held
    found = []
    while q.head != load_u32(&q.tail):
        entry = &q.entries[q.head % SLOW]
        found.append((entry.source, (<const char *> entry.frame)[:entry.length]))
        free(entry.frame)
        if entry.source != FROM_GONE:
            held = &w.ports[entry.source].slow if q == &w.slow else punted_by(w, entry.source)
            add_i32(&held.frames, -1)
            add_i32(&held.octets, -<int32_t> entry.length)
        add_i32(&q.octets, -<int32_t> entry.length)
        store_u32(&q.head, q.head + 1)
    return found


cdef inline int check(int result) except -1:
    if result < 0:
        PyErr_SetFromErrno(OSError)
    return result


cdef inline Address as_address(bytes raw) except *:
    if len(raw) == 4:
        return ipv4_address(<const uint8_t *> PyBytes_AS_STRING(raw))
    if len(raw) == 16:
        return ipv6_address(<const uint8_t *> PyBytes_AS_STRING(raw))
    raise ValueError(f"an address has 4 or 16 bytes, not {len(raw)}")


cdef inline bytes address_of(const Address *a):
    if a.family == IPV4:
        return int(a.lo).to_bytes(4, "big")
    return (<const char *> a)[:16]


cdef inline bytes packed_groups(groups):
    """Addresses of groups, one behind the other."""
    cdef Address a
    packed = b""
    if len(groups) > GROUPS:
        raise ValueError(f"at most {GROUPS} groups, not {len(groups)}")
    for raw in groups:
        a = as_address(raw)
        packed += (<const char *> &a)[:sizeof(a)]
    return packed


cdef inline uint64_t as_mac(bytes raw) except? 0:
    if len(raw) != 6:
        raise ValueError(f"a MAC address has 6 bytes, not {len(raw)}")
    return mac48(<const uint8_t *> PyBytes_AS_STRING(raw))
