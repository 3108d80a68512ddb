"""The shim's two tc filters: BPF in direct-action mode on a clsact qdisc, which other programs may share.

Ours are known by preference and handle, so that a filter that a killed predecessor left is replaced
in one step by the kernel (cls_bpf_change) and frames never pass without one. Written by hand: a daemon that goes on
with ports has no time to load pyroute2.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

from ipvsw.linux.netlink.messages import RTM_DELQDISC, RTM_DELTFILTER, attributes, pack_attribute
from ipvsw.linux.netlink.questions import NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Questions

# linux/pkt_sched.h
CLSACT_PARENT, CLSACT, TC_H_ROOT = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFFF
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
ETH_P_ALL = 3
RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_GETTFILTER = 36, 38, 44, 46  # linux/rtnetlink.h
TCA_KIND, TCA_OPTIONS = 1, 2  # linux/rtnetlink.h
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_ID, TCA_BPF_FLAG_ACT_DIRECT = 6, 7, 8, 11, 1  # linux/pkt_cls.h
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface index, handle, parent, preference and protocol
_UINT = struct.Struct("=I")

NAME = b"ipvsw"
# Before filters without a preference (the kernel counts those down from 49152). A handle of our own
# because others put direct-action programs at any preference with handle 1.
PREFERENCE = 118
HANDLE = 0x69707677
_INFO = PREFERENCE << 16 | socket.htons(ETH_P_ALL)

# What the kernel answers when a filter, its qdisc or its device is not there.
_ABSENT = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


def attach(kernel: Questions, index: int, ingress_fd: int, egress_fd: int) -> None:
    """Errors: OSError; then neither filter is there."""
    _add_qdisc(kernel, index)
    try:
        for parent, fd in ((INGRESS, ingress_fd), (EGRESS, egress_fd)):
            _replace_filter(kernel, index, parent, fd)
    except OSError:
        detach(kernel, index)
        raise


def mute(kernel: Questions, index: int, fd: int) -> None:
    """At ingress only. Errors: OSError."""
    _add_qdisc(kernel, index)
    _replace_filter(kernel, index, INGRESS, fd)


def set_noqueue(kernel: Questions, index: int) -> None:
    """As the root. Errors: OSError."""
    wanted = _TCMSG.pack(0, index, 0, TC_H_ROOT, 0) + pack_attribute(TCA_KIND, b"noqueue\0")
    kernel.change_one(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, wanted)


def programs(kernel: Questions, index: int, where: Sequence[int]) -> dict[int, int]:
    """INGRESS, EGRESS -> the id of our program there. Errors: OSError, ENODEV if the device is gone."""
    found = {}
    for parent in where:
        for body in _filters(kernel, index, parent):
            _, _, handle, _, info = _TCMSG.unpack_from(body)
            options = attributes(attributes(body, _TCMSG.size).get(TCA_OPTIONS, b""), 0)
            if handle == HANDLE and info >> 16 == PREFERENCE and TCA_BPF_ID in options:
                found[parent] = int(_UINT.unpack(options[TCA_BPF_ID])[0])
    return found


def detach(kernel: Questions, index: int) -> None:
    """Errors: OSError. What is not there is no error."""
    for parent in (INGRESS, EGRESS):
        _unless_absent(kernel, RTM_DELTFILTER, _ours(index, parent))
    if _qdisc(kernel, index) == "clsact" and not any(_filters(kernel, index, side) for side in (INGRESS, EGRESS)):
        _unless_absent(kernel, RTM_DELQDISC, _TCMSG.pack(0, index, CLSACT, CLSACT_PARENT, 0))


def used_by_others(kernel: Questions, index: int) -> tuple[str, ...]:
    """ "ingress", "egress": where there are filters that are not ours."""
    return tuple(
        side
        for side, parent in (("ingress", INGRESS), ("egress", EGRESS))
        if any(_TCMSG.unpack_from(body)[4] >> 16 != PREFERENCE for body in _filters(kernel, index, parent))
    )


def _add_qdisc(kernel: Questions, index: int) -> None:
    wanted = _TCMSG.pack(0, index, CLSACT, CLSACT_PARENT, 0) + pack_attribute(TCA_KIND, b"clsact\0")
    try:
        kernel.change_one(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, wanted)
    except FileExistsError:
        found = _qdisc(kernel, index)
        if found != "clsact":
            raise OSError(errno.EEXIST, f"a qdisc of kind {found} is in the way of clsact") from None


def _replace_filter(kernel: Questions, index: int, parent: int, fd: int) -> None:
    options = (
        pack_attribute(TCA_BPF_FD, _UINT.pack(fd))
        + pack_attribute(TCA_BPF_NAME, NAME + b"\0")
        + pack_attribute(TCA_BPF_FLAGS, _UINT.pack(TCA_BPF_FLAG_ACT_DIRECT))
    )
    kernel.change_one(RTM_NEWTFILTER, NLM_F_CREATE, _ours(index, parent) + pack_attribute(TCA_OPTIONS, options))


def _ours(index: int, parent: int) -> bytes:
    return _TCMSG.pack(0, index, HANDLE, parent, _INFO) + pack_attribute(TCA_KIND, b"bpf\0")


def _unless_absent(kernel: Questions, kind: int, body: bytes) -> None:
    try:
        kernel.change_one(kind, 0, body)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def _qdisc(kernel: Questions, index: int) -> str | None:
    """The kind of the qdisc in clsact's place (an "ingress" qdisc has the same handle), None if none."""
    for body in kernel.ask(RTM_GETQDISC, NLM_F_DUMP, _TCMSG.pack(0, 0, 0, 0, 0)):
        _, place, handle, _, _ = _TCMSG.unpack_from(body)
        if (place, handle) == (index, CLSACT):
            return os.fsdecode(attributes(body, _TCMSG.size)[TCA_KIND].rstrip(b"\0"))
    return None


def _filters(kernel: Questions, index: int, parent: int) -> list[bytes]:
    """A struct tcmsg with its attributes for each; [] if there is no clsact. Errors: OSError, ENODEV if the device is
    gone."""
    try:
        return kernel.ask(RTM_GETTFILTER, NLM_F_DUMP, _TCMSG.pack(0, index, 0, parent, 0))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return []
