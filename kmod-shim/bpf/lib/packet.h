/* SPDX-License-Identifier: GPL-2.0 */
/* What a frame says: its destination and its kind. No maps. A VLAN tag is in the skb's metadata, not in the frame. */
#ifndef IPVSW_PACKET_H
#define IPVSW_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define ARP_REPLY 2
#define DHCP_CLIENT 68
#define ND_NEIGHBOUR_SOLICITATION 135

struct address {
	__u32 family; /* 4 or 6; 0: none */
	__u8 bytes[16]; /* IPv4 in the first four */
};

/* The IP address that a frame is for, as in the kernel driver's ipvlan_addr_lookup. Family 0: it has none. */
static __always_inline void destination(struct __sk_buff *skb, struct address *to)
{
	union {
		__u8 bytes[40];
		__u64 words[5];
	} whole;
	__u8 *head = whole.bytes;
	__u16 total;

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		if (bpf_skb_load_bytes(skb, ETH_HLEN, head, 20))
			return;
		total = (__u16)head[2] << 8 | head[3];
		if (head[0] >> 4 != 4 || (head[0] & 15) < 5 || total < (head[0] & 15) * 4 || total > skb->len - ETH_HLEN)
			return;
		to->family = 4;
		__builtin_memcpy(to->bytes, head + 16, 4);
		return;
	case bpf_htons(ETH_P_IPV6):
		if (bpf_skb_load_bytes(skb, ETH_HLEN, head, 40) || head[0] >> 4 != 6)
			return;
		if (head[6] == IPPROTO_ICMPV6 && !(whole.words[1] | whole.words[2])) {
			__u8 type;

			/* From :: only a solicitation is for an address: its target. */
			if (bpf_skb_load_bytes(skb, ETH_HLEN + 40, &type, 1) || type != ND_NEIGHBOUR_SOLICITATION ||
			    bpf_skb_load_bytes(skb, ETH_HLEN + 48, to->bytes, 16))
				return;
		} else {
			__builtin_memcpy(to->bytes, head + 24, 16);
		}
		to->family = 6;
		return;
	case bpf_htons(ETH_P_ARP):
		if (bpf_skb_load_bytes(skb, ETH_HLEN + 24, to->bytes, 4))
			return;
		to->family = 4;
		return;
	}
}

/* A group-addressed frame, broadcast included, as in is_multicast_ether_addr(). */
static __always_inline int to_group(struct __sk_buff *skb)
{
	__u8 first;

	return !bpf_skb_load_bytes(skb, 0, &first, 1) && first & 1;
}

/* A packet for a group, or for everybody; its frame may be to a unicast MAC address: RFC 6085. */
static __always_inline int to_ip_group(struct __sk_buff *skb)
{
	__u8 to[4];

	if (skb->protocol == bpf_htons(ETH_P_IP) && !bpf_skb_load_bytes(skb, ETH_HLEN + 16, to, sizeof(to)))
		return to[0] >> 4 == 14 || (to[0] & to[1] & to[2] & to[3]) == 0xFF;
	return skb->protocol == bpf_htons(ETH_P_IPV6) && !bpf_skb_load_bytes(skb, ETH_HLEN + 24, to, 1) && to[0] == 0xFF;
}

/* A DHCP server's reply to a client, which may have no address yet. */
static __always_inline int to_dhcp_client(struct __sk_buff *skb)
{
	__u8 first, protocol;
	__u16 port;

	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, ETH_HLEN, &first, 1) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + 9, &protocol, 1) || protocol != IPPROTO_UDP ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + (first & 15) * 4 + 2, &port, 2))
		return 0;
	return port == bpf_htons(DHCP_CLIENT);
}

/* A reply to an ARP probe, whose sender has no address yet: RFC 5227 section 2.1.1. */
static __always_inline int answers_arp_probe(struct __sk_buff *skb)
{
	__u16 operation;
	__u32 target;

	return skb->protocol == bpf_htons(ETH_P_ARP) && !bpf_skb_load_bytes(skb, ETH_HLEN + 6, &operation, 2) &&
	       operation == bpf_htons(ARP_REPLY) && !bpf_skb_load_bytes(skb, ETH_HLEN + 24, &target, 4) && !target;
}

/* To and from the same MAC address: the host sends to a port, which shares its MAC. */
static __always_inline int to_own_mac(struct __sk_buff *skb)
{
	__u16 macs[6];

	return !bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)) && macs[0] == macs[3] && macs[1] == macs[4] &&
	       macs[2] == macs[5];
}

#endif
