"""A file that is replaced as a whole: after a crash of the machine it is what it was before, or what it is to be."""

from __future__ import annotations

import contextlib
import os

SIZE_MAX = 1 << 28  # bytes
MODE, DIRECTORY_MODE = 0o600, 0o700


def read(path: str) -> bytes | None:
    """None if there is no such file. Errors: OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read(SIZE_MAX)


def write(path: str, content: bytes | None) -> None:
    """None: there is to be no file. On the disk when it returns. Errors: OSError, after which it is as it was."""
    directory, new = os.path.dirname(path), f"{path}.new"
    if content is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            _sync(directory)
        return
    os.makedirs(directory, DIRECTORY_MODE, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(new, flags, MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
    _sync(directory)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
