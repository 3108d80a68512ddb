"""Where the API listens, who may connect, how many at a time, and for how long. `server` says what a request may be.

The sockets are open before the ports go on, and who connects is answered when they do: the web server's library takes
longer to load than all the rest, and no port waits for it.

A connection brings one request: limits of connections are limits of requests in flight too. Root and the daemon's own
user have a share of their own, so that others who take all they may take nothing from them; and nobody takes the last
descriptors, which the daemon needs to open namespaces and to read devices again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable
from typing import cast

import msgspec
from msgspec import Struct

from ipvsw.client import receive_fds
from ipvsw.linux.devices.unix import bind, remove
from ipvsw.linux.lasting.fdstore import close_fds
from ipvsw.linux.peercred import Peer, peer_of
from ipvsw.model import Refused

log = logging.getLogger("ipvsw")

SOCKET_MODE = 0o660
HAND_MODE = 0o666  # of the other socket
HAND_SUFFIX = ".fd"
BACKLOG = 128  # connections that wait in the kernel to be accepted
_WHY = {errno.EEXIST: "exists and is not a socket", errno.EADDRINUSE: "another daemon serves there"}

BATCH = 16  # connections that are accepted before others have their turn
FIRST = 65536  # bytes that are read together with the descriptors that a request brings
DESCRIPTORS = 1  # that it may bring
PAUSE = 0.1  # seconds without accepting once descriptors are scarce
QUIET = 1.0  # seconds between two lines of the log about refusals


class ListeningSocket(Struct, frozen=True):
    """One that listens; of a unix socket its file too, and what tells that from others."""

    sock: socket.socket
    path: str = ""
    identity: tuple[int, int] = (0, 0)

    def close(self) -> None:
        """Idempotent. Leaves the file alone if another daemon's has taken its place."""
        if self.path:
            remove(self.path, self.identity)
        self.sock.close()


class ApiSockets(Struct, frozen=True):
    """All that the API listens on."""

    main: ListeningSocket
    hand: ListeningSocket  # for everybody, for descriptors alone
    metrics: ListeningSocket | None
    users: ListeningSocket | None  # for everybody, for namespaces of their own

    def close(self) -> None:
        """Idempotent."""
        for each in (self.main, self.hand, self.metrics, self.users):
            if each is not None:
                each.close()


def open_sockets(path: str | os.PathLike[str], metrics: str | None = None, users: str | None = None) -> ApiSockets:
    """The unix socket `path`, and `path`.fd beside it; metrics also on ADDRESS:PORT, and `users` for users. Errors:
    Refused, also if another daemon serves at the first of them: the others belong to it."""
    with contextlib.ExitStack() as undo:
        main = undo.enter_context(contextlib.closing(_listen(os.fspath(path), SOCKET_MODE, replace=False)))
        hand = _listen(f"{os.fspath(path)}{HAND_SUFFIX}", HAND_MODE, replace=True)
        undo.enter_context(contextlib.closing(hand))
        open_to_users = _listen(users, HAND_MODE, replace=True) if users else None
        if open_to_users is not None:
            undo.enter_context(contextlib.closing(open_to_users))
        tcp = _listen_tcp(metrics) if metrics else None
        undo.pop_all()
        return ApiSockets(main, hand, tcp, open_to_users)


def _listen(path: str, mode: int, *, replace: bool) -> ListeningSocket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        identity = bind(listener, path, mode=mode, replace=replace)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = _WHY.get(error.errno or 0)
        raise Refused(f"{path}: {why}" if why else str(error.strerror)) from None
    return ListeningSocket(listener, path, identity)


def _listen_tcp(endpoint: str) -> ListeningSocket:
    address, _, port = endpoint.rpartition(":")
    family = socket.AF_INET6 if address.startswith("[") else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.strip("[]"), int(port)))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Refused(f"daemon.metrics: {endpoint}: {error.strerror}") from None
    return ListeningSocket(listener)


class Limits(Struct, frozen=True):
    """Of the API's sockets together; docs/security.md lists them."""

    user: int = 16  # connections of one user
    others: int = 64  # of all users but root and the daemon's own
    masters: int = 64  # of root and the daemon's own user
    reserve: int = 64  # descriptors below RLIMIT_NOFILE that connections leave alone; root's, half of them
    head: float = 5.0  # seconds until a request's head is there
    body: float = 10.0  # seconds from then until its body is
    answer: float = 30.0  # seconds that the answer may take to be read


