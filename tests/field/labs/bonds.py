"""A bond as the master, with ports on a VLAN of it as well, and its failover."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from tests.field.contest import Group, Ports
from tests.field.talk import reach_each_other, reaches
from tests.support import traffic
from tests.support.patience import LIMIT, until
from tests.support.topology import WIRE4, WIRE6, Lab, batch, port4, port6

# On the VLAN, and what the first port of each has.
WIRE_TAGGED4, WIRE_TAGGED6 = "10.10.0.254", "fd00:10::254"
TAGGED = (("10.10.0.1", "fd00:10::1"), ("10.10.0.2", "fd00:10::2"))
SAME, NEAR = "172.16.0.1", "172.16.0.254/24"


@contextlib.contextmanager
def bonded(options: str = "") -> Iterator[Lab]:
    """The master is b0, a bond of e1 and e2, whose other ends are ports of the bridge w0; b0.10 and w0.10 are VLAN
    10."""
    with Lab(4) as lab:
        peers = (f"link add e{k} type veth peer name p{k} netns {lab.wire}" for k in (1, 2))
        members = (f"link set e{k} master b0" for k in (1, 2))
        bond = f"link add b0 type bond mode active-backup miimon 10 {options}"
        batch(["link del m0", *peers, bond, *members, "link set b0 up", *vlan("b0")], lab.host)
        uplinks = (f"link set p{k} master w0 up" for k in (1, 2))
        given = [f"addr add {WIRE4}/16 dev w0", f"addr add {WIRE6}/64 dev w0 nodad"]
        given += [f"addr add {WIRE_TAGGED4}/16 dev w0.10", f"addr add {WIRE_TAGGED6}/64 dev w0.10 nodad"]
        batch(["link add w0 type bridge", *uplinks, "link set w0 up", *vlan("w0"), *given], lab.wire)
        yield lab


def vlan(device: str) -> list[str]:
    return [f"link add link {device} name {device}.10 type vlan id 10", f"link set {device}.10 up"]


def ports(lab: Lab) -> list[Ports]:
    """Two on the bond, two on its VLAN; the first of each has an address that the other's first has as well."""
    one, two, three, four = lab.ports
    same = f"{SAME}/24"
    tagged = {
        netns: (f"{v4}/16", f"{v6}/64", *more)
        for netns, (v4, v6), more in ((three, TAGGED[0], [same]), (four, TAGGED[1], []))
    }
    return [
        Ports("b0", {one: (f"{port4(1)}/16", f"{port6(1)}/64", same), two: (f"{port4(2)}/16", f"{port6(2)}/64")}),
        Ports("b0.10", tagged),
    ]


GROUP = Group(bonded, ports)
OTHER_MAC = Group(partial(bonded, "fail_over_mac active"), ports)


def all_reach_each_other(lab: Lab) -> None:
    one, two, three, four = lab.ports
    for version, untagged in enumerate(((WIRE4, port4(1), port4(2)), (WIRE6, port6(1), port6(2)))):
        reach_each_other(zip((one, two, lab.wire), (*untagged[1:], untagged[0]), strict=True))
        wire = (WIRE_TAGGED4, WIRE_TAGGED6)[version]
        reach_each_other(((three, TAGGED[0][version]), (four, TAGGED[1][version]), (lab.wire, wire)))


@GROUP.case("ipvlan", "macvlan")
def ports_on_a_bond_and_on_a_vlan_of_it(lab: Lab) -> None:
    """Also those that have the same address on both."""
    all_reach_each_other(lab)
    one, _, three, _ = lab.ports
    for device, owner in (("w0", one), ("w0.10", three)):
        lab.ip(lab.wire, "addr", "add", NEAR, "dev", device)
        reaches(lab.wire, SAME)
        traffic.udp(lab.wire, owner, SAME, (1, 1400, 4000))
        traffic.tcp(lab.wire, owner, SAME)
        lab.ip(lab.wire, "addr", "del", NEAR, "dev", device)


@GROUP.case("ipvlan", "macvlan")
def a_failover(lab: Lab) -> None:
    """Connections go on, in both directions and on the VLAN, and everybody is reached."""
    one, _, three, _ = lab.ports
    with (
        traffic.Stream(lab.wire, one, port4(1)) as first,
        traffic.Stream(three, lab.wire, WIRE_TAGGED4) as second,
    ):
        for gone, left in ((1, 2), (2, 1)):
            fail_over(lab, gone, left)
            for stream in (first, second):
                stream.flows(4 * LIMIT)  # TCP asks again at intervals that double
            all_reach_each_other(lab)


@OTHER_MAC.case("ipvlan", "macvlan")
def a_failover_that_changes_the_mac_address(lab: Lab) -> None:
    all_reach_each_other(lab)
    before = lab.ip(lab.host, "-br", "link", "show", "b0")
    fail_over(lab, 1, 2)
    assert lab.ip(lab.host, "-br", "link", "show", "b0") != before
    all_reach_each_other(lab)


def fail_over(lab: Lab, gone: int, left: int) -> None:
    """The link of one of them goes; the other's comes back before, if it was gone."""
    lab.ip(lab.wire, "link", "set", f"p{left}", "up")
    until(lambda: "mii_status UP" in lab.ip(lab.host, "-d", "link", "show", f"e{left}"), f"e{left} is ready")
    lab.ip(lab.wire, "link", "set", f"p{gone}", "down")
    until(lambda: f"active_slave e{left}" in lab.ip(lab.host, "-d", "link", "show", "b0"), "the bond fails over")
