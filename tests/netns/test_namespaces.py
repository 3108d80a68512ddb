"""Names of namespaces, and the watch over them, against the real kernel."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipvsw.linux.namespaceref import NamespaceRef
from ipvsw.linux.namespaces import FAST_POLLS, Watch, find_namespace, open_namespace
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace, Sleeper, ip, unique

Make = Callable[..., Namespace]


@pytest.fixture
def watch() -> Iterator[Watch]:
    watching = Watch()
    yield watching
    watching.close()


def identity(spec: str) -> tuple[int, int] | None:
    fd = open_namespace(spec)
    if fd is None:
        return None
    found = os.fstat(fd)
    os.close(fd)
    return found.st_dev, found.st_ino


def events(watch: Watch, *, seconds: float = LIMIT) -> set[str]:
    """What the watch says within `seconds`, without polling."""
    readable, _, _ = select.select([watch], [], [], seconds)
    return watch.changed() if readable else set()


def wait_for_opening(watch: Watch, spec: str) -> None:
    """Do as the daemon does, until `spec` can be opened because the watch said so."""

    def opened() -> bool:
        specs = events(watch, seconds=0.02) | (watch.poll() if watch.pending else set())
        return spec in specs and identity(spec) is not None

    until(opened, f"an event of {spec}")


def test_a_namespace_is_found_by_name_path_and_process(netns: Make) -> None:
    there = netns()
    sleeper = there.start("sleep", "infinity")
    until(lambda: identity(f"pid:{sleeper.pid}") not in (None, identity("")))
    found = identity(there.name)
    assert found is not None
    assert found == identity(f"/run/netns/{there.name}") == identity(f"pid:{sleeper.pid}")
    assert found == there.inside(lambda: identity(""))
    assert found != identity("")


def test_a_namespace_has_a_name_or_a_process_or_cannot_be_found(netns: Make) -> None:
    there = netns()
    assert find_namespace(there.inside(lambda: identity(""))[1]) == there.name
    sleeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        found = until(lambda: (one := identity(f"pid:{sleeper.pid}")) != identity("") and one)
        assert found and find_namespace(found[1]) == f"pid:{sleeper.pid}"
    finally:
        sleeper.kill()
        sleeper.wait()
    until(lambda: find_namespace(found[1]) is None)


# ---------------------------------------------------------------------------- a process is one process


def opened(ref: NamespaceRef) -> tuple[int, int] | None:
    fd = ref.open()
    if fd is None:
        return None
    found = os.fstat(fd)
    os.close(fd)
    return found.st_dev, found.st_ino


@pytest.mark.parametrize("form", ["pid:{}", "/proc/{}/ns/net", "/proc/./{}/ns/net", "link"])
def test_another_process_of_the_same_number_is_not_taken_for_it(form: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as undo:
        first = undo.enter_context(Sleeper())
        spec = form.format(first.pid)
        if form == "link":
            spec = str(tmp_path / "link")
            os.symlink(f"/proc/{first.pid}/ns/net", spec)
        ref = NamespaceRef(spec)
        undo.callback(ref.close)
        assert opened(ref) == identity(f"pid:{first.pid}")
        assert ref.absence == f"for the namespace {spec}"
        first.end()
        assert opened(ref) is None
        undo.enter_context(Sleeper(first.pid))
        assert identity(spec) is not None, "somebody has the number"
        assert opened(ref) is None
        assert ref.absence == f"for the namespace {spec}: the process has ended"
        ref.renew()
        assert opened(ref) == identity(spec)


def test_a_process_that_has_not_been_there_is_not_awaited() -> None:
    with Sleeper() as first:
        pass
    ref = NamespaceRef(f"pid:{first.pid}")
    with Sleeper(first.pid):
        assert opened(ref) is None
        ref.renew()
        assert opened(ref) is not None
    ref.close()


def test_a_link_that_is_made_anew_is_a_new_name(tmp_path: Path) -> None:
    link = tmp_path / "link"
    with Sleeper() as first, Sleeper() as second:
        link.symlink_to(f"/proc/{first.pid}/ns/net")
        ref = NamespaceRef(str(link))
        assert opened(ref) == identity(f"pid:{first.pid}")
        link.unlink()
        assert opened(ref) is None
        link.symlink_to(f"/proc/{second.pid}/ns/net")
        assert opened(ref) == identity(f"pid:{second.pid}")
    ref.close()


def test_names_of_no_process_are_followed_wherever_they_lead(netns: Make, tmp_path: Path) -> None:
    one, other = netns(), netns()
    place = tmp_path / "place"
    place.write_text("")
    ref = NamespaceRef(str(place))
    for there in (one, other):
        subprocess.run(["mount", "--bind", f"/run/netns/{there.name}", str(place)], check=True)
        try:
            assert opened(ref) == identity(there.name)
        finally:
            subprocess.run(["umount", str(place)], check=True)
    assert opened(NamespaceRef("")) == identity("")
    assert opened(NamespaceRef("/proc/self/ns/net")) == identity("")


def test_a_reference_holds_one_descriptor_until_it_is_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Sleeper() as first:
        ref = NamespaceRef(f"pid:{first.pid}")
        for _ in range(3):
            assert opened(ref)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    for _ in range(2):
        ref.close()
    assert opened(ref) is None
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------- names


def test_what_is_no_network_namespace_is_none(tmp_path: Path) -> None:
    plain, fifo = tmp_path / "plain", tmp_path / "fifo"
    plain.write_text("")
    os.mkfifo(fifo)
    specs = ["no-such-name", "pid:4194305", f"{plain}", f"{fifo}", f"{tmp_path}", f"{plain}/x", "/proc/self/ns/mnt"]
    before = len(os.listdir("/proc/self/fd"))
    assert [identity(spec) for spec in [*specs, "/dev/null"]] == [None] * 8
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_that_comes_goes_and_comes_again_is_told(watch: Watch, netns: Make) -> None:
    there = netns(create=False)
    watch.add(there.name)
    assert not watch.pending and watch.poll() <= {there.name}
    for _ in range(3):
        there.create()
        wait_for_opening(watch, there.name)
        there.delete()
        assert there.name in events(watch)
        assert identity(there.name) is None


def test_a_name_whose_namespace_follows_later_is_pending(watch: Watch, tmp_path: Path, netns: Make) -> None:
    there = netns()
    late = tmp_path / "late"
    watch.add(str(late))
    late.write_text("")
    assert events(watch) == {str(late)} and watch.pending
    assert watch.poll() == set()
    subprocess.run(["mount", "--bind", f"/run/netns/{there.name}", str(late)], check=True)
    try:
        assert watch.pending and watch.poll() == {str(late)}
        assert identity(str(late)) == identity(there.name)
        assert not watch.pending and watch.poll() == set()
    finally:
        subprocess.run(["umount", str(late)], check=True)


def test_a_plain_file_does_not_keep_the_hurry_up_and_is_not_forgotten(
    watch: Watch, tmp_path: Path, netns: Make
) -> None:
    there = netns()
    plain = tmp_path / "plain"
    plain.write_text("")
    watch.add(str(plain))
    assert watch.pending
    for _ in range(FAST_POLLS):
        assert watch.poll() == set()
    assert not watch.pending
    subprocess.run(["mount", "--bind", f"/run/netns/{there.name}", str(plain)], check=True)
    try:
        assert watch.poll() == {str(plain)}
    finally:
        subprocess.run(["umount", str(plain)], check=True)


def test_a_directory_that_comes_goes_and_comes_again(watch: Watch, tmp_path: Path) -> None:
    directory = tmp_path / "netns"
    spec = str(directory / "blue")
    watch.add(spec)
    for _ in range(2):
        assert watch.poll() == {spec}  # inotify reports nothing of a directory that is not there
        directory.mkdir()
        assert watch.poll() == {spec}  # it may have come before the watch on its directory
        assert watch.poll() == set()
        (directory / "blue").symlink_to("/proc/self/ns/net")
        assert events(watch) == {spec}
        (directory / "blue").unlink()
        assert events(watch) == {spec}
        directory.rmdir()
        assert events(watch) == {spec}


def test_a_directory_that_another_one_replaces(watch: Watch, tmp_path: Path) -> None:
    directory = tmp_path / "netns"
    directory.mkdir()
    spec = str(directory / "blue")
    watch.add(spec)
    directory.rename(tmp_path / "old")
    directory.mkdir()
    assert watch.poll() == {spec}
    (directory / "blue").write_text("")
    assert events(watch) == {spec}


def test_processes_are_polled(watch: Watch) -> None:
    watch.add("pid:4194305")
    assert watch.poll() == {"pid:4194305"} == watch.poll()


def test_a_watch_is_counted_and_others_names_are_not_told(watch: Watch, tmp_path: Path) -> None:
    spec, alias = str(tmp_path / "blue"), str(tmp_path / "other" / ".." / "blue")
    (tmp_path / "other").mkdir()
    for _ in range(2):
        watch.add(spec)
    watch.add(alias)  # the same directory by another name
    (tmp_path / "green").write_text("")
    assert events(watch) == set()
    watch.discard(alias)
    watch.discard(spec)
    (tmp_path / "blue").write_text("")
    assert events(watch) == {spec}
    watch.discard(spec)
    watch.discard(spec)
    (tmp_path / "blue").unlink()
    assert events(watch, seconds=0.05) == set() == watch.poll()
    assert not watch.pending


def test_lost_events_are_events_of_every_name(watch: Watch, tmp_path: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    specs = {str(tmp_path / "a"), str(tmp_path / "b")}
    for spec in specs:
        watch.add(spec)
    for number in range(most // 2 + 1):
        path = tmp_path / f"{number}"
        path.touch()
        path.unlink()
    assert watch.changed() == specs


def test_the_watch_holds_no_namespace(watch: Watch, netns: Make, veth: Callable[..., tuple[str, str]]) -> None:
    there = netns()
    near, _ = veth(None, there)
    watch.add(there.name)
    watch.poll()
    there.delete()
    until(lambda: not Path(f"/sys/class/net/{near}").exists(), "death of the namespace")


def test_the_callers_own_namespace_never_changes(watch: Watch) -> None:
    watch.add("")
    assert watch.poll() == set()
    watch.discard("")


def test_a_namespace_that_comes_while_many_do(watch: Watch, netns: Make) -> None:
    names = [unique() for _ in range(20)]
    for name in names:
        watch.add(name)
    made = subprocess.Popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True)
    assert made.stdin
    try:
        made.stdin.write("".join(f"netns add {name}\n" for name in names))
        made.stdin.close()
        found: set[str] = set()

        def all_found() -> bool:
            specs = events(watch, seconds=0.02) | (watch.poll() if watch.pending else set())
            found.update(spec for spec in specs if identity(spec))
            return found == set(names)

        until(all_found, "every namespace is found")
    finally:
        made.wait()
        for name in names:
            ip("netns", "del", name)
