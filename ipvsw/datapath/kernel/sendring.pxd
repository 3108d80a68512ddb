"""The ring of a packet socket from which short frames are sent (TPACKET_V2), in memory that the kernel reads.

A frame that is copied there costs the kernel 300 ns less than one of a sendmmsg(), which looks at each message anew and
fetches header and frame from us one by one. Who sends waits for nothing on this socket: one that receives wakes for
every frame that it has sent whoever waits for it. Only frames that need nobody's consent: the kernel doesn't compare
what is in a ring with the device's MTU.
Sources: packet(7), the kernel's Documentation/networking/packet_mmap.rst, tpacket_snd in net/packet/af_packet.c.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from ipvsw.datapath.kernel.sys cimport (
    MSG_DONTWAIT, TP_STATUS_AVAILABLE, TP_STATUS_SEND_REQUEST, TP_STATUS_SENDING, TP_STATUS_WRONG_FORMAT,
    VIRTIO_NET_HDR_GSO_NONE, load_u32, send, store_u32, tpacket2_hdr, virtio_net_hdr,
)

cdef enum:
    SEND_SLOT = 128  # bytes
    SEND_SLOTS = 512  # a power of two: a device may still have some of them when the next frames come
    SEND_DATA = 32  # where the virtio_net_hdr of a slot begins: TPACKET2_HDRLEN - sizeof(struct sockaddr_ll)
    SHORTEST = 10 + 14  # bytes, with the virtio_net_hdr: an Ethernet header
    SHORT = SHORTEST + 68  # no link that carries IPv4 has a smaller MTU (RFC 791, section 3.2)
    TAKEN = TP_STATUS_SEND_REQUEST | TP_STATUS_SENDING | TP_STATUS_WRONG_FORMAT  # what a free slot has none of

cdef struct SendRing:
    uint8_t *slots  # NULL: there is none
    int fd
    uint32_t next  # slot that the kernel sends from next
    uint32_t count  # frames that stand there


cdef inline void send_ring_map(SendRing *r, int fd) noexcept nogil:
    """The ring of `fd`, where it has one of SEND_SLOTS times SEND_SLOT bytes that nobody has sent from."""
    cdef void *p = mmap(NULL, <size_t> SEND_SLOTS * SEND_SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    r.slots = NULL if p == MAP_FAILED else <uint8_t *> p
    r.fd = fd
    r.next = r.count = 0


cdef inline void send_ring_unmap(SendRing *r) noexcept nogil:
    if r.slots != NULL:
        munmap(r.slots, <size_t> SEND_SLOTS * SEND_SLOT)
    r.slots = NULL


cdef inline tpacket2_hdr *send_slot(const SendRing *r, uint32_t number) noexcept nogil:
    return <tpacket2_hdr *> (r.slots + <size_t> (number & (SEND_SLOTS - 1)) * SEND_SLOT)


cdef inline bint send_ring_put(SendRing *r, const uint8_t *buffer, uint32_t n) noexcept nogil:
    """A frame with its header, n bytes, behind those that stand there. False if it is none for the ring, or if the
    next slot is not free."""
    cdef tpacket2_hdr *slot = send_slot(r, r.next + r.count)
    cdef virtio_net_hdr *header = <virtio_net_hdr *> (<uint8_t *> slot + SEND_DATA)
    if n < SHORTEST or n > SHORT or (<const virtio_net_hdr *> buffer).gso_type != VIRTIO_NET_HDR_GSO_NONE:
        return False
    if load_u32(&slot.tp_status) & TAKEN:
        return False
    memcpy(header, buffer, n)
    # The kernel copies so much; what is behind it would stay in the ring until the frame has left for good, and be
    # copied at greater expense where it is not to stay.
    header.hdr_len = n - sizeof(virtio_net_hdr)
    slot.tp_len = n
    store_u32(&slot.tp_status, TP_STATUS_SEND_REQUEST)
    r.count += 1
    return True


cdef inline uint32_t send_ring_send(SendRing *r, int *error) noexcept nogil:
    """Send what stands there. Returns how many frames the device took. `error` is the errno of the one behind them, 0
    if that was not refused; it and all others have left the ring."""
    cdef uint32_t sent = 0
    cdef uint32_t i
    error[0] = errno if send(r.fd, NULL, 0, MSG_DONTWAIT) < 0 else 0
    while sent < r.count and not (
            load_u32(&send_slot(r, r.next + sent).tp_status) & (TP_STATUS_SEND_REQUEST | TP_STATUS_WRONG_FORMAT)):
        sent += 1
    for i in range(sent, r.count):
        store_u32(&send_slot(r, r.next + i).tp_status, TP_STATUS_AVAILABLE)
    r.next += sent
    r.count = 0
    return sent
