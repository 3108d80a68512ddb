/* SPDX-License-Identifier: GPL-2.0 */
/* What the daemon tells the programs: the owned addresses, the switch's settings, the ports of kind veth. */
#ifndef IPVSW_MAPS_H
#define IPVSW_MAPS_H

#include "packet.h"

#define MARK 0x69707677 /* SO_MARK of the injecting socket; ipvsw/linux/bpf.py has the same */
#define WIRE_MARK 0x69707678 /* of what sends the ports' frames on the wire */
#define SHARED __weak SEC(".maps") /* several objects have it, the linker makes one of them */

enum mode { L2, L3, L3S };
enum flag { BRIDGE, PRIVATE, VEPA };

/* What the map says of an owned address. */
enum owned_flag {
	DIVERTED = 1, /* the host's own traffic to it is the port's too */
	OWNER_SHIFT = 1 /* the rest: the port's key in `fast_ports`, 0: it isn't there */
};

/* The owned addresses. A map can't grow: the daemon replaces it with a larger one. */
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
} owned SHARED;

/* The switch's configuration. */
enum setting {
	MODE,
	HOST_IFINDEX, /* of the host port, 0: there is none */
	FAST_RULES, /* enum fast_rules */
	MASTER_IFINDEX, /* 0: there is none */
	SETTINGS
};

/* By what the kernel may decide: one word, so that no frame sees half a change. 0: by nothing. */
enum fast_rules {
	FAST_ON = 1,
	FAST_HOST_ACCESS = 2, /* frames to the master's MAC address may be for the host */
	FAST_MODE_SHIFT = 2,
	FAST_FLAG_SHIFT = 4,
	FAST_RESUMING = 64 /* on the master the last daemon's programs still forward to ports of kind veth */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SETTINGS);
	__type(key, __u32);
	__type(value, __u32);
} settings SHARED;

enum fast_flag {
	FAST_UP = 1,
	FAST_SENDS = 2, /* nothing is set for what it sends but what the programs know */
	FAST_RECEIVES = 4, /* the same for what it receives */
	FAST_SAME_NETNS = 8 /* its endpoint is in the master's namespace */
};

/* A port of kind veth, by the index of its veth's host end, or of its TAP. */
struct fast_port {
	__u32 other; /* the index of the other one */
	__u32 mtu;
	__u32 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct fast_port);
} fast_ports SHARED;

/* What the kernel has forwarded: by the index of a host end, or THE_MASTER. */
#define THE_MASTER 0

struct fast_counts {
	__u64 rx_frames; /* each ended at a port, but */
	__u64 rx_bytes;
	__u64 to_master; /* those */
	__u64 tx_frames;
	__u64 tx_bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct fast_counts);
} fast_counts SHARED;

static __always_inline __u32 setting(__u32 which)
{
	__u32 *value = bpf_map_lookup_elem(&settings, &which);

	return value ? *value : 0;
}

static __always_inline __u32 *owned_value(const struct address *a)
{
	__u32 first = 0;
	void *addresses = bpf_map_lookup_elem(&owned, &first);

	return addresses ? bpf_map_lookup_elem(addresses, a) : 0;
}

#endif
