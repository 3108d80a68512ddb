"""The long virtio_net_hdr, which has words for the GSO frames of UDP tunnels (Linux 6.17).

A TAP that is asked for it has 24 bytes before each frame in the place of 10, struct virtio_net_hdr_v1_hash_tunnel.
Behind the functions here every frame has the short one right before it, and a tunnel's GSO frame says what a packet
socket would say of it (offload.pxd): wherever such frames come from, the data plane knows one kind of them.

A tunnel in a tunnel, GRE and IPIP the long header can't tell either.

Sources: virtio 1.4 section 5.1.6; `virtio_net_hdr_tnl_to_skb`, `virtio_net_hdr_tnl_from_skb` in the kernel.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from ipvsw.datapath.kernel.sys cimport be16, virtio_net_hdr
from ipvsw.datapath.packet.segment cimport Segmenter
from ipvsw.datapath.packet.tunnel cimport LAYER_IPV4, carries_datagrams

cdef enum:
    LONG_HEADER = 24  # bytes
    LONGER = 14  # than sizeof(struct virtio_net_hdr)
    OUTER_TRANSPORT = 20  # where it has the place of the outer UDP header
    INNER_NETWORK = 22  # and that of the inner IP header
    F_TUNNEL_CSUM = 0x08  # flags: the outer UDP header has a checksum
    GSO_TUNNEL_IPV4 = 0x20  # gso_type: the outer packet's kind
    GSO_TUNNEL_IPV6 = 0x40


cdef inline uint8_t *header_shorten(uint8_t *buffer) noexcept nogil:
    """Where the short header of a frame begins that was read with a long one."""
    cdef virtio_net_hdr header
    memcpy(&header, buffer, sizeof(header))
    header.flags &= ~F_TUNNEL_CSUM & 0xFF
    header.gso_type &= ~(GSO_TUNNEL_IPV4 | GSO_TUNNEL_IPV6) & 0xFF
    memcpy(buffer + LONGER, &header, sizeof(header))
    return buffer + LONGER


cdef inline void header_lengthen(const uint8_t *buffer, uint8_t *out) noexcept nogil:
    """The long header that says what the short one does. `out` may end where that ends."""
    memcpy(out, buffer, sizeof(virtio_net_hdr))
    memset(out + sizeof(virtio_net_hdr), 0, LONGER)


cdef inline void header_restore(uint8_t *buffer) noexcept nogil:
    """The short header once more, where a long one was made of it that ends where it ends."""
    memcpy(buffer, buffer - LONGER, sizeof(virtio_net_hdr))


cdef inline bint header_of_tunnel(const Segmenter *c, uint8_t *out) noexcept nogil:
    """The long header of a tunnel's GSO frame. False if there is none that describes it."""
    cdef virtio_net_hdr *header = <virtio_net_hdr *> out
    cdef uint16_t udp = <uint16_t> c.outer.layers[1].at
    cdef uint16_t inner = <uint16_t> c.ip.l3
    if not c.size or c.outer.n != 2 or not carries_datagrams(&c.outer):
        return False
    header_lengthen(c.frame - sizeof(virtio_net_hdr), out)
    header.gso_type |= GSO_TUNNEL_IPV4 if c.outer.layers[0].kind == LAYER_IPV4 else GSO_TUNNEL_IPV6
    header.flags |= F_TUNNEL_CSUM if be16(c.frame + udp + 6) else 0
    header.hdr_len = <uint16_t> c.head
    memcpy(out + OUTER_TRANSPORT, &udp, sizeof(udp))
    memcpy(out + INNER_NETWORK, &inner, sizeof(inner))
    return True
