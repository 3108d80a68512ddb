"""The character device of a macvtap: what a VMM reads and writes.

Its descriptors are handed over and not kept. inotify tells when the last copy of them is closed, in whichever process
and however that process ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import stat
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from ipvsw.linux.safepath import by_descriptor

IN_OPEN, IN_CLOSE = 0x20, 0x08 | 0x10
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
ENDED = FileNotFoundError, ProcessLookupError, PermissionError  # what /proc says of a process that has
MADE = "ipvsw-"  # how directories begin that hold a file of our own
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows

_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Whether this kernel has macvtap; loads the module."""
    if _major() is None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["modprobe", "--quiet", "macvtap"], check=False, timeout=10)
    return _major() is not None


def free_index() -> int:
    """An interface index whose character device does not exist yet: two namespaces may give the same index to two
    macvtaps, and only the first of them gets /dev/tapINDEX."""
    while True:
        index = 1 << 29 | secrets.randbits(29)
        if not os.path.lexists(_path(index)):
            return index


class Node:
    """The character device of a macvtap, by its file: `fd` is an O_PATH descriptor of it, which this takes. VMMs that
    have it open already are counted. Errors: OSError."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._opens = 0
        self._uncounted = True  # whether the holders are to be counted
        self._several = False  # opens at the same time, since it was last free
        self._watch = -1
        try:
            os.set_inheritable(fd, False)
            self._watch = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
            path = os.fsencode(by_descriptor(fd))
            _checked(_libc.inotify_add_watch(self._watch, path, IN_OPEN | IN_CLOSE))
            self.read_events()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when `read_events` has something to read."""
        return self._watch

    @property
    def taken(self) -> bool:
        """Whether a process has it open, as of the last `read_events`."""
        return self._opens > 0

    def read_events(self) -> None:
        for mask in self._events():
            if mask & IN_OPEN:
                self._opens += 1
                self._several = self._several or self._opens > 1
            elif mask & IN_CLOSE and self._several:
                # inotify may merge several alike, or report them after all have happened: count the holders.
                self._uncounted = True
            elif mask & IN_CLOSE:
                self._opens = 0
        if self._uncounted:
            with contextlib.suppress(OSError):  # EMFILE: it has who had it, until the next look
                self._opens = _holders(os.fstat(self.fd).st_rdev)
                self._several, self._uncounted = self._opens > 0, False

    def _events(self) -> Iterator[int]:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._watch, 1 << 14):
                start = 0
                while start < len(data):
                    _, mask, _, length = _EVENT.unpack_from(data, start)
                    start += _EVENT.size + length
                    yield mask

    def open(self, queues: int) -> list[int]:
        """Blocking descriptors, one for each queue, with a 10-byte virtio_net_hdr. The caller closes them."""
        with contextlib.ExitStack() as undo:
            fds = []
            for _ in range(queues):
                fds.append(os.open(by_descriptor(self.fd), os.O_RDWR | os.O_CLOEXEC))
                undo.callback(os.close, fds[-1])
                self.read_events()  # one by one: inotify merges several alike
            undo.pop_all()
            return fds

    def close(self) -> None:
        """A file that `open_node` has made is removed. Idempotent."""
        if self._watch >= 0:
            os.close(self._watch)
        if self.fd >= 0:
            made = Path(os.readlink(by_descriptor(self.fd)))
            os.close(self.fd)
            if made.parent.name.startswith(MADE):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(made)
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(made.parent)
        self._watch = self.fd = -1


def open_node(index: int) -> Node:
    """That of the macvtap with this index, from `free_index`, in the caller's namespace. Errors: OSError."""
    path = _path(index)
    if not _is_macvtap(path):
        path = _make(index)
    return Node(os.open(path, os.O_PATH | os.O_CLOEXEC))


def _make(index: int) -> str:
    """Where /dev has no such file: it is not kept up to date, or belongs to another mount namespace."""
    number = _number(index)
    made = Path(tempfile.mkdtemp(prefix=MADE))
    os.mknod(made / "tap", 0o600 | stat.S_IFCHR, number)
    return str(made / "tap")


def _path(index: int) -> str:
    return f"/dev/tap{index}"


def _is_macvtap(path: str) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == _major()


def _holders(number: int) -> int:
    """Descriptors that processes have of the device with that number, O_PATH ones aside. One on its way by a socket is
    not seen."""
    count = 0
    for directory in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(*ENDED):
            for name in os.listdir(directory):
                with contextlib.suppress(*ENDED):
                    if "tap" in os.readlink(directory / name):  # others' files are not asked for their attributes
                        found = os.stat(directory / name)
                        count += (
                            stat.S_ISCHR(found.st_mode)
                            and found.st_rdev == number
                            and not _is_path_only(directory.parent / "fdinfo" / name)
                        )
    return count


def _is_path_only(fdinfo: Path) -> bool:
    flags = next(line for line in fdinfo.read_text().splitlines() if line.startswith("flags:"))
    return bool(int(flags.split()[1], 8) & os.O_PATH)


def _major() -> int | None:
    for line in Path("/proc/devices").read_text().splitlines():
        number, _, name = line.strip().partition(" ")
        if name == "macvtap":
            return int(number)
    return None


def _number(index: int) -> int:
    """The device number, from a sysfs that shows the caller's namespace: the one that is mounted need not."""
    found: list[int] = []
    failed: list[OSError] = []

    def read() -> None:
        try:
            found.append(_read_number(index))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=read)  # in the caller's network namespace; its mounts are its own
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _read_number(index: int) -> int:
    _checked(_libc.unshare(CLONE_NEWNS))
    _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    _checked(_libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None))
    major, _, minor = Path(f"/sys/class/macvtap/tap{index}/dev").read_text().strip().partition(":")
    return os.makedev(int(major), int(minor))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
