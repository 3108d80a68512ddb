"""Moments at which an idle process wakes once for all that it does every so often."""

from __future__ import annotations

import pytest

from ipvsw.batch import until_tick


@pytest.mark.parametrize("now", [7.2, 7.6, 8.0, 8.999, 9.5004, 12345.678])
def test_what_is_done_at_the_same_rate_is_done_at_the_same_moment(now: float) -> None:
    for period in (1.0, 3.0):
        delay = until_tick(now, period)
        assert period / 2 <= delay < 1.5 * period
        assert (now + delay) / period == pytest.approx(round((now + delay) / period))


def test_a_timer_that_fired_a_little_early_is_not_set_for_the_same_moment() -> None:
    assert until_tick(8.9996, 1.0) == pytest.approx(1.0004)
