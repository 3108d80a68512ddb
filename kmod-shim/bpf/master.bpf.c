// SPDX-License-Identifier: GPL-2.0
/*
 * What userspace cannot do on the master: steal, inject, filter; and, there and on ports, spread.
 *
 * A packet socket gets a copy of each frame, so the host's stack would process the ports' frames as well, and a
 * frame sent on the master always leaves on the wire. Three programs close that gap; `mine` is the one rule:
 *
 *   receive:  packet sockets (filter: is it worth waking the daemon?) -> clsact ingress (steal: keep it from the host)
 *   transmit: clsact egress (inject: turn a marked frame round, so that the host receives it on the master)
 *
 * The rule repeats the data plane's (ipvsw/_decide.pxd, receive path): a frame is stolen if and only if the data
 * plane delivers it. They fail open: without a daemon the map is empty of owners or the programs are gone.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MARK 0x69707677 /* SO_MARK of the injecting socket; shim.py has the same */
#define WIRE_MARK 0x69707678 /* of the sockets that send the ports' frames on the wire */
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define DHCP_CLIENT 68
#define ICMP_TIME_EXCEEDED 11
#define ICMPV6_TIME_EXCEEDED 3
#define ND_NEIGHBOUR_SOLICITATION 135

enum mode { L2, L3, L3S };

struct address {
	__u32 family; /* 4 or 6; 0: none */
	__u8 bytes[16]; /* IPv4 in the first four */
};

/* The owned addresses. A map can't grow: the daemon puts a larger one in its place. */
struct addresses {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct address)); /* clang leaves out the type of a map in a map */
	__uint(value_size, sizeof(__u32));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct addresses);
} owned SEC(".maps");

/* What the switch is set to. */
enum setting {
	MODE,
	HOST_IFINDEX, /* interface index of the host's own interface to the ports, 0: it has none */
	SETTINGS
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SETTINGS);
	__type(key, __u32);
	__type(value, __u32);
} settings SEC(".maps");

/* The address that a frame is for, as the kernel driver's ipvlan_addr_lookup has it; a VLAN tag is off already. */
static __always_inline void destination(struct __sk_buff *skb, struct address *to)
{
	union {
		__u8 bytes[40];
		__u64 words[5];
	} whole;
	__u8 *head = whole.bytes;
	__u16 total;

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		if (bpf_skb_load_bytes(skb, ETH_HLEN, head, 20))
			return;
		total = (__u16)head[2] << 8 | head[3];
		if (head[0] >> 4 != 4 || (head[0] & 15) < 5 || total < (head[0] & 15) * 4 || total > skb->len - ETH_HLEN)
			return;
		to->family = 4;
		__builtin_memcpy(to->bytes, head + 16, 4);
		return;
	case bpf_htons(ETH_P_IPV6):
		if (bpf_skb_load_bytes(skb, ETH_HLEN, head, 40) || head[0] >> 4 != 6)
			return;
		if (head[6] == IPPROTO_ICMPV6 && !(whole.words[1] | whole.words[2])) {
			__u8 type;

			/* From :: only a solicitation stands for an address: the one it asks about. */
			if (bpf_skb_load_bytes(skb, ETH_HLEN + 40, &type, 1) || type != ND_NEIGHBOUR_SOLICITATION ||
			    bpf_skb_load_bytes(skb, ETH_HLEN + 48, to->bytes, 16))
				return;
		} else {
			__builtin_memcpy(to->bytes, head + 24, 16);
		}
		to->family = 6;
		return;
	case bpf_htons(ETH_P_ARP):
		if (bpf_skb_load_bytes(skb, ETH_HLEN + 24, to->bytes, 4))
			return;
		to->family = 4;
		return;
	}
}

static __always_inline __u32 setting(__u32 which)
{
	__u32 *value = bpf_map_lookup_elem(&settings, &which);

	return value ? *value : 0;
}

static __always_inline int is_owned(const struct address *a)
{
	__u32 first = 0;
	void *addresses = bpf_map_lookup_elem(&owned, &first);

	return addresses && bpf_map_lookup_elem(addresses, a);
}

