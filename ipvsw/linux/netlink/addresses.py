"""The addresses of a device, added and removed in thousands: by hand, as pyroute2 takes milliseconds for each."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ipvsw.linux.netlink.messages import AF_INET, AF_INET6, IFADDRMSG, pack_attribute
from ipvsw.linux.netlink.questions import NLM_F_CREATE, NLM_F_REPLACE, Questions
from ipvsw.model import Interface

# linux/rtnetlink.h, linux/if_addr.h
RTM_NEWADDR, RTM_DELADDR = 20, 21
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def add_addresses(kernel: Questions, index: int, addresses: Iterable[Interface]) -> list[OSError]:
    """One that is there is replaced. What the kernel has refused. Errors: OSError."""
    return _change(kernel, index, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, addresses)


def delete_addresses(kernel: Questions, index: int, addresses: Iterable[Interface]) -> list[OSError]:
    """What the kernel has refused. Errors: OSError."""
    return _change(kernel, index, RTM_DELADDR, 0, addresses)


def _change(kernel: Questions, index: int, kind: int, flags: int, addresses: Iterable[Interface]) -> list[OSError]:
    wanted = list(addresses)
    answers = kernel.change(kind, flags, [_body(index, address) for address in wanted])
    return [
        OSError(code, f"{address}: {why or os.strerror(code)}")
        for address, (code, why) in zip(wanted, answers, strict=True)
        if code
    ]


def _body(index: int, address: Interface) -> bytes:
    six, packed = address.version == 6, address.ip.packed
    head = IFADDRMSG.pack(AF_INET6 if six else AF_INET, address.network.prefixlen, 0, 0, index)
    return head + pack_attribute(_IFA_LOCAL, packed) + pack_attribute(_IFA_ADDRESS, packed)
