// SPDX-License-Identifier: GPL-2.0
/*
 * ipvsw - network devices of one master that a switch in user space serves
 *
 * `ip link add link eth0 name ipvl0 type ipvsw` makes an Ethernet device that looks and moves
 * between namespaces as one of kind ipvlan. What is sent on it can be read from a character device
 * of the kernel's tap library, and what is written there is received on it. Which frame goes where
 * is decided by the process that reads and writes there.
 *
 * The one thing that is decided here is what only the kernel can do in time: an address that
 * another device of the same master has is refused when it is added.
 */
#include <linux/cdev.h>
#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/hashtable.h>
#include <linux/idr.h>
#include <linux/if_arp.h>
#include <linux/if_link.h>
#include <linux/if_tap.h>
#include <linux/inetdevice.h>
#include <linux/jhash.h>
#include <linux/module.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <net/addrconf.h>
#include <net/if_inet6.h>
#include <net/net_namespace.h>

#include "compat.h"
#include "ipvsw.h"

#define IPVSW_NAME "ipvsw"
#define IPVSW_HASH_BITS 8
#define IPVSW_ID_MIN 1		/* of net_device.dev_id; 0 is the master's own */
#define IPVSW_ID_MAX 0xfffd
#define IPVSW_RESERVATION HZ	/* from the validator's consent until the stack has the address */

#define IPVSW_TAP_FEATURES (NETIF_F_HW_CSUM | NETIF_F_TSO | NETIF_F_TSO6 | NETIF_F_TSO_ECN)
#define IPVSW_FEATURES (NETIF_F_SG | NETIF_F_FRAGLIST | NETIF_F_HIGHDMA | NETIF_F_HW_CSUM | \
			NETIF_F_ALL_TSO | NETIF_F_GSO_UDP_L4 | NETIF_F_RXCSUM | NETIF_F_GRO)

/**
 * struct ipvsw_master - what all devices of one master share
 * @node: in ipvsw_masters, under RTNL
 * @dev: the master
 * @users: devices that hold this, also one that is being created
 * @links: devices in the order in which they were made, under RTNL
 * @ids: for net_device.dev_id, which keeps IPv6 interface identifiers apart
 * @mode: IPVLAN_MODE_*, as it was set last
 * @flags: IPVLAN_F_*, as they were set last
 * @configured: whether either was ever set; under RTNL as the two above
 * @lock: over @addrs: IPv6 addresses come and go without RTNL
 * @addrs: every address that a device has or is about to get
 */
struct ipvsw_master {
	struct list_head node;
	struct net_device *dev;
	refcount_t users;
	struct list_head links;
	struct ida ids;
	u16 mode;
	u16 flags;
	bool configured;
	spinlock_t lock;	/* see above */
	DECLARE_HASHTABLE(addrs, IPVSW_HASH_BITS);
};

/**
 * struct ipvsw_link - one device
 * @dev: itself
 * @lower: the master, held as long as it can be asked for
 * @tracker: of that reference
 * @master: what it shares with its siblings
 * @node: in ipvsw_master.links
 * @tap: its character device
 */
struct ipvsw_link {
	struct net_device *dev;
	struct net_device *lower;
	netdevice_tracker tracker;
	struct ipvsw_master *master;
	struct list_head node;
	struct tap_dev tap;
};

/**
 * struct ipvsw_addr - an address and the device that has it
 * @node: in ipvsw_master.addrs
 * @link: the device
 * @value: the address; an IPv4 address is a mapped one (::ffff:a.b.c.d)
 * @confirmed: the stack has it; before, it is reserved for a while
 * @since: when it was reserved, in jiffies
 */
struct ipvsw_addr {
	struct hlist_node node;
	struct ipvsw_link *link;
	struct in6_addr value;
	bool confirmed;
	unsigned long since;
};

static LIST_HEAD(ipvsw_masters);
static struct class *ipvsw_class;
static struct cdev ipvsw_cdev;
static dev_t ipvsw_major;

