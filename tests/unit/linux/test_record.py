"""A record that is written in turn to two places is whole at every moment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ipvsw.linux.lasting.fdstore import NoStore
from ipvsw.linux.lasting.record import Record


class Store(NoStore):
    """Holds copies in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[str, int] = {}

    def put(self, name: str, fd: int) -> None:
        self.copies[name] = os.dup(fd)

    def successor(self) -> Record:
        return Record("state", self, {name: os.dup(fd) for name, fd in self.copies.items()})


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    for fd in made.copies.values():
        os.close(fd)


def test_the_last_writing_is_found(store: Store) -> None:
    first = Record("state", store, {})
    assert first.found is None
    for content in (b"one", b"two", b"a long one" * 10_000, b""):
        first.write(content)
        assert store.successor().found == content
    assert store.copies.keys() == {"state-0", "state-1"}


def test_successors_go_on_in_turn(store: Store) -> None:
    record = Record("state", store, {})
    for number in range(7):
        record.write(f"{number}".encode())
        if number % 2:
            record.close()
            record = store.successor()
            assert record.found == f"{number}".encode()


@pytest.mark.parametrize("cut", [0, 5, 20, 41])
def test_a_writing_that_was_cut_leaves_the_one_before(store: Store, cut: int) -> None:
    record = Record("state", store, {})
    for content in (b"one", b"two", b"three"):
        record.write(content)
    newest = store.copies["state-0"]
    os.truncate(newest, cut)
    assert store.successor().found == b"two"


@pytest.mark.parametrize("place", [0, 8, 16, 24, 40, 43])
def test_a_writing_that_is_half_the_old_one_leaves_the_one_before(store: Store, place: int) -> None:
    record = Record("state", store, {})
    for content in (b"one", b"two", b"three"):
        record.write(content)
    newest = store.copies["state-0"]
    (byte,) = os.pread(newest, 1, place)
    os.pwrite(newest, bytes([byte ^ 1]), place)
    assert store.successor().found == b"two"


def test_what_has_not_changed_is_not_written(store: Store) -> None:
    record = Record("state", store, {})
    record.write(b"one")
    before = [os.pread(fd, 100, 0) for fd in store.copies.values()]
    record.write(b"one")
    assert [os.pread(fd, 100, 0) for fd in store.copies.values()] == before
