"""A capture written as pcapng: to a file, a pipe or a terminal's next program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import BinaryIO

from ipvsw import __version__
from ipvsw.capture import pcapng
from ipvsw.capture.filters import Filter
from ipvsw.capture.ring import HELD, TX, Captured
from ipvsw.capture.session import Session
from ipvsw.capture.words import fate
from ipvsw.outcomes import is_drop

BUFFER = 1 << 20  # bytes
BROADCAST = b"\xff" * 6


class Writer:
    """Writes frames of one session, an interface block before the first of each interface."""

    def __init__(self, session: Session, file: BinaryIO) -> None:
        """`file` is written unbuffered. Errors of every call: OSError."""
        self._session = session
        self._file = file
        self._parts: list[bytes] = [pcapng.section(f"ipvsw {__version__}")]
        self._size = 0
        self._numbers: dict[int, int] = {}  # of interfaces, by tag
        self._options: dict[tuple[object, ...], bytes] = {}  # what is written of frames of which it is the same
        self._lost = 0
        for tag, interface in session.interfaces.items():
            if interface.captured:
                self._add(tag)
        self.flush()

    def write(self, one: Captured) -> None:
        number = self._numbers.get(one.interface)
        if number is None:
            number = self._add(one.interface)
        target = 2 if one.frame[:6] == BROADCAST else one.frame[:1] and one.frame[0] & 1
        same = one.interface, one.peer, one.outcome, one.direction, one.again, target, one.header[:6]
        options = self._options.get(same)
        if options is None:
            options = self._options[same] = self._made(one, target or 0)
            if len(self._options) > 4096:
                self._options.clear()
        lost = self._session.lost
        block = pcapng.packet(number, one.time, one.frame, options, lost - self._lost)
        self._lost = lost
        self._parts.append(block)
        self._size += len(block)
        if self._size >= BUFFER:
            self.flush()

    def flush(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        data = memoryview(b"".join(parts))
        while data:
            data = data[self._file.write(data) :]

    def _add(self, tag: int) -> int:
        name = self._session.name(tag)
        self._parts.append(pcapng.interface(name, f"ipvsw interface {name}, as the switch sees it"))
        number = self._numbers[tag] = len(self._numbers)
        return number

    def _made(self, one: Captured, target: int) -> bytes:
        reception = (pcapng.UNICAST, pcapng.MULTICAST, pcapng.BROADCAST)[target]
        verdict = None
        if one.direction != TX:
            name = "" if one.outcome == HELD else self._session.outcomes[one.outcome][0]
            verdict = pcapng.STOLEN if not name else pcapng.SHOT if is_drop(name) else pcapng.OK
        direction = pcapng.OUTBOUND if one.direction == TX else pcapng.INBOUND
        return pcapng.packet_options(fate(one, self._session), reception | direction, verdict)


def record(session: Session, descriptor: int, matches: Filter | None, stop: Callable[[], bool], count: int = 0) -> int:
    """Write frames to a descriptor until there were `count` (0: without end), until `stop` says so, or until nobody
    reads. Returns how many. Errors: OSError, session.Ended."""
    done = 0
    with os.fdopen(descriptor, "wb", buffering=0, closefd=False) as file, contextlib.suppress(BrokenPipeError):
        writer = Writer(session, file)
        for one in session.frames(writer.flush, stop):
            if matches is None or matches.matches(one.frame):
                writer.write(one)
                done += 1
                if done == count:
                    break
        writer.flush()
    return done
