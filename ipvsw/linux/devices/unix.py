"""Unix sockets between the switch and VMMs. All are non-blocking; errors are OSError."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

BUFFER = 1 << 20  # bytes that may be on their way to the VMM, or from one that got its socket here
SO_SNDBUFFORCE = 32  # asm-generic/socket.h


class Listener:
    """A file that VMMs connect to, for root, or for `owner` and `group` by number. It replaces
    a stale one, and is removed with this."""

    def __init__(self, path: str, owner: int | None, group: int | None) -> None:
        self._path = path
        self._socket, self._identity = _bound(path, socket.SOCK_STREAM, owner, group)
        self._socket.listen(1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection, None if there is none."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            connection, _ = self._socket.accept()
            return _prepared(connection)
        return None

    def close(self) -> None:
        _remove(self._path, self._identity)
        self._socket.close()


class Datagrams:
    """A file that a VMM sends to, and one of its own that it is sent to: each datagram is a frame."""

    def __init__(self, local: str, remote: str, owner: int | None, group: int | None) -> None:
        self._path, self._remote = local, remote
        self.socket, self._identity = _bound(local, socket.SOCK_DGRAM, owner, group)
        _prepared(self.socket)

    def find(self) -> bool:
        """Whether a VMM is there, who is then the one; also if it is another one since."""
        return _reach(self.socket, self._remote)

    def close(self) -> None:
        _remove(self._path, self._identity)
        self.socket.close()


def connect(path: str) -> socket.socket | None:
    """To a VMM that listens there; None if none does."""
    connection = _prepared(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        if _reach(connection, path):
            return connection
    except OSError:
        connection.close()
        raise
    connection.close()
    return None


def pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """Two ends, ours and one to hand over."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    return _prepared(ours), _prepared(theirs)


def _reach(sock: socket.socket, path: str) -> bool:
    """EAGAIN: it listens, and has as many waiting as it may."""
    answer = sock.connect_ex(path)
    if answer in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
        return False
    if answer:
        raise OSError(answer, f"{path}: {os.strerror(answer)}")
    return True


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
    return sock


def _bound(
    path: str, kind: socket.SocketKind, owner: int | None, group: int | None
) -> tuple[socket.socket, tuple[int, int]]:
    """A socket with that name, and what tells its file from others."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.setblocking(False)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _remove_stale(path, kind)
        # unix_bind() gives the file the socket's own mode less the umask: never wider than wanted.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        found = os.lstat(path)
        if owner is not None or group is not None:
            os.chown(path, -1 if owner is None else owner, -1 if group is None else group, follow_symlinks=False)
        if group is not None:
            os.chmod(path, 0o660)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"{path}: {os.strerror(error.errno or 0)}") from None
    return sock, (found.st_dev, found.st_ino)


def _remove_stale(path: str, kind: socket.SocketKind) -> None:
    """Remove what was left by a process that was killed, and nothing else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    os.unlink(path)


def _remove(path: str, identity: tuple[int, int]) -> None:
    """Unless the file is another one by now."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == identity:
            os.unlink(path)
