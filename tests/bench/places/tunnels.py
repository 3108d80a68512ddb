"""A VXLAN tunnel from the wire that ends in a port, in a port with a fast path in the kernel, on a macvlan device."""

from __future__ import annotations

from collections.abc import Mapping

from tests.bench.places import ours
from tests.bench.places.ground import End, Ground, Path, Unavailable
from tests.support.running import port
from tests.support.topology import WIRE4, Lab

KINDS = ("tap", "veth", "macvlan")
INNER = "192.168.{}.{}"


def vxlan(ground: Ground) -> Mapping[str, Path]:
    """All three at once, behind the same master."""
    outer = {kind: ours.OURS4.format(11 + k) for k, kind in enumerate(KINDS)}
    spaces = {kind: ground.netns(f"x{kind}") for kind in ("veth", "macvlan")}
    second = port("veth", spaces["veth"], [f"{outer['veth']}/16"], device="veth")
    lab, daemon = ours.started(ground, 1, second)
    ends = {"tap": (lab.ports[0], "p1"), "veth": (spaces["veth"], "veth"), "macvlan": (spaces["macvlan"], "mv")}
    try:
        lab.ip(lab.host, *f"link add link m0 name mv netns {spaces['macvlan']} type macvlan mode bridge".split())
    except AssertionError as reason:
        raise Unavailable(f"no macvlan on the master: {reason}") from None
    lab.ip(spaces["macvlan"], "addr", "add", f"{outer['macvlan']}/16", "dev", "mv")
    lab.ip(spaces["macvlan"], "link", "set", "mv", "up")
    paths = {}
    for k, (kind, (netns, device)) in enumerate(ends.items(), 1):
        lab.reachable(netns, WIRE4)
        pids = () if kind == "macvlan" else (daemon.pid,)
        inside = half(ground, lab, netns, device, (outer[kind], WIRE4), INNER.format(k, 1), k)
        outside = half(ground, lab, lab.wire, "w0", (WIRE4, outer[kind]), INNER.format(k, 2), k)
        paths |= {f"vxlan {kind} in": Path(outside, inside, pids), f"vxlan {kind} out": Path(inside, outside, pids)}
    return paths


def half(ground: Ground, lab: Lab, netns: str, device: str, ends: tuple[str, str], inner: str, number: int) -> End:
    """One end of the tunnel with that number."""
    name, (local, remote) = f"vx{number}", ends
    words = f"link add {name} type vxlan id {number} local {local} remote {remote} dstport 4789 dev {device}"
    try:
        lab.ip(netns, *words.split())
    except AssertionError as reason:
        raise Unavailable(f"no VXLAN: {reason}") from None
    end = ground.end(netns, name, inner)
    ground.up(end)
    return end
