"""What is kept for the next daemon: the records, when they are written, and what the last daemon has left.

The structure is kept twice: in a record that a holder has, for a daemon that is killed or replaced, and what of it is
to last in a file, for one that was stopped and for a host that was started again. The record goes before the file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from ipvsw.batch import until_tick
from ipvsw.config.file import read_document
from ipvsw.daemon.state import VERSION, Inherited, Moving, Structure, decode, encode, inherit
from ipvsw.linux.lasting import statefile
from ipvsw.linux.lasting.fdstore import FdStore, close_all
from ipvsw.linux.lasting.record import Record
from ipvsw.linux.namespaceref import birth_of
from ipvsw.model import Config, Refused

log = logging.getLogger("ipvsw")

SHARE = 0.03  # of the time: what writing may cost while much changes
PERIOD = 1.0  # seconds between two looks at the counters


class StateStore:
    """`describe` gives what is to be told of the structure, `count` of what frames change, and `progress` a number that
    is another one when frames were forwarded."""

    def __init__(
        self,
        store: FdStore,
        held: Mapping[str, int],
        describe: Callable[[], Structure],
        count: Callable[[], Moving],
        progress: Callable[[], int],
        path: str = "",
        lasting: Callable[[], Structure | None] = lambda: None,
    ) -> None:
        """`held` is what `store` had; `path` is the file, "" for none; `lasting` gives its content. Errors: OSError."""
        self._store = store
        self._structure = Record("structure", store, held)
        self._moving = Record("moving", store, held)
        self._held = {name: fd for name, fd in held.items() if name.startswith(("port-", "master-"))}
        self._describe = describe
        self._count = count
        self._progress = progress
        self._path = path
        self._lasting = lasting
        self._saved: Structure | None = None  # what the file says, or will in a moment
        self._saving: asyncio.Task[None] | None = None
        self._last = -1
        self._written_at = self._cost = 0.0  # seconds: when, and what CPU time it has cost
        self._soon: asyncio.TimerHandle | None = None
        self._tick: asyncio.TimerHandle | None = None

    def inherit(self, filed: Config) -> Inherited:
        """What the last daemon has left, for one with the configuration `filed`. Errors: Refused."""
        structure = decode(self._structure.found, Structure)
        if self._structure.found is None and self._path:
            structure = self._read(self._path)
        return inherit(filed, structure, decode(self._moving.found, Moving), self._held, birth_of)

    def _read(self, path: str) -> Structure:
        """Errors: Refused."""
        try:
            return decode(statefile.read(path), Structure, f"; {path} has what was added at run time")
        except OSError as error:
            raise Refused(f"daemon.state: {path}: {error.strerror}") from None

    def inherit_all(self, filed: Config) -> Inherited:
        """As it ran, whatever a file says now. Where nothing tells how it ran, as `filed` says."""
        try:
            structure = decode(self._structure.found, Structure)
            if structure.running:
                return inherit(read_document(structure.running), structure, Moving(version=VERSION), self._held)
        except Refused as error:
            log.warning("%s", error)
        return Inherited(config=filed, unwanted=dict(self._held))

    async def discard(self, fds: Mapping[str, int]) -> None:
        """Have devices go that nobody wants any more."""
        await asyncio.gather(*(self._store.drop(name) for name in fds))
        await asyncio.to_thread(close_all, fds)

    # ------------------------------------------------------------------------ writing

    def start(self) -> None:
        self._store.start()
        self.write()
        self._watch_counters()

    def note_change(self) -> None:
        """Write what has changed: now, unless it was written a moment ago and that took long."""
        if self._tick is None or self._soon is not None:
            return
        delay = self._written_at + self._cost / SHARE - time.monotonic()
        if delay > 0:
            self._soon = asyncio.get_running_loop().call_later(delay, self.write)
        else:
            self.write()

    def write_noted(self) -> None:
        """Somebody is about to be told how things are: no successor may know less."""
        if self._soon is not None:
            self.write()

    def write(self) -> None:
        """Write everything now."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        start = time.thread_time()
        self._write(self._structure, lambda: encode(self._describe()))
        self.write_counters()
        if self._path:
            self._save()
        self._written_at = time.monotonic()
        self._cost = time.thread_time() - start

    def _save(self) -> None:
        """Have the file say what is to last. Not now: a disk is slow."""
        wanted = self._lasting()
        if self._saving is None or wanted != self._saved:
            self._saved = wanted
            before = self._saving
            self._saving = asyncio.create_task(self._save_after(before, wanted))

    async def _save_after(self, before: asyncio.Task[None] | None, wanted: Structure | None) -> None:
        if before is not None:
            await before
        if wanted is not self._saved:
            return  # there is something newer already
        try:
            await asyncio.to_thread(statefile.write, self._path, None if wanted is None else encode(wanted))
        except OSError as error:
            log.error("what was added can't be kept: %s: %s", self._path, error.strerror)

    async def saved(self) -> None:
        """Returns when the file says what it is to say."""
        while self._saving is not None and not self._saving.done():
            await asyncio.shield(self._saving)

    def write_counters(self) -> None:
        self._last = self._progress()
        self._write(self._moving, lambda: encode(self._count()))

    def _write(self, record: Record, content: Callable[[], bytes]) -> None:
        try:
            record.write(content())
        except OSError as error:
            log.error("the state of the ports can't be kept: %s", error.strerror)

    def _watch_counters(self) -> None:
        if self._progress() != self._last:
            self.write_counters()
        loop = asyncio.get_running_loop()
        self._tick = loop.call_later(until_tick(loop.time(), PERIOD), self._watch_counters)

    # ------------------------------------------------------------------------ the end

    def stop(self) -> None:
        """Nothing more is written. Idempotent."""
        for timer in (self._soon, self._tick):
            if timer is not None:
                timer.cancel()
        self._soon = self._tick = None
