"""Names of network namespaces, and the event that one has appeared.

No namespace is kept alive: an fd is opened for one request and closed after it.

A namespace that came as a descriptor, or to which a device was moved, may have no name. It is known by its inode number
and its cookie, which the kernel gives to no other, and is found again while it has a name or a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator

from ipvsw.model import FOLLOW

NAMED = "/run/netns"

NS_GET_USERNS, NS_GET_NSTYPE, NS_GET_OWNER_UID = 0xB701, 0xB703, 0xB704  # linux/nsfs.h
CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, from Linux 5.14
MOUNTS = "/proc/self/mountinfo"

# linux/inotify.h
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR = 0x4000, 0x8000, 0x01000000
_EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, length of the name

# `ip netns add` makes a plain file first and mounts the namespace on it within a few milliseconds. A
# plain file that stays one is polled fast this many times, and then slowly.
FAST_POLLS = 40

_libc = ctypes.CDLL(None, use_errno=True)
_given: dict[str, list[int]] = {}  # spec -> descriptors, while a request brings them


def open_namespace(spec: str) -> int | None:
    """An fd of the namespace that `spec` names (a name under /run/netns, a path, "pid:1234", what `given_spec` gives),
    or None while there is none. "" is the caller's own, and so is FOLLOW. The caller closes it. Errors: OSError, for
    what is there but can't be opened."""
    if is_given(spec):
        return _find_given(spec)
    try:
        # O_NONBLOCK: a FIFO at that path must not hold us up.
        fd = os.open(path_of(spec), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            return None
        raise
    if _is_network_namespace(fd):
        return fd
    os.close(fd)
    return None


def identity(netns_fd: int) -> tuple[int, int]:
    """What tells one namespace from another while both exist."""
    found = os.fstat(netns_fd)
    return found.st_dev, found.st_ino


def is_followed(spec: str) -> bool:
    """Whether the port's device says where it is."""
    return spec == FOLLOW or is_given(spec)


def is_given(spec: str) -> bool:
    """Whether it stands for a namespace that was given as a descriptor, or to which a device was moved."""
    return spec.startswith(f"{FOLLOW}:")


def owner_of(netns_fd: int) -> int:
    """The user who made the user namespace of a network namespace. Errors: OSError, EINVAL if it is none."""
    if not _is_network_namespace(netns_fd):
        raise OSError(errno.EINVAL, "is not a network namespace's")
    user_namespace = fcntl.ioctl(netns_fd, NS_GET_USERNS)
    try:
        owner = struct.pack("=I", 0)
        return int(struct.unpack("=I", fcntl.ioctl(user_namespace, NS_GET_OWNER_UID, owner))[0])
    finally:
        os.close(user_namespace)


def given_spec(netns_fd: int) -> str:
    """What stands for the namespace; FOLLOW for the caller's own. Errors: OSError, EINVAL if it is none."""
    if not _is_network_namespace(netns_fd):
        raise OSError(errno.EINVAL, "is not a network namespace's")
    if identity(netns_fd)[1] == os.stat(path_of("")).st_ino:
        return FOLLOW
    return f"{FOLLOW}:{identity(netns_fd)[1]}:{_cookie(netns_fd)}"


@contextlib.contextmanager
def given(netns_fd: int) -> Iterator[str]:
    """What stands for the namespace, and is found by `open_namespace` within whatever names it. Errors: OSError."""
    spec = given_spec(netns_fd)
    _given.setdefault(spec, []).append(netns_fd)
    try:
        yield spec
    finally:
        _given[spec].remove(netns_fd)
        if not _given[spec]:
            del _given[spec]


def _find_given(spec: str) -> int | None:
    if descriptors := _given.get(spec):
        return os.dup(descriptors[-1])
    inode, cookie = (int(part) for part in spec.split(":")[1:])
    name = find_namespace(inode)
    fd = None if name is None else open_namespace(name)
    if fd is not None and _cookie(fd) != cookie:  # the number was another one's before
        os.close(fd)
        return None
    return fd


def _cookie(netns_fd: int) -> int:
    """Errors: OSError."""

    def ask() -> int:
        _checked(_libc.setns(netns_fd, CLONE_NEWNET))
        with socket.socket(socket.AF_UNIX) as one:
            return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)

    return _on_a_thread(ask)


def find_namespace(inode: int) -> str | None:
    """What names the namespace with that inode number: a name under /run/netns, else a process in it, else None."""
    with contextlib.suppress(FileNotFoundError), os.scandir(NAMED) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if os.stat(entry.path).st_ino == inode:
                    return entry.name
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}/ns/net").st_ino == inode:
                return f"pid:{pid}"
    return None


def path_of(spec: str) -> str:
    """Where `spec` is found."""
    if not spec or is_followed(spec):
        return "/proc/thread-self/ns/net"
    if spec.startswith("pid:"):
        return f"/proc/{spec[4:]}/ns/net"
    return spec if spec.startswith("/") else f"{NAMED}/{spec}"


def _is_network_namespace(fd: int) -> bool:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        return False  # a plain file


def make_namespace() -> int:
    """An fd of a new namespace without a name. The caller closes it. Errors: OSError."""

    def enter() -> int:
        _checked(_libc.unshare(CLONE_NEWNET))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _on_a_thread(enter)


def _on_a_thread(work: Callable[[], int]) -> int:
    """What `work` gives on a thread of its own, as nothing else may happen in one that has left. Errors: OSError."""
    found: list[int] = []
    failed: list[OSError] = []

    def run() -> None:
        try:
            found.append(work())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


