// SPDX-License-Identifier: GPL-2.0
/*
 * The master: filter, steal and inject.
 *
 * A packet socket gets a copy of each frame, so the host's stack would process the ports' frames as well, and a
 * frame sent on the master always leaves on the wire. Three programs solve that, by one rule, `to_port`:
 *
 *   receive:  packet sockets (filter: is the frame worth waking the daemon?) -> clsact ingress (steal: drop it before
 *             the host's stack)
 *   transmit: clsact egress (inject: redirect a marked frame to ingress, so that the host receives it on the master)
 *
 * The rule repeats the data plane's (decide_from_master in ipvsw/datapath/rules/decide.pxd): a frame is stolen if and
 * only if the data plane delivers it.
 *
 * They fail open: a daemon that was killed leaves the programs and the addresses, but its heartbeat ends, and from
 * PATIENCE_NS on the host has its network as if there were no programs.
 */
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include "lib/fast.h"
#include "lib/maps.h"
#include "lib/packet.h"
#include "lib/steal.h"

#define ICMP_TIME_EXCEEDED 11
#define ICMPV6_TIME_EXCEEDED 3

/* Groups whose packets the data plane switches in l3 and l3s. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(key_size, sizeof(struct address));
	__uint(value_size, sizeof(__u32));
} groups SEC(".maps");

/* Run by the daemon every second: by the kernel's clock, as the daemon's may be another (time_namespaces(7)). */
SEC("syscall")
int ipvsw_beat(void *context)
{
	__u32 first = 0;
	__u64 now = bpf_ktime_get_ns();

	(void)context;
	return bpf_map_update_elem(&heartbeat, &first, &now, 0);
}

/* In l3 and l3s: whether the packet is for a group that is switched there. */
static __always_inline int to_switched_group(struct __sk_buff *skb)
{
	struct address to = {};

	if (!to_ip_group(skb))
		return 0;
	to.family = skb->protocol == bpf_htons(ETH_P_IP) ? 4 : 6;
	if (to.family == 4 ? bpf_skb_load_bytes(skb, ETH_HLEN + 16, to.bytes, 4) :
			     bpf_skb_load_bytes(skb, ETH_HLEN + 24, to.bytes, 16))
		return 0;
	return bpf_map_lookup_elem(&groups, &to) != 0;
}

/*
 * On the daemon's receiving sockets: the whole frame or none. What is for no one port's address has the shared MAC
 * address as well: replies to DHCP clients and to ARP probes, packets for groups. Of these the host gets a copy too.
 */
SEC("socket")
int ipvsw_filter(struct __sk_buff *skb)
{
	__u32 *owned;

	if (skb->mark == MARK)
		return 0;
	if (to_vlan_device(skb))
		return 0;
	if (setting(MODE) == L2 && to_group(skb))
		return -1;
	owned = to_port(skb);
	if (owned && *owned >> OWNER_SHIFT && setting(FAST_RULES) & FAST_RESUMING)
		return 0;
	if (owned)
		return is_fast(skb) && fast_receiver(*owned) ? 0 : -1;
	if (setting(MODE) != L2)
		return to_switched_group(skb) ? -1 : 0;
	return to_dhcp_client(skb) || answers_arp_probe(skb) || to_ip_group(skb) ? -1 : 0;
}

/* Master, clsact ingress. What needs no daemon goes on without its heartbeat. */
SEC("tc")
int ipvsw_steal(struct __sk_buff *skb)
{
	return steal(skb);
}

/* In l3s the host forwards to the ports, which the kernel's driver does not: its time-exceeded errors reveal a hop. */
static __always_inline int reveals_hop(struct __sk_buff *skb)
{
	struct address to = {};
	__u8 protocol, type;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		/* The kernel's own errors have no options: ICMP at 20, the packet that it is about at 28. */
		if (bpf_skb_load_bytes(skb, ETH_HLEN + 9, &protocol, 1) || protocol != IPPROTO_ICMP ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + 20, &type, 1) || type != ICMP_TIME_EXCEEDED ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + 28 + 16, to.bytes, 4))
			return 0;
		to.family = 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + 6, &protocol, 1) || protocol != IPPROTO_ICMPV6 ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + 40, &type, 1) || type != ICMPV6_TIME_EXCEEDED ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + 48 + 24, to.bytes, 16))
			return 0;
		to.family = 6;
	}
	return to.family && owned_value(&to);
}

/* Whether the host's own frame is for a port, and not for where the host's routes lead. */
static __always_inline int is_diverted(struct __sk_buff *skb)
{
	struct address to = {};
	__u32 *flags;

	destination(skb, &to);
	flags = to.family ? owned_value(&to) : 0;
	return flags && *flags & DIVERTED;
}

/* Master, clsact egress: what the host itself sends, and the ports' frames with a mark. In l3 and l3s the host's routes
 * lead its unicast to the ports. */
SEC("tc")
int ipvsw_inject(struct __sk_buff *skb)
{
	__u8 mac[ETH_ALEN];
	__u32 interface;

	if (skb->mark == MARK)
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	if (setting(MODE) == L3S && reveals_hop(skb))
		return TC_ACT_SHOT;
	interface = setting(HOST_IFINDEX);
	if (!interface || skb->mark == WIRE_MARK || !is_alive())
		return TC_ACT_OK;
	if (setting(MODE) != L2) {
		if (setting(FAST_RULES) & FAST_HOST_ACCESS && !skb->vlan_present && to_switched_group(skb))
			bpf_clone_redirect(skb, interface, 0);
		return TC_ACT_OK;
	}
	if (to_group(skb)) {
		bpf_clone_redirect(skb, interface, 0);
		return TC_ACT_OK;
	}
	if (!to_own_mac(skb)) {
		if (!is_diverted(skb))
			return TC_ACT_OK;
		/* One that the host's routes lead to a gateway: the port has the MAC address that it comes from. */
		if (bpf_skb_load_bytes(skb, ETH_ALEN, mac, sizeof(mac)) || bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
			return TC_ACT_OK;
	}
	return bpf_redirect(interface, 0);
}

char _license[] SEC("license") = "GPL";
