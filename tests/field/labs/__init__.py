"""Labs: each has a guest of its own, in which its groups of cases follow one another."""

from __future__ import annotations

from dataclasses import dataclass

from tests.field.contest import Group
from tests.field.labs import bonds, vlans, vrfs

# The contestants', and what the daemon takes besides.
CONTESTANTS = ("veth", "ipvlan", "macvlan", "tun", "cls_bpf", "sch_ingress")


@dataclass(frozen=True)
class Lab:
    groups: tuple[Group, ...]
    modules: tuple[str, ...]  # of the guest's kernel


LABS = {
    "masters": Lab(
        (vlans.GROUP, bonds.GROUP, bonds.OTHER_MAC, vrfs.GROUP, vrfs.ROUTED),
        (*CONTESTANTS, "bridge", "bonding", "8021q", "vrf"),
    ),
}