class Watch:
    """Notices when namespaces of given names may have come or gone.

    - When `fileno()` is readable, `changed()` gives the specs whose names came or went (inotify on
      their directories). A name comes before the namespace does: the spec is then also `pending`.
    - Once a second, and every 50 ms while `pending`, the caller calls `poll()`. It gives the specs
      that became namespaces since, and those for which there are no events: processes, names in
      directories that don't exist, and names on which another namespace was mounted.

    What is given may have changed or not: the caller finds out with `open_namespace`.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, dict[str, set[str]]] = {}  # directory -> name -> specs
        self._watches: dict[str, tuple[int, tuple[int, int]]] = {}  # directory -> watch, its device and inode
        self._polls: dict[str, int] = {}  # unfinished names -> times that they were polled
        self._found: dict[str, tuple[int, int] | None] = {}  # spec -> what its name led to when something was mounted
        self._mounts = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        return self._fd

    @property
    def pending(self) -> bool:
        """Whether a name came whose namespace is to follow in a moment."""
        return any(polls < FAST_POLLS for polls in self._polls.values())

    def add(self, spec: str) -> None:
        """Begin to watch `spec`. Counted: as many `discard` as `add` end it."""
        count = self._counts.get(spec, 0)
        self._counts[spec] = count + 1
        if count == 0 and spec and not is_followed(spec):
            directory, name = os.path.split(path_of(spec))
            self._found[spec] = _place(spec)
            self._names.setdefault(directory, {}).setdefault(name, set()).add(spec)
            self._follow(directory)
            self._touch(spec)

    def discard(self, spec: str) -> None:
        """Take back one `add`. Nothing happens if there was none."""
        count = self._counts.get(spec, 0)
        if count > 1:
            self._counts[spec] = count - 1
            return
        self._polls.pop(spec, None)
        if self._counts.pop(spec, 0) and spec and not is_followed(spec):
            del self._found[spec]
            directory, name = os.path.split(path_of(spec))
            names = self._names[directory]
            names[name].discard(spec)
            if not names[name]:
                del names[name]
            if not names:
                del self._names[directory]
                self._unfollow(directory)

    def changed(self) -> set[str]:
        """The specs that inotify has events for. Never blocks."""
        specs: set[str] = set()
        for watch, mask, name in self._read():
            if mask & IN_Q_OVERFLOW:
                specs.update(spec for spec in self._counts if spec)
            for directory in [one for one, (other, _) in self._watches.items() if other == watch]:
                if mask & IN_IGNORED:  # the directory itself is gone
                    del self._watches[directory]
                    specs |= self._specs(directory)
                else:
                    specs |= self._names[directory].get(name, set())
        for spec in specs:
            self._touch(spec)
        return specs

    def poll(self) -> set[str]:
        """The specs that inotify has no events for, or not yet. Never blocks."""
        specs: set[str] = set()
        for directory in self._names:
            if not self._follow(directory):
                specs |= self._specs(directory)
        for spec in list(self._polls):
            if _is_unfinished(spec):
                self._polls[spec] += 1
            else:
                del self._polls[spec]
                specs.add(spec)
        if self._has_mounted():
            specs |= self._mounted_over()
        return specs

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._mounts)
            self._fd = -1

    def _has_mounted(self) -> bool:
        """Whether anything was mounted or unmounted since the last call; proc(5)."""
        poll = select.poll()
        poll.register(self._mounts, select.POLLPRI)
        return bool(poll.poll(0))

    def _mounted_over(self) -> set[str]:
        """The specs that lead elsewhere than before."""
        now = {spec: _place(spec) for spec in self._found}
        changed = {spec for spec, place in now.items() if place != self._found[spec] and spec not in self._polls}
        self._found = now
        return changed

    def _specs(self, directory: str) -> set[str]:
        return set().union(*self._names[directory].values())

    def _touch(self, spec: str) -> None:
        if _is_unfinished(spec):
            self._polls[spec] = 0

    def _follow(self, directory: str) -> bool:
        """Have inotify watch the directory that has this name now; whether it did so already."""
        if directory.startswith("/proc/"):  # where inotify has no events
            return False
        old = self._watches.get(directory)
        try:
            found = os.stat(directory)
            if old and old[1] == (found.st_dev, found.st_ino):
                return True
            mask = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ONLYDIR
            watch = _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), mask))
        except OSError:  # not there, or no watches left: its specs are polled
            self._unfollow(directory)
            return False
        if old and old[0] != watch:
            self._unfollow(directory)
        self._watches[directory] = (watch, (found.st_dev, found.st_ino))
        return False

    def _unfollow(self, directory: str) -> None:
        watch, _ = self._watches.pop(directory, (None, None))
        # Two names of one directory have one watch.
        if watch is not None and all(watch != other for other, _ in self._watches.values()):
            _libc.inotify_rm_watch(self._fd, watch)

    def _read(self) -> list[tuple[int, int, str]]:
        events = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 1 << 16):
                start = 0
                while start < len(data):
                    watch, mask, _, length = _EVENT.unpack_from(data, start)
                    start += _EVENT.size
                    events.append((watch, mask, os.fsdecode(data[start : start + length].rstrip(b"\0"))))
                    start += length
        return events


def _place(spec: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = os.stat(path_of(spec))
        return found.st_dev, found.st_ino
    return None


def _is_unfinished(spec: str) -> bool:
    """Whether a plain file has the name, on which the namespace may be about to be mounted."""
    with contextlib.suppress(OSError):
        fd = open_namespace(spec)
        if fd is None:
            return os.path.isfile(path_of(spec))
        os.close(fd)
    return False


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
