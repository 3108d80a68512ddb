"""ipvsw's own places: small switches with what hangs on them. Each function builds one place (see ground.Builder)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.bench.places.ground import End, Ground, Path, Unavailable
from tests.bench.places.peers import JUMBO
from tests.support.patience import LIMIT
from tests.support.running import Daemon, port, switch
from tests.support.topology import MASTER4, MASTER_MAC, WIRE4, WIRE_MAC, Lab, exec_in, run

OURS4 = "10.1.0.{}"  # the ports of a small switch: 10.1.0.11, ...
KERNEL4 = "10.1.9.{}"  # the macvlan devices beside them
INNER4, GATEWAY4, FAR4 = "10.2.0.11", "10.2.0.1", "10.64.0.1"
DESTINATIONS, LEARNING = 10_000, 2_000  # addresses; frames a second while each asks the kernel


def started(
    ground: Ground,
    ports: int,
    *more: dict[str, Any],
    mtu: int = 1500,
    queues: int = 1,
    third: Mapping[str, Any] | None = None,
    **how: Any,
) -> tuple[Lab, Daemon]:
    """A lab with a switch of so many ports, p1 in the first of its namespaces and so on, that reach each other.
    `more` are further ports, `third` keys of the third; `how` is for the switch, but for `workers`, `io`, `coalesce`.
    """
    lab = ground.stack.enter_context(Lab(ports))
    lab.ip(lab.host, "link", "set", "m0", "mtu", str(mtu))
    lab.ip(lab.wire, "link", "set", "w0", "mtu", str(mtu))
    run(*exec_in(lab.wire, "ethtool", "-K", "w0", "tx-udp-segmentation", "off"))  # datagrams come one by one
    tables = [
        port(f"p{k}", netns, [f"{OURS4.format(10 + k)}/16"], queues=queues) for k, netns in enumerate(lab.ports, 1)
    ]
    if third:
        tables[2] |= third
    words = {word: how.pop(word) for word in ("workers", "coalesce") if word in how} | {"io": how.pop("io", "auto")}
    daemon = Daemon(switch("m0", lab.host, [*tables, *more], **how), home=lab.home, **words)
    ground.stack.callback(daemon.close)
    daemon.wait(states=("up", "waiting"))
    if ports > 1:
        lab.reachable(lab.ports[0], OURS4.format(10 + ports))
    lab.reachable(lab.ports[0], WIRE4)
    return lab, daemon


def end(lab: Lab, k: int) -> End:
    return End(lab.ports[k - 1], f"p{k}", OURS4.format(10 + k), MASTER_MAC)


def wire(lab: Lab) -> End:
    return End(lab.wire, "w0", WIRE4, WIRE_MAC)


# ---------------------------------------------------------------------------- two ports and the wire


def ipvsw(ground: Ground) -> Mapping[str, Path]:
    """Two ports on a master whose own MTU is the larger, so that the ends' counts."""
    lab, daemon = started(ground, 2, mtu=JUMBO)
    first, second, outside, pids = end(lab, 1), end(lab, 2), wire(lab), (daemon.pid,)
    return {
        "ipvsw": Path(first, second, pids, daemon, lab=lab),
        "ipvsw out": Path(first, outside, pids, daemon),
        "ipvsw in": Path(outside, first, pids, daemon),
    }


def fast(ground: Ground) -> Mapping[str, Path]:
    """The same two ports with a veth each: known unicast is the kernel's."""
    lab, daemon = started(ground, 2, mtu=JUMBO, device="veth")
    first, second, outside, pids = end(lab, 1), end(lab, 2), wire(lab), (daemon.pid,)
    return {
        "fast": Path(first, second, pids, daemon, lab=lab),
        "fast out": Path(first, outside, pids, daemon),
        "fast in": Path(outside, first, pids, daemon),
    }


def epoll(ground: Ground) -> Mapping[str, Path]:
    """The same two ports with io = "epoll": without an io_uring."""
    lab, daemon = started(ground, 2, mtu=JUMBO, io="epoll")
    return {"epoll": Path(end(lab, 1), end(lab, 2), (daemon.pid,), daemon)}


def guarded(ground: Ground) -> Mapping[str, Path]:
    """The same two ports with all guards."""
    lab, daemon = started(ground, 2, mtu=JUMBO, guard="strict")
    return {"guarded": Path(end(lab, 1), end(lab, 2), (daemon.pid,), daemon)}


def limited(ground: Ground, packets: int) -> Mapping[str, Path]:
    """Two pairs of ports; the sender of the second may send so many packets a second."""
    lab, daemon = started(ground, 4, third={"packets": f"{packets}/off"})
    pids = (daemon.pid,)
    beside = Path(end(lab, 3), end(lab, 4), pids, daemon)
    return {"limited": Path(end(lab, 1), end(lab, 2), pids, daemon, beside=beside)}


