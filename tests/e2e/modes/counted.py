"""What the daemon of a routed lab has counted."""

from __future__ import annotations

from collections import Counter

from tests.support import running


def outcomes(daemon: running.Daemon, port: str = "ipvl1") -> Counter[str]:
    return Counter(daemon.stats()[0]["ports"][port]["outcomes"])


def drops(daemon: running.Daemon) -> dict[str, int]:
    """How often anything of any port was dropped, by the datapath or by the router."""
    stats = daemon.stats()[0]
    total: Counter[str] = Counter(stats["routed"])
    for port in stats["ports"].values():
        total.update(port["outcomes"])
    return {name: count for name, count in total.items() if name.startswith("drop_") and count}
