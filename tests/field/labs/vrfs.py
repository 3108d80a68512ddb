"""A member of a VRF as the master."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from tests.field.contest import Group, Ports
from tests.field.talk import reach_each_other, reaches
from tests.support.topology import MASTER4, MASTER6, WIRE4, WIRE6, Lab, batch, port4, port6

VRF = "red"
TABLE = 100
BEYOND = ("10.9.0.9", "fd00:9::9")  # behind the wire, by the VRF's default route


@contextlib.contextmanager
def in_a_vrf() -> Iterator[Lab]:
    """m0 is a member of a VRF, whose table alone has a way beyond the wire."""
    with Lab(2) as lab:
        made = [f"link add {VRF} type vrf table {TABLE}", f"link set {VRF} up", f"link set m0 master {VRF}"]
        made += [f"addr replace {MASTER6}/64 dev m0 nodad"]  # which went when m0 became a member
        made += [f"route add default via {wire} table {TABLE}" for wire in (WIRE4, WIRE6)]
        made += ["route add unreachable 0.0.0.0/0", "route add unreachable ::/0"]
        batch(made, lab.host)
        batch([f"addr add {BEYOND[0]}/32 dev lo", f"addr add {BEYOND[1]}/128 dev lo nodad"], lab.wire)
        yield lab


def ports(lab: Lab, mode: str) -> Sequence[Ports]:
    addresses = {netns: (f"{port4(k)}/16", f"{port6(k)}/64") for k, netns in enumerate(lab.ports, 1)}
    return [Ports("m0", addresses, mode)]


GROUP = Group(in_a_vrf, partial(ports, mode="l2"))
ROUTED = Group(in_a_vrf, partial(ports, mode="l3"))


@GROUP.case("ipvlan", "macvlan")
def a_member_of_a_vrf(lab: Lab) -> None:
    """Ports, the wire and what is behind it reach each other, and the host in its VRF the wire."""
    for netns in lab.ports:
        batch([f"route add default via {WIRE4}", f"route add default via {WIRE6}"], netns)
    all_reach_each_other(lab)


@ROUTED.case("ipvlan")
def a_member_of_a_vrf_routes_by_its_table(lab: Lab) -> None:
    for k, netns in enumerate(lab.ports, 1):
        batch([f"route add 0.0.0.0/0 dev ipvl{k}", f"route add ::/0 dev ipvl{k}"], netns)
        batch([f"route add {port4(k)} via {MASTER4}", f"route add {port6(k)} via {MASTER6}"], lab.wire)
    all_reach_each_other(lab)


def all_reach_each_other(lab: Lab) -> None:
    one, two = lab.ports
    for version, own in enumerate(((port4(1), port4(2), WIRE4), (port6(1), port6(2), WIRE6))):
        reach_each_other(zip((one, two, lab.wire), own, strict=True))
        for netns in lab.ports:
            reaches(netns, BEYOND[version])
        reaches(lab.host, own[-1], BEYOND[version], device=VRF)
