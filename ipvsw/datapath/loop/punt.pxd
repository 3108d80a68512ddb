"""Punted frames, which Python must see first: DHCP, those with an address that a port isn't known to have, ARP
probes with their replies, and membership reports of ports that get every group.

Such a frame waits. Python does what follows from it, then reinjects it to the worker that read it (`Reinjected`): so
whatever answers it finds the address in the table. It is counted when it has come back. How much an interface may punt
is bounded: each frame costs a credit, which Python renews, and a frame that finds no credit left is forwarded unseen.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from ipvsw.datapath.rules.hostaccess cimport ipv4_transport
from ipvsw.datapath.rules.decide cimport L2, LEARN_LINK_LOCAL, switches_groups
from ipvsw.datapath.loop.state cimport (
    HEADER, MARKS, SLOW, SLOW_OCTETS, Held, Queue, Slow, Worker, punted_by, run_apart,
)
from ipvsw.datapath.kernel.sys cimport (
    add_i32, be16, be32, eventfd_write, load_i32, load_u32, load_u64, mix, or_u64, store_u32,
    unlikely,
)
from ipvsw.datapath.rules.table cimport table_find
from ipvsw.datapath.packet.headers cimport (
    ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ICMPV6_NEIGHBOUR_ADVERTISEMENT, IPPROTO_ICMPV6, IPPROTO_UDP, Address, Frame,
    frame_address, frame_destination, frame_is_membership_report, frame_received, ipv4_address, ipv6_address,
    ipv6_is_whole, is_priority_tagged,
)
from ipvsw.datapath.packet.payload cimport (
    ARP_LENGTH, ARP_REPLY, ARP_REQUEST, ARP_SENDER, ARP_TARGET, DHCP6_CLIENT, DHCP6_SERVER, DHCP_CLIENT, DHCP_SERVER,
)

cdef enum:
    BOOTP = 240  # bytes up to the end of the magic cookie (RFC 2131 section 3)
    COOKIE = 0x63825363
    LINK_LOCAL = 0xFE80 >> 6  # the first 10 bits of such an address (RFC 4291 section 2.4)
    FOR_DHCP = 8  # credits of a port that only DHCP may use
    MASTER_FOR_DHCP = 64  # the same of the master and of the host


cdef inline bint punt_new_address(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """Whether the frame of a port that learns waits. If it is DHCP it may have credits yet that others may not."""
    return is_new_address(w, port, f) and punt(w, &w.ports[port].credit, FOR_DHCP, port, f)


cdef inline int punt_report(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """Whether a membership report waits, of a port that gets every group: it tells which ones the port listens to."""
    return (switches_groups(&w.switch_) and frame_is_membership_report(f)
            and punt(w, &w.ports[port].credit, FOR_DHCP, port, f))


cdef inline bint punt_control(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """Whether the frame of a port, DHCP or about an ARP probe, waits."""
    return w.switch_.mode == L2 and unlikely(may_be_control(f)) and run_apart(punt_if_control, w, port, f)


cdef inline bint may_be_control(const Frame *f) noexcept nogil:
    """False for nearly all frames, and quickly."""
    if f.ethertype == ETH_P_IP:
        return is_dhcp4(f, False)
    return f.ethertype != ETH_P_IPV6 or is_dhcp6(f, False)


cdef inline int punt_if_control(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """Some credits are for DHCP alone."""
    if is_dhcp(f, False):
        return punt(w, &w.ports[port].credit, 0, port, f)
    return (f.ethertype == ETH_P_ARP and (is_arp_probe(f) or answers_arp_probe(f, w.switch_.mac))
            and punt(w, &w.ports[port].credit, FOR_DHCP, port, f))


cdef inline bint punt_to_port(Worker *w, int32_t source, const Frame *f) noexcept nogil:
    """The same for a frame from the master or from the host, whichever port it is for: a DHCP server's, or the reply
    to an ARP probe."""
    if w.switch_.mode != L2:
        return False
    if is_dhcp(f, True):
        return punt(w, &w.credit, 0, source, f)
    return answers_arp_probe(f, w.switch_.mac) and punt(w, &w.credit, MASTER_FOR_DHCP, source, f)


cdef inline bint punt(Worker *w, int32_t *credit, int32_t reserved, int32_t source, const Frame *f) noexcept nogil:
    """False if the source has no more than `reserved` credits left, or if too many frames wait."""
    if load_i32(credit) <= reserved or not queue_frame(w, &w.punted, punted_by(w, source), source, f):
        return False
    add_i32(credit, -1)
    return True


cdef inline bint queue_frame(Worker *w, Queue *q, Held *held, int32_t source, const Frame *f) noexcept nogil:
    """A copy for Python, with its virtio_net_hdr. False if there is no memory, or if the interface, of which `held`
    waits there, has as much as is left free."""
    cdef Slow *entry
    cdef int32_t n = <int32_t> (HEADER + f.length)
    cdef int32_t free_frames = <int32_t> (SLOW - (q.tail - load_u32(&q.head)))
    cdef int32_t free_octets = SLOW_OCTETS - load_i32(&q.octets)
    if load_i32(&held.frames) >= free_frames or load_i32(&held.octets) + n > free_octets:
        return False
    entry = &q.entries[q.tail % SLOW]
    entry.length = <uint32_t> n
    entry.frame = <uint8_t *> malloc(entry.length)
    if entry.frame == NULL:
        return False
    memcpy(entry.frame, f.data - HEADER, entry.length)
    entry.source = source
    add_i32(&held.frames, 1)
    add_i32(&held.octets, n)
    add_i32(&q.octets, n)
    store_u32(&q.tail, q.tail + 1)
    eventfd_write(w.notify_fd, 1)
    return True


cdef inline bint is_dhcp(const Frame *f, bint to_client) noexcept nogil:
    """Whether it may be DHCP; `to_client`: only a server's counts. Some networks give it a priority tag."""
    cdef Frame received
    if f.ethertype == ETH_P_IP:
        return is_dhcp4(f, to_client)
    if f.ethertype == ETH_P_IPV6:
        return is_dhcp6(f, to_client)
    if not is_priority_tagged(f):
        return False
    received = frame_received(f)
    return is_dhcp4(&received, to_client) or (received.ethertype == ETH_P_IPV6 and is_dhcp6(&received, to_client))


