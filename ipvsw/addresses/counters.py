"""Counters of ports, of the master and of the host's interface: what the data plane and the kernel count now, and what
was counted before, by earlier attachments of a port and by earlier daemons.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, structs

from ipvsw._fast import OUTCOMES
from ipvsw.changes import Changes
from ipvsw.linux.fastports import FastCounts
from ipvsw.status import Traffic

NOTHING = FastCounts()
MASTER = ""  # in the place of a port's name

Counted = tuple[int, int, int, int, int, int, tuple[int, ...]]
"""What `Datapath.traffic` gives."""


class _Own(Struct, frozen=True):
    """What a port has counted before, and what the data plane counts, with the sum of them."""

    past: Traffic | None
    now: Counted | None
    sum: Traffic


class Counters:
    """One switch's; a port's number is None while it isn't attached."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._datapath = changes.datapath
        self._past: dict[str, Traffic] = {}  # of a port's earlier attachments
        self._past_master = self._past_host = Traffic()  # of earlier daemons
        self._forwarded: dict[str | None, FastCounts] = {}  # by the kernel, under them; None: from the master
        self._own_known: dict[str, _Own] = {}  # as they were last asked for: most ports are idle

    def set_past(
        self, ports: Mapping[str, Traffic], master: Traffic, host: Traffic, forwarded: Mapping[str, FastCounts]
    ) -> None:
        """What was counted before this switch was made; counting goes on from there. `forwarded` are frames besides
        that the last daemon saw the kernel count, by port or as MASTER."""
        self._past |= {port: _add(past, None) for port, past in ports.items()}
        self._past_master, self._past_host = master, host
        self._forwarded |= {None if name == MASTER else name: counts for name, counts in forwarded.items()}
        if self._changes.counts_go_on:
            self._forwarded.pop(None, None)

    def go_on(self, port: str) -> None:
        """What the kernel has counted for the port is what it counts on from."""
        self._forwarded.pop(port, None)

    def keep(self, port: str, number: int) -> None:
        """The port of that number is about to be detached, and may be attached again."""
        self._past[port] = self.of_port(port, number)
        self._forwarded.pop(port, None)

    def forget(self, port: str) -> None:
        """The port won't come back."""
        self._past.pop(port, None)
        self._forwarded.pop(port, None)
        self._own_known.pop(port, None)

    def of_port(self, port: str, number: int | None) -> Traffic:
        """Of all its attachments, one after the other."""
        now = NOTHING if number is None else self._changes.fast_counts(number)
        return _add(self._own(port, number), None, self._by_kernel(port, now))

    def of_ports(self, ports: Mapping[str, int | None]) -> dict[str, Traffic]:
        """The same of many, with their numbers."""
        now = self._changes.all_fast_counts()
        return {
            port: _add(self._own(port, number), None, self._by_kernel(port, _of(now, number)))
            for port, number in ports.items()
        }

    def of_master(self) -> Traffic:
        return _add(self._own_master(), None, self._by_kernel(None, self._changes.fast_counts(None)))

    def of_host(self) -> Traffic:
        return _add(self._past_host, self._datapath.traffic("host"))

    def split(self, ports: Mapping[str, int | None]) -> tuple[dict[str, Traffic], Traffic, dict[str, FastCounts]]:
        """For `set_past` of a successor: of the ports with their numbers and of the master, without what the kernel
        counts, and that."""
        now = self._changes.all_fast_counts()
        forwarded = {MASTER: self._by_kernel(None, self._changes.fast_counts(None))}
        forwarded |= {port: self._by_kernel(port, _of(now, number)) for port, number in ports.items()}
        own = {port: self._own(port, number) for port, number in ports.items()}
        return own, self._own_master(), {name: counts for name, counts in forwarded.items() if counts != NOTHING}

    def _own(self, port: str, number: int | None) -> Traffic:
        """Only the outcomes that a frame had."""
        past, now = self._past.get(port), None if number is None else self._datapath.traffic(number)
        known = self._own_known.get(port)
        if known is None or known.past is not past or known.now != now:
            known = self._own_known[port] = _Own(past, now, _without_zeros(_add(past, now)))
        return known.sum

    def _own_master(self) -> Traffic:
        return _add(self._past_master, self._datapath.traffic(None))

    def _by_kernel(self, port: str | None, now: FastCounts) -> FastCounts:
        """With `now` since the port was made, or as long as the master is served; None: the master."""
        return now + self._forwarded[port] if port in self._forwarded else now


def _of(counts: Mapping[int, FastCounts], number: int | None) -> FastCounts:
    """None: of a port that isn't attached."""
    return NOTHING if number is None else counts.get(number, NOTHING)


def _without_zeros(traffic: Traffic) -> Traffic:
    return structs.replace(traffic, outcomes={name: count for name, count in traffic.outcomes.items() if count})


def _add(
    past: Traffic | None,
    now: Counted | None,
    fast: FastCounts = NOTHING,
) -> Traffic:
    """What was counted before, by the data plane, and by the kernel."""
    *interfaces, outcomes = now or (0, 0, 0, 0, 0, 0, (0,) * len(OUTCOMES))
    old = past or Traffic(outcomes={})
    names = [name for name in Traffic.__struct_fields__ if name not in ("kernel_frames", "outcomes")]
    sums = {
        name: getattr(old, name) + count + getattr(fast, name, 0) for name, count in zip(names, interfaces, strict=True)
    }
    ended = {"to_port": fast.rx_frames - fast.to_master, "to_master": fast.to_master}
    return Traffic(
        **sums,
        kernel_frames=old.kernel_frames + fast.rx_frames,
        outcomes={
            name: old.outcomes.get(name, 0) + n + ended.get(name, 0) for name, n in zip(OUTCOMES, outcomes, strict=True)
        },
    )