static const struct net_device_ops ipvsw_netdev_ops;

static bool ipvsw_is_link(const struct net_device *dev)
{
	return dev->netdev_ops == &ipvsw_netdev_ops;
}

/* ---------------------------------------------------------------- addresses */

static u32 ipvsw_hash(const struct in6_addr *value)
{
	return jhash2(value->s6_addr32, 4, 0);
}

static struct ipvsw_addr *ipvsw_find(struct ipvsw_master *master, const struct in6_addr *value)
{
	struct ipvsw_addr *addr;

	hash_for_each_possible(master->addrs, addr, node, ipvsw_hash(value))
		if (ipv6_addr_equal(&addr->value, value))
			return addr;
	return NULL;
}

static struct ipvsw_addr *ipvsw_insert(struct ipvsw_link *link, const struct in6_addr *value)
{
	struct ipvsw_addr *addr = kzalloc(sizeof(*addr), GFP_ATOMIC);

	if (!addr)
		return NULL;
	addr->link = link;
	addr->value = *value;
	addr->since = jiffies;
	hash_add(link->master->addrs, &addr->node, ipvsw_hash(value));
	return addr;
}

static void ipvsw_remove(struct ipvsw_addr *addr)
{
	hash_del(&addr->node);
	kfree(addr);
}

/*
 * May the device have this address? If so it is reserved at once. The stack may still fail to add
 * it, and reports that to no notifier: the reservation expires.
 */
static int ipvsw_reserve(struct ipvsw_link *link, const struct in6_addr *value,
			 struct netlink_ext_ack *extack)
{
	struct ipvsw_master *master = link->master;
	struct ipvsw_addr *addr;
	int err = 0;

	spin_lock_bh(&master->lock);
	addr = ipvsw_find(master, value);
	if (addr && !addr->confirmed &&
	    (addr->link == link || time_after(jiffies, addr->since + IPVSW_RESERVATION))) {
		ipvsw_remove(addr);
		addr = NULL;
	}
	if (addr) {
		NL_SET_ERR_MSG(extack, "Address already assigned to an ipvsw device");
		err = -EADDRINUSE;
	} else if (!ipvsw_insert(link, value)) {
		err = -ENOMEM;
	}
	spin_unlock_bh(&master->lock);
	return err;
}

/* The stack has the address now, whether a validator was asked (as it is not for SLAAC) or not. */
static void ipvsw_confirm(struct ipvsw_link *link, const struct in6_addr *value)
{
	struct ipvsw_master *master = link->master;
	struct ipvsw_addr *addr;

	spin_lock_bh(&master->lock);
	addr = ipvsw_find(master, value);
	if (!addr)
		addr = ipvsw_insert(link, value);
	if (addr && addr->link == link)
		addr->confirmed = true;
	else if (addr)
		net_warn_ratelimited("%s: %s and %s have the address %pI6c\n", IPVSW_NAME,
				     netdev_name(link->dev), netdev_name(addr->link->dev), value);
	spin_unlock_bh(&master->lock);
}

static void ipvsw_release(struct ipvsw_link *link, const struct in6_addr *value)
{
	struct ipvsw_master *master = link->master;
	struct ipvsw_addr *addr;

	spin_lock_bh(&master->lock);
	addr = ipvsw_find(master, value);
	if (addr && addr->link == link)
		ipvsw_remove(addr);
	spin_unlock_bh(&master->lock);
}

static void ipvsw_release_all(struct ipvsw_link *link)
{
	struct ipvsw_master *master = link->master;
	struct ipvsw_addr *addr;
	struct hlist_node *next;
	int bucket;

	spin_lock_bh(&master->lock);
	hash_for_each_safe(master->addrs, bucket, next, addr, node)
		if (addr->link == link)
			ipvsw_remove(addr);
	spin_unlock_bh(&master->lock);
}

