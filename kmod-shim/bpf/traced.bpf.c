// SPDX-License-Identifier: GPL-2.0
/*
 * What decides on the master and on host ends, once more: for `ipvsw trace`, which runs it on one frame where no traffic
 * passes. The same code with TRACING: it counts nothing, and says what becomes of the frame. Loaded when it is first
 * asked (ipvsw/linux/shim/traced.py).
 */
#define TRACING 1
#include "lib/fast.h"
#include "lib/steal.h"

SEC("?tc")
int ipvsw_traced_port(struct __sk_buff *skb)
{
	return decide_from_port(skb);
}

SEC("?tc")
int ipvsw_traced_steal(struct __sk_buff *skb)
{
	return steal(skb);
}

char _license[] SEC("license") = "GPL";
