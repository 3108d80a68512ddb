"""The shim's two tc filters: BPF in direct-action mode on a clsact qdisc, which other programs may share.

Ours are known by preference and handle, so that a filter that a killed predecessor left is replaced
in one step by the kernel (cls_bpf_change) and frames never pass without one.
"""

from __future__ import annotations

import errno
import struct
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from ipvsw.linux.netlink.messages import attributes
from ipvsw.linux.netlink.questions import NLM_F_DUMP, Questions

# linux/pkt_sched.h
CLSACT = 0xFFFF0000
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
ETH_P_ALL = 3
RTM_GETTFILTER = 46  # linux/rtnetlink.h
TCA_OPTIONS, TCA_BPF_ID = 2, 11  # linux/rtnetlink.h, linux/pkt_cls.h
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface index, handle, parent, preference and protocol
_UINT = struct.Struct("=I")

NAME = "ipvsw"
# Before filters without a preference (the kernel counts those down from 49152). A handle of our own
# because others put direct-action programs at any preference with handle 1.
PREFERENCE = 118
HANDLE = 0x69707677

# What the kernel answers when a filter, its qdisc or its device is not there.
_ABSENT = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


def attach(route: Any, index: int, ingress_fd: int, egress_fd: int) -> None:
    """Errors: NetlinkError; then neither filter is there."""
    _add_qdisc(route, index)
    try:
        for parent, fd in ((INGRESS, ingress_fd), (EGRESS, egress_fd)):
            route.tc("replace-filter", direct_action=True, fd=fd, name=NAME, **_ours(index, parent))
    except NetlinkError:
        detach(route, index)
        raise


def mute(route: Any, index: int, fd: int) -> None:
    """At ingress only. Errors: NetlinkError."""
    _add_qdisc(route, index)
    route.tc("replace-filter", direct_action=True, fd=fd, name=NAME, **_ours(index, INGRESS))


def programs(kernel: Questions, index: int) -> dict[int, int]:
    """INGRESS and EGRESS -> the id of our program there. Errors: OSError, ENODEV if the device is gone."""
    found = {}
    for parent in (INGRESS, EGRESS):
        try:
            filters = kernel.ask(RTM_GETTFILTER, NLM_F_DUMP, _TCMSG.pack(0, index, 0, parent, 0))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
            continue  # there is no clsact
        for body in filters:
            _, _, handle, _, info = _TCMSG.unpack_from(body)
            options = attributes(attributes(body, _TCMSG.size).get(TCA_OPTIONS, b""), 0)
            if handle == HANDLE and info >> 16 == PREFERENCE and TCA_BPF_ID in options:
                found[parent] = int(_UINT.unpack(options[TCA_BPF_ID])[0])
    return found


def detach(route: Any, index: int) -> None:
    """Errors: NetlinkError. What is not there is no error."""
    for parent in (INGRESS, EGRESS):
        _unless_absent(route, "del-filter", **_ours(index, parent))
    if _qdisc(route, index) == "clsact" and not any(_filters(route, index, side) for side in (INGRESS, EGRESS)):
        _unless_absent(route, "del", kind="clsact", index=index)


def _add_qdisc(route: Any, index: int) -> None:
    try:
        route.tc("add", "clsact", index)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        found = _qdisc(route, index)
        if found != "clsact":
            raise NetlinkError(errno.EEXIST, f"a qdisc of kind {found} is in the way of clsact") from error


def _ours(index: int, parent: int) -> dict[str, Any]:
    return {
        "kind": "bpf",
        "index": index,
        "parent": parent,
        "prio": PREFERENCE,
        "protocol": ETH_P_ALL,
        "handle": HANDLE,
    }


def _unless_absent(route: Any, command: str, **words: Any) -> None:
    try:
        route.tc(command, **words)
    except NetlinkError as error:
        if error.code not in _ABSENT:
            raise


def _qdisc(route: Any, index: int) -> str | None:
    """The kind of the qdisc in clsact's place (an "ingress" qdisc has the same handle), None if none."""
    for message in route.get_qdiscs(index):
        if message["index"] == index and message["handle"] == CLSACT:
            return str(message.get("kind"))
    return None


def _filters(route: Any, index: int, parent: int) -> bool:
    return any(message["index"] == index for message in route.get_filters(index, parent=parent))