static int ipvsw_addr_event(struct net_device *dev, unsigned long event,
			    const struct in6_addr *value)
{
	if (!ipvsw_is_link(dev))
		return NOTIFY_DONE;
	if (event == NETDEV_UP)
		ipvsw_confirm(netdev_priv(dev), value);
	else if (event == NETDEV_DOWN)
		ipvsw_release(netdev_priv(dev), value);
	return NOTIFY_OK;
}

static int ipvsw_addr4_validate(struct notifier_block *unused, unsigned long event, void *ptr)
{
	struct in_validator_info *info = ptr;
	struct net_device *dev = info->ivi_dev->dev;
	struct in6_addr value;

	if (event != NETDEV_UP || !ipvsw_is_link(dev))
		return NOTIFY_DONE;
	ipv6_addr_set_v4mapped(info->ivi_addr, &value);
	return notifier_from_errno(ipvsw_reserve(netdev_priv(dev), &value, info->extack));
}

static int ipvsw_addr4_event(struct notifier_block *unused, unsigned long event, void *ptr)
{
	struct in_ifaddr *ifa = ptr;
	struct in6_addr value;

	ipv6_addr_set_v4mapped(ifa->ifa_address, &value);
	return ipvsw_addr_event(ifa->ifa_dev->dev, event, &value);
}

static struct notifier_block ipvsw_addr4_validator = { .notifier_call = ipvsw_addr4_validate };
static struct notifier_block ipvsw_addr4_notifier = { .notifier_call = ipvsw_addr4_event };

#if IS_ENABLED(CONFIG_IPV6)
static int ipvsw_addr6_validate(struct notifier_block *unused, unsigned long event, void *ptr)
{
	struct in6_validator_info *info = ptr;
	struct net_device *dev = info->i6vi_dev->dev;

	if (event != NETDEV_UP || !ipvsw_is_link(dev))
		return NOTIFY_DONE;
	return notifier_from_errno(ipvsw_reserve(netdev_priv(dev), &info->i6vi_addr,
						 info->extack));
}

static int ipvsw_addr6_event(struct notifier_block *unused, unsigned long event, void *ptr)
{
	struct inet6_ifaddr *ifa = ptr;

	return ipvsw_addr_event(ifa->idev->dev, event, &ifa->addr);
}

static struct notifier_block ipvsw_addr6_validator = { .notifier_call = ipvsw_addr6_validate };
static struct notifier_block ipvsw_addr6_notifier = { .notifier_call = ipvsw_addr6_event };
#endif

static void ipvsw_watch_addresses(void)
{
	register_inetaddr_notifier(&ipvsw_addr4_notifier);
	register_inetaddr_validator_notifier(&ipvsw_addr4_validator);
#if IS_ENABLED(CONFIG_IPV6)
	register_inet6addr_notifier(&ipvsw_addr6_notifier);
	register_inet6addr_validator_notifier(&ipvsw_addr6_validator);
#endif
}

static void ipvsw_unwatch_addresses(void)
{
#if IS_ENABLED(CONFIG_IPV6)
	unregister_inet6addr_validator_notifier(&ipvsw_addr6_validator);
	unregister_inet6addr_notifier(&ipvsw_addr6_notifier);
#endif
	unregister_inetaddr_validator_notifier(&ipvsw_addr4_validator);
	unregister_inetaddr_notifier(&ipvsw_addr4_notifier);
}

/* ---------------------------------------------------------------- masters */

static struct ipvsw_master *ipvsw_master_of(const struct net_device *dev)
{
	struct ipvsw_master *master;

	ASSERT_RTNL();
	list_for_each_entry(master, &ipvsw_masters, node)
		if (master->dev == dev)
			return master;
	return NULL;
}

static struct ipvsw_master *ipvsw_master_get(struct net_device *dev)
{
	struct ipvsw_master *master = ipvsw_master_of(dev);

	if (master) {
		refcount_inc(&master->users);
		return master;
	}
	master = kzalloc(sizeof(*master), GFP_KERNEL);
	if (!master)
		return NULL;
	master->dev = dev;
	refcount_set(&master->users, 1);
	INIT_LIST_HEAD(&master->links);
	ida_init(&master->ids);
	spin_lock_init(&master->lock);
	hash_init(master->addrs);
	list_add_tail(&master->node, &ipvsw_masters);
	return master;
}

