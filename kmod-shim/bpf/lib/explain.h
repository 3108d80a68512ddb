/* SPDX-License-Identifier: GPL-2.0 */
/* What a program says of its decision. Nothing in those that frames meet: it is for those of traced.bpf.c. */
#ifndef IPVSW_EXPLAIN_H
#define IPVSW_EXPLAIN_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef TRACING
#define TRACING 0
#endif

/* ipvsw/linux/shim/traced.py has the same. */
enum fast_reason {
	FORWARDED,
	UNDECIDED, /* FAST_ON is not set */
	RESTRICTED, /* FAST_SENDS is not set */
	NOT_IP, /* or it has a VLAN tag */
	MAYBE_DHCP,
	TO_GROUP,
	MAYBE_TO_HOST,
	NO_MASTER,
	TOO_LONG,
	KEPT_APART, /* by the flag */
	OTHER_MAC, /* not to the master's */
	NO_OWNER, /* of the destination */
	NO_RECEIVER /* the owner is no veth, is down, or FAST_RECEIVES is not set */
};

struct traced {
	__u32 reason;
	__u32 to; /* of one that is forwarded: its key in `fast_counts` */
};

#if TRACING
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct traced);
} traced SEC(".maps");

static __always_inline void explain(enum fast_reason reason, __u32 to)
{
	struct traced said = {.reason = reason, .to = to};
	__u32 first = 0;

	bpf_map_update_elem(&traced, &first, &said, 0);
}
#else
static __always_inline void explain(enum fast_reason reason __attribute__((unused)), __u32 to __attribute__((unused)))
{
}
#endif

/* The frame is the daemon's or the host's, because of that. */
static __always_inline int left(enum fast_reason reason)
{
	explain(reason, 0);
	return 0;
}

#endif
