/* SPDX-License-Identifier: GPL-2.0 */
/* Which frames on the master are ports', and what becomes of those at its ingress. */
#ifndef IPVSW_STEAL_H
#define IPVSW_STEAL_H

#include "fast.h"

#define PATIENCE_NS 5000000000ULL /* without a heartbeat; docs/security.md and the tests have the same */
#define VLAN_WORDS 64
#define VLAN_VID_MASK 0xFFF

/* VLANs with a device of their own on the master: bits of 802.1Q, then those of 802.1ad. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * VLAN_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} vlans SHARED;

/* When the daemon was last alive, ns since boot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SHARED;

/* Whether the daemon is. The coarse clock is behind the other by a tick, so that a beat may be in its future. */
static __always_inline int is_alive(void)
{
	__u32 first = 0;
	__u64 *last = bpf_map_lookup_elem(&heartbeat, &first);

	return last && bpf_ktime_get_coarse_ns() < *last + PATIENCE_NS;
}

/* Whether the frame is a VLAN device's of the host, which has it before a driver's receive handler could. */
static __always_inline int to_vlan_device(struct __sk_buff *skb)
{
	__u32 vid = skb->vlan_tci & VLAN_VID_MASK;
	__u32 word = vid / 64 + (skb->vlan_proto == bpf_htons(ETH_P_8021AD) ? VLAN_WORDS : 0);
	__u64 *bits;

	if (!skb->vlan_present)
		return 0;
	bits = bpf_map_lookup_elem(&vlans, &word);
	return bits && *bits >> (vid % 64) & 1;
}

/* What the map says of the destination, if a port owns it. In l3s the host's stack forwards to the ports: nothing is
 * stolen. */
static __always_inline __u32 *to_port(struct __sk_buff *skb)
{
	struct address to = {};

	if (setting(MODE) == L3S || to_vlan_device(skb))
		return 0;
	destination(skb, &to);
	return to.family ? owned_value(&to) : 0;
}

/* What becomes of a frame at ingress, by the rule of `to_port`. */
static __always_inline int steal(struct __sk_buff *skb)
{
	struct fast_port *port;
	__u32 *owned;

	if (skb->mark == MARK) {
		skb->mark = 0; /* the host's own rules may use marks */
		return TC_ACT_OK;
	}
	if (skb->pkt_type == PACKET_LOOPBACK || (to_group(skb) && setting(MODE) == L2)) {
		left(TO_GROUP);
		return TC_ACT_OK;
	}
	owned = to_port(skb);
	if (!owned) {
		left(NO_OWNER);
		return TC_ACT_OK;
	}
	port = is_fast(skb) ? fast_receiver(*owned) : 0;
	if (port)
		return fast_to_port(skb, THE_MASTER, *owned >> OWNER_SHIFT, port);
	return is_alive() ? TC_ACT_SHOT : TC_ACT_OK;
}

#endif