/* The last device to leave may still be asked about its master: the structure stays, unlisted. */
static void ipvsw_master_leave(struct ipvsw_link *link)
{
	struct ipvsw_master *master = link->master;

	ida_free(&master->ids, link->dev->dev_id);
	list_del(&link->node);
	if (list_empty(&master->links))
		list_del(&master->node);
}

static void ipvsw_master_put(struct ipvsw_master *master)
{
	if (!refcount_dec_and_test(&master->users))
		return;
	ida_destroy(&master->ids);
	kfree(master);
}

static void ipvsw_set_noarp(struct ipvsw_link *link)
{
	unsigned int flags = link->dev->flags & ~IFF_NOARP;

	if (link->master->configured) {
		if (link->master->mode != IPVLAN_MODE_L2)
			flags |= IFF_NOARP;
		dev_change_flags(link->dev, flags, NULL);
	}
}

/* Mode and flags are the master's: every device of it shows them. */
static void ipvsw_set_mode(struct ipvsw_master *master, struct nlattr *data[])
{
	struct ipvsw_link *link;

	if (!data || (!data[IFLA_IPVSW_MODE] && !data[IFLA_IPVSW_FLAGS]))
		return;
	if (data[IFLA_IPVSW_MODE])
		master->mode = nla_get_u16(data[IFLA_IPVSW_MODE]);
	if (data[IFLA_IPVSW_FLAGS])
		master->flags = nla_get_u16(data[IFLA_IPVSW_FLAGS]);
	master->configured = true;
	list_for_each_entry(link, &master->links, node)
		ipvsw_set_noarp(link);
}

/* ---------------------------------------------------------------- frames */

/* The tap library finds a device's tap by the data of its rx_handler, which does nothing else. */
static rx_handler_result_t ipvsw_pass(struct sk_buff **skb)
{
	return RX_HANDLER_PASS;
}

/* Whether a frame was written to the character device: it comes with the queue's own socket. */
static bool ipvsw_was_written(const struct ipvsw_link *link, const struct sk_buff *skb)
{
	int queues = min(READ_ONCE(link->tap.numvtaps), MAX_TAP_QUEUES);
	const struct tap_queue *queue;
	int i;

	if (!skb->sk)
		return false;
	for (i = 0; i < queues; i++) {
		queue = rcu_access_pointer(link->tap.taps[i]);
		if (queue && &queue->sk == skb->sk)
			return true;
	}
	return false;
}

static void ipvsw_receive(struct sk_buff *skb, struct net_device *dev)
{
	unsigned int len = skb->len;

	skb_orphan(skb);
	skb_scrub_packet(skb, true);
	skb->protocol = eth_type_trans(skb, dev);
	if (netif_rx(skb) == NET_RX_SUCCESS)
		dev_sw_netstats_rx_add(dev, len);
}

/* Nothing of the namespace may stay with the frame: it may be read at any later time. */
static void ipvsw_send(struct sk_buff *skb, struct net_device *dev)
{
	unsigned int len = skb->len;

	if (unlikely(!pskb_may_pull(skb, ETH_HLEN) || skb_orphan_frags_rx(skb, GFP_ATOMIC)))
		goto drop;
	skb_orphan(skb);
	skb_scrub_packet(skb, true);
	skb->dev = dev;
	skb_reset_mac_header(skb);
	__skb_pull(skb, ETH_HLEN);
	if (tap_handle_frame(&skb) != RX_HANDLER_CONSUMED)
		goto drop;
	dev_sw_netstats_tx_add(dev, 1, len);
	return;
drop:
	dev_core_stats_tx_dropped_inc(dev);
	kfree_skb(skb);
}