class Admission:
    """Counts connections by user. Pure."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._users: Counter[int | None] = Counter()
        self._masters = self._others = 0

    def admit(self, peer: Peer) -> str | None:
        """Count one more, or say why not."""
        limits = self.limits
        if peer.is_master:
            if self._masters >= limits.masters:
                return f"root has {limits.masters} connections already"
            self._masters += 1
            return None
        if self._users[peer.uid] >= limits.user:
            return f"this user has {limits.user} connections already"
        if self._others >= limits.others:
            return f"there are {limits.others} connections already"
        self._users[peer.uid] += 1
        self._others += 1
        return None

    def release(self, peer: Peer) -> None:
        """One that was admitted has ended."""
        if peer.is_master:
            self._masters -= 1
            return
        self._others -= 1
        self._users[peer.uid] -= 1
        if not self._users[peer.uid]:
            del self._users[peer.uid]

    def spares(self, peer: Peer, descriptor: int, limit: int) -> bool:
        """Whether enough descriptors are left: the kernel gives the lowest that is free."""
        return descriptor < limit - (self.limits.reserve // 2 if peer.is_master else self.limits.reserve)


class First(Struct, frozen=True):
    """What a connection begins with."""

    data: bytes
    descriptors: tuple[int, ...]


def _read_first(sock: socket.socket) -> First:
    """Errors: OSError."""
    data, descriptors = receive_fds(sock, FIRST, DESCRIPTORS)
    return First(data, tuple(descriptors))


class Connection(asyncio.Protocol):
    """One connection, between its transport and aiohttp's protocol for it: what it may take of time and memory.

    Descriptors come with its first bytes, which are read before a transport has it: those would lose them."""

    def __init__(
        self, sock: socket.socket, peer: Peer, inner: asyncio.Protocol, listener: Listener, first: First
    ) -> None:
        self.socket = sock
        self.peer = peer
        self.descriptors = first.descriptors  # closed with the connection
        self._first = first.data
        self.transport: asyncio.WriteTransport | None = None
        self.ended: Callable[[], None] = lambda: None  # what to do when the client has gone
        self._inner = inner
        self._listener = listener
        self._complete = False
        self._deadline: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------ the request's life

    def expect_body(self) -> None:
        self._within(self._listener.limits.body)

    def received(self) -> None:
        """The request is complete, and takes the time that it takes. What comes after it is not kept."""
        self._complete = True
        self._within(None)

    def answered(self) -> None:
        self._complete = True
        self._within(self._listener.limits.answer)

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None and self.transport is not None:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self.transport.abort)

    # ------------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)
        self._listener.connections[self._inner] = self
        self._within(self._listener.limits.head)
        self._inner.connection_made(transport)
        if self._first:
            self.data_received(self._first)

    def data_received(self, data: bytes) -> None:
        if not self._complete:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._within(None)
        self.transport = None
        close_fds(self.descriptors)
        self.ended()
        del self._listener.connections[self._inner]
        self._inner.connection_lost(exc)
        self._listener.release(self)


class Listener:
    """One listening socket. `make` gives aiohttp's protocol for a connection, by which the connection is found in
    `connections`; `admission` may be shared."""

    def __init__(
        self,
        listening: ListeningSocket,
        make: Callable[[], asyncio.Protocol],
        admission: Admission,
        connections: dict[asyncio.Protocol, Connection],
    ) -> None:
        self.limits = admission.limits
        self.connections = connections
        self._listening = listening
        self._socket = listening.sock
        self._make = make
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._logged = -QUIET  # the loop's time
        self._resume()

    def close(self) -> None:
        """No more connections. Those that have said something stay."""
        for task in self._starting:
            task.cancel()
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._socket.fileno())
        self._listening.close()

    def release(self, connection: Connection) -> None:
        self._admission.release(connection.peer)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _hold(self) -> None:
        """Others wait in the kernel's queue, where they take no descriptor."""
        self._loop.remove_reader(self._socket.fileno())
        self._pause = self._loop.call_later(PAUSE, self._resume)

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # EMFILE, ENFILE, ENOMEM: not for long, it is hoped
                self._refused(f"cannot accept a connection: {error.strerror}")
                self._hold()
                return
            if not self._admit(sock):
                return

    def _admit(self, sock: socket.socket) -> bool:
        """Whether to go on accepting."""
        try:
            peer = peer_of(sock)
        except OSError:  # a process in more groups than can be told
            peer = Peer(None)
        if not self._admission.spares(peer, sock.fileno(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
            self._refuse(sock, peer, 503, "the daemon has too few descriptors left")
            self._hold()
            return False
        if reason := self._admission.admit(peer):
            self._refuse(sock, peer, 429, reason)
            return True
        sock.setblocking(False)
        task = self._loop.create_task(self._serve(sock, peer))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return True

    async def _serve(self, sock: socket.socket, peer: Peer) -> None:
        first = First(b"", ())
        try:
            async with asyncio.timeout(self.limits.head):
                first = await self._first(sock)
            connection = Connection(sock, peer, self._make(), self, first)
            await self._loop.connect_accepted_socket(lambda: connection, sock)
        except (OSError, asyncio.CancelledError):
            close_fds(first.descriptors)
            sock.close()
            self._admission.release(peer)

    async def _first(self, sock: socket.socket) -> First:
        """Errors: OSError."""
        readable = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), _set_done, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(sock.fileno())
        return _read_first(sock)

    def _refuse(self, sock: socket.socket, peer: Peer, status: int, reason: str) -> None:
        self._refused(f"a connection of user {peer.uid}, process {peer.pid}: {reason}")
        body = msgspec.json.encode({"error": reason})
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        with sock, contextlib.suppress(OSError):
            sock.setblocking(False)
            sock.send(head.encode() + body)

    def _refused(self, text: str) -> None:
        if self._loop.time() - self._logged >= QUIET:
            self._logged = self._loop.time()
            log.warning("API: refused: %s", text)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


REASONS = {429: "Too Many Requests", 503: "Service Unavailable"}
