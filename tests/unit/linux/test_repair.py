"""What others have changed, and when it is put back."""

from __future__ import annotations

import itertools
import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.linux import repair
from ipvsw.linux.repair import CALM, FREE, LONGEST_PAUSE, Part, Repairs, differences
from ipvsw.status import Subject

RULE, ROUTE, SYSCTL = (
    Part(subject, key, f"{subject} {key}")
    for subject, key in ((Subject.RULES, 1), (Subject.ROUTES, "a"), (Subject.SYSCTLS, "x/y"))
)


def test_differences_are_what_is_missing_or_other_in_order() -> None:
    wanted = {RULE: True, ROUTE: True, SYSCTL: "1"}
    assert differences(wanted, {SYSCTL: "0", RULE: True}) == [ROUTE, SYSCTL]
    assert differences(wanted, wanted | {Part(Subject.MAC, 0, "mac"): b"x"}) == []
    assert differences({}, {RULE: True}) == []


class Side:
    """`Repairs` with their clock, and a kernel in which `others` undo what it does."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.repairs = Repairs("master m0", self.counters)
        self.now = 1000.0

    def step(self, *wrong: Part, error: str = "") -> list[Part]:
        """What is put back, or fails with `error`."""
        due = self.repairs.due(wrong, self.now)
        if due:
            self.repairs.done(dict.fromkeys(due, error), self.now)
        return due


def test_a_change_is_put_back_at_once_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    side = Side()
    with caplog.at_level(logging.WARNING):
        assert side.step(RULE, SYSCTL) == [RULE, SYSCTL]
        assert side.step() == []
    assert side.counters == {"rules": 1, "sysctls": 1}
    assert caplog.messages == ["master m0: changed by others, put back: rules 1, sysctls x/y"]
    assert side.repairs.problems == ()
    assert side.repairs.next_at() is None


def test_what_is_changed_again_and_again_is_put_back_less_and_less_often_and_shown() -> None:
    side = Side()
    times = []
    end = side.now + 600
    while side.now < end:
        if side.step(RULE):
            times.append(side.now)
        assert len(times) <= FREE or side.repairs.next_at() is not None
        side.now += 0.1
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert all(pause < 0.2 for pause in pauses[: FREE - 1])
    assert all(LONGEST_PAUSE - 1 < pause < LONGEST_PAUSE + 1 for pause in pauses[-3:])
    assert sorted(pauses) == pytest.approx(pauses, abs=0.2)
    assert side.repairs.problems == ("rules 1 is changed by others again and again",)
    assert side.step() == []
    at = side.repairs.next_at()
    assert at is not None and at <= times[-1] + CALM
    side.now = times[-1] + CALM + 0.1
    assert side.step() == []
    assert side.repairs.problems == ()
    assert side.repairs.next_at() is None


def test_changes_that_are_far_apart_are_no_fight() -> None:
    side = Side()
    for _ in range(3 * FREE):
        assert side.step(RULE) == [RULE]
        side.now += CALM + 1
    assert side.repairs.problems == ()
    assert side.counters == {"rules": 3 * FREE}


def test_what_fails_is_shown_and_tried_again() -> None:
    side = Side()
    assert side.step(ROUTE, RULE, error="no way") == [ROUTE, RULE]
    assert side.repairs.problems == ("no way",)
    assert side.step(ROUTE) == []
    at = side.repairs.next_at()
    assert at is not None and side.now < at <= side.now + 5
    side.now = at
    assert side.step(ROUTE, error="still not") == [ROUTE]
    assert side.repairs.problems == ("still not",)
    assert not side.counters
    side.now += LONGEST_PAUSE
    assert side.step(ROUTE) == [ROUTE]
    assert side.repairs.problems == ()
    assert side.counters == {"routes": 1}


def test_an_event_lets_what_failed_be_tried_soon() -> None:
    side = Side()
    for _ in range(20):
        side.step(ROUTE, error="no way")
        side.now += LONGEST_PAUSE
    side.step(ROUTE, error="no way")
    side.repairs.hope()
    at = side.repairs.next_at()
    assert at is not None and at <= side.now + repair.RETRY


def test_what_failed_and_is_right_by_itself_is_no_problem() -> None:
    side = Side()
    side.step(ROUTE, error="no way")
    side.step()
    assert side.repairs.problems == ()


def test_many_are_put_back_in_parts() -> None:
    side = Side()
    parts = [Part(Subject.ROUTES, key, f"route {key}") for key in range(2 * repair.AT_ONCE)]
    assert side.step(*parts) == parts[: repair.AT_ONCE]
    assert side.repairs.next_at() == 0
    assert side.step(*parts[repair.AT_ONCE :]) == parts[repair.AT_ONCE :]


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 100)), max_size=60))
def test_a_part_is_never_put_back_more_often_than_allowed(story: list[tuple[bool, bool, float]]) -> None:
    side = Side()
    tries: list[float] = []
    for wrong, fails, pause in story:
        if side.step(*([RULE] if wrong else []), error="no" if fails else ""):
            tries.append(side.now)
        assert all(last - first >= 0.5 for first, last in zip(tries, tries[2 * FREE + 1 :], strict=False))
        side.now += pause
    assert side.counters.total() <= len(tries)
