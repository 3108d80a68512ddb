"""What becomes of 5,000 addresses on 20 hosts when one of them moves, a host or a rack is lost, and all of them move.

A simulation on one machine: it says whether everything arrives, and gives an idea of how long that takes where 20
daemons, 25 BIRDs and all kernels share its processors. `make cluster`, as root.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tests.cluster.fabric import CLIENT, Fabric, Host
from tests.support.patience import until
from tests.support.running import ROOT
from tests.support.topology import run

DOCUMENT = ROOT / "docs" / "clusters.md"
MARKS = re.compile(r"(<!-- cluster -->\n).*?(<!-- end -->)", re.DOTALL)
SAMPLES = 2  # addresses of each host that the client must reach


class Simulation:
    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.at: dict[str, Host] = {}  # where each address is to be
        self.rows: list[tuple[str, int, str, float]] = []

    def measure(self, what: str, count: int, until_text: str, act: Callable[[], object]) -> None:
        """`act`, and how long after its begin the core has every address where it is to be, and no other: by the times
        that its kernel has told, as to ask it for 5,000 routes takes a while."""
        begun = datetime.now()
        act()
        wanted = {address: host.rack for address, host in self.at.items()}
        self.fabric.until_there(wanted, limit=300)
        self.rows.append((what, count, until_text, (self.fabric.last_change() - begun).total_seconds()))
        print(f"{what}: {count} addresses, {self.rows[-1][3]:.2f} s", file=sys.stderr)
        self.reach()

    def reach(self) -> None:
        """The client reaches some addresses of each host."""
        by_host: dict[int, list[str]] = {}
        for address, host in self.at.items():
            by_host.setdefault(host.k, []).append(address)
        for addresses in by_host.values():
            for address in addresses[:: max(1, len(addresses) // SAMPLES)][:SAMPLES]:
                words = ["ping", "-n", "-q", "-c", "1", "-W", "1", "-I", CLIENT, address]
                command = ["nsenter", f"--net=/run/netns/{self.fabric.core}", *words]
                until(lambda: "1 received" in run(*command, check=False), f"{address} answers")  # noqa: B023

    def place(self, addresses: list[str], host: Host) -> None:
        host.place(addresses)
        self.at |= dict.fromkeys(addresses, host)

    def move(self, addresses: list[str], host: Host) -> None:
        for one in {self.at[address].k: self.at[address] for address in addresses}.values():
            one.remove([address for address in addresses if self.at[address] is one])
        self.place(addresses, host)

    def lose(self, hosts: list[Host], links: list[tuple[str, str]]) -> None:
        """Power off: the processes end without a word and the links go down."""
        for netns, device in links:
            run("ip", "-n", netns, "link", "set", device, "down")
        for host in hosts:
            assert host.daemon is not None and host.daemon.process is not None
            host.daemon.process.send_signal(signal.SIGKILL)
            self.fabric.birds[host.netns].kill()
        self.at = {address: host for address, host in self.at.items() if host not in hosts}

    def run(self) -> None:
        fabric, hosts = self.fabric, self.fabric.hosts
        total = sum(len(host.addresses) for host in hosts)
        for host in hosts:
            host.start()
        for host in hosts:
            assert host.daemon is not None
            host.daemon.wait(limit=300)
        placed = [(host.addresses, host) for host in hosts]
        self.measure("all come", total, "reached", lambda: [self.place(*one) for one in placed])
        first, other = hosts[0], hosts[fabric.per_rack]
        self.measure("one moves to another rack", 1, "reached there", lambda: self.move(first.addresses[:1], other))
        lost = [address for address, host in self.at.items() if host is first]
        gone = (fabric.rack(0), f"h{first.k}")
        self.measure("a host is lost", len(lost), "withdrawn", lambda: self.lose([first], [gone]))
        self.measure("its addresses come elsewhere", len(lost), "reached there", lambda: self.place(lost, other))
        rack = [host for host in hosts if host.rack == fabric.racks - 1]
        lost = [address for address, host in self.at.items() if host in rack]
        gone = (fabric.core, f"t{fabric.racks - 1}")
        self.measure("a rack is lost", len(lost), "withdrawn", lambda: self.lose(rack, [gone]))
        left = [host for host in hosts if host is not first and host not in rack]
        shares = [(lost[k :: len(left)], host) for k, host in enumerate(left)]
        self.measure(
            "its addresses come elsewhere", len(lost), "reached there", lambda: [self.place(*one) for one in shares]
        )

        def all_move() -> None:
            everybody = {host.k: [one for one, at in self.at.items() if at is host] for host in left}
            half = len(left) // 2
            for host, target in zip(left, left[half:] + left[:half], strict=True):
                self.move(everybody[host.k], target)

        self.measure("all move to another rack", total, "reached there", all_move)

    def table(self) -> str:
        lines = ["| What happens | Addresses | All are | After |", "|---|---|---|---|"]
        lines += [f"| {what} | {count:,} | {text} | {seconds:.1f} s |" for what, count, text, seconds in self.rows]
        return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--racks", type=int, default=4)
    parser.add_argument("--hosts", type=int, default=5, help="in each rack")
    parser.add_argument("--addresses", type=int, default=5000)
    parser.add_argument("--keep", action="store_true", help=f"write the table into {DOCUMENT.relative_to(ROOT)}")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="ivc") as directory,
        Fabric(Path(directory), given.racks, given.hosts, given.addresses) as fabric,
    ):
        simulation = Simulation(fabric)
        simulation.run()
    table = simulation.table()
    print(f"{given.racks * given.hosts} hosts in {given.racks} racks, {os.cpu_count()} processors\n\n{table}")
    if given.keep:
        DOCUMENT.write_text(MARKS.sub(lambda marks: marks[1] + table + marks[2], DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
