"""The ring of a packet socket's received frames (TPACKET_V2), in memory that the kernel writes and the worker reads.

A frame stands in a slot with its virtio_net_hdr right before it. It is the worker's until the slot is given back, so
it can be changed and written on in place. A frame too long for a slot waits whole in the socket's queue, and its slot
says so: a GSO frame would otherwise need slots of 64 KiB, and frames of a full burst their place in the cache.
Sources: packet(7), the kernel's Documentation/networking/packet_mmap.rst, tpacket_rcv in net/packet/af_packet.c.
"""

from libc.stdint cimport uint8_t, uint32_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from ipvsw.datapath.kernel.sys cimport TP_STATUS_KERNEL, TP_STATUS_USER, load_u32, store_u32, tpacket2_hdr

cdef enum:
    SLOT = 2048  # bytes: an Ethernet frame and the kernel's notes of it
    SLOTS = 2048  # a power of two

cdef struct PacketRing:
    uint8_t *slots  # NULL: there is none
    uint32_t next  # the first slot that was not taken
    uint32_t held  # slots before it that were not given back


cdef inline void packets_map(PacketRing *r, int fd) noexcept nogil:
    """The ring of `fd`, where it has one of SLOTS times SLOT bytes."""
    cdef void *p = mmap(NULL, <size_t> SLOTS * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    r.slots = NULL if p == MAP_FAILED else <uint8_t *> p
    r.next = r.held = 0


cdef inline void packets_unmap(PacketRing *r) noexcept nogil:
    if r.slots != NULL:
        munmap(r.slots, <size_t> SLOTS * SLOT)
    r.slots = NULL
    r.held = 0


cdef inline tpacket2_hdr *packet_slot(const PacketRing *r, uint32_t number) noexcept nogil:
    return <tpacket2_hdr *> (r.slots + <size_t> (number & (SLOTS - 1)) * SLOT)


cdef inline uint32_t packets_waiting(const PacketRing *r, uint32_t most) noexcept nogil:
    """How many, counted up to `most`, which is less than SLOTS."""
    cdef uint32_t n = 0
    if r.slots == NULL:
        return 0
    while n < most and load_u32(&packet_slot(r, r.next + n).tp_status) & TP_STATUS_USER:
        n += 1
    return n


cdef inline tpacket2_hdr *packet_take(PacketRing *r) noexcept nogil:
    """The next of those that wait."""
    cdef tpacket2_hdr *slot = packet_slot(r, r.next)
    r.next += 1
    r.held += 1
    return slot


cdef inline void packets_release(PacketRing *r) noexcept nogil:
    """What was taken is the kernel's again."""
    while r.held:
        store_u32(&packet_slot(r, r.next - r.held).tp_status, TP_STATUS_KERNEL)
        r.held -= 1
