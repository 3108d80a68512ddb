/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernels that the module is built for: 6.1 to 6.18.
 */
#ifndef IPVSW_COMPAT_H
#define IPVSW_COMPAT_H

#include <linux/device.h>
#include <linux/netdevice.h>
#include <linux/version.h>
#include <net/rtnetlink.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "ipvsw needs Linux 6.1 or newer"
#endif

static inline struct class *ipvsw_class_create(const char *name)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	return class_create(name);
#else
	return class_create(THIS_MODULE, name);
#endif
}

/* Transmission takes no lock of the core's: the ring of the tap has its own. */
static inline void ipvsw_set_lltx(struct net_device *dev)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	dev->lltx = true;
#else
	dev->features |= NETIF_F_LLTX;
#endif
}

/* Define rtnl_link_ops.newlink as @name, which calls @create with what both signatures have. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0)
#define IPVSW_DEFINE_NEWLINK(name, create)					\
static int name(struct net_device *dev, struct rtnl_newlink_params *params,	\
		struct netlink_ext_ack *extack)					\
{										\
	return create(rtnl_newlink_link_net(params), dev, params->tb,		\
		      params->data, extack);					\
}
#else
#define IPVSW_DEFINE_NEWLINK(name, create)					\
static int name(struct net *link_net, struct net_device *dev,			\
		struct nlattr *tb[], struct nlattr *data[],			\
		struct netlink_ext_ack *extack)					\
{										\
	return create(link_net, dev, tb, data, extack);				\
}
#endif

#endif /* IPVSW_COMPAT_H */
