"""The daemon's API: HTTP/JSON on a unix socket. `operations.py` has the operations.

Users who may open the socket may read; only root and the daemon's own user may change anything (SO_PEERCRED). A second
socket, open to every user, serves descriptors alone; the daemon checks which user may get which.

Descriptors come with an interim answer (100) before the final one: a client that reads with recvmsg gets them with the
first byte, any other skips the interim answer, as HTTP requires of every client (RFC 9110 section 15.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import cast

import msgspec
from aiohttp import web

from ipvsw.daemon.operations import REASONS, ROUTES, BadBody, Call, Error, Manager, Route, openapi
from ipvsw.linux.peercred import Peer, peer_of
from ipvsw.model import Forbidden, NotFound, Refused

__all__ = ["Manager", "Server", "serve"]

log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
HAND_MODE = 0o666  # of the other socket
HAND_SUFFIX = ".fd"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE_TIMEOUT = 2.0  # seconds that requests in hand get when the server closes


class Server:
    """A running API. `close` ends it and removes the sockets."""

    def __init__(self) -> None:
        self._sites: list[tuple[web.AppRunner, Path, int]] = []

    async def listen(self, application: web.Application, path: Path, mode: int) -> None:
        """Errors: Refused, also if another daemon serves at the first of the sockets: the others belong to it."""
        listener = _listen(path, mode, first=not self._sites)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=CLOSE_TIMEOUT)
        self._sites.append((runner, path, path.stat().st_ino))
        await runner.setup()
        await web.SockSite(runner, listener).start()

    async def close(self) -> None:
        """Idempotent. Leaves a socket that another daemon has put in its place."""
        for runner, path, inode in self._sites:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()
            await runner.cleanup()


async def serve(manager: Manager, path: str | os.PathLike[str]) -> Server:
    """Serve the API on the unix socket `path`, and what every user may ask for on `path`.fd. Errors: Refused,
    also if another daemon serves there."""
    server = Server()
    try:
        await server.listen(_application(manager, ROUTES), Path(path), SOCKET_MODE)
        handed = [route for route in ROUTES if route.handed]
        await server.listen(_application(manager, handed), Path(f"{os.fspath(path)}{HAND_SUFFIX}"), HAND_MODE)
    except BaseException:
        await server.close()
        raise
    return server


def _listen(path: Path, mode: int, *, first: bool) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path, first)
        # unix_bind() gives the file the socket's own mode less the umask: never wider than ours.
        os.fchmod(listener.fileno(), mode)
        listener.bind(os.fspath(path))
        path.chmod(mode)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise Refused(f"{path}: {error.strerror or error}") from None
    except Refused:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path, served: bool) -> None:
    """Remove the socket of a daemon that was killed; refuse to touch anything else. `served`: one may serve there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Refused(f"{path}: exists and is not a socket")
    except FileNotFoundError:
        return
    if not served:
        path.unlink()
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        answer = probe.connect_ex(os.fspath(path))
    if answer == errno.ECONNREFUSED:
        path.unlink()
    elif answer in (0, errno.EAGAIN):  # EAGAIN: alive, with a full backlog
        raise Refused(f"{path}: another daemon serves there")
    else:
        raise OSError(answer, os.strerror(answer))


def _application(manager: Manager, routes: Iterable[Route]) -> web.Application:
    application = web.Application(middlewares=[_errors, _access])
    for route in routes:
        application.router.add_route(route.method, route.path, _bind(manager, route))
    document = json.dumps(openapi(), indent=2).encode()

    async def describe(request: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    application.router.add_route("GET", "/openapi.json", describe)
    return application


def _bind(manager: Manager, route: Route) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        call = Call(name=request.match_info.get("name", ""), body=await request.read(), peer=_peer(request))
        result = await route.handler(manager, call)
        if route.handed:
            result, descriptors = cast("tuple[object, list[int]]", result)
            _send_descriptors(request, descriptors)
        if route.returns is None:
            return web.Response(status=route.status)
        return _answer(route.status, result)

    return handle


def _send_descriptors(request: web.Request, descriptors: list[int]) -> None:
    """Send them with an interim answer, and close ours. Errors: Refused."""
    try:
        with contextlib.closing(_own_socket(request)) as own:
            transport = request.transport
            if transport is None or cast("asyncio.WriteTransport", transport).get_write_buffer_size():
                raise Refused("descriptors can't be sent in the middle of another answer")
            socket.send_fds(own, [INTERIM], descriptors)
    except OSError as error:
        raise Refused(f"the descriptors could not be sent: {error.strerror or error}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _answer(status: int, result: object) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(result), content_type="application/json")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into JSON."""
    try:
        return await handler(request)
    except BadBody as error:
        return _answer(400, Error(error=str(error)))
    except Forbidden as error:
        return _answer(403, Error(error=str(error)))
    except NotFound as error:
        return _answer(404, Error(error=str(error)))
    except Refused as error:
        return _answer(409, Error(error=str(error)))
    except web.HTTPMethodNotAllowed as error:
        answer = _answer(405, Error(error=f"{error.method} {request.path}: no such operation"))
        answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except web.HTTPNotFound:
        return _answer(404, Error(error=f"{request.path}: no such path"))
    except web.HTTPException as error:
        return _answer(error.status, Error(error=error.reason))
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        return _answer(500, Error(error=f"{type(error).__name__}: {error}"))


@web.middleware
async def _access(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method not in ("GET", "HEAD") and not _peer(request).is_master:
        return _answer(403, Error(error=REASONS[403]))
    return await handler(request)


def _peer(request: web.Request) -> Peer:
    """The user at the other end."""
    try:
        with contextlib.closing(_own_socket(request)) as own:
            return peer_of(own)
    except OSError:
        return Peer(None)


def _own_socket(request: web.Request) -> socket.socket:
    """A copy of the connection's socket: that of some event loops lacks methods. Errors: OSError if it is closed."""
    transport = request.transport
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    return socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
