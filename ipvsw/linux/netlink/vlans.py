"""VLAN devices: which VLAN on which device a link message is about."""

from __future__ import annotations

import struct

from ipvsw.linux.netlink.messages import IFINFOMSG, attributes, pack_attribute

KIND = b"vlan"
VLANS = 4096  # what is added to an identifier of 802.1ad
_IFLA_LINK, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 5, 18, 37  # linux/if_link.h
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_VLAN_ID, _IFLA_VLAN_PROTOCOL = 1, 5
_ETH_P_8021AD = b"\x88\xa8"

# In a request for all links: only those of that kind. A kernel that doesn't know it gives all.
ONLY_VLANS = pack_attribute(_IFLA_LINKINFO, pack_attribute(_IFLA_INFO_KIND, KIND))


def is_vlan(body: bytes) -> bool:
    """Whether a link message is about a VLAN device."""
    if KIND not in body:  # most are not, and there may be many
        return False
    info = attributes(attributes(body, IFINFOMSG.size).get(_IFLA_LINKINFO, b""), 0)
    return info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") == KIND


def read_vlan(body: bytes, index: int) -> int | None:
    """The VLAN of a link message that is about a VLAN device on the device `index` of the same namespace: its
    identifier, with 4096 added for 802.1ad. None for any other."""
    found = attributes(body, IFINFOMSG.size)
    if not is_vlan(body) or found.get(_IFLA_LINK) != struct.pack("=i", index) or _IFLA_LINK_NETNSID in found:
        return None
    data = attributes(attributes(found[_IFLA_LINKINFO], 0).get(_IFLA_INFO_DATA, b""), 0)
    if len(data.get(_IFLA_VLAN_ID, b"")) != 2:
        return None
    vlan: int = struct.unpack("=H", data[_IFLA_VLAN_ID])[0]
    return vlan + VLANS * (data.get(_IFLA_VLAN_PROTOCOL) == _ETH_P_8021AD)