static netdev_tx_t ipvsw_start_xmit(struct sk_buff *skb, struct net_device *dev)
{
	rcu_read_lock();
	if (ipvsw_was_written(netdev_priv(dev), skb))
		ipvsw_receive(skb, dev);
	else
		ipvsw_send(skb, dev);
	rcu_read_unlock();
	return NETDEV_TX_OK;
}

/* The tap library's receiving is our sending, and the other way round. */
static void ipvsw_count_tx_dropped(struct tap_dev *tap)
{
	dev_core_stats_rx_dropped_inc(tap->dev);
}

static void ipvsw_count_rx_dropped(struct tap_dev *tap)
{
	dev_core_stats_tx_dropped_inc(tap->dev);
}

/* ---------------------------------------------------------------- one device */

static void ipvsw_destructor(struct net_device *dev)
{
	struct ipvsw_link *link = netdev_priv(dev);

	free_percpu(dev->tstats);
	netdev_put(link->lower, &link->tracker);
	ipvsw_master_put(link->master);
}

static int ipvsw_init(struct net_device *dev)
{
	struct ipvsw_link *link = netdev_priv(dev);

	if (!try_module_get(THIS_MODULE))
		return -ENODEV;
	dev->tstats = netdev_alloc_pcpu_stats(struct pcpu_sw_netstats);
	if (!dev->tstats) {
		module_put(THIS_MODULE);
		return -ENOMEM;
	}
	netdev_hold(link->lower, &link->tracker, GFP_KERNEL);
	refcount_inc(&link->master->users);
	dev->priv_destructor = ipvsw_destructor;
	return 0;
}

/* RTNL is held until long after this, and unloading waits for it. */
static void ipvsw_uninit(struct net_device *dev)
{
	ipvsw_release_all(netdev_priv(dev));
	module_put(THIS_MODULE);
}

static int ipvsw_open(struct net_device *dev)
{
	struct ipvsw_link *link = netdev_priv(dev);

	if (link->master->configured && link->master->mode != IPVLAN_MODE_L2)
		dev->flags |= IFF_NOARP;
	return 0;
}

static int ipvsw_stop(struct net_device *dev)
{
	return 0;
}

static int ipvsw_get_iflink(const struct net_device *dev)
{
	const struct ipvsw_link *link = netdev_priv(dev);

	return READ_ONCE(link->lower->ifindex);
}

static const struct net_device_ops ipvsw_netdev_ops = {
	.ndo_init		= ipvsw_init,
	.ndo_uninit		= ipvsw_uninit,
	.ndo_open		= ipvsw_open,
	.ndo_stop		= ipvsw_stop,
	.ndo_start_xmit		= ipvsw_start_xmit,
	.ndo_get_stats64	= dev_get_tstats64,
	.ndo_get_iflink		= ipvsw_get_iflink,
};

static const struct ethtool_ops ipvsw_ethtool_ops = {
	.get_link		= ethtool_op_get_link,
};

static int ipvsw_tap_create(struct ipvsw_link *link)
{
	struct tap_dev *tap = &link->tap;
	struct device *node;
	int err;

	err = tap_get_minor(ipvsw_major, tap);
	if (err)
		return err;
	node = device_create(ipvsw_class, NULL, MKDEV(MAJOR(ipvsw_major), tap->minor), NULL,
			     IPVSW_NAME "%d", tap->minor);
	if (IS_ERR(node)) {
		tap_free_minor(ipvsw_major, tap);
		return PTR_ERR(node);
	}
	return 0;
}

/* Without its number the tap can't be opened again; a process that has it open finds no device. */
static void ipvsw_tap_destroy(struct ipvsw_link *link)
{
	device_destroy(ipvsw_class, MKDEV(MAJOR(ipvsw_major), link->tap.minor));
	tap_free_minor(ipvsw_major, &link->tap);
	tap_del_queues(&link->tap);
}

