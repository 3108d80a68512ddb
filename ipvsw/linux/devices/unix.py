"""Unix sockets between the switch and VMMs. All are non-blocking; errors are OSError."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat

from ipvsw.linux.safepath import by_descriptor, open_directory, open_path

BUFFER = 1 << 20  # bytes that may be on their way to the VMM, or from one that got its socket here
SO_SNDBUFFORCE = 32  # asm-generic/socket.h
SIOCUNIXFILE = 0x89E0  # linux/un.h: an O_PATH descriptor of the file that a socket is bound to


class Listener:
    """A file that VMMs connect to, for root, or for `owner` and `group` by number. It replaces
    a stale one, and is removed with this."""

    def __init__(self, path: str, owner: int | None, group: int | None) -> None:
        self._path = path
        self._socket, self._identity = _bound(path, socket.SOCK_STREAM, owner, group)
        self._socket.listen(1)

    @classmethod
    def adopt(cls, fd: int) -> Listener:
        """One that another process has made. Takes the descriptor. Errors: OSError; it is closed then."""
        made = cls.__new__(cls)
        made._socket = socket.socket(fileno=fd)
        made._path, made._identity = made._socket.getsockname(), _file_of(made._socket)
        return made

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection, None if there is none."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            connection, _ = self._socket.accept()
            return _prepared(connection)
        return None

    def close(self) -> None:
        remove(self._path, self._identity)
        self._socket.close()


class Datagrams:
    """A file that a VMM sends to, and one of its own that it is sent to: each datagram is a frame."""

    def __init__(self, local: str, remote: str, owner: int | None, group: int | None) -> None:
        self._path, self._remote = local, remote
        self.socket, self._identity = _bound(local, socket.SOCK_DGRAM, owner, group)
        _prepared(self.socket)

    @classmethod
    def adopt(cls, fd: int, remote: str) -> Datagrams:
        """One that another process has made. Takes the descriptor. Errors: OSError; it is closed then."""
        made = cls.__new__(cls)
        made.socket = socket.socket(fileno=fd)
        made._path, made._remote, made._identity = made.socket.getsockname(), remote, _file_of(made.socket)
        return made

    def find(self) -> bool:
        """Whether a VMM is there, who is then the one; also if it is another one since."""
        return reach(self.socket, self._remote) is not None

    def close(self) -> None:
        remove(self._path, self._identity)
        self.socket.close()


def connect(path: str) -> socket.socket | None:
    """To a VMM that listens there; None if none does."""
    connection = _prepared(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    return connection if reach_or_close(connection, path) else None


def reach_or_close(sock: socket.socket, path: str) -> tuple[int, int] | None:
    """As `reach`; a socket that reaches nobody is closed."""
    with contextlib.ExitStack() as undo:
        undo.enter_context(sock)
        found = reach(sock, path)
        if found is not None:
            undo.pop_all()
        return found


def reach(sock: socket.socket, path: str) -> tuple[int, int] | None:
    """Connect to who serves at `path`: what tells its file from others, None if nobody serves there. EAGAIN: it
    listens, and has as many waiting as it may. Errors: OSError."""
    try:
        found = open_path(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None
    try:
        answer, identity = sock.connect_ex(by_descriptor(found)), _identity(os.fstat(found))
    finally:
        os.close(found)
    if answer in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
        return None
    if answer:
        raise OSError(answer, f"{path}: {os.strerror(answer)}")
    return identity


def pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """Two ends, ours and one to hand over."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    return _prepared(ours), _prepared(theirs)


def bind(
    sock: socket.socket,
    path: str,
    *,
    mode: int,
    owner: int | None = None,
    group: int | None = None,
    replace: bool = False,
) -> tuple[int, int]:
    """Give a socket a file at `path`, in the place of one that nobody serves (`replace`: of any); what tells the file
    from others. Before it listens nobody can connect: when it does, owner, group and mode are what they are to be.
    Errors: OSError, EEXIST if something else is there, EADDRINUSE if somebody serves there."""
    try:
        directory = open_directory(os.path.dirname(path), create=True)
        try:
            _remove_stale(directory, os.path.basename(path), None if replace else sock.type)
            # unix_bind() gives the file the socket's own mode less the umask: never wider than wanted.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(path)
            file = fcntl.ioctl(sock.fileno(), SIOCUNIXFILE)
            try:
                _hand_to(file, mode, owner, group)
                _check_place(directory, os.path.basename(path), file)
                return _identity(os.fstat(file))
            except OSError:
                remove(os.readlink(by_descriptor(file)), _identity(os.fstat(file)))
                raise
            finally:
                os.close(file)
        finally:
            os.close(directory)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None


def remove(path: str, identity: tuple[int, int]) -> None:
    """Remove the file that `bind` has made, unless another one is there by now."""
    with contextlib.suppress(OSError):
        directory, name = open_directory(os.path.dirname(path)), os.path.basename(path)
        try:
            if _identity(os.stat(name, dir_fd=directory, follow_symlinks=False)) == identity:
                os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)


def _file_of(sock: socket.socket) -> tuple[int, int]:
    """What tells the file that a socket is bound to from others. Errors: OSError; the socket is closed then."""
    try:
        file = fcntl.ioctl(sock.fileno(), SIOCUNIXFILE)
    except OSError:
        sock.close()
        raise
    try:
        return _identity(os.fstat(file))
    finally:
        os.close(file)


def _hand_to(file: int, mode: int, owner: int | None, group: int | None) -> None:
    """The mode first: once the file is somebody else's, root needs CAP_FOWNER for it."""
    os.chmod(by_descriptor(file), mode)
    if owner is not None or group is not None:
        os.chown(by_descriptor(file), -1 if owner is None else owner, -1 if group is None else group)


def _check_place(directory: int, name: str, file: int) -> None:
    """bind() has resolved the path once more: it must have come to the same directory."""
    with contextlib.suppress(FileNotFoundError):
        if _identity(os.stat(name, dir_fd=directory, follow_symlinks=False)) == _identity(os.fstat(file)):
            return
    raise OSError(errno.ELOOP, "its directory was exchanged meanwhile")


def _remove_stale(directory: int, name: str, kind: int | None) -> None:
    """Remove the socket that was left by a process that was killed, and nothing else. `kind`: see to it that nobody
    serves there."""
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if kind is not None and _is_served(found, kind):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    finally:
        os.close(found)
    os.unlink(name, dir_fd=directory)


def _is_served(file: int, kind: int) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        return probe.connect_ex(by_descriptor(file)) != errno.ECONNREFUSED


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _bound(
    path: str, kind: socket.SocketKind, owner: int | None, group: int | None
) -> tuple[socket.socket, tuple[int, int]]:
    """A socket with that name, and what tells its file from others."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.setblocking(False)
        return sock, bind(sock, path, mode=0o600 if group is None else 0o660, owner=owner, group=group)
    except OSError:
        sock.close()
        raise


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
    return sock
