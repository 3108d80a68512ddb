"""Events of namespaces take turns."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.linux import eventqueue
from ipvsw.linux.eventqueue import LONGEST, TURN, EventQueue


def test_one_that_has_much_to_say_is_overtaken() -> None:
    queue: EventQueue[tuple[str, int]] = EventQueue()
    for k in range(1000):
        assert queue.put(1, ("loud", k)) == []
    queue.put(2, ("quiet", 0))
    assert queue.take() == [("loud", k) for k in range(TURN)]
    assert queue.take() == [("quiet", 0)]
    assert queue.take()[0] == ("loud", TURN)


def test_a_queue_that_is_too_long_is_given_up_alone() -> None:
    queue: EventQueue[int] = EventQueue()
    queue.put(None, 7)
    given_up = [namespace for k in range(LONGEST + 1) for namespace in queue.put(1, k)]
    assert given_up == [1]
    assert len(queue) == 1
    assert queue.take() == [7]
    assert queue.take() == []


def test_all_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventqueue, "MOST", 100)
    queue: EventQueue[int] = EventQueue()
    for k in range(60):
        assert queue.put(1, k) == []
    given_up = [namespace for k in range(60) for namespace in queue.put(2 + k % 30, k)]
    assert given_up == [1]
    assert len(queue) == 60


@given(st.lists(st.one_of(st.integers(0, 3), st.none()), max_size=400))
def test_each_keeps_its_order_and_nothing_is_lost(story: list[int | None]) -> None:
    """None: a turn is taken."""
    queue: EventQueue[tuple[int, int]] = EventQueue()
    sent: Counter[int] = Counter()
    got: dict[int, list[int]] = {}

    def take() -> bool:
        events = queue.take()
        assert len({namespace for namespace, _ in events}) <= 1
        for namespace, number in events:
            got.setdefault(namespace, []).append(number)
        return bool(events)

    for namespace in story:
        if namespace is None:
            take()
        else:
            queue.put(namespace, (namespace, sent[namespace]))
            sent[namespace] += 1
    while take():
        pass
    assert not len(queue)
    assert got == {namespace: list(range(count)) for namespace, count in sent.items()}
