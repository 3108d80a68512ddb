"""What bites, from what was seen. Pure: each check takes facts and gives findings."""

from __future__ import annotations

from ipvsw.doctor.checks import host as of_host
from ipvsw.doctor.checks import master as of_master
from ipvsw.doctor.checks import network, switch
from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Host, Master, Record


def examine(host: Host, switches: list[tuple[Record, Master | None]]) -> list[Finding]:
    """Every finding, those of the host first."""
    found = [finding for check in of_host.CHECKS for finding in check(host)]
    for status, master in switches:
        found += [finding for check in switch.CHECKS for finding in check(status)]
        if master is not None:
            found += [finding for check in (*of_master.CHECKS, *network.CHECKS) for finding in check(status, master)]
    return found


def daemon_away(why: str) -> Finding:
    return Finding(
        code="daemon-away",
        where="host",
        text=f"{why}: nothing is forwarded",
        remedy="`systemctl start ipvswd`, or say where it listens with --socket; its log says why it ended",
    )
