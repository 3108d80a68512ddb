"""A capture as its reader sees it: frames with the names of their interfaces, and what became of them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ipvsw.capture.ring import Captured, Rings
from ipvsw.client import Client, Record, Stream

NICE = 10  # of a process that reads frames
BUSY, IDLE = 0.005, 0.05  # seconds between two looks, after frames came and after none did


class Interface(NamedTuple):
    name: str  # SWITCH/PORT, SWITCH/host, or the master's name
    captured: bool  # whether its frames were asked for


class Ended(Exception):
    """The daemon has ended."""


class Stop:
    """Whether a signal says that it is enough. The next one ends the process as it always does."""

    def __init__(self) -> None:
        self._said = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def __call__(self) -> bool:
        return self._said

    def _take(self, number: int, _: object) -> None:
        self._said = True
        signal.signal(number, signal.SIG_DFL)


class Session:
    """Made by `session`."""

    def __init__(self, rings: Rings, outcomes: dict[str, str], stream: Stream) -> None:
        """`outcomes` are names and reasons, in the order of their numbers."""
        self.outcomes = list(outcomes.items())
        self.interfaces: dict[int, Interface] = {}  # by tag
        self._rings = rings
        self._stream = stream
        self._wait = IDLE

    @property
    def lost(self) -> int:
        """Frames that were overwritten before they could be read."""
        return self._rings.lost

    def frames(
        self, idle: Callable[[], None] = lambda: None, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Captured]:
        """Those of the interfaces that were asked for, until `stop` says so, and then those that are there already.
        `idle` is called whenever there is none for the moment. Errors: Ended."""
        stopping = False
        while not stopping:
            self._await()
            stopping = stop()
            self._wait = IDLE
            for one in self._rings.read():
                self._wait = BUSY
                if one.interface not in self.interfaces:
                    self._learn(one.interface)
                if self.interfaces[one.interface].captured:
                    yield one
            idle()

    def name(self, tag: int) -> str:
        """ "" for none."""
        return self.interfaces[tag].name if tag in self.interfaces else ""

    def _await(self) -> None:
        """Nobody wakes us for a frame: that would cost the traffic. The daemon's end does."""
        if select.select([self._stream.connection], [], [], self._wait)[0]:
            self.read_events()

    def read_events(self) -> None:
        """Errors: Ended."""
        self.learn(_next(self._stream))

    def learn(self, events: list[Record]) -> None:
        for event in events:
            if event["event"] == "interface":
                self.interfaces[event["tag"]] = Interface(event["name"], event.get("captured", False))

    def _learn(self, tag: int) -> None:
        """A port that is new: its name comes by the other way."""
        while tag not in self.interfaces:
            self.read_events()


@contextlib.contextmanager
def session(client: Client, at: str) -> Iterator[Session]:
    """Capture at a port, at a switch or at another interface, as the API names them; the traffic's processes have the
    CPU before this one from now on. Errors: ApiError, Unreachable, Ended."""
    with client.capture(at) as (fd, stream):
        first: list[Record] = []
        while not first:
            first = _next(stream)
        rings = first[0]
        made = Session(Rings(fd, head=rings["head"], size=rings["size"]), rings["outcomes"], stream)
        made.learn(first)
        os.nice(NICE)
        yield made


def _next(stream: Stream) -> list[Record]:
    """Errors: Ended."""
    events = stream.read()
    if events is None:
        raise Ended
    return events
