"""Paths through directories that belong to others, and the sockets that are bound there."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvsw.linux.devices import unix
from ipvsw.linux.safepath import by_descriptor, open_directory, open_path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

USER = 65534
ATTEMPTS = 400  # the race was won at about every 20th


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of an unprivileged user, who can get there."""
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, USER, USER)
    return directory


@contextlib.contextmanager
def attacker(target: str, path: Path) -> Iterator[None]:
    """A process of that user, that puts a symbolic link to `target` in the place of `path` again and again."""
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        aside = f"{path}.link"
        while True:
            with contextlib.suppress(OSError):
                os.symlink(target, aside)
            with contextlib.suppress(OSError):
                os.rename(aside, path)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def opened(path: Path) -> str:
    fd = open_path(str(path))
    try:
        return os.readlink(by_descriptor(fd))
    finally:
        os.close(fd)


def test_links_of_root_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "a")
    (tmp_path / "relative").symlink_to("absolute/b")
    (tmp_path / "loop").symlink_to("loop")
    assert opened(tmp_path / "absolute" / "b") == opened(tmp_path / "relative") == str(tmp_path / "a" / "b")
    assert opened(tmp_path / "a" / ".." / "." / "relative" / "..") == str(tmp_path / "a")
    assert opened(Path("/proc/self/root", str(tmp_path)[1:])) == str(tmp_path)
    with pytest.raises(OSError) as loop:
        opened(tmp_path / "loop")
    assert loop.value.errno == errno.ELOOP


def test_links_of_others_are_not(theirs: Path) -> None:
    for name in ("file", "way"):
        (theirs / name).symlink_to("/etc")
        os.chown(theirs / name, USER, USER, follow_symlinks=False)
    for path in (theirs / "file", theirs / "way" / "passwd"):
        with pytest.raises(OSError) as refusal:
            open_path(str(path))
        assert refusal.value.errno == errno.ELOOP


def test_missing_directories_are_made(tmp_path: Path) -> None:
    fd = open_directory(str(tmp_path / "a" / "b"), create=True)
    assert os.readlink(by_descriptor(fd)) == str(tmp_path / "a" / "b")
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_directory(str(tmp_path / "x" / "y"))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        open_directory(str(tmp_path / "file"))


def test_nothing_is_left_open(tmp_path: Path, theirs: Path) -> None:
    (theirs / "way").symlink_to("/etc")
    os.chown(theirs / "way", USER, USER, follow_symlinks=False)
    before = os.listdir("/proc/self/fd")
    for path in (theirs / "way" / "x", theirs / "missing" / "x", tmp_path / "y"):
        with contextlib.suppress(OSError):
            unix.Listener(str(path), 1, 2).close()
        with contextlib.suppress(OSError):
            unix.connect(str(path))
    assert os.listdir("/proc/self/fd") == before


def test_owner_and_mode_go_to_no_other_file(theirs: Path, tmp_path: Path) -> None:
    """Somebody exchanges the socket for a link to a file of root's."""
    precious, path = tmp_path / "precious", theirs / "vm.sock"
    precious.write_text("")
    precious.chmod(0o600)
    with attacker(str(precious), path):
        for _ in range(ATTEMPTS):
            with contextlib.suppress(OSError):
                unix.Listener(str(path), USER, USER).close()
            with contextlib.suppress(OSError):
                unix.Datagrams(str(path), str(precious), USER, USER).close()
            path.unlink(missing_ok=True)
            found = precious.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, 0, 0)


def test_no_socket_appears_in_another_directory(theirs: Path, tmp_path: Path) -> None:
    """Somebody exchanges the socket's directory for a link to one of root's."""
    precious, way = tmp_path / "precious", theirs / "way"
    precious.mkdir()
    with attacker(str(precious), way):
        for _ in range(ATTEMPTS):
            listener = None
            with contextlib.suppress(OSError):
                listener = unix.Listener(str(way / "vm.sock"), USER, USER)
            assert os.listdir(precious) == []
            if listener:
                listener.close()
            with contextlib.suppress(OSError):
                way.unlink()


@pytest.mark.parametrize("umask", [0, 0o22, 0o77])
def test_owner_and_mode_are_there_before_anybody_can_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    path, seen = tmp_path / "vm.sock", []

    class Watched(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            found = path.stat()
            seen.append((stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid))
            super().listen(backlog)

    monkeypatch.setattr(unix.socket, "socket", Watched)
    before = os.umask(umask)
    try:
        unix.Listener(str(path), 1001, 1002).close()
        unix.Listener(str(path), None, None).close()
    finally:
        os.umask(before)
    assert seen == [(0o660, 1001, 1002), (0o600, 0, 0)]
    assert not path.exists()
