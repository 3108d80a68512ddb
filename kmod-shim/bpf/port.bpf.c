// SPDX-License-Identifier: GPL-2.0
/*
 * Ports. mute: on clsact ingress of a virtual machine's TAP, keeps its frames from the host's stack.
 *
 * A port of kind veth has two devices beside the master: the veth's host end, and a TAP that the daemon reads and
 * writes as if it were the endpoint.
 *
 *   from the endpoint: host end, clsact ingress (port: decided here, or redirected to the TAP, where the daemon reads it)
 *   from the daemon:   TAP, clsact ingress (feed: redirected to the endpoint)
 *
 * Neither lets a frame pass to the host's stack.
 */
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include "lib/fast.h"
#include "lib/maps.h"

/* The daemon's packet socket has had the frame by now. */
SEC("tc")
int ipvsw_mute(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_SHOT;
}

static __always_inline struct fast_port *this_port(struct __sk_buff *skb)
{
	__u32 key = skb->ifindex;

	return bpf_map_lookup_elem(&fast_ports, &key);
}

/* To the wire, unless the daemon is to find out why it can't. */
static __always_inline int fast_to_master(struct __sk_buff *skb, const struct fast_port *from)
{
	__u32 master = setting(MASTER_IFINDEX), mtu = 0;

	if (!master || bpf_check_mtu(skb, master, &mtu, 0, 0))
		return bpf_redirect(from->other, 0);
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
	port = owned ? fast_receiver(*owned) : 0;
	if (!port || (!skb->gso_size && skb->len > port->mtu + ETH_VLAN_HLEN))
		return bpf_redirect(from->other, 0);
	return fast_to_port(skb, skb->ifindex, *owned >> OWNER_SHIFT, port);
}

SEC("tc")
int ipvsw_port(struct __sk_buff *skb)
{
	struct fast_port *from = this_port(skb);
	__u32 rules = setting(FAST_RULES), flag = rules >> FAST_FLAG_SHIFT & 3;

	if (!from)
		return TC_ACT_SHOT;
	if (!(rules & FAST_ON) || !(from->flags & FAST_SENDS) || !is_plain(skb) || to_group(skb))
		return bpf_redirect(from->other, 0);
	if ((rules >> FAST_MODE_SHIFT & 3) == L2) {
		if (flag == VEPA || !to_own_mac(skb))
			return rules & FAST_HOST_ACCESS && skb->pkt_type == PACKET_HOST ? bpf_redirect(from->other, 0)
											: fast_to_master(skb, from);
	}
	if (flag != BRIDGE || skb->pkt_type != PACKET_HOST)
		return bpf_redirect(from->other, 0);
	return fast_to_sibling(skb, from);
}

SEC("tc")
int ipvsw_feed(struct __sk_buff *skb)
{
	struct fast_port *port = this_port(skb);

	if (!port)
		return TC_ACT_SHOT;
	/* A veth gives each frame the type that a driver would; `redirect_peer` keeps the one that it has here. */
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return bpf_redirect(port->other, 0);
	return to_endpoint(port->other, port->flags);
}

char _license[] SEC("license") = "GPL";
