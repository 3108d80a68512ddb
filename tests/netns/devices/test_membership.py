"""Groups that the host joins in the ports' stead."""

from __future__ import annotations

import contextlib
import os
from ipaddress import ip_address
from pathlib import Path

from ipvsw.linux.devices.membership import Membership
from tests.netns.devices.frames import Make, Pair
from tests.support.spaces import Namespace

GROUPS = [ip_address(text).packed for text in ("224.0.0.251", "239.255.255.250", "ff02::fb")]


def joined(here: Namespace, device: str) -> set[bytes]:
    """Of `GROUPS`, those that the device is a member of. (The kernel prints IPv4's in memory order.)"""
    both = here.inside(lambda: [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("igmp", "igmp6")])
    text = "\n".join(both).lower()
    assert device in text
    return {group for group in GROUPS if (group[::-1] if len(group) == 4 else group).hex() in text}


def test_the_host_is_a_member_until_it_leaves_or_the_process_ends(netns: Make, veth: Pair) -> None:
    here = netns()
    device, _ = veth(here, netns())
    index = int(here.ip("-o", "link", "show", device).split(":")[0])
    with contextlib.closing(here.inside(lambda: Membership(index))) as membership:
        for groups in (set(GROUPS), {GROUPS[1]}, {GROUPS[0], GROUPS[2]}, set[bytes]()):
            membership.set(groups)
            assert joined(here, device) == membership.joined == groups
        membership.set(set(GROUPS))
    assert joined(here, device) == set()


def test_a_device_without_ipv6_is_a_member_of_ipv4_groups_alone(netns: Make, veth: Pair) -> None:
    here = netns()
    device, _ = veth(here, netns())
    index = int(here.ip("-o", "link", "show", device).split(":")[0])
    here.ip("link", "set", device, "mtu", "1000")  # less than IPv6 has to have
    with contextlib.closing(here.inside(lambda: Membership(index))) as membership:
        membership.set(set(GROUPS))
        assert joined(here, device) == set(GROUPS[:2])


def test_nothing_stays_open(netns: Make) -> None:
    before = os.listdir("/proc/self/fd")
    netns().inside(lambda: Membership(9999)).close()
    with contextlib.closing(Membership(9999)) as gone:
        gone.set(set(GROUPS))
    assert os.listdir("/proc/self/fd") == before
