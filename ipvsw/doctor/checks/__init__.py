"""What bites, from what was seen. Pure: each check takes facts and gives findings."""

from __future__ import annotations

from ipvsw.doctor.checks import fallbacks, host, leases, master, network, switch
from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Daemon, Host, Master, Record

NO_STATS: Record = {"master": {"outcomes": {}}, "ports": {}}  # of a switch that has just come


def examine(seen: Host, daemon: Daemon, masters: dict[str, Master]) -> list[Finding]:
    """Every finding, those of the host first; `masters` by the names of their switches."""
    found = [finding for check in host.CHECKS for finding in check(seen)]
    found += [finding for check in fallbacks.CHECKS for finding in check(seen, daemon)]
    for status in daemon.switches:
        name = status["name"]
        found += [finding for check in switch.CHECKS for finding in check(status)]
        if (there := masters.get(name)) is not None:
            found += [finding for check in master.CHECKS for finding in check(status, there)]
            stats = daemon.stats.get(name, NO_STATS)
            found += [finding for check in network.CHECKS for finding in check(status, there, stats)]
    return found + [finding for lease in daemon.leases for finding in leases.check(lease, daemon.now)]


def daemon_away(why: str) -> Finding:
    return Finding(
        code="daemon-away",
        where="host",
        text=f"{why}: nothing is forwarded",
        remedy="`systemctl start ipvswd`, or say where it listens with --socket; its log says why it ended",
    )
