// SPDX-License-Identifier: GPL-2.0
/* mute: on clsact ingress of a virtual machine's TAP, keeps its frames from the host's stack. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

/* The daemon's packet socket has had the frame by now. */
SEC("tc")
int ipvsw_mute(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
