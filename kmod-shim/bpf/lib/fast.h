/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the kernel decides by itself: unicast to a port of kind veth, and from one to a sibling or the wire. The rules are
 * those of ipvsw/datapath/rules/decide.pxd, for frames that are plainly within them; every other frame, and every one
 * that is to be dropped, is the daemon's to decide.
 */
#ifndef IPVSW_FAST_H
#define IPVSW_FAST_H

#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include "maps.h"
#include "packet.h"

#define ETH_VLAN_HLEN 18
#define DHCP_SERVER 67
#define DHCP6_CLIENT 546
#define DHCP6_SERVER 547

/* A message that the daemon reads on its way, or what may be one. */
static __always_inline int may_be_dhcp(struct __sk_buff *skb)
{
	__u8 head[4];
	__u16 port;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + 9, head, 1) || head[0] != IPPROTO_UDP)
			return 0;
		if (bpf_skb_load_bytes(skb, ETH_HLEN, head, 1) || head[0] != 0x45 ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + 22, &port, 2))
			return 1;
		return port == bpf_htons(DHCP_CLIENT) || port == bpf_htons(DHCP_SERVER);
	}
	if (bpf_skb_load_bytes(skb, ETH_HLEN + 6, head, 1) || head[0] != IPPROTO_UDP)
		return 0;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + 42, &port, 2))
		return 1;
	return port == bpf_htons(DHCP6_CLIENT) || port == bpf_htons(DHCP6_SERVER);
}

/* Untagged IP, and nothing that the daemon reads. */
static __always_inline int is_plain(struct __sk_buff *skb)
{
	return !skb->vlan_present &&
	       (skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6)) && !may_be_dhcp(skb);
}

/* Whether the kernel may decide about a frame to the MAC address of its device. */
static __always_inline int is_fast(struct __sk_buff *skb)
{
	return setting(FAST_RULES) & FAST_ON && skb->pkt_type == PACKET_HOST && is_plain(skb);
}

/* The port that has the address, if it takes frames from the kernel. */
static __always_inline struct fast_port *fast_receiver(__u32 owned)
{
	__u32 key = owned >> OWNER_SHIFT;
	struct fast_port *port = key ? bpf_map_lookup_elem(&fast_ports, &key) : 0;

	return port && (port->flags & (FAST_UP | FAST_RECEIVES)) == (FAST_UP | FAST_RECEIVES) ? port : 0;
}

static __always_inline void count_rx(__u32 key, __u32 bytes, int to_master)
{
	struct fast_counts *counts = bpf_map_lookup_elem(&fast_counts, &key);

	if (counts) {
		counts->rx_frames++;
		counts->rx_bytes += bytes;
		counts->to_master += to_master;
	}
}

static __always_inline void count_tx(__u32 key, __u32 bytes)
{
	struct fast_counts *counts = bpf_map_lookup_elem(&fast_counts, &key);

	if (counts) {
		counts->tx_frames++;
		counts->tx_bytes += bytes;
	}
}

/* Into the endpoint's namespace, as if received there. `redirect_peer` goes to other namespaces only. */
static __always_inline int to_endpoint(__u32 host_end, __u32 flags)
{
	return flags & FAST_SAME_NETNS ? bpf_redirect(host_end, 0) : bpf_redirect_peer(host_end, 0);
}

/* From a host end or THE_MASTER to the port of this key. */
static __always_inline int fast_to_port(struct __sk_buff *skb, __u32 from, __u32 to, const struct fast_port *port)
{
	count_rx(from, skb->len, 0);
	count_tx(to, skb->len);
	skb->mark = 0; /* the host's own rules may use marks */
	return to_endpoint(to, port->flags);
}

#endif