def apart(ground: Ground) -> Mapping[str, Path]:
    """A port of a daemon with coalesce = false: every datagram by itself."""
    lab, daemon = started(ground, 1, mtu=JUMBO, coalesce=False)
    return {"apart in": Path(wire(lab), end(lab, 1), (daemon.pid,), daemon)}


def macvlan(ground: Ground) -> Mapping[str, Path]:
    """Two of the kernel's macvlan devices, mode bridge, on the master of `ipvsw`."""
    lab = ground.path("ipvsw").lab
    assert lab is not None
    ends = []
    for k in (1, 2):
        netns, device = ground.netns(f"k{k}"), f"mv{k}"
        words = f"link add link m0 name {device} netns {netns} type macvlan mode bridge"
        try:
            lab.ip(lab.host, *words.split())
        except AssertionError as reason:
            raise Unavailable(f"no macvlan on the master: {reason}") from None
        ends.append(ground.end(netns, device, KERNEL4.format(k)))
        ground.up(ends[-1], 16)
    lab.reachable(ends[0].netns, ends[1].address)
    lab.reachable(ends[0].netns, WIRE4)
    outside = wire(lab)
    return {
        "macvlan": Path(ends[0], ends[1]),
        "macvlan out": Path(ends[0], outside),
        "macvlan in": Path(outside, ends[0]),
    }


def host(ground: Ground) -> Mapping[str, Path]:
    """The host's own traffic on a master that has a switch with two ports."""
    lab, daemon = started(ground, 2)
    here, outside = End(lab.host, "m0", MASTER4, MASTER_MAC), wire(lab)
    return {
        "host out": Path(here, outside, (daemon.pid,), daemon),
        "host in": Path(outside, here, (daemon.pid,), daemon),
    }


# ---------------------------------------------------------------------------- four ports, and workers


def workers(ground: Ground, number: int, queues: int = 1) -> Mapping[str, Path]:
    """Two pairs of ports at once, with so many threads to carry their frames."""
    lab, daemon = started(ground, 4, workers=number, queues=queues)
    pids = (daemon.pid,)
    second = Path(end(lab, 3), end(lab, 4), pids, daemon)
    name = f"workers{number}" if queues == 1 else f"queues{queues}"
    return {name: Path(end(lab, 1), end(lab, 2), pids, daemon, beside=second)}


def captured(ground: Ground) -> Mapping[str, Path]:
    """Two pairs of ports, of which frames of the second are captured."""
    lab, daemon = started(ground, 4)
    second = Path(end(lab, 3), end(lab, 4), (daemon.pid,), daemon)
    return {"captured": Path(end(lab, 1), end(lab, 2), (daemon.pid,), daemon, beside=second)}


# ---------------------------------------------------------------------------- mode l3


def routed(ground: Ground, mode: str = "l3") -> Mapping[str, Path]:
    """Mode l3 or l3s: a port in a subnet behind the master; the far end of the master's veth pair is its router, and
    in l3 the way to ten thousand addresses that the route cache holds."""
    lab = ground.stack.enter_context(Lab(1))
    lab.ip(lab.wire, "route", "add", "10.2.0.0/24", "via", MASTER4)
    lab.ip(lab.wire, "route", "add", "blackhole", "10.64.0.0/16")
    lab.ip(lab.host, "route", "add", "10.64.0.0/16", "via", WIRE4)
    ports = [port("p1", lab.ports[0], [f"{INNER4}/24"], gateway=[GATEWAY4])]
    daemon = Daemon(switch("m0", lab.host, ports, mode=mode), home=lab.home, io="auto")
    ground.stack.callback(daemon.close)
    daemon.wait()
    lab.reachable(lab.ports[0], WIRE4)
    mine, outside = End(lab.ports[0], "p1", INNER4, MASTER_MAC), wire(lab)
    out = Path(mine, replace(outside, mac=MASTER_MAC), (daemon.pid,), daemon)
    if mode == "l3s":
        return {"l3s out": out, "l3s in": Path(replace(outside, mac=WIRE_MAC), mine, (daemon.pid,), daemon)}
    far = replace(out, sink=replace(out.sink, address=FAR4))
    learn(ground, far)
    return {"routed out": out, "routed far": far}


def learn(ground: Ground, path: Path) -> None:
    """Until the route cache has every destination. Errors: Unavailable."""
    assert path.daemon is not None
    words = (path.source.device, MASTER_MAC, INNER4, FAR4, str(LEARNING), str(DESTINATIONS // LEARNING + 1))
    command = [ground.tool("generate"), f"-n{DESTINATIONS}", *words]
    for _ in range(20):
        before = path.daemon.stats()[0]["ports"]["p1"]["outcomes"]["to_slowpath"]
        run(*exec_in(path.source.netns, *command), timeout=LIMIT)
        if path.daemon.stats()[0]["ports"]["p1"]["outcomes"]["to_slowpath"] == before:
            return
    raise Unavailable("the route cache doesn't get to know every destination")
