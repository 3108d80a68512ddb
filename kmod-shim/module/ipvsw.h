/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What the link kind "ipvsw" says over rtnetlink, in IFLA_INFO_DATA.
 */
#ifndef IPVSW_H
#define IPVSW_H

enum {
	IFLA_IPVSW_UNSPEC,
	IFLA_IPVSW_MODE,	/* u16, as IFLA_IPVLAN_MODE; absent until somebody has set it */
	IFLA_IPVSW_FLAGS,	/* u16, as IFLA_IPVLAN_FLAGS; absent until somebody has set it */
	/* Read-only, to tell who serves the devices of a master where each of them is: */
	IFLA_IPVSW_TAP,		/* u32: minor number of the device's /dev/ipvswN */
	IFLA_IPVSW_NETNS,	/* u32: inode number of the device's namespace */
	IFLA_IPVSW_LINK_NETNS,	/* u32: inode number of the master's namespace */
	__IFLA_IPVSW_MAX
};

#define IFLA_IPVSW_MAX (__IFLA_IPVSW_MAX - 1)

#endif /* IPVSW_H */