cdef inline bint is_dhcp6(const Frame *f, bint to_client) noexcept nogil:
    cdef uint32_t port
    if f.l3_length < 48 or f.l3[6] != IPPROTO_UDP or not ipv6_is_whole(f.l3, f.l3_length):
        return False
    port = be16(f.l3 + 42)
    return port == DHCP6_CLIENT or (port == DHCP6_SERVER and not to_client)


cdef inline bint is_dhcp4(const Frame *f, bint to_client) noexcept nogil:
    """A message for IPv4 has its cookie."""
    cdef uint32_t start
    cdef uint32_t port
    start = ipv4_transport(f, IPPROTO_UDP)
    if not start:
        return False
    port = be16(f.l3 + start + 2)
    if port != DHCP_CLIENT and (port != DHCP_SERVER or to_client):
        return False
    return f.l3_length >= start + 8 + BOOTP and be32(f.l3 + start + 8 + BOOTP - 4) == COOKIE


cdef inline bint is_arp_probe(const Frame *f) noexcept nogil:
    """Whether its sender asks if an address is free, and has none itself (RFC 5227 section 2.1.1). For ARP."""
    return f.l3_length >= ARP_LENGTH and be16(f.l3 + 6) == ARP_REQUEST and be32(f.l3 + ARP_SENDER + 6) == 0


cdef inline bint answers_arp_probe(const Frame *f, uint64_t mac) noexcept nogil:
    """Whether somebody who has that address says so to `mac`."""
    return (f.ethertype == ETH_P_ARP and frame_destination(f) == mac and f.l3_length >= ARP_LENGTH
            and be16(f.l3 + 6) == ARP_REPLY and be32(f.l3 + ARP_TARGET + 6) == 0)


cdef inline bint is_new_address(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """Whether the frame names an address that the port isn't known to have. One that it has is marked as used."""
    cdef bint link_local = w.switch_.rules[port].learn == LEARN_LINK_LOCAL
    cdef Address a
    if link_local and f.ethertype != ETH_P_IPV6:
        return False
    a = sender_of(f)
    if a.family == 0 or (a.hi == 0 and a.lo == 0) or (link_local and be16(<uint8_t *> &a.hi) >> 6 != LINK_LOCAL):
        return False
    if table_find(&w.switch_.table, &a) != port:
        return True
    mark(w.ports[port].marks, &a)
    return False


cdef inline Address sender_of(const Frame *f) noexcept nogil:
    """The address that the sender says to be its own; a probe (RFC 5227 section 2.1.1) is about its target, and so is
    a neighbour advertisement."""
    cdef Address a = frame_address(f, True)
    if f.ethertype == ETH_P_ARP and a.family and a.lo == 0:
        return ipv4_address(f.l3 + 24)
    if (f.ethertype == ETH_P_IPV6 and a.family and f.l3_length >= 64 and f.l3[6] == IPPROTO_ICMPV6
            and f.l3[7] == 255 and f.l3[40] == ICMPV6_NEIGHBOUR_ADVERTISEMENT):
        return ipv6_address(f.l3 + 48)
    return a


cdef inline void mark(uint64_t *marks, const Address *a) noexcept nogil:
    cdef uint64_t place = place_of(a)
    cdef uint64_t bit = <uint64_t> 1 << (place & 63)
    if not load_u64(&marks[place >> 6]) & bit:
        or_u64(&marks[place >> 6], bit)


cdef inline uint64_t place_of(const Address *a) noexcept nogil:
    """Of an address among the bits of a port's marks. Two may share one: then each keeps the other in use."""
    return mix(a.hi ^ 0x9E3779B97F4A7C15u, a.lo ^ 0xD6E8FEB86659FD93u) % (64 * MARKS)
