"""Descriptors outlive their daemon with a keeper and with systemd, and not longer than they are wanted."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ipvsw.daemon.keeper
from ipvsw.linux.lasting.fdstore import FdStore, SystemdStore
from ipvsw.linux.lasting.keeperstore import KeeperStore
from tests.support.patience import LIMIT, until
from tests.support.programs.systemd import Systemd

COMMAND = [sys.executable, "-I", "-S", ipvsw.daemon.keeper.__file__]


class Keepers:
    """Daemons' stores at one path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stores: list[KeeperStore] = []

    def store(self) -> KeeperStore:
        self.stores.append(KeeperStore(str(self.path), COMMAND))
        return self.stores[-1]


@pytest.fixture
def keepers(tmp_path: Path) -> Iterator[Keepers]:
    made = Keepers(tmp_path / "keeper")
    yield made
    for store in made.stores:
        store.close()
    last = made.store()
    last.take()
    last.end()


def is_open_elsewhere(reader: int) -> bool:
    """Whether anybody has the other end of a pipe."""
    poll = select.poll()
    poll.register(reader, 0)
    return not poll.poll(0)


def put_pipe(store: FdStore, name: str) -> int:
    """Put a pipe's end, keep no copy but the store's, and return the other end."""
    reader, writer = os.pipe()
    store.put(name, writer)
    os.close(writer)
    return reader


def test_a_successor_takes_what_was_put(keepers: Keepers) -> None:
    first = keepers.store()
    assert first.take() == {}
    readers = {name: put_pipe(first, name) for name in ("one", "two", "three")}
    first.close()
    found = keepers.store().take()
    assert found.keys() == readers.keys()
    for name, reader in readers.items():
        os.write(found[name], name.encode())
        assert os.read(reader, 16) == name.encode()
        assert not os.get_inheritable(found[name])


def test_what_is_taken_stays_held(keepers: Keepers) -> None:
    first = keepers.store()
    first.take()
    reader = put_pipe(first, "one")
    for _ in range(3):
        first.close()
        first = keepers.store()
        for fd in first.take().values():
            os.close(fd)
    assert is_open_elsewhere(reader)


def test_what_is_dropped_is_closed_when_drop_returns(keepers: Keepers) -> None:
    store = keepers.store()
    store.take()
    readers = [put_pipe(store, f"pipe{n}") for n in range(50)]

    async def drop() -> None:
        store.start()
        await asyncio.gather(*(store.drop(f"pipe{n}") for n in range(49)))
        assert [is_open_elsewhere(reader) for reader in readers] == [False] * 49 + [True]
        await store.drop("never was put")
        store.close()

    asyncio.run(drop())


def test_a_name_that_is_put_again_means_the_new_one(keepers: Keepers) -> None:
    store = keepers.store()
    store.take()
    old, new = put_pipe(store, "one"), put_pipe(store, "one")
    store.close()
    found = keepers.store().take()
    assert not is_open_elsewhere(old)
    os.write(found["one"], b"new")
    assert os.read(new, 16) == b"new"


def test_the_end_closes_everything_and_leaves_no_process_and_no_file(keepers: Keepers) -> None:
    store = keepers.store()
    store.take()
    reader = put_pipe(store, "one")
    assert keepers.path.exists()
    process = store._process
    store.end()
    assert not is_open_elsewhere(reader)
    assert not keepers.path.exists()
    assert process is not None and process.returncode == 0


