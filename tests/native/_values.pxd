"""Values between the tests and the data plane's helpers, for both probes.

Every frame is copied to a heap block of exactly its size before it is looked at, so that under
AddressSanitizer a read of one byte too many is an error.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from ipvsw.datapath.packet.headers cimport IPV4, NO_ADDRESS, Address, ipv4_address, ipv6_address


cdef inline uint8_t *exact_copy(bytes frame) except NULL:
    cdef uint8_t *block = <uint8_t *> malloc(len(frame))
    if block == NULL:
        raise MemoryError
    memcpy(block, PyBytes_AS_STRING(frame), len(frame))
    return block


cdef inline Address address_from(bytes raw) except *:
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(raw)
    return ipv4_address(p) if len(raw) == 4 else ipv6_address(p)


cdef inline object address_bytes(const Address *a):
    if a.family == NO_ADDRESS:
        return None
    if a.family == IPV4:
        return int(a.lo).to_bytes(4, "big")
    return PyBytes_FromStringAndSize(<const char *> &a.hi, 8) + PyBytes_FromStringAndSize(<const char *> &a.lo, 8)
