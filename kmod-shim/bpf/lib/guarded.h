/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which frames of a port with guards the kernel may forward: those of which none of the guards in
 * ipvsw/datapath/rules/guard.pxd says anything, whichever are on. Of every other frame the daemon decides.
 */
#ifndef IPVSW_GUARDED_H
#define IPVSW_GUARDED_H

#include "fast.h"
#include "maps.h"
#include "packet.h"

#define IHL_20 0x45
#define FRAGMENT 0x3FFF /* MF, and the offset */
#define ICMP_ROUTER_ADVERTISEMENT 9
#define ICMPV6_ECHO_REPLY 129

/* To or from a port of DHCP's: two that a client or a server has. */
static __always_inline int is_dhcp_port(__u16 port, __u16 client, __u16 server)
{
	return port == bpf_htons(client) || port == bpf_htons(server);
}

static __always_inline int is_harmless_udp(struct __sk_buff *skb, __u32 at, __u16 client, __u16 server)
{
	__u16 ports[2];

	return !bpf_skb_load_bytes(skb, at, ports, sizeof(ports)) && !is_dhcp_port(ports[0], client, server) &&
	       !is_dhcp_port(ports[1], client, server);
}

/* An IPv4 packet without options that is no fragment. `from` becomes its source. */
static __always_inline int is_harmless_ipv4(struct __sk_buff *skb, struct address *from)
{
	__u8 head[20], type;
	__u16 total;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, head, sizeof(head)) || head[0] != IHL_20)
		return 0;
	total = (__u16)head[2] << 8 | head[3];
	if (total < 28 || total > skb->len - ETH_HLEN || ((__u16)head[6] << 8 | head[7]) & FRAGMENT)
		return 0;
	from->family = 4;
	__builtin_memcpy(from->bytes, head + 12, 4);
	if (head[9] == IPPROTO_UDP)
		return is_harmless_udp(skb, ETH_HLEN + 20, DHCP_CLIENT, DHCP_SERVER);
	return head[9] != IPPROTO_ICMP ||
	       (!bpf_skb_load_bytes(skb, ETH_HLEN + 20, &type, 1) && type != ICMP_ROUTER_ADVERTISEMENT);
}

/* TCP, UDP, echo requests and ICMPv6's other messages below them, right behind the header. */
static __always_inline int is_harmless_ipv6(struct __sk_buff *skb, struct address *from)
{
	__u8 head[24], type;
	__u16 payload;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, head, sizeof(head)) || head[0] >> 4 != 6)
		return 0;
	payload = (__u16)head[4] << 8 | head[5];
	if (payload < 8 || payload > skb->len - ETH_HLEN - 40)
		return 0;
	from->family = 6;
	__builtin_memcpy(from->bytes, head + 8, 16);
	if (head[6] == IPPROTO_UDP)
		return is_harmless_udp(skb, ETH_HLEN + 40, DHCP6_CLIENT, DHCP6_SERVER);
	return head[6] == IPPROTO_TCP || (head[6] == IPPROTO_ICMPV6 && !bpf_skb_load_bytes(skb, ETH_HLEN + 40, &type, 1) &&
					  type <= ICMPV6_ECHO_REPLY);
}

/* From the master's MAC address and an IP address of the port's own. The frame is_plain. */
static __always_inline int passes_guards(struct __sk_buff *skb)
{
	struct address from = {};
	__u32 first = 0, *owned;
	__u64 *mac = bpf_map_lookup_elem(&master_mac, &first);
	union {
		__u8 bytes[8];
		__u64 word;
	} source = {};

	if (!mac || bpf_skb_load_bytes(skb, ETH_ALEN, source.bytes, ETH_ALEN) || source.word != *mac)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP) ? !is_harmless_ipv4(skb, &from) : !is_harmless_ipv6(skb, &from))
		return 0;
	owned = owned_value(&from);
	return owned && *owned >> OWNER_SHIFT == skb->ifindex;
}

#endif