def test_two_daemons_do_not_share_a_keeper(keepers: Keepers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipvsw.linux.lasting.keeperstore.BUSY", (0.1, 0.01))
    first = keepers.store()
    first.take()
    second = keepers.store()
    with pytest.raises(OSError, match="another ipvswd has the ports"):
        second.take()
    second.close()
    first.close()
    assert keepers.store().take() == {}


def test_a_keeper_that_was_killed_is_replaced_and_gets_everything_again(keepers: Keepers) -> None:
    store = keepers.store()
    store.take()
    reader, writer = os.pipe()
    store.put("one", writer)

    async def kill() -> None:
        store.start()
        assert store._process is not None
        killed = store._process.pid
        store._process.kill()
        while store._process.pid == killed or store._connection is None:
            await asyncio.sleep(0.01)
        store.close()

    asyncio.run(asyncio.wait_for(kill(), LIMIT))
    os.close(writer)
    assert keepers.store().take().keys() == {"one"}
    assert is_open_elsewhere(reader)


def late(seconds: float) -> list[str]:
    """A keeper that takes so long to start."""
    return ["sh", "-c", f'sleep {seconds}; exec "$@"', "sh", *COMMAND]


def test_a_keeper_may_take_long_to_start(keepers: Keepers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipvsw.linux.lasting.keeperstore.PATIENCE", 0.1)
    store = KeeperStore(str(keepers.path), late(0.5))
    assert store.take() == {}
    reader = put_pipe(store, "one")
    assert is_open_elsewhere(reader)
    store.end()
    assert not is_open_elsewhere(reader)
    assert not keepers.path.exists()


def test_a_keeper_that_never_answers_leaves_no_process_and_no_file(
    keepers: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvsw.linux.lasting.keeperstore.ANSWER", 0.1)
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any, **more: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(
        "ipvsw.linux.lasting.keeperstore.subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": start})
    )
    with pytest.raises(TimeoutError):
        KeeperStore(str(keepers.path), ["sleep", str(LIMIT)]).take()
    assert started[0].returncode is not None
    assert not keepers.path.exists()


def test_a_keeper_that_does_not_listen_is_reached_again(keepers: Keepers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipvsw.linux.lasting.keeperstore.PATIENCE", 0.1)
    store = keepers.store()
    store.take()
    assert store._process is not None
    reader, writer = os.pipe()

    async def stop_and_go_on() -> None:
        store.start()
        keeper = store._process
        assert keeper is not None
        keeper.send_signal(signal.SIGSTOP)
        names = (f"pipe{n}" for n in itertools.count())
        while store._connection is not None:
            store.put(next(names), writer)
        keeper.send_signal(signal.SIGCONT)
        while store._connection is None:
            await asyncio.sleep(0.01)
        assert store._process is keeper
        store.close()

    asyncio.run(asyncio.wait_for(stop_and_go_on(), LIMIT))
    os.close(writer)
    assert keepers.store().take().keys() == store.held.keys()
    os.close(reader)


def test_the_keeper_loads_nothing_but_the_standard_library() -> None:
    program = (
        "import runpy, sys; sys.argv[1:] = []\n"
        f"runpy.run_path({ipvsw.daemon.keeper.__file__!r}, run_name='keeper')\n"
        "print(*(name for name in sys.modules if name.split('.')[0] not in sys.stdlib_module_names))"
    )
    said = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert set(said.stdout.split()) <= {"__main__", "__mp_main__"}


@pytest.mark.parametrize(
    "message", [b"put", b"put ", b"put " + b"x" * 300, b"nonsense", b"\xff\xfe", b"put one", b"x" * 4000, b""]
)
def test_a_keeper_shows_the_door_to_who_talks_nonsense(keepers: Keepers, message: bytes) -> None:
    store = keepers.store()
    store.take()
    reader = put_pipe(store, "one")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.settimeout(LIMIT)
        stranger.connect(str(keepers.path))
        stranger.send(message)
        assert stranger.recv(16) == b""
    assert is_open_elsewhere(reader)


def test_a_keeper_has_few_connections(keepers: Keepers) -> None:
    keepers.store().take()
    strangers = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(8)]
    try:
        for stranger in strangers:
            stranger.settimeout(LIMIT)
            stranger.connect(str(keepers.path))
        assert strangers[-1].recv(16) == b""
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_keeper_is_small(keepers: Keepers) -> None:
    store = keepers.store()
    store.take()
    put_pipe(store, "one")
    assert store._process is not None
    rollup = Path(f"/proc/{store._process.pid}/smaps_rollup").read_text()
    own = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert own < 6000, f"{own} kB of its own"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


def test_systemd_holds_what_is_put_and_closes_what_is_dropped(systemd: Systemd) -> None:
    store = SystemdStore(systemd.environment)
    assert store.take() == {}
    reader = put_pipe(store, "one")
    systemd.receive()
    assert systemd.stored.keys() == {"ipvsw-one"}

    async def drop() -> None:
        dropping = asyncio.create_task(store.drop("one"))
        await asyncio.sleep(0)
        assert not dropping.done()
        await asyncio.to_thread(systemd.receive)
        assert (await asyncio.to_thread(systemd.receive))["BARRIER"] == "1"
        await dropping

    asyncio.run(drop())
    assert not is_open_elsewhere(reader)


def test_what_systemd_passes_is_taken_and_nothing_else(systemd: Systemd) -> None:
    program = (
        "import os\n"
        "from ipvsw.linux.lasting.fdstore import SystemdStore\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "found = SystemdStore(os.environ).take()\n"
        "print(sorted(found), *(os.read(found[name], 9).decode() for name in sorted(found)))\n"
        "assert not any(map(os.get_inheritable, found.values()))\n"
    )
    pipes = [os.pipe() for _ in range(3)]
    for (_, writer), content in zip(pipes, (b"b", b"api", b"a"), strict=True):
        os.write(writer, content)
        os.close(writer)
    environment = os.environ | systemd.environment
    environment |= {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "ipvsw-b:ipvsw.socket:ipvsw-a"}
    high = [os.dup2(reader, 50 + n) for n, (reader, _) in enumerate(pipes)]
    moves = "".join(f" {3 + n}<&{fd}" for n, fd in enumerate(high))
    said = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1"{moves}', sys.executable, program],
        env=environment, pass_fds=high, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.split("\n")[0] == "['a', 'b'] a b"
    for fd in (*high, *(reader for reader, _ in pipes)):
        os.close(fd)


def test_the_end_empties_systemds_store(systemd: Systemd) -> None:
    store = SystemdStore(systemd.environment)
    readers = [put_pipe(store, name) for name in ("one", "two")]
    store.end()
    for _ in range(4):
        systemd.receive()
    until(lambda: not any(map(is_open_elsewhere, readers)), "systemd has closed them")
    assert systemd.stored == {}
