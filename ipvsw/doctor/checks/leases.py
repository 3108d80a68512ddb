"""What of the ports' DHCP leases bites. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Record

SLACK = 60  # seconds by which clocks may differ


def check(lease: Record, now: float) -> Iterator[Finding]:
    """`now` is the wall clock's. The daemon counts by a clock that stands still while the machine sleeps, as the
    client's does; the server's has gone on."""
    ends, remaining = lease.get("ends"), lease["remaining"]
    if ends is not None and remaining and ends + SLACK < now:
        yield Finding(
            code="lease-clock",
            where=f"{lease['switch']}/{lease['port']}",
            text=f"by the clock the lease of {lease['address']} ended {_duration(now - ends)} ago, and the port has it"
            f" for {_duration(remaining)} more: this machine slept or was paused, or its clock was set. The server may"
            " have given the address to another machine",
            remedy="have the client renew its lease: set its interface down and up, or start its DHCP client anew",
        )


def _duration(seconds: float) -> str:
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"
