"""Paths through directories that belong to others.

The owner of a directory may put a symbolic link in the place of what root has just looked at (CWE-367). So a path is
opened component by component, each from the descriptor of the one before, and a symbolic link is followed if it is
root's or the daemon's own alone. What is done after that is done to the descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

LINKS_MAX = 40  # as in the kernel: MAXSYMLINKS in linux/namei.h


def open_path(path: str, *, create: bool = False) -> int:
    """An O_PATH descriptor of what is there; `create`: directories that are missing are made, also the last one. The
    caller closes it. Errors: OSError, ELOOP for a symbolic link that belongs to somebody else."""
    parts = path.split("/")[::-1]
    here = os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_CLOEXEC)
    links = 0
    try:
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            found = _open_at(here, part, create)
            if stat.S_ISLNK(os.fstat(found).st_mode):
                links += 1
                try:
                    start, rest = _follow(here, part, found, links)
                finally:
                    os.close(found)
                parts += rest[::-1]
                if start is None:
                    continue
                found = start
            os.close(here)
            here = found
    except BaseException:
        os.close(here)
        raise
    return here


def open_directory(path: str, *, create: bool = False) -> int:
    """As `open_path`. Errors: OSError, also ENOTDIR."""
    found = open_path(path, create=create)
    if stat.S_ISDIR(os.fstat(found).st_mode):
        return found
    os.close(found)
    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def by_descriptor(fd: int) -> str:
    """A path that means what an O_PATH descriptor means, for system calls that take nothing but paths."""
    return f"/proc/self/fd/{fd}"


def _open_at(directory: int, name: str, create: bool) -> int:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        if not create:
            raise
    try:
        os.mkdir(name, 0o755, dir_fd=directory)
    except FileExistsError:  # somebody else has made it since
        pass
    return os.open(name, flags, dir_fd=directory)


def _follow(directory: int, name: str, link: int, links: int) -> tuple[int | None, list[str]]:
    """Where the way goes on, None for `directory`, and the components from there."""
    found = os.fstat(link)
    if links > LINKS_MAX or found.st_uid not in (0, os.geteuid()):
        raise OSError(errno.ELOOP, f"{os.strerror(errno.ELOOP)}, or one of another user")
    if found.st_dev == os.stat("/proc/self").st_dev:
        # What is read from such a link need not be where it leads (/proc/1/root), and nobody can put another there.
        return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory), []
    target = os.readlink("", dir_fd=link)
    start = os.open("/", os.O_PATH | os.O_CLOEXEC) if target.startswith("/") else None
    return start, target.split("/")