static void ipvsw_setup(struct net_device *dev)
{
	ether_setup(dev);
	dev->max_mtu = ETH_MAX_MTU;
	dev->netdev_ops = &ipvsw_netdev_ops;
	dev->ethtool_ops = &ipvsw_ethtool_ops;
	dev->needs_free_netdev = true;
	dev->priv_flags &= ~IFF_TX_SKB_SHARING;
	dev->priv_flags |= IFF_NO_QUEUE;
	dev->features = IPVSW_FEATURES | NETIF_F_VLAN_CHALLENGED;
	dev->hw_features = IPVSW_FEATURES;
	ipvsw_set_lltx(dev);
}

/* ---------------------------------------------------------------- rtnetlink */

static const struct nla_policy ipvsw_policy[IFLA_IPVSW_MAX + 1] = {
	[IFLA_IPVSW_MODE]	= { .type = NLA_U16 },
	[IFLA_IPVSW_FLAGS]	= { .type = NLA_U16 },
	[IFLA_IPVSW_TAP]	= { .type = NLA_REJECT },
	[IFLA_IPVSW_NETNS]	= { .type = NLA_REJECT },
	[IFLA_IPVSW_LINK_NETNS]	= { .type = NLA_REJECT },
};

static int ipvsw_validate(struct nlattr *tb[], struct nlattr *data[],
			  struct netlink_ext_ack *extack)
{
	if (!data)
		return 0;
	if (data[IFLA_IPVSW_MODE] && nla_get_u16(data[IFLA_IPVSW_MODE]) >= IPVLAN_MODE_MAX) {
		NL_SET_ERR_MSG_ATTR(extack, data[IFLA_IPVSW_MODE], "No such mode");
		return -EINVAL;
	}
	if (data[IFLA_IPVSW_FLAGS] &&
	    nla_get_u16(data[IFLA_IPVSW_FLAGS]) > max(IPVLAN_F_PRIVATE, IPVLAN_F_VEPA)) {
		NL_SET_ERR_MSG_ATTR(extack, data[IFLA_IPVSW_FLAGS], "No such combination of flags");
		return -EINVAL;
	}
	return 0;
}

/* The device that is to be the master: a sibling's one if a sibling was named. */
static struct net_device *ipvsw_find_lower(struct net *net, struct nlattr *tb[],
					   struct netlink_ext_ack *extack)
{
	struct net_device *lower;

	if (!tb[IFLA_LINK]) {
		NL_SET_ERR_MSG(extack, "A master is needed: link DEVICE");
		return ERR_PTR(-EINVAL);
	}
	lower = __dev_get_by_index(net, nla_get_u32(tb[IFLA_LINK]));
	if (!lower)
		return ERR_PTR(-ENODEV);
	if (ipvsw_is_link(lower)) {
		lower = ((struct ipvsw_link *)netdev_priv(lower))->lower;
		if (!ns_capable(dev_net(lower)->user_ns, CAP_NET_ADMIN))
			return ERR_PTR(-EPERM);
	}
	if (lower->type != ARPHRD_ETHER || lower->flags & IFF_LOOPBACK) {
		NL_SET_ERR_MSG(extack, "The master must be an Ethernet device");
		return ERR_PTR(-EINVAL);
	}
	return lower;
}

static int ipvsw_create(struct net *link_net, struct net_device *dev, struct nlattr *tb[],
			struct nlattr *data[], struct netlink_ext_ack *extack)
{
	struct net_device *lower = ipvsw_find_lower(link_net, tb, extack);
	struct ipvsw_link *link = netdev_priv(dev);
	int err;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	link->dev = dev;
	link->lower = lower;
	link->tap.dev = dev;
	link->tap.tap_features = IPVSW_TAP_FEATURES;
	link->tap.count_tx_dropped = ipvsw_count_tx_dropped;
	link->tap.count_rx_dropped = ipvsw_count_rx_dropped;
	INIT_LIST_HEAD(&link->tap.queue_list);
	if (!tb[IFLA_MTU])
		dev->mtu = lower->mtu;
	eth_hw_addr_set(dev, lower->dev_addr);

