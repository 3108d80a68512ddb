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


class Counters:
    """One switch's; a port's number is None while it isn't attached."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._datapath = changes.datapath
        self._past: dict[str, Traffic] = {}  # of a port's earlier attachments
        self._past_master = self._past_host = Traffic()  # of earlier daemons

    def set_past(self, ports: Mapping[str, Traffic], master: Traffic, host: Traffic) -> None:
        """What was counted before this switch was made; counting goes on from there."""
        self._past |= {port: _add(past, None) for port, past in ports.items()}
        self._past_master, self._past_host = master, host

    def keep(self, port: str, number: int) -> None:
        """The port of that number is about to be detached, and may be attached again."""
        self._past[port] = self.of_port(port, number)

    def forget(self, port: str) -> None:
        """The port won't come back."""
        self._past.pop(port, None)

    def of_port(self, port: str, number: int | None) -> Traffic:
        """Of all its attachments, one after the other."""
        past = self._past.get(port)
        if number is None:
            return _add(past, None)
        return _add(past, self._datapath.traffic(number), self._changes.fast_counts(number))

    def of_master(self) -> Traffic:
        return _add(self._past_master, self._datapath.traffic(None), self._changes.fast_counts(None))

    def of_host(self) -> Traffic:
        return _add(self._past_host, self._datapath.traffic("host"))


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
