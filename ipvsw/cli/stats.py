"""`stats`: what became of every frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ipvsw.cli.command import Asked, Command, Option, first, read_name
from ipvsw.cli.complete import Names
from ipvsw.cli.status import no_such
from ipvsw.config.names import find_ports

if TYPE_CHECKING:
    from ipvsw.client import Record


def _stats(asked: Asked) -> list[Record]:
    found = asked.client.stats()
    name = asked.name
    if name is None:
        return found
    if _is_switch(name, found):
        return [one for one in found if one["name"] == name]
    ports = dict(find_ports(name, {one["name"]: one["ports"] for one in found}))
    if not ports:
        raise no_such(name)
    return [
        one | {"ports": {port: one["ports"][port]}} for one in found if (port := ports.get(one["name"])) is not None
    ]


def _is_switch(name: str, found: list[Record]) -> bool:
    return any(one["name"] == name for one in found)


def _write_stats(found: list[Record], asked: Asked) -> str:
    totals = asked.name is None or _is_switch(asked.name, found)
    masters = {one["name"]: one["master"] for one in asked.client.switches()} if totals else {}
    return stats(found, masters, zeros="all" in asked.options, totals=totals)


def stats(found: Sequence[Record], masters: dict[str, str], *, zeros: bool, totals: bool) -> str:
    """`masters`: the name of each switch's master. Without `totals` only the ports are shown."""
    return "\n".join(line for one in found for line in _stats_lines(one, masters.get(one["name"], ""), zeros, totals))


def _stats_lines(one: Record, master: str, zeros: bool, totals: bool) -> Iterator[str]:
    name = one["name"]
    if totals:
        yield f"switch {name}"
        every = [one["master"], one["host"], *one["ports"].values()]
        learned = {f"addresses_{outcome}": count for outcome, count in one["learned"].items()}
        repaired = {f"repaired_{subject}": count for subject, count in one["repaired"].items()}
        counters = {key: one[key] for key in ("duplicates", "refused")} | repaired | learned
        yield from _counters(counters | _sum(every), zeros)
        yield f"master {name}/{master}"
        yield from _counters(_sum([one["master"]]), zeros)
        if one["host"]["rx_frames"]:
            yield f"host {name}/{master}"
            yield from _counters(_sum([one["host"]]), zeros)
    for port, traffic in one["ports"].items():
        yield f"port {name}/{port}"
        yield from _counters(_sum([traffic]), zeros)


def _sum(interfaces: Iterable[Record]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in interfaces:
        total.update({key: value for key, value in one.items() if key != "outcomes"})
        total.update(one["outcomes"])
    return dict(total)


def _counters(counters: dict[str, int], zeros: bool) -> Iterator[str]:
    shown = {name: value for name, value in counters.items() if value or zeros}
    names = max(map(len, shown), default=0)
    values = max((len(str(value)) for value in shown.values()), default=0)
    return (f"    {name:<{names}}  {value:>{values}}" for name, value in shown.items())


COMMANDS = (
    Command(
        name="stats",
        summary="what became of every frame, by name",
        operands="[SWITCH|PORT]",
        about="""\
Counters of every switch (the sum of its interfaces), of its master and of its ports. rx is what the
switch read from the device, tx what it wrote to it: in the namespace `ip -s link` shows the mirror
image. Every frame that was read is counted in exactly one of the counters that follow rx and tx.
Counters that are 0 are left out.
""",
        read=read_name,
        run=_stats,
        write=_write_stats,
        complete=first(Names.both),
        options=(Option("--all", "also counters that are 0", short="-a"),),
    ),
)
