"""Counters of ports, of the master and of the host's interface: what the data plane and the kernel count now, and what
was counted before, by earlier attachments of a port and by earlier daemons.
"""

from __future__ import annotations

from collections.abc import Mapping

from ipvsw._fast import OUTCOMES
from ipvsw.changes import Changes
from ipvsw.linux.fastports import FastCounts
from ipvsw.status import Traffic

NOTHING = FastCounts()
MASTER = ""  # in the place of a port's name


class Counters:
    """One switch's; a port's number is None while it isn't attached."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._datapath = changes.datapath
        self._past: dict[str, Traffic] = {}  # of a port's earlier attachments
        self._past_master = self._past_host = Traffic()  # of earlier daemons
        self._forwarded: dict[str | None, FastCounts] = {}  # by the kernel, under them; None: from the master

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

    def of_port(self, port: str, number: int | None) -> Traffic:
        """Of all its attachments, one after the other."""
        return _add(self._own(port, number), None, self._by_kernel(port, number))

    def of_master(self) -> Traffic:
        return _add(self._own_master(), None, self._by_kernel(None, None))

    def of_host(self) -> Traffic:
        return _add(self._past_host, self._datapath.traffic("host"))

    def split(self, ports: Mapping[str, int | None]) -> tuple[dict[str, Traffic], Traffic, dict[str, FastCounts]]:
        """For `set_past` of a successor: of the ports with their numbers and of the master, without what the kernel
        counts, and that."""
        forwarded = {MASTER: self._by_kernel(None, None)}
        forwarded |= {port: self._by_kernel(port, number) for port, number in ports.items()}
        own = {port: self._own(port, number) for port, number in ports.items()}
        return own, self._own_master(), {name: counts for name, counts in forwarded.items() if counts != NOTHING}

    def _own(self, port: str, number: int | None) -> Traffic:
        return _add(self._past.get(port), None if number is None else self._datapath.traffic(number))

    def _own_master(self) -> Traffic:
        return _add(self._past_master, self._datapath.traffic(None))

    def _by_kernel(self, port: str | None, number: int | None) -> FastCounts:
        """Since the port was made, or as long as the master is served; None: the master."""
        now = self._changes.fast_counts(number) if port is None or number is not None else NOTHING
        return now + self._forwarded[port] if port in self._forwarded else now


def _add(
    past: Traffic | None,
    now: tuple[int, int, int, int, int, int, tuple[int, ...]] | None,
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
