"""What the daemon has set in the kernel, and others have changed since: found by comparison, and when to put it back.

Pure: those who use it read the kernel, and do what `Repairs.due` says. A part that is changed again as soon as it was
put back is put back less and less often, and `Repairs.problems` names it; so is one that can't be put back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from ipvsw.status import Event, Subject

log = logging.getLogger("ipvsw")

CALM = 60.0  # seconds without a change after which earlier ones don't count any more
FREE = 5  # repairs in a row without a pause between them
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds; each is twice as long as the one before
RETRY = 1.0  # seconds, at least, between two attempts at what fails
AT_ONCE = 512  # parts that are put back together; the others follow
NAMED = 5  # parts in one line of the log


class Part(Struct, frozen=True):
    """One thing that the daemon has set."""

    subject: Subject
    key: Any  # whatever its user knows it by; hashable
    name: str  # for people


class Attempt(Struct):
    """What is remembered of a part that was put back, or that could not be."""

    at: float
    count: int  # in a row
    error: str  # of the last one, "" if it succeeded


def differences(wanted: Mapping[Part, object], seen: Mapping[Part, object]) -> list[Part]:
    """What is not as it should be, in the order of `wanted`. What is seen besides is nobody's concern."""
    return [part for part, value in wanted.items() if part not in seen or seen[part] != value]


class Repairs:
    """Of one interface. Times are seconds of any one clock."""

    __slots__ = ("_attempts", "_counters", "_label", "_wrong")

    def __init__(self, label: str, counters: Counter[str]) -> None:
        """`counters`: how much was put back, by subject."""
        self._label = label
        self._counters = counters
        self._attempts: dict[Part, Attempt] = {}
        self._wrong: frozenset[Part] = frozenset()

    def due(self, wrong: Sequence[Part], now: float) -> list[Part]:
        """`wrong` is all that is not as it should be: those to be put back now."""
        before, self._wrong = self._wrong, frozenset(wrong)
        for part, attempt in list(self._attempts.items()):
            is_new = part in self._wrong and part not in before
            if now - attempt.at > CALM and (is_new or part not in self._wrong):
                del self._attempts[part]
        return [part for part in wrong if now >= self._due_at(part)][:AT_ONCE]

    def done(self, results: Mapping[Part, str], now: float) -> None:
        """Parts that were put back, with "", and those that could not be, with the reason."""
        repaired = [part for part, error in results.items() if not error]
        for part, error in results.items():
            attempt = self._attempts.get(part)
            in_a_row = attempt.count if attempt and bool(attempt.error) == bool(error) else 0
            self._attempts[part] = Attempt(now, in_a_row + 1, error)
        self._wrong = (self._wrong | results.keys()).difference(repaired)
        if repaired:
            self._counters.update(str(part.subject) for part in repaired)
            more = f" and {len(repaired) - NAMED} more" if len(repaired) > NAMED else ""
            names = ", ".join(part.name for part in repaired[:NAMED])
            about = {"event": Event.REPAIRED, "reason": names + more}
            log.warning("%s: changed by others, put back: %s%s", self._label, names, more, extra=about)

    def hope(self) -> None:
        """Something has happened that may let what failed succeed."""
        for attempt in self._attempts.values():
            if attempt.error:
                attempt.count = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What is not as it should be for longer than a moment, and why."""
        found = []
        for part, attempt in self._attempts.items():
            if attempt.error and part in self._wrong:
                found.append(attempt.error)
            elif attempt.count > FREE:
                found.append(f"{part.name} is changed by others again and again")
        return tuple(dict.fromkeys(found))

    def next_at(self) -> float | None:
        """When `due` has something to say without an event, None: never."""
        times = [self._due_at(part) for part in self._wrong]
        times += [attempt.at + CALM for attempt in self._attempts.values() if attempt.count > FREE]
        return min(times, default=None)

    def _due_at(self, part: Part) -> float:
        attempt = self._attempts.get(part)
        if attempt is None:
            return 0.0
        if attempt.error:
            pause, doublings = RETRY, attempt.count
        else:
            pause, doublings = FIRST_PAUSE if attempt.count >= FREE else 0.0, attempt.count - FREE
        return attempt.at + min(pause * (1 << min(max(doublings, 0), 10)), LONGEST_PAUSE)
