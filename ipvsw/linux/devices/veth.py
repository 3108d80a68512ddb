"""Whether this kernel has veths."""

from __future__ import annotations

import errno
import functools

from ipvsw.linux.netlink.messages import IFINFOMSG, IFLA_IFNAME, RTM_NEWLINK, pack_attribute
from ipvsw.linux.netlink.questions import NLM_F_CREATE, NLM_F_EXCL, Questions

IFLA_ADDRESS, IFLA_LINKINFO, IFLA_INFO_KIND = 1, 18, 1  # linux/if_link.h
NO_MAC = bytes([1, 0, 0, 0, 0, 0])  # that of a group


@functools.cache
def supported() -> bool:
    """Loads the module. One is asked for with a MAC address that no device can have: the kernel finds the kind first,
    then refuses the address (rtnl_newlink in net/core/rtnetlink.c). Errors: OSError."""
    info = pack_attribute(IFLA_INFO_KIND, b"veth\0")
    body = IFINFOMSG.pack(0, 0, 0, 0, 0)
    for kind, value in ((IFLA_IFNAME, b"ipvsw-probe\0"), (IFLA_ADDRESS, NO_MAC), (IFLA_LINKINFO, info)):
        body += pack_attribute(kind, value)
    kernel = Questions()
    try:
        kernel.change_one(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    finally:
        kernel.close()
    raise AssertionError("a group's MAC address is a device's")