	link->master = ipvsw_master_get(lower);
	if (!link->master)
		return -ENOMEM;
	err = ida_alloc_range(&link->master->ids, IPVSW_ID_MIN, IPVSW_ID_MAX, GFP_KERNEL);
	if (err < 0)
		goto put;
	dev->dev_id = err;
	list_add_tail(&link->node, &link->master->links);
	err = netdev_rx_handler_register(dev, ipvsw_pass, &link->tap);
	if (err)
		goto leave;
	err = ipvsw_tap_create(link);
	if (err)
		goto unhandle;
	err = register_netdevice(dev);
	if (err)
		goto destroy;
	err = netdev_upper_dev_link(lower, dev, extack);
	if (err)
		goto unregister;
	ipvsw_set_mode(link->master, data);
	netif_stacked_transfer_operstate(lower, dev);
	ipvsw_master_put(link->master);
	return 0;

unregister:
	unregister_netdevice(dev);
destroy:
	ipvsw_tap_destroy(link);
unhandle:
	netdev_rx_handler_unregister(dev);
leave:
	ipvsw_master_leave(link);
put:
	ipvsw_master_put(link->master);
	return err;
}

IPVSW_DEFINE_NEWLINK(ipvsw_newlink, ipvsw_create)

static int ipvsw_changelink(struct net_device *dev, struct nlattr *tb[], struct nlattr *data[],
			    struct netlink_ext_ack *extack)
{
	struct ipvsw_link *link = netdev_priv(dev);

	if (!ns_capable(dev_net(link->lower)->user_ns, CAP_NET_ADMIN))
		return -EPERM;
	ipvsw_set_mode(link->master, data);
	return 0;
}

static void ipvsw_dellink(struct net_device *dev, struct list_head *head)
{
	struct ipvsw_link *link = netdev_priv(dev);

	netdev_rx_handler_unregister(dev);
	ipvsw_tap_destroy(link);
	ipvsw_master_leave(link);
	unregister_netdevice_queue(dev, head);
	netdev_upper_dev_unlink(link->lower, dev);
}

static size_t ipvsw_get_size(const struct net_device *dev)
{
	return 2 * nla_total_size(sizeof(u16)) + 3 * nla_total_size(sizeof(u32));
}

static int ipvsw_fill_info(struct sk_buff *skb, const struct net_device *dev)
{
	const struct ipvsw_link *link = netdev_priv(dev);
	const struct ipvsw_master *master = link->master;

	if (master->configured && (nla_put_u16(skb, IFLA_IPVSW_MODE, master->mode) ||
				   nla_put_u16(skb, IFLA_IPVSW_FLAGS, master->flags)))
		return -EMSGSIZE;
	if (nla_put_u32(skb, IFLA_IPVSW_TAP, link->tap.minor) ||
	    nla_put_u32(skb, IFLA_IPVSW_NETNS, dev_net(dev)->ns.inum) ||
	    nla_put_u32(skb, IFLA_IPVSW_LINK_NETNS, dev_net(link->lower)->ns.inum))
		return -EMSGSIZE;
	return 0;
}

static struct net *ipvsw_get_link_net(const struct net_device *dev)
{
	const struct ipvsw_link *link = netdev_priv(dev);

	return dev_net(link->lower);
}

static struct rtnl_link_ops ipvsw_link_ops __read_mostly = {
	.kind		= IPVSW_NAME,
	.priv_size	= sizeof(struct ipvsw_link),
	.maxtype	= IFLA_IPVSW_MAX,
	.policy		= ipvsw_policy,
	.setup		= ipvsw_setup,
	.validate	= ipvsw_validate,
	.newlink	= ipvsw_newlink,
	.changelink	= ipvsw_changelink,
	.dellink	= ipvsw_dellink,
	.get_size	= ipvsw_get_size,
	.fill_info	= ipvsw_fill_info,
	.get_link_net	= ipvsw_get_link_net,
};

/* ---------------------------------------------------------------- following the master */

