"""What two readings of the counters say of the time between them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ipvsw.outcomes import is_drop

if TYPE_CHECKING:
    from ipvsw.client import Record


class Row(NamedTuple):
    """One interface; all but the names are a second's."""

    name: str  # SWITCH/PORT, SWITCH/master or SWITCH/host
    rx_frames: float
    rx_bits: float
    tx_frames: float
    tx_bits: float
    drops: float
    reason: str  # of most of the drops, "" if there are none


SORTS = {
    "n": ("name", lambda row: row.name),
    "r": ("rx", lambda row: (-row.rx_bits, row.name)),
    "t": ("tx", lambda row: (-row.tx_bits, row.name)),
    "d": ("drops", lambda row: (-row.drops, -row.rx_bits, row.name)),
}
"""By the key that asks for it: what the order is called, and how it comes about."""


class Load(NamedTuple):
    """The workers of one switch."""

    name: str  # the switch's
    cpu: tuple[float, ...]  # of each the share of one CPU
    flood: int  # of all the frames that wait, at the second reading: to be copied to ports,
    router: int  # for a route of the host's,
    snooper: int  # and for the daemon to look at them


class Difference(NamedTuple):
    rows: list[Row]
    drops: list[tuple[str, float]]  # of all interfaces by reason, a second's, the most first
    loads: list[Load]  # the busiest first


def difference(before: Sequence[Record], after: Sequence[Record], seconds: float) -> Difference:
    """Of two answers of the API; an interface that is new counts from 0, and so does one whose counters began anew."""
    had = dict(_interfaces(before))
    rows, reasons = [], Counter[str]()
    for name, now in _interfaces(after):
        then = had.get(name)
        if then is None or then["rx_frames"] > now["rx_frames"] or then["tx_frames"] > now["tx_frames"]:
            then = {"outcomes": {}}
        drops = _drops(now, then)
        reasons.update(drops)
        most = max(drops, key=lambda reason: drops[reason]) if drops else ""
        rx_frames, rx_bytes, tx_frames, tx_bytes = (
            (now[key] - then.get(key, 0)) / seconds for key in ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")
        )
        rows.append(Row(name, rx_frames, 8 * rx_bytes, tx_frames, 8 * tx_bytes, sum(drops.values()) / seconds, most))
    dropped = [(reason, count / seconds) for reason, count in reasons.most_common()]
    return Difference(rows, dropped, sorted(_loads(before, after, seconds), key=lambda load: -sum(load.cpu)))


def _loads(before: Sequence[Record], after: Sequence[Record], seconds: float) -> Iterator[Load]:
    """A worker that was not there before has done nothing yet."""
    had = {switch["name"]: switch.get("workers", ()) for switch in before}
    for switch in after:
        workers = switch.get("workers", ())
        then = had.get(switch["name"], ())
        if workers:
            done = zip(workers, then if len(then) == len(workers) else workers, strict=True)
            yield Load(
                switch["name"],
                tuple(max(now["cpu"] - was["cpu"], 0) / seconds for now, was in done),
                *(sum(worker[queue] for worker in workers) for queue in ("flood", "router", "snooper")),
            )


def _interfaces(stats: Iterable[Record]) -> Iterable[tuple[str, Record]]:
    """The host's own only if it has one."""
    for switch in stats:
        yield f"{switch['name']}/master", switch["master"]
        if switch["host"]["rx_frames"]:
            yield f"{switch['name']}/host", switch["host"]
        for port, traffic in switch["ports"].items():
            yield f"{switch['name']}/{port}", traffic


def _drops(now: Record, then: Record) -> dict[str, int]:
    found = {name: count - then["outcomes"].get(name, 0) for name, count in now["outcomes"].items() if is_drop(name)}
    return {name: count for name, count in found.items() if count > 0}


def short(value: float) -> str:
    """At most four characters: 0, 12, 3.4k, 120M."""
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}P"
