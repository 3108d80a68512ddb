"""Places with many ports: idle ones beside a busy pair, and those that a broadcast is copied to."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tests.bench.measuring.measures import Figures
from tests.bench.places import ours
from tests.bench.places.ground import End, Ground, Path
from tests.bench.places.peers import bridged
from tests.support.patience import until
from tests.support.running import Daemon, port, switch, toml
from tests.support.topology import batch, inside

EVERYBODY4, EVERYBODY = "255.255.255.255", "ff:ff:ff:ff:ff:ff"
SINGLE = 10  # ports, or addresses, that are added one after the other
EXTRA = "10.1.250.250"  # an address that nobody has
TIMEOUT = 600.0  # seconds, for thousands of devices


def crowd(ground: Ground, idle: int) -> Mapping[str, Path]:
    """A busy pair, a third port that sends to everybody, and so many idle ports, all in one namespace. Facts: how long
    one reload took until all were up, and what of the daemon's memory each needs."""
    lab, daemon = ours.started(ground, 3)
    netns = silent(ground, f"c{idle}")
    few = daemon.config.read_text()
    memory, start = daemon.rss(), time.monotonic()
    ports = [port(f"i{k}", netns) for k in range(1, idle + 1)]
    more = toml(daemon.socket, [switch("m0", lab.host, ports)])
    daemon.config.write_text(few + "\n[[switch.port]]" + more.split("[[switch.port]]", 1)[1])
    reload(daemon)
    daemon.wait(limit=TIMEOUT)
    facts = {
        "add_ms": (time.monotonic() - start) * 1000 / idle,
        "port_kb": (daemon.rss() - memory) / 1024 / idle,
    }
    (daemon.config.parent / "few").write_text(few)
    pids = (daemon.pid,)
    everybody = Path(ours.end(lab, 3), End(netns, "*", EVERYBODY4, EVERYBODY), pids, daemon)
    name = f"crowd{idle}"
    return {name: Path(ours.end(lab, 1), ours.end(lab, 2), pids, daemon, beside=everybody, facts=facts)}


def reload(daemon: Daemon) -> None:
    status, answer = daemon.call("POST", "/v1/reload", timeout=TIMEOUT)
    assert status == 200, answer


def remove_all(_: Ground, path: Path) -> Figures:
    """Every idle port at once, by a reload: until the last device is gone. For good."""
    assert path.daemon is not None and path.beside is not None
    daemon, start = path.daemon, time.monotonic()
    daemon.config.write_text((daemon.config.parent / "few").read_text())
    reload(daemon)
    until(lambda: devices(path.beside) == 0, "the ports' devices are gone", every=0.05, limit=TIMEOUT)
    return {"seconds": time.monotonic() - start}


def devices(path: Path) -> int:
    """In the idle ports' namespace, besides its loopback."""
    with inside(path.sink.netns), open("/proc/thread-self/net/dev") as file:
        return sum(":" in line for line in file) - 1


def add_and_delete(ground: Ground, path: Path) -> Figures:
    """One port more, by the API, until it's up; and away with it, until its device is gone. Medians."""
    assert path.daemon is not None
    daemon, netns = path.daemon, path.source.netns
    master = daemon.show()[0]["master"]
    added, deleted = [], []
    for _ in range(SINGLE):
        start = time.monotonic()
        status, answer = daemon.call("POST", "/v1/ports", {"master": master, "name": "extra", "netns": netns})
        assert status in (200, 201), answer
        until(lambda: daemon.port("extra")["state"] == "up", "the port is up", every=0.0005)
        added.append(time.monotonic() - start)
        start = time.monotonic()
        status, answer = daemon.call("DELETE", "/v1/ports/extra")
        assert status == 204, answer
        until(lambda: ground.lab.link(netns, "extra") is None, "the device is gone")
        deleted.append(time.monotonic() - start)
    return {"add_ms": sorted(added)[SINGLE // 2] * 1000, "delete_ms": sorted(deleted)[SINGLE // 2] * 1000}


def learn_address(ground: Ground, path: Path) -> Figures:
    """An address more on the port's device, until the switch has it in its table. The longest."""
    assert path.daemon is not None
    daemon, source = path.daemon, path.source
    took = []
    for _ in range(SINGLE):
        start = time.monotonic()
        ground.lab.ip(source.netns, "addr", "add", f"{EXTRA}/32", "dev", source.device)
        until(lambda: states(daemon, EXTRA) == ["owned"], "the address is known", every=0.0005)
        took.append(time.monotonic() - start)
        ground.lab.ip(source.netns, "addr", "del", f"{EXTRA}/32", "dev", source.device)
        until(lambda: not states(daemon, EXTRA), "it is known no more")
    return {"known_ms": max(took) * 1000}


def states(daemon: Daemon, address: str) -> list[str]:
    """Of everybody who has or wants the address."""
    ports = [port for switch in daemon.show() for port in switch["ports"]]
    return [one["state"] for port in ports for one in port["addresses"] if one["address"] == address]


# ---------------------------------------------------------------------------- broadcast fan-out


def fan(ground: Ground, receivers: int) -> Mapping[str, Path]:
    """One port that sends to everybody, and so many others, all in one namespace."""
    netns = silent(ground, f"f{receivers}")
    lab, daemon = ours.started(ground, 1, *(port(f"f{k}", netns) for k in range(1, receivers + 1)))
    sink = End(netns, "*", EVERYBODY4, EVERYBODY)
    return {f"fan{receivers}": Path(ours.end(lab, 1), sink, (daemon.pid,), daemon)}


def bridge_fan(ground: Ground, receivers: int) -> Mapping[str, Path]:
    """The same with veth pairs and a bridge."""
    name = f"g{receivers}"
    netns, source = silent(ground, name), ground.netns(f"{name}s")
    names = tuple(f"f{k}" for k in range(1, receivers + 1))
    bridged(ground, name, (source, *(netns for _ in names)), ("s0", *names))
    batch([f"link set {device} up" for device in names], netns)
    first = ground.end(source, "s0", "10.27.0.1")
    ground.up(first)
    return {f"bridge-fan{receivers}": Path(first, End(netns, "*", EVERYBODY4, EVERYBODY))}


def silent(ground: Ground, name: str) -> str:
    """A namespace whose devices say nothing by themselves."""
    netns = ground.netns(name)
    ground.lab.sysctl(netns, "net/ipv6/conf/default/disable_ipv6", "1")
    return netns
