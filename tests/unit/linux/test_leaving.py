"""Which devices are deleted together, and that each is closed whatever happens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipvsw.linux.teardown import MANY, Leaver, Leaving

Places = tuple[Path, Path]


class Machine:
    """A kernel with devices by their indices, and what `World` does."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []
        self.closed: list[int] = []
        self.error: OSError | None = None

    def delete_links(self, indices: list[int]) -> None:
        if self.error:
            raise self.error
        self.requests.append(indices)

    async def visit(self, open_fd: Callable[[], int | None], work: Callable[..., bool]) -> bool | None:
        fd = open_fd()
        if fd is None:
            return None
        os.close(fd)
        return work(self)

    async def in_closer(self, work: Callable[[], None]) -> None:
        work()

    def leave(self, *devices: Leaver) -> None:
        async def run() -> None:
            leaving = Leaving(self.visit, self.in_closer)
            await asyncio.gather(*(leaving.leave(device) for device in devices))

        asyncio.run(run())

    def device(self, index: int, place: Path, now: Path | None = None) -> Leaver:
        """One that was in `place`, and is in `now`."""
        found = place.stat()

        def close() -> None:
            self.closed.append(index)

        return Leaver((found.st_dev, found.st_ino), index, lambda: os.open(now or place, os.O_RDONLY), close)


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
    many = [machine.device(k, places[0]) for k in range(MANY)]
    few = [machine.device(100 + k, places[1]) for k in range(MANY - 1)]
    machine.leave(*many, *few)
    assert machine.requests == [list(range(MANY))]
    assert sorted(machine.closed) == [*range(MANY), *(100 + k for k in range(MANY - 1))]


@pytest.mark.parametrize("moved", [False, True])
def test_what_can_not_be_deleted_is_closed(places: Places, moved: bool) -> None:
    machine = Machine()
    machine.error = None if moved else OSError(1, "not permitted")
    machine.leave(*(machine.device(k, places[0], places[1] if moved else None) for k in range(MANY)))
    assert machine.requests == [] and sorted(machine.closed) == list(range(MANY))
