"""Which guards a port has, and what they have dropped, for the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from ipvsw._fast import Datapath
from ipvsw.model import Guard, Kind, PortConfig
from ipvsw.status import Event

log = logging.getLogger("ipvsw")

STRICT = tuple(Guard)
LOG_INTERVAL = 1.0  # seconds between two lines about one port


def guards_of(port: PortConfig, of_switch: tuple[Guard, ...] | None) -> tuple[Guard, ...]:
    """The port's own, else its switch's; without either a virtual machine has all, and a namespace none, as with the
    kernel's driver."""
    if port.guard is not None:
        return port.guard
    if of_switch is not None:
        return of_switch
    return () if port.kind in (Kind.NETNS, Kind.LINK) else STRICT


def holds_unknown(port: PortConfig) -> bool:
    """Whether the port may come by an address that the switch has not heard of yet."""
    return port.kind in (Kind.NETNS, Kind.LINK) or port.learn or bool(port.addresses)


class GuardLog:
    """One switch's. A port's first offence is logged at once, the next at most once in LOG_INTERVAL."""

    def __init__(self, switch: str, datapath: Datapath, name: Callable[[int], str | None], clock: Clock) -> None:
        """`name` is that of an attached port of a number."""
        self._switch = switch
        self._datapath = datapath
        self._name = name
        self._clock = clock

    def report(self, number: int) -> None:
        """The datapath has an offence of the port."""
        port, offence = self._name(number), self._datapath.offence(number)
        if port is None or offence is None:
            return
        outcome, mac, address = offence
        claimed = "" if address is None else f" as {address}"
        about = {"event": Event.GUARD, "switch": self._switch, "port": port, "reason": outcome}
        if address is not None:
            about["address"] = str(address)
        text = "switch %s: port %s: %s: a frame from %s%s"
        log.warning(text, self._switch, port, outcome, mac.hex(":"), claimed, extra=about)
        self._clock.call_later(LOG_INTERVAL, lambda: self._await_next(number))

    def _await_next(self, number: int) -> None:
        if self._name(number) is not None:
            self._datapath.await_offence(number)


class Clock(Protocol):
    """What of an event loop is needed."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> object: ...
