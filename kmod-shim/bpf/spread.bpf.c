// SPDX-License-Identifier: GPL-2.0
/*
 * spread: which queue of a port's TAP, or which socket on the master, a frame is for, modulo how many there are.
 *
 * All frames of a flow have the same reader. TCP is spread by addresses and ports; other protocols, whose packets may
 * be fragmented, most fragments without ports, by addresses alone.
 */
#include "lib/packet.h"

static __always_inline __u32 load(struct __sk_buff *skb, __u32 offset)
{
	__u32 word = 0;

	bpf_skb_load_bytes_relative(skb, offset, &word, sizeof(word), BPF_HDR_START_NET);
	return word;
}

SEC("socket")
int ipvsw_spread(struct __sk_buff *skb)
{
	__u32 sum = 0, i;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__u32 first = load(skb, 0), fragment = load(skb, 4), protocol = load(skb, 8);

		sum = load(skb, 12) ^ load(skb, 16);
		if ((bpf_ntohl(protocol) >> 16 & 0xFF) == IPPROTO_TCP && !(bpf_ntohl(fragment) & 0x3FFF))
			sum ^= load(skb, (bpf_ntohl(first) >> 24 & 15) * 4);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		for (i = 0; i < 8; i++)
			sum ^= load(skb, 8 + 4 * i);
		if ((bpf_ntohl(load(skb, 4)) >> 8 & 0xFF) == IPPROTO_TCP)
			sum ^= load(skb, 40);
	}
	sum = (sum ^ sum >> 16) * 0x7FEB352D; /* every bit affects the lowest ones */
	sum = (sum ^ sum >> 15) * 0x846CA68B;
	return sum ^ sum >> 16;
}

char _license[] SEC("license") = "GPL";
