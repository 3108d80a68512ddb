"""What brings addresses, gateways and routes of a port's device from one configuration to another, a piece at a time.

The netlink thread does one work after the other, for all ports and switches: thousands of addresses in one work would
have all of them wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ipvsw.linux.netlink import Handle
from ipvsw.model import PortConfig

PIECE = 128  # addresses that are added or removed before others have their turn: some 10 ms, with 20,000 there 100


class Reconfiguration:
    """Of the device `index`. Until it is `done`, `step` must be called in its namespace."""

    def __init__(self, config: PortConfig, had: PortConfig | None) -> None:
        """`had`: None for a device that has nothing yet."""
        self.problems: list[str] = []
        self.done = False
        old, new = (had.addresses, had.gateway) if had else ((), ()), (config.addresses, config.gateway)
        kept, keeps = set(new[0]), set(old[0])
        self._gone = [one for one in old[0] if one not in kept]
        self._new = [one for one in new[0] if one not in keeps]
        self._gateways_gone = [one for one in old[1] if one not in new[1]]
        self._gateways = [one for one in new[1] if one not in old[1]]
        self._metric = config.metric
        had_routes = had.routes if had else ()
        self._routes_gone = [one for one in had_routes if one not in config.routes]
        self._routes = [one for one in config.routes if one not in had_routes]

    def step(self, handle: Handle, index: int) -> None:
        """Routes and gateways go before the addresses that cover them, and come after them. What can't be done is a
        problem."""
        for route in self._routes_gone:
            with self._noted():
                handle.delete_route(index, route)
        self._routes_gone = []
        for gateway in self._gateways_gone:
            with self._noted():
                handle.delete_default_route(index, gateway)
        self._gateways_gone = []
        piece, self._gone = self._gone[:PIECE], self._gone[PIECE:]
        self._note(handle.delete_addresses(index, piece))
        if self._gone:
            return
        piece, self._new = self._new[:PIECE], self._new[PIECE:]
        self._note(handle.add_addresses(index, piece))
        if self._new:
            return
        for gateway in self._gateways:
            with self._noted():
                handle.add_default_route(index, gateway, self._metric)
        for route in sorted(self._routes, key=lambda one: one.gateway is not None):  # those that others need come first
            with self._noted():
                handle.add_route(index, route)
        self.done = True

    def _note(self, errors: list[OSError]) -> None:
        self.problems += [error.strerror or str(error) for error in errors]

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._note([error])
