"""A namespace that somebody comes back to, and what tells it from another one that has its name later.

A name that stands for a process means that process alone, and no other one that is given its number later.

The number of a process, and the inode number of a namespace, are given to another one when it has ended, and begin anew
with a boot. What was there is told by its birth: a process's start, and the boot.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import stat
import threading

from ipvsw.linux.namespaces import given_spec, identity, is_given, open_namespace, path_of

BOOT_ID = "/proc/sys/kernel/random/boot_id"
STARTTIME = 22  # field of /proc/PID/stat, from 1; proc_pid_stat(5)

# Names of a process's namespace; in /proc/self it is the caller's own.
_OF_PROCESS = re.compile(r"/proc/(\d+)/")


class NamespaceRef:
    """The namespace that `spec` names, for as long as somebody wants to come back to it.

    A process (a number, a path below /proc, or a symbolic link to one) is held by a pidfd, from the moment when the
    reference is made: when it ends nothing has the name any more, even if another process gets its number, until
    `renew`. Any thread may call.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        self.birth = ""  # of the process, or of the first namespace that was found
        self._name: tuple[int, ...] | None = None  # what tells the link and the process that were found there
        self._pidfd = -1
        with self._lock:
            self._pin()

    def open(self) -> int | None:
        """As `open_namespace`; None once the process has ended."""
        with self._lock:
            self._pin()
            if self._name is None:
                found = open_namespace(self.spec)
                if found is not None and not self.birth:
                    self.birth = _birth_of_namespace(found)
                return found
            if self._has_ended():
                return None
            fd = open_namespace(self.spec)
            if fd is not None and self._has_ended():  # the namespace may be another process's
                os.close(fd)
                return None
            return fd

    @property
    def absence(self) -> str:
        """What a port waits for while `open` gives None."""
        with self._lock:
            ended = self._name is not None and self._has_ended()
        if is_given(self.spec):
            return "for the namespace that its interface was in"
        return f"for the namespace {self.spec}" + (": the process has ended" if ended else "")

    @property
    def is_lost(self) -> bool:
        """Whether what was there first is not there any more."""
        return bool(self.birth) and self.birth != birth_of(self.spec)

    def follow(self, netns_fd: int, *, for_good: bool) -> None:
        """The device that says where the namespace is has been moved there. `for_good`: `open` gives that one from now
        on."""
        with self._lock:
            if for_good:
                self.spec = given_spec(netns_fd)
            self.birth = _birth_of_namespace(netns_fd)

    def renew(self) -> None:
        """If the process has ended, the name means the process that has its number now."""
        with self._lock:
            if self._name is not None and self._has_ended():
                self._unpin()
                self._pin()

    def close(self) -> None:
        """Idempotent; `open` gives None from now on if the name is a process's."""
        with self._lock:
            self._close_pidfd()

    def _pin(self) -> None:
        """Hold the process that the name leads to, unless that is done. A link that was made anew is a new name."""
        name = _name_of_process(self.spec)
        if name == self._name:
            return
        self._unpin()
        self._name = name
        if name is not None:
            self.birth = birth_of(self.spec)
            with contextlib.suppress(OSError):  # ESRCH; EINVAL: a thread
                self._pidfd = os.pidfd_open(name[0])
                if self.birth != birth_of(self.spec):  # it has ended between the two
                    self._close_pidfd()

    def _unpin(self) -> None:
        self._close_pidfd()
        self._name = None

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _has_ended(self) -> bool:
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))


def _name_of_process(spec: str) -> tuple[int, ...] | None:
    """The number of the process that `spec` leads to, and what tells the link that leads there from another one; None
    for what leads to no process."""
    path = path_of(spec)
    link: tuple[int, ...] = ()
    with contextlib.suppress(OSError):
        if not path.startswith("/proc/"):
            found = os.lstat(path)
            if not stat.S_ISLNK(found.st_mode):
                return None
            link = found.st_dev, found.st_ino, found.st_mtime_ns
            path = os.path.join(os.path.dirname(path), os.readlink(path))
    process = _OF_PROCESS.match(os.path.normpath(path))
    return (int(process[1]), *link) if process else None


def birth_of(spec: str) -> str:
    """Of the process that `spec` leads to, else of the namespace; "" while there is none."""
    with contextlib.suppress(OSError, IndexError):
        process = _name_of_process(spec)
        if process is not None:
            with open(f"/proc/{process[0]}/stat", encoding="ascii", errors="replace") as file:
                start = file.read().rpartition(")")[2].split()[STARTTIME - 3]
            return f"process {process[0]} {start} {_boot()}"
        fd = open_namespace(spec)
        if fd is not None:
            try:
                return _birth_of_namespace(fd)
            finally:
                os.close(fd)
    return ""


def _birth_of_namespace(netns_fd: int) -> str:
    device, inode = identity(netns_fd)
    return f"netns {device}:{inode} {_boot()}"


def is_of_process(birth: str) -> bool:
    return birth.startswith("process ")


@functools.cache
def _boot() -> str:
    """Errors: OSError."""
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()
