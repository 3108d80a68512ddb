"""Attaching and detaching many times leaves nothing: no descriptor, device, namespace, map entry or memory."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from tests.support import leftovers
from tests.support.patience import until
from tests.support.running import Daemon
from tests.support.topology import Lab, port4, run

# A cycle takes two grace periods of the kernel, some 40 ms: the full number is for a machine with time.
FULL = bool(os.environ.get("IPVSW_FULL"))
CYCLES, WARM_UP = (10_000, 2_000) if FULL else (800, 400)
THREADS = 3
# Resident memory in bytes. The allocators need some 2,000 cycles to find their size, and grow in steps.
GROWTH = 4 << 20


class Cycler(threading.Thread):
    """Attaches one port after the other through the API; every second one loses its namespace first."""

    def __init__(self, lab: Lab, daemon: Daemon, number: int, cycles: int) -> None:
        super().__init__(daemon=True)
        self.lab, self.server, self.number, self.cycles = lab, daemon, number, cycles
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for cycle in range(self.cycles):
                self.once(f"{self.lab.prefix}-c{self.number}-{cycle % 4}", cycle)
        except BaseException as error:
            self.failure = error

    def once(self, netns: str, cycle: int) -> None:
        name = f"c{self.number}"
        if not Path("/run/netns", netns).exists():
            run("ip", "netns", "add", netns)
        wanted = {
            "master": "m0",
            "name": name,
            "netns": netns,
            "mode": "l2",
            "flag": "bridge",
            "addresses": [f"{port4(100 + self.number)}/16", f"fd00:1::c:{self.number}/64"],
        }
        status, answer = self.server.call("POST", "/v1/ports", wanted)
        assert status == 201, f"attach {cycle}: {status}: {answer}"
        assert answer["state"] == "up", f"attach {cycle}: {answer}"
        if cycle % 2:
            run("ip", "netns", "del", netns)
        status, answer = self.server.call("DELETE", f"/v1/ports/{name}")
        assert status == 204, f"detach {cycle}: {status}: {answer}"


def cycle(lab: Lab, daemon: Daemon, count: int) -> None:
    threads = [Cycler(lab, daemon, number, count // THREADS) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
        if thread.failure is not None:
            raise thread.failure


def entries(daemon: Daemon) -> int:
    return sum(leftovers.map_entries(number) for number in daemon.bpf()[1])


def devices(lab: Lab) -> list[str]:
    return [link["ifname"] for netns in (lab.home, lab.host) for link in lab.links(netns)]


def kept(lab: Lab, daemon: Daemon) -> dict[str, object]:
    return {"devices": devices(lab), "entries": entries(daemon), "bpf": daemon.bpf()}


def settled_fds(daemon: Daemon) -> int:
    """Open descriptors of the daemon when the last request's connection is gone."""
    found = []
    for _ in range(10):
        found.append(daemon.fds())
        time.sleep(0.05)
    return min(found)


def test_attach_and_detach_leave_nothing(lab: Lab, lan: Daemon) -> None:
    # Attaching by the API names the master alone, so the switch of the file is the one that is meant.
    cycle(lab, lan, WARM_UP)
    until(lambda: len(lan.show()[0]["ports"]) == 2, "only the ports of the file are left")
    before, fds = kept(lab, lan), settled_fds(lan)
    memory, start = lan.rss(), time.monotonic()
    cycle(lab, lan, CYCLES)
    took = time.monotonic() - start
    print(f"{CYCLES} cycles in {took:.1f} s, {lan.rss() - memory} bytes more")

    until(lambda: kept(lab, lan) == before, f"everything is as before: {before}", every=0.1)
    assert settled_fds(lan) <= fds
    assert lan.rss() - memory < GROWTH, f"{lan.rss() - memory} bytes of growth in {CYCLES} cycles"
    assert lab.ping(lab.ports[0], port4(2)) == 1
    namespaces = {name for name in os.listdir("/run/netns") if name.startswith(f"{lab.prefix}-c")}
    for name in namespaces:
        assert [link["ifname"] for link in lab.links(name)] == ["lo"], "a device is left in a namespace"
