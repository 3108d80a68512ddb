"""Which devices are deleted together, and that each is closed whatever happens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipvsw.linux.teardown import MIN_GROUP_DELETE, PendingDelete, Teardown

Places = tuple[Path, Path]


class Machine:
    """A kernel with devices by their indices, and what `Runtime` does."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []
        self.closed: list[int] = []
        self.error: OSError | None = None

    def delete_links(self, indices: list[int]) -> None:
        if self.error:
            raise self.error
        self.requests.append(indices)

    async def run_in_netns(self, open_fd: Callable[[], int | None], work: Callable[..., bool]) -> bool | None:
        fd = open_fd()
        if fd is None:
            return None
        os.close(fd)
        return work(self)

    async def run_blocking(self, work: Callable[[], None]) -> None:
        work()

    def leave(self, *devices: PendingDelete) -> None:
        async def run() -> None:
            leaving = Teardown(self.run_in_netns, self.run_blocking)
            await asyncio.gather(*(leaving.leave(device) for device in devices))

        asyncio.run(run())

    def device(self, index: int, place: Path, now: Path | None = None, *others: int) -> PendingDelete:
        """One that was in `place`, and is in `now`; with `others` that stay if it is closed."""
        found = place.stat()

        def close() -> None:
            self.closed.append(index)

        identity = found.st_dev, found.st_ino
        return PendingDelete(
            identity, (index, *others), lambda: os.open(now or place, os.O_RDONLY), close, stays=bool(others)
        )


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    """Files, which have an identity as namespaces have one."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.touch()
    two.touch()
    before = len(os.listdir("/proc/self/fd"))
    yield one, two
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_of_one_place_are_deleted_together_and_few_are_closed(places: Places) -> None:
    machine = Machine()
    many = [machine.device(k, places[0]) for k in range(MIN_GROUP_DELETE)]
    few = [machine.device(100 + k, places[1]) for k in range(MIN_GROUP_DELETE - 1)]
    machine.leave(*many, *few)
    assert machine.requests == [list(range(MIN_GROUP_DELETE))]
    assert sorted(machine.closed) == [*range(MIN_GROUP_DELETE), *(100 + k for k in range(MIN_GROUP_DELETE - 1))]


def test_one_that_would_leave_something_is_deleted_and_closed(places: Places) -> None:
    machine = Machine()
    machine.leave(machine.device(1, places[0], None, 2), machine.device(3, places[1]))
    assert machine.requests == [[1, 2]] and sorted(machine.closed) == [1, 3]


@pytest.mark.parametrize("moved", [False, True])
def test_what_can_not_be_deleted_is_closed(places: Places, moved: bool) -> None:
    machine = Machine()
    machine.error = None if moved else OSError(1, "not permitted")
    machine.leave(*(machine.device(k, places[0], places[1] if moved else None) for k in range(MIN_GROUP_DELETE)))
    assert machine.requests == [] and sorted(machine.closed) == list(range(MIN_GROUP_DELETE))
