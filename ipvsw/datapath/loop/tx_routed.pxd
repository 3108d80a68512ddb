"""l3 frames for the outside: on the wire by the route cache, through the host's IP output, or to Python's router."""

from libc.errno cimport EACCES, EHOSTUNREACH, ENETUNREACH, errno
from libc.stdint cimport int32_t, uint8_t
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
    in_pktinfo, iovec, msghdr, sendmsg, sockaddr_in, sockaddr_in6, virtio_net_hdr,
)
from ipvsw.datapath.loop.tx cimport queue_master_tx, tx_failure
from ipvsw.datapath.packet.headers cimport ETH_P_IP, Frame, frame_header, put16

cdef inline int route_tx(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """Where the host would route it; what is too long for the path's MTU is Python's, cached or not."""
    cdef virtio_net_hdr *header = frame_header(f)
    cdef Route *route = route_find(&w.routes, f)
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
    if header.gso_type != VIRTIO_NET_HDR_GSO_NONE or header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return route_slow(w, port, f)
    if route.kind == BY_LOCAL_STACK and is_on(w.switch_.rules[port].guards, GUARD_HOST):
        note_offence(w, port, GUARD_HOST, f)
        return GUARD_HOST
    return stack_tx(w, f)


cdef inline int route_slow(Worker *w, int32_t port, const Frame *f) noexcept nogil:
    """For the router, which takes milliseconds: few may wait."""
    return TO_SLOWPATH if queue_frame(w, &w.slow, &w.ports[port].slow, port, f) else DROP_BACKLOG


cdef inline int stack_tx(Worker *w, const Frame *f) noexcept nogil:
    """By a raw socket with the packet's own header, the master as output device and the packet's source as source: the
    host's policy rules see what they would see of the kernel's driver."""
    cdef uint8_t control[CONTROL]
    cdef sockaddr_in to4
    cdef sockaddr_in6 to6
    cdef iovec packet
    cdef msghdr message
    cdef cmsghdr *c
    memset(&message, 0, sizeof(message))
    memset(control, 0, sizeof(control))
    packet.iov_base = f.l3
    packet.iov_len = f.l3_length
    message.msg_iov = &packet
    message.msg_iovlen = 1
    message.msg_control = control
    if f.ethertype == ETH_P_IP:
        message.msg_controllen = CMSG_SPACE(sizeof(in_pktinfo))
        c = CMSG_FIRSTHDR(&message)
        c.cmsg_len = CMSG_LEN(sizeof(in_pktinfo))
        c.cmsg_level, c.cmsg_type = IPPROTO_IP, IP_PKTINFO
        (<in_pktinfo *> CMSG_DATA(c)).ipi_ifindex = w.master_index
        memcpy(&(<in_pktinfo *> CMSG_DATA(c)).ipi_spec_dst, f.l3 + 12, 4)
        memset(&to4, 0, sizeof(to4))
        to4.sin_family = AF_INET
        memcpy(&to4.sin_addr, f.l3 + 16, 4)
        message.msg_name, message.msg_namelen = &to4, sizeof(to4)
    else:
        put16(f.l3 + 4, ipv6_payload(f))
        message.msg_controllen = CMSG_SPACE(sizeof(in6_pktinfo))
        c = CMSG_FIRSTHDR(&message)
        c.cmsg_len = CMSG_LEN(sizeof(in6_pktinfo))
        c.cmsg_level, c.cmsg_type = IPPROTO_IPV6, IPV6_PKTINFO
        (<in6_pktinfo *> CMSG_DATA(c)).ipi6_ifindex = w.master_index
        memcpy(&(<in6_pktinfo *> CMSG_DATA(c)).ipi6_addr, f.l3 + 8, 16)
        memset(&to6, 0, sizeof(to6))
        to6.sin6_family = AF_INET6
        memcpy(&to6.sin6_addr, f.l3 + 24, 16)
        message.msg_name, message.msg_namelen = &to6, sizeof(to6)
    if sendmsg(w.stack_fds[0 if f.ethertype == ETH_P_IP else 1], &message, MSG_DONTWAIT) >= 0:
        return TO_STACK
    if errno == ENETUNREACH or errno == EHOSTUNREACH or errno == EACCES:
        return DROP_NO_ROUTE
    return tx_failure()
