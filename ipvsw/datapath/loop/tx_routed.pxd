"""l3 frames for the outside: on the wire by the route cache, through the host's IP output, or to Python's router."""

from libc.errno cimport EACCES, EHOSTUNREACH, ENETUNREACH, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from ipvsw.datapath.loop.guards cimport note_offence
from ipvsw.datapath.rules.guard cimport is_on
from ipvsw.datapath.rules.outcome cimport DROP_BACKLOG, DROP_NO_ROUTE, GUARD_HOST, NO_OUTCOME, TO_SLOWPATH, TO_STACK
from ipvsw.datapath.rules.routecache cimport (
    BY_LOCAL_STACK, BY_NEXTHOP, UNREACHABLE, Route, ipv6_payload, route_find, route_rewrite, wire_length,
)
from ipvsw.datapath.loop.punt cimport queue_frame
from ipvsw.datapath.loop.state cimport CONTROL, HEADER, Worker
from ipvsw.datapath.kernel.sys cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_SPACE, IP_PKTINFO, IPPROTO_IP, IPPROTO_IPV6,
    IPV6_PKTINFO, MSG_DONTWAIT, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, cmsghdr, in6_pktinfo,
    in_pktinfo, iovec, mmsghdr, msghdr, sendmmsg, sendmsg, sockaddr_in, sockaddr_in6, virtio_net_hdr,
)
from ipvsw.datapath.loop.tx cimport queue_master_tx, tx_failure
from ipvsw.datapath.packet.headers cimport ETH_P_IP, Frame, frame_header, put16
from ipvsw.datapath.packet.segment cimport (
    HEAD, Segmenter, segmenter_complete, segmenter_head, segmenter_parse, segmenter_payload,
)

cdef enum:
    STACK_BATCH = 64  # packets in one system call

# What a raw socket is told with a packet.
cdef struct StackMessage:
    msghdr message
    uint8_t control[CONTROL]
    sockaddr_in to4
    sockaddr_in6 to6

# Segments for one system call.
cdef struct StackSegments:
    uint8_t heads[STACK_BATCH][HEAD]
    iovec pieces[STACK_BATCH][2]
    mmsghdr messages[STACK_BATCH]