static void ipvsw_delete_all(struct ipvsw_master *master)
{
	struct ipvsw_link *link, *next;
	LIST_HEAD(going);

	list_for_each_entry_safe(link, next, &master->links, node)
		ipvsw_dellink(link->dev, &going);
	unregister_netdevice_many(&going);
}

static int ipvsw_follow_master(struct ipvsw_master *master, unsigned long event)
{
	struct ipvsw_link *link;

	switch (event) {
	case NETDEV_UNREGISTER:
		/* A master that only moves to another namespace stays the master. */
		if (master->dev->reg_state == NETREG_UNREGISTERING)
			ipvsw_delete_all(master);
		break;
	case NETDEV_PRE_TYPE_CHANGE:
		return NOTIFY_BAD;
	case NETDEV_CHANGEADDR:
		list_for_each_entry(link, &master->links, node) {
			eth_hw_addr_set(link->dev, master->dev->dev_addr);
			call_netdevice_notifiers(NETDEV_CHANGEADDR, link->dev);
		}
		break;
	case NETDEV_CHANGEMTU:
		list_for_each_entry(link, &master->links, node)
			dev_set_mtu(link->dev, master->dev->mtu);
		break;
	case NETDEV_UP:
	case NETDEV_DOWN:
	case NETDEV_CHANGE:
		list_for_each_entry(link, &master->links, node)
			netif_stacked_transfer_operstate(master->dev, link->dev);
		break;
	case NETDEV_NOTIFY_PEERS:
	case NETDEV_BONDING_FAILOVER:
	case NETDEV_RESEND_IGMP:
		list_for_each_entry(link, &master->links, node)
			call_netdevice_notifiers(event, link->dev);
		break;
	}
	return NOTIFY_DONE;
}

static int ipvsw_device_event(struct notifier_block *unused, unsigned long event, void *ptr)
{
	struct net_device *dev = netdev_notifier_info_to_dev(ptr);
	struct ipvsw_master *master = ipvsw_master_of(dev);

	if (master)
		return ipvsw_follow_master(master, event);
	if (event == NETDEV_CHANGE_TX_QUEUE_LEN && ipvsw_is_link(dev) &&
	    tap_queue_resize(&((struct ipvsw_link *)netdev_priv(dev))->tap))
		return NOTIFY_BAD;
	return NOTIFY_DONE;
}

static struct notifier_block ipvsw_device_notifier = { .notifier_call = ipvsw_device_event };

/* ---------------------------------------------------------------- the module */

static int __init ipvsw_load(void)
{
	int err;

	err = tap_create_cdev(&ipvsw_cdev, &ipvsw_major, IPVSW_NAME, THIS_MODULE);
	if (err)
		return err;
	ipvsw_class = ipvsw_class_create(IPVSW_NAME);
	if (IS_ERR(ipvsw_class)) {
		err = PTR_ERR(ipvsw_class);
		goto cdev;
	}
	err = register_netdevice_notifier(&ipvsw_device_notifier);
	if (err)
		goto class;
	ipvsw_watch_addresses();
	err = rtnl_link_register(&ipvsw_link_ops);
	if (err)
		goto notifiers;
	return 0;

notifiers:
	ipvsw_unwatch_addresses();
	unregister_netdevice_notifier(&ipvsw_device_notifier);
class:
	class_destroy(ipvsw_class);
cdev:
	tap_destroy_cdev(ipvsw_major, &ipvsw_cdev);
	return err;
}
module_init(ipvsw_load);

static void __exit ipvsw_unload(void)
{
	rtnl_link_unregister(&ipvsw_link_ops);
	ipvsw_unwatch_addresses();
	unregister_netdevice_notifier(&ipvsw_device_notifier);
	class_destroy(ipvsw_class);
	tap_destroy_cdev(ipvsw_major, &ipvsw_cdev);
}
module_exit(ipvsw_unload);

MODULE_ALIAS_RTNL_LINK(IPVSW_NAME);
MODULE_DESCRIPTION("Network devices that a switch in user space serves");
MODULE_AUTHOR("The ipvsw authors");
MODULE_LICENSE("GPL");
