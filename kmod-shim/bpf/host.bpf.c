// SPDX-License-Identifier: GPL-2.0
/*
 * errors: what the host may send to ports by its own interface without host_access. What it forwards arrived on a
 * device and passes; of what it says itself ICMP errors and TCP resets do, as REJECT in its OUTPUT chain sends them.
 */
#include "lib/packet.h"

#define TCP_RST 4
#define FRAGMENT_OFFSET 0x1FFF
#define ICMP6_INFORMATIONAL 128 /* RFC 4443 section 2.1 */

static __always_inline __u8 byte_at(struct __sk_buff *skb, __u32 offset)
{
	__u8 byte = 0;

	bpf_skb_load_bytes_relative(skb, offset, &byte, sizeof(byte), BPF_HDR_START_NET);
	return byte;
}

/* RFC 1122 section 3.2.2, without the redirect: that is about a way, and no answer. */
static __always_inline int is_icmp_error(__u8 type)
{
	return type == 3 || type == 4 || type == 11 || type == 12;
}

SEC("socket")
int ipvsw_errors(struct __sk_buff *skb)
{
	__u32 transport = 40;
	__u16 fragment = 0;
	__u8 protocol;
	int error = 0;

	if (skb->ingress_ifindex)
		return skb->len;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		transport = (byte_at(skb, 0) & 15) * 4;
		protocol = byte_at(skb, 9);
		if (bpf_skb_load_bytes_relative(skb, 6, &fragment, sizeof(fragment), BPF_HDR_START_NET) ||
		    fragment & bpf_htons(FRAGMENT_OFFSET))
			return 0;
		error = protocol == IPPROTO_ICMP && is_icmp_error(byte_at(skb, transport));
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		protocol = byte_at(skb, 6);
		error = protocol == IPPROTO_ICMPV6 && byte_at(skb, transport) < ICMP6_INFORMATIONAL;
	} else {
		return 0;
	}
	return error || (protocol == IPPROTO_TCP && byte_at(skb, transport + 13) & TCP_RST) ? skb->len : 0;
}

char _license[] SEC("license") = "GPL";