cdef inline int route_tx(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """Where the host would route it; what is too long for the path's MTU is Python's, cached or not."""
    cdef virtio_net_hdr *header = frame_header(f)
    cdef Route *route = route_find(&w.routes, f)
    cdef int outcome
    if route == NULL:
        return route_slow(w, port, f)
    route.used = True
    if route.kind == UNREACHABLE:
        return DROP_NO_ROUTE
    if wire_length(f, header) > route.mtu:
        return route_slow(w, port, f)
    if route.kind == BY_NEXTHOP:
        route_rewrite(f, route, w.switch_.mac)
        queue_master_tx(w, port, f.data - HEADER, HEADER + f.length)
        return NO_OUTCOME
    if route.kind == BY_LOCAL_STACK and is_on(w.switch_.rules[port].guards, GUARD_HOST):
        note_offence(w, port, GUARD_HOST, f)
        return GUARD_HOST
    outcome = stack_tx(w, f)
    return outcome if outcome != NO_OUTCOME else route_slow(w, port, f)


cdef inline int route_slow(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """For the router, which takes milliseconds: few may wait."""
    return TO_SLOWPATH if queue_frame(w, &w.slow, &w.ports[port].slow, port, f) else DROP_BACKLOG


cdef inline int stack_tx(Worker *w, const Frame *f) noexcept nogil:
    """By a raw socket, which takes whole packets with complete checksums: what the sender has left to offloads is done
    here. NO_OUTCOME if its header contradicts itself, which the router counts."""
    cdef const virtio_net_hdr *header = frame_header(f)
    cdef Segmenter c
    cdef StackMessage m
    if header.gso_type == VIRTIO_NET_HDR_GSO_NONE and not header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return stack_send(w, f, &m)
    if not segmenter_parse(&c, f.data - HEADER, f.length + HEADER):
        return NO_OUTCOME
    if c.size:
        return stack_segments(w, f, &c, &m)
    segmenter_complete(&c, f.data)
    return stack_send(w, f, &m)


cdef inline void stack_address(const Worker *w, const Frame *f, StackMessage *m) noexcept nogil:
    """The master as output device and the packet's source as source: the host's policy rules see what they would see of
    the kernel's driver."""
    cdef msghdr *message = &m.message
    cdef cmsghdr *c
    memset(m, 0, sizeof(StackMessage))
    message.msg_control = m.control
    if f.ethertype == ETH_P_IP:
        message.msg_controllen = CMSG_SPACE(sizeof(in_pktinfo))
        c = CMSG_FIRSTHDR(message)
        c.cmsg_len = CMSG_LEN(sizeof(in_pktinfo))
        c.cmsg_level, c.cmsg_type = IPPROTO_IP, IP_PKTINFO
        (<in_pktinfo *> CMSG_DATA(c)).ipi_ifindex = w.master_index
        memcpy(&(<in_pktinfo *> CMSG_DATA(c)).ipi_spec_dst, f.l3 + 12, 4)
        m.to4.sin_family = AF_INET
        memcpy(&m.to4.sin_addr, f.l3 + 16, 4)
        message.msg_name, message.msg_namelen = &m.to4, sizeof(m.to4)
    else:
        message.msg_controllen = CMSG_SPACE(sizeof(in6_pktinfo))
        c = CMSG_FIRSTHDR(message)
        c.cmsg_len = CMSG_LEN(sizeof(in6_pktinfo))
        c.cmsg_level, c.cmsg_type = IPPROTO_IPV6, IPV6_PKTINFO
        (<in6_pktinfo *> CMSG_DATA(c)).ipi6_ifindex = w.master_index
        memcpy(&(<in6_pktinfo *> CMSG_DATA(c)).ipi6_addr, f.l3 + 8, 16)
        m.to6.sin6_family = AF_INET6
        memcpy(&m.to6.sin6_addr, f.l3 + 24, 16)
        message.msg_name, message.msg_namelen = &m.to6, sizeof(m.to6)


cdef inline int stack_fd(const Worker *w, const Frame *f) noexcept nogil:
    return w.stack_fds[0 if f.ethertype == ETH_P_IP else 1]


cdef inline int stack_send(Worker *w, const Frame *f, StackMessage *m) noexcept nogil:
    """A packet as it is."""
    cdef iovec packet
    packet.iov_base = f.l3
    packet.iov_len = f.l3_length
    stack_address(w, f, m)
    m.message.msg_iov, m.message.msg_iovlen = &packet, 1
    if f.ethertype != ETH_P_IP:
        put16(f.l3 + 4, ipv6_payload(f))
    if sendmsg(stack_fd(w, f), &m.message, MSG_DONTWAIT) >= 0:
        return TO_STACK
    return stack_failure()


cdef inline int stack_segments(Worker *w, const Frame *f, const Segmenter *c, StackMessage *m) noexcept nogil:
    """A GSO frame's segments. It has been sent if all of them are."""
    cdef StackSegments s
    cdef uint32_t number = 0
    cdef uint32_t count
    cdef int sent
    stack_address(w, f, m)
    while number < c.count:
        count = min(c.count - number, <uint32_t> STACK_BATCH)
        bind_segments(&s, c, number, count, &m.message)
        sent = sendmmsg(stack_fd(w, f), s.messages, count, MSG_DONTWAIT)
        if sent <= 0:
            return stack_failure()
        number += sent
    return TO_STACK


cdef inline void bind_segments(
    StackSegments *s, const Segmenter *c, uint32_t number, uint32_t count, const msghdr *message
) noexcept nogil:
    """`count` packets from `number` on: headers, written here, and the payload in the GSO frame."""
    cdef uint32_t i
    for i in range(count):
        segmenter_head(c, number + i, s.heads[i])
        s.pieces[i][0] = iovec(&s.heads[i][c.ip.l3], c.head - c.ip.l3)
        s.pieces[i][1] = iovec(
            <void *> (c.frame + c.head + (number + i) * c.size), segmenter_payload(c, number + i))
        s.messages[i].msg_hdr = message[0]
        s.messages[i].msg_hdr.msg_iov, s.messages[i].msg_hdr.msg_iovlen = &s.pieces[i][0], 2


cdef inline int stack_failure() noexcept nogil:
    if errno == ENETUNREACH or errno == EHOSTUNREACH or errno == EACCES:
        return DROP_NO_ROUTE
    return tx_failure()
