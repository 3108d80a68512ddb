"""What the API needs of the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ipvsw.daemon.events import Events
from ipvsw.linux.peercred import Peer
from ipvsw.model import Config, Flag, Mode, PortConfig
from ipvsw.status import (
    CaptureAsked,
    HandedOver,
    LeaseStatus,
    PortStatus,
    States,
    SwitchStats,
    SwitchStatus,
    TraceAsked,
    TraceStatus,
)


class Feed(Protocol):
    """What an answer without an end consists of: values with the name of their event."""

    @property
    def descriptors(self) -> list[int]:
        """That go before it, and are its reader's then."""

    def __aiter__(self) -> AsyncIterator[list[Any]]: ...

    def end(self) -> None:
        """Nothing follows."""


class Manager(Protocol):
    """What the API needs of `manager.Manager`. Errors of every change: Refused."""

    def switches(self) -> tuple[SwitchStatus, ...]: ...
    def stats(self) -> tuple[SwitchStats, ...]: ...
    def states(self) -> dict[str, States]: ...
    def leases(self) -> tuple[LeaseStatus, ...]: ...
    async def add_port(self, master: str, port: PortConfig, mode: Mode | None, flag: Flag | None) -> PortStatus:
        """Attach a port to the switch of `master`, which is made if there is none."""

    def switch(self, name: str) -> SwitchStatus:
        """Errors: NotFound."""

    def labelled(self, label: str) -> tuple[SwitchStatus, ...]:
        """Switches with the ports that have this label or one that it begins, none without such a port."""

    async def delete_labelled(self, label: str) -> None:
        """Remove the ports of `labelled`. Errors: NotFound."""

    def check_user(self, master: str, peer: Peer) -> None:
        """Whether the switch on `master` lets this user attach one more namespace. Errors: also Forbidden."""

    async def delete_port(self, name: str) -> None:
        """`name` is PORT or SWITCH/PORT. Errors: also NotFound."""

    async def change_port(self, name: str, change: Callable[[PortConfig], PortConfig]) -> PortStatus:
        """`name` is PORT or SWITCH/PORT. Errors: also NotFound, those of `change`."""

    async def set_mode(self, name: str, mode: Mode | None, flag: Flag | None) -> SwitchStatus:
        """`name` is that of a switch, of a port on it or of its master. Errors: also NotFound."""

    async def hand_over(self, name: str, peer: Peer) -> tuple[HandedOver, list[int]]:
        """Descriptors of the port `name`, or of one on the switch `name` that has none yet; the caller closes them.
        Errors: also Forbidden."""

    async def trace(self, asked: TraceAsked) -> TraceStatus:
        """What would become of a frame. Errors: also NotFound."""

    def capture(self, asked: CaptureAsked) -> AbstractContextManager[Feed]:
        """Frames copied for a reader. Errors: also NotFound; of the context OSError."""

    async def take_over(self, version: int) -> None:
        """Leave everything to a daemon that reads a state of that version, and end."""

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again; returns what was done, printable."""

    async def plan(self) -> tuple[str, ...]:
        """What `reload` would do; does nothing. Errors: Refused."""

    def configuration(self) -> Config:
        """What runs, the ports of the API included."""

    @property
    def events(self) -> Events:
        """What happens."""

    def end_streams(self) -> None:
        """Of every answer that has no end."""
