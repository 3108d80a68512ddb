"""The rings of a packet socket (TPACKET_V2), memory that kernel and worker share: one to receive in, one to send from.

A received frame stands in a slot with its virtio_net_hdr right before it. The slot is the worker's until it is
released, so the frame can be changed and written on in place. A frame too long for a slot waits whole in the socket's
queue, and its slot says so: a GSO frame would otherwise need slots of 64 KiB, and frames of a full burst their place in
the cache.

A frame that is copied into the ring to send from costs the kernel 300 ns less than one of a sendmmsg(), which reads
each message anew and copies header and frame one by one. That ring has a socket of its own: one that receives wakes its
reader for every frame that it has sent. It is for short frames alone: the kernel doesn't compare what is in a ring with
the device's MTU.

Sources: packet(7), the kernel's Documentation/networking/packet_mmap.rst, tpacket_rcv and tpacket_snd in
net/packet/af_packet.c.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from ipvsw.datapath.kernel.sys cimport (
    MSG_DONTWAIT, TP_STATUS_AVAILABLE, TP_STATUS_KERNEL, TP_STATUS_SENDING, TP_STATUS_SEND_REQUEST, TP_STATUS_USER,
    TP_STATUS_WRONG_FORMAT, VIRTIO_NET_HDR_GSO_NONE, load_u32, send, store_u32, tpacket2_hdr, virtio_net_hdr,
)

# ---------------------------------------------------------------------------- receiving

cdef enum:
    SLOT = 2048  # bytes: an Ethernet frame and the kernel's notes of it
    SLOTS = 2048  # a power of two

cdef struct PacketRing:
    uint8_t *slots  # NULL: there is none
    uint32_t next  # the first slot that was not taken
    uint32_t held  # slots before it that the kernel has not got back


cdef inline void packets_map(PacketRing *r, int fd, uint32_t start) noexcept nogil:
    """The ring of `fd`, where it has one of SLOTS times SLOT bytes; `start` is the slot that is taken first."""
    cdef void *p = mmap(NULL, <size_t> SLOTS * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    r.slots = NULL if p == MAP_FAILED else <uint8_t *> p
    r.next = start
    r.held = 0


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


# ---------------------------------------------------------------------------- sending

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
    """The ring of `fd`, where it has one of SEND_SLOTS times SEND_SLOT bytes that is unused so far."""
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
