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
#include "explain.h"
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
	if (skb->vlan_present || (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)))
		return left(NOT_IP);
	return !may_be_dhcp(skb) || left(MAYBE_DHCP);
}

/* Whether the kernel may decide about a frame to the MAC address of its device. */
static __always_inline int is_fast(struct __sk_buff *skb)
{
	if (!(setting(FAST_RULES) & FAST_ON))
		return left(UNDECIDED);
	return skb->pkt_type == PACKET_HOST ? is_plain(skb) : left(OTHER_MAC);
}

/* The port that has the address, if it takes frames from the kernel. */
static __always_inline struct fast_port *fast_receiver(__u32 owned)
{
	__u32 key = owned >> OWNER_SHIFT;
	struct fast_port *port = key ? bpf_map_lookup_elem(&fast_ports, &key) : 0;

	if (port && (port->flags & (FAST_UP | FAST_RECEIVES)) == (FAST_UP | FAST_RECEIVES))
		return port;
	left(NO_RECEIVER);
	return 0;
}

static __always_inline void count_rx(__u32 key, __u32 bytes, int to_master)
{
	struct fast_counts *counts = TRACING ? 0 : bpf_map_lookup_elem(&fast_counts, &key);

	if (counts) {
		counts->rx_frames++;
		counts->rx_bytes += bytes;
		counts->to_master += to_master;
	}
}

static __always_inline void count_tx(__u32 key, __u32 bytes)
{
	struct fast_counts *counts = TRACING ? 0 : bpf_map_lookup_elem(&fast_counts, &key);

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
	explain(FORWARDED, to);
	count_rx(from, skb->len, 0);
	count_tx(to, skb->len);
	skb->mark = 0; /* the host's own rules may use marks */
	return to_endpoint(to, port->flags);
}

static __always_inline struct fast_port *this_port(struct __sk_buff *skb)
{
	__u32 key = skb->ifindex;

	return bpf_map_lookup_elem(&fast_ports, &key);
}

static __always_inline int to_daemon(const struct fast_port *from, enum fast_reason reason)
{
	left(reason);
	return bpf_redirect(from->other, 0);
}

/* To the wire, unless the daemon is to find out why it can't. */
static __always_inline int fast_to_master(struct __sk_buff *skb, const struct fast_port *from)
{
	__u32 master = setting(MASTER_IFINDEX), mtu = 0;

	if (!master)
		return to_daemon(from, NO_MASTER);
	if (bpf_check_mtu(skb, master, &mtu, 0, 0))
		return to_daemon(from, TOO_LONG);
	explain(FORWARDED, THE_MASTER);
	count_rx(skb->ifindex, skb->len, 1);
	count_tx(THE_MASTER, skb->len);
	skb->mark = WIRE_MARK;
	return bpf_redirect(master, 0);
}

/* To a sibling, as `deliver_to_sibling` of decide.pxd. */
static __always_inline int fast_to_sibling(struct __sk_buff *skb, const struct fast_port *from)
{
	struct address to = {};
	struct fast_port *port;
	__u32 *owned;

	destination(skb, &to);
	owned = to.family ? owned_value(&to) : 0;
	if (!owned)
		return to_daemon(from, NO_OWNER);
	port = fast_receiver(*owned);
	if (!port)
		return to_daemon(from, NO_RECEIVER);
	if (!skb->gso_size && skb->len > port->mtu + ETH_VLAN_HLEN)
		return to_daemon(from, TOO_LONG);
	return fast_to_port(skb, skb->ifindex, *owned >> OWNER_SHIFT, port);
}

/* What becomes of a frame at the ingress of a host end. */
static __always_inline int decide_from_port(struct __sk_buff *skb)
{
	struct fast_port *from = this_port(skb);
	__u32 rules = setting(FAST_RULES), flag = rules >> FAST_FLAG_SHIFT & 3;

	if (!from)
		return TC_ACT_SHOT;
	if (!(rules & FAST_ON))
		return to_daemon(from, UNDECIDED);
	if (!(from->flags & FAST_SENDS))
		return to_daemon(from, RESTRICTED);
	if (!is_plain(skb))
		return bpf_redirect(from->other, 0);
	if (to_group(skb))
		return to_daemon(from, TO_GROUP);
	if ((rules >> FAST_MODE_SHIFT & 3) == L2) {
		if (flag == VEPA || !to_own_mac(skb))
			return rules & FAST_HOST_ACCESS && skb->pkt_type == PACKET_HOST ? to_daemon(from, MAYBE_TO_HOST)
											: fast_to_master(skb, from);
	}
	if (flag != BRIDGE)
		return to_daemon(from, KEPT_APART);
	if (skb->pkt_type != PACKET_HOST)
		return to_daemon(from, OTHER_MAC);
	return fast_to_sibling(skb, from);
}

#endif