/* In l3s the host's own stack is on the way to every port. */
static __always_inline int mine(struct __sk_buff *skb)
{
	struct address to = {};

	if (setting(MODE) == L3S)
		return 0;
	destination(skb, &to);
	return to.family && is_owned(&to);
}

static __always_inline int to_group(struct __sk_buff *skb)
{
	__u8 first;

	return !bpf_skb_load_bytes(skb, 0, &first, 1) && first & 1;
}

/* A DHCP server's answer to a client that has no address yet: whose it is the daemon finds out. The host has it too. */
static __always_inline int to_dhcp_client(struct __sk_buff *skb)
{
	__u8 first, protocol;
	__u16 port;

	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, ETH_HLEN, &first, 1) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + 9, &protocol, 1) || protocol != IPPROTO_UDP ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + (first & 15) * 4 + 2, &port, 2))
		return 0;
	return port == bpf_htons(DHCP_CLIENT);
}

/* On the daemon's receiving sockets: the whole frame, or nothing. */
SEC("socket")
int ipvsw_filter(struct __sk_buff *skb)
{
	if (skb->mark == MARK)
		return 0;
	if ((setting(MODE) == L2 && to_group(skb)) || mine(skb))
		return -1;
	return setting(MODE) == L2 && to_dhcp_client(skb) ? -1 : 0;
}

/* Master, clsact ingress. */
SEC("tc")
int ipvsw_steal(struct __sk_buff *skb)
{
	if (skb->mark == MARK) {
		skb->mark = 0; /* the host's own rules may use marks */
		return TC_ACT_OK;
	}
	if (skb->pkt_type == PACKET_LOOPBACK || (to_group(skb) && setting(MODE) == L2))
		return TC_ACT_OK;
	return mine(skb) ? TC_ACT_SHOT : TC_ACT_OK;
}

/* Whether the host's stack talks to itself by the MAC that it shares with the ports: then it talks to a port. */
static __always_inline int to_own_mac(struct __sk_buff *skb)
{
	__u16 macs[6];

	return !bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)) && macs[0] == macs[3] && macs[1] == macs[4] &&
	       macs[2] == macs[5];
}

/* In l3s the host forwards to the ports, which the kernel's driver does not: nobody is to hear of a hop that isn't. */
static __always_inline int tells_of_hop(struct __sk_buff *skb)
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
	return to.family && is_owned(&to);
}

/* Master, clsact egress: what the host itself sends, and the ports' frames with a mark. */
SEC("tc")
int ipvsw_inject(struct __sk_buff *skb)
{
	__u32 interface;

	if (skb->mark == MARK)
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	if (setting(MODE) == L3S)
		return tells_of_hop(skb) ? TC_ACT_SHOT : TC_ACT_OK;
	interface = setting(HOST_IFINDEX);
	if (!interface || skb->mark == WIRE_MARK || setting(MODE) != L2)
		return TC_ACT_OK;
	if (to_group(skb)) {
		bpf_clone_redirect(skb, interface, 0);
		return TC_ACT_OK;
	}
	return to_own_mac(skb) || mine(skb) ? bpf_redirect(interface, 0) : TC_ACT_OK;
}

static __always_inline __u32 load(struct __sk_buff *skb, __u32 offset)
{
	__u32 word = 0;

	bpf_skb_load_bytes_relative(skb, offset, &word, sizeof(word), BPF_HDR_START_NET);
	return word;
}

/*
 * Which queue of a port's TAP, or which socket on the master, a frame is for, modulo how many there are. All frames of
 * a flow are for the same, whatever happens elsewhere: TCP by addresses and ports, and what may come in fragments,
 * most of which have no ports, by addresses alone.
 */
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
	sum = (sum ^ sum >> 16) * 0x7FEB352D; /* every bit of it counts in the lowest ones */
	sum = (sum ^ sum >> 15) * 0x846CA68B;
	return sum ^ sum >> 16;
}

/* On a virtual machine's TAP: its frames are the daemon's alone, whose packet socket has had them by now. */
SEC("tc")
int ipvsw_mute(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
