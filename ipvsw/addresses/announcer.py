"""Sends one switch's announcements when they are due: to the wire, the siblings and, with host access, the host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ipvsw.addresses.announcements import Announcements, announcement
from ipvsw.addresses.table import Table
from ipvsw.changes import Changes


class Announcer:
    """Made and closed on the loop. Nothing is announced while there is no MAC address to announce."""

    def __init__(self, table: Table, changes: Changes) -> None:
        self._table = table
        self._changes = changes
        self._mac: bytes | None = None
        self._plan = Announcements()
        self._timer: asyncio.TimerHandle | None = None

    def set_mac(self, mac: bytes | None) -> None:
        """The master's; None without a master, and in modes in which neighbours don't resolve ports' addresses."""
        self._mac = mac

    def want(self, addresses: Iterable[bytes]) -> None:
        if self._mac is not None:
            self._plan.want(addresses, asyncio.get_running_loop().time())
            self._schedule()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self.close()
        when = self._plan.next()
        if when is not None:
            self._timer = asyncio.get_running_loop().call_at(when, self._send)

    def _send(self) -> None:
        with self._changes.batch() as datapath:
            for address in self._plan.take(asyncio.get_running_loop().time()):
                owner = self._table.owner(address)
                if owner is not None and self._mac is not None:
                    datapath.announce(owner, announcement(address, self._mac))
        self._schedule()
