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
 * wire: on clsact ingress of the TAP to which the daemon writes the GSO frames of tunnels, which it can't send with a
 * packet socket. Redirected to the wire.
 *
 * None lets a frame pass to the host's stack.
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

SEC("tc")
int ipvsw_port(struct __sk_buff *skb)
{
	return decide_from_port(skb);
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

SEC("tc")
int ipvsw_wire(struct __sk_buff *skb)
{
	__u32 master = setting(MASTER_IFINDEX), mtu = 0;

	if (!master || bpf_check_mtu(skb, master, &mtu, 0, BPF_MTU_CHK_SEGS))
		return TC_ACT_SHOT;
	skb->mark = WIRE_MARK;
	return bpf_redirect(master, 0);
}

char _license[] SEC("license") = "GPL";
