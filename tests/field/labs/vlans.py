"""VLAN devices of the host on the master, beside its ports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.field.contest import Group, Ports
from tests.field.talk import reaches
from tests.support import traffic
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER_MAC, WIRE4, WIRE_MAC, Lab, batch, port4

# What the host has on m0.10, and a port without a tag.
SAME4, SAME6 = "172.16.10.1", "fd00:10::1"
TAGGED = ("172.16.10.2/24", "fd00:10::2/64")
UNTAGGED = ("172.16.10.3/24", "fd00:10::3/64")
VIDS = (10, 20)
EXPERIMENTAL = b"\x88\xb5"
BROADCAST, MDNS = b"\xff" * 6, bytes.fromhex("01005e0000fb")


@contextlib.contextmanager
def topology() -> Iterator[Lab]:
    """The wire's end of each VLAN is in a namespace of its own, and down."""
    with Lab(2) as lab:
        lab.add(tagged(lab))
        for vid in VIDS:
            batch(
                [f"link add link w0 name w{vid} type vlan id {vid}", f"link set w{vid} netns {tagged(lab)}"], lab.wire
            )
        batch((f"addr add {each} dev w0{' nodad' * (':' in each)}" for each in UNTAGGED), lab.wire)
        vlan_device(lab, VIDS[0])
        yield lab


def ports(lab: Lab) -> list[Ports]:
    one, two = lab.ports
    return [Ports("m0", {one: (f"{SAME4}/24", f"{SAME6}/64", f"{port4(1)}/16"), two: (f"{port4(2)}/16",)})]


GROUP = Group(topology, ports)


def tagged(lab: Lab) -> str:
    return f"{lab.prefix}-tagged"


def vlan_device(lab: Lab, vid: int) -> None:
    """m0.VID of the host, up and with its addresses."""
    name = f"m0.{vid}"
    given = [f"addr add {SAME4}/24 dev {name}", f"addr add {SAME6}/64 dev {name} nodad"]
    batch([f"link add link m0 name {name} type vlan id {vid}", f"link set {name} up", *given], lab.host)


def set_peer(lab: Lab, vid: int) -> None:
    given = (f"addr add {each} dev w{vid}{' nodad' * (':' in each)}" for each in TAGGED)
    batch([f"link set w{vid} up", *given], tagged(lab))


# macvlan's ports have MAC addresses of their own: for an address that the host has, too, the host answers ARP on m0.
@GROUP.case("ipvlan")
def a_vlan_device_has_its_frames(lab: Lab) -> None:
    """Those for an address that a port has without a tag, too."""
    set_peer(lab, VIDS[0])
    vlan_has_its_frames(lab, VIDS[0])


@GROUP.case("ipvlan")
def a_vlan_device_that_is_made_beside_ports_has_its_frames(lab: Lab) -> None:
    lab.ip(lab.host, "link", "del", f"m0.{VIDS[0]}")
    lab.ip(tagged(lab), "link", "del", f"w{VIDS[0]}")
    vlan_device(lab, VIDS[1])
    set_peer(lab, VIDS[1])
    vlan_has_its_frames(lab, VIDS[1])
    reaches(lab.ports[0], WIRE4, port4(2))


def vlan_has_its_frames(lab: Lab, vid: int) -> None:
    """The host has what is tagged; the port has what is not, and hears of nothing else."""
    owner = lab.ports[0]
    for address in (SAME4, SAME6):
        for source, target in ((tagged(lab), lab.host), (lab.wire, owner)):
            reaches(source, address)
            traffic.udp(source, target, address, (1, 1400, 4000))
            traffic.tcp(source, target, address)
    source = bytes.fromhex(WIRE_MAC.replace(":", ""))
    with (
        sniffing(owner, "ipvl1") as heard,
        raw(tagged(lab), f"w{vid}") as with_tag,
        raw(lab.wire, "w0") as without,
    ):
        for to in (BROADCAST, MDNS, bytes.fromhex(MASTER_MAC.replace(":", ""))):
            with_tag.send(to + source + EXPERIMENTAL + b"with a tag".ljust(50))
        without.send(BROADCAST + source + EXPERIMENTAL + b"without a tag".ljust(50))
        heard.wait(b"without a tag")
        assert not heard.count(b"with a tag"), "a port has frames of the VLAN"
