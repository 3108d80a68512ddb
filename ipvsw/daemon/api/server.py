"""The daemon's API: HTTP/JSON on a unix socket. `operations` says what it does, `listener` who may connect.

Users who may open the socket may read; only root and the daemon's own user may change anything (SO_PEERCRED). A second
socket, open to every user, serves descriptors alone; the daemon checks which user may get which.

A connection brings one request. Nothing of a body is read that the operation doesn't take, or that its sender may not
send.

Descriptors come with an interim answer (100) before the final one: a client that reads with recvmsg has them with the
first byte, and one that doesn't know of them skips it, as HTTP requires of every client (RFC 9110 section 15.2).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import cast

import msgspec
from aiohttp import web
from msgspec import Struct

from ipvsw.daemon.api import users
from ipvsw.daemon.api.bodies import Error
from ipvsw.daemon.api.contract import Feed, Manager
from ipvsw.daemon.api.listener import Admission, ApiSockets, Connection, Limits, Listener, ListeningSocket
from ipvsw.daemon.api.openapi import openapi
from ipvsw.daemon.api.operations import REASONS, ROUTES, STREAM, BadBody, Call, Route
from ipvsw.daemon.metrics import exposition
from ipvsw.linux.peercred import Peer
from ipvsw.model import Forbidden, NotFound, Refused
from ipvsw.status import HandedOver

__all__ = ["Manager", "Server", "serve"]

log = logging.getLogger("ipvsw")
# aiohttp's own: a traceback for whatever is no HTTP, which is anybody's to send.
_http_log = logging.getLogger("ipvsw.http")
_http_log.disabled = True

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE_TIMEOUT = 2.0  # seconds that requests in hand get when the server closes
LINGERING = 2.0  # seconds that the rest of a body is read and dropped, so that its sender can read the answer
BODY_MAX = 1 << 20  # bytes
LINE_MAX, HEADERS_MAX = 4096, 32  # bytes of a line of the head, and lines

_CONNECTIONS: web.AppKey[dict[asyncio.Protocol, Connection]] = web.AppKey("connections", dict)


class Server:
    """A running API. `close` ends it and removes the sockets."""

    def __init__(self, manager: Manager, limits: Limits) -> None:
        self._manager = manager
        self._admission = Admission(limits)
        self._sites: list[_Site] = []

    async def listen(
        self, routes: Iterable[Route], listening: ListeningSocket, *, measured: bool, for_users: bool = False
    ) -> None:
        """`measured`: `/metrics` too. `for_users`: the routes say themselves who may change what."""
        connections: dict[asyncio.Protocol, Connection] = {}
        runner = web.AppRunner(
            _application(self._manager, routes, connections, measured, for_users),
            access_log=None,
            logger=_http_log,
            shutdown_timeout=CLOSE_TIMEOUT,
            lingering_time=LINGERING,
            auto_decompress=False,  # nobody's few bytes become many
            max_line_size=LINE_MAX,
            max_field_size=LINE_MAX,
            max_headers=HEADERS_MAX,
        )
        await runner.setup()
        assert runner.server is not None
        listener = Listener(listening, runner.server, self._admission, connections)
        self._sites.append(_Site(runner, listener))

    async def close(self) -> None:
        """Idempotent."""
        sites, self._sites = self._sites, []
        self._manager.end_streams()
        for site in sites:
            site.listener.close()
            await site.runner.cleanup()


class _Site(Struct, frozen=True):
    runner: web.AppRunner
    listener: Listener


async def serve(manager: Manager, sockets: ApiSockets, limits: Limits = Limits()) -> Server:  # noqa: B008
    """Answer who connects to the sockets, which are the server's from now on."""
    server = Server(manager, limits)
    await server.listen(ROUTES, sockets.main, measured=True)
    await server.listen([route for route in ROUTES if route.handed], sockets.hand, measured=False)
    if sockets.users is not None:
        await server.listen(users.ROUTES, sockets.users, measured=False, for_users=True)
    if sockets.metrics is not None:
        await server.listen((), sockets.metrics, measured=True)
    return server


def _application(
    manager: Manager,
    routes: Iterable[Route],
    connections: dict[asyncio.Protocol, Connection],
    measured: bool,
    for_users: bool,
) -> web.Application:
    middlewares = [_once, _errors] if for_users else [_once, _errors, _access]
    application = web.Application(middlewares=middlewares, client_max_size=BODY_MAX)
    application[_CONNECTIONS] = connections
    for route in routes:
        application.router.add_route(route.method, route.path, _bind(manager, route))
    document = json.dumps(openapi(), indent=2).encode()

    async def describe(request: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    async def measure(request: web.Request) -> web.Response:
        now = manager.stats(), manager.states()
        text, kind = await asyncio.to_thread(exposition, *now, request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": kind})

    application.router.add_route("GET", "/openapi.json", describe)
    if measured:
        application.router.add_route("GET", "/metrics", measure)
    return application


def _bind(manager: Manager, route: Route) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        connection = _connection(request)
        peer = connection.peer
        call = Call(
            name=request.match_info.get("name", ""),
            body=await _body(request, route, connection),
            peer=peer,
            descriptors=connection.descriptors,
        )
        connection.received()
        result = await route.handler(manager, call)
        if route.streams:
            with cast("AbstractContextManager[Feed]", result) as feed:
                return await _stream(request, connection, feed)
        if route.handed:
            result, descriptors = cast("tuple[HandedOver, list[int]]", result)
            _send_descriptors(connection, descriptors)
            _log_user(peer, f"has {result.port}")
        elif request.method != "GET":
            _log_user(peer, f"{route.name} {call.name}")
        if route.returns is None:
            return web.Response(status=route.status)
        return _answer(route.status, result)

    return handle


async def _body(request: web.Request, route: Route, connection: Connection) -> bytes:
    """Errors: BadBody, web.HTTPException."""
    if route.takes is None:
        if request.body_exists:
            raise BadBody(f"{route.method} {route.path} takes no body")
        return b""
    connection.expect_body()
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        raise BadBody(f"the body: {error}") from None


async def _stream(request: web.Request, connection: Connection, feed: Feed) -> web.StreamResponse:
    """Server-sent events until the client has gone. One that does not read for a while is let go."""
    connection.ended = feed.end
    if feed.descriptors:
        _send_descriptors(connection, feed.descriptors)
    answer = web.StreamResponse(headers={"Content-Type": STREAM, "Cache-Control": "no-store"})
    answer.force_close()
    await answer.prepare(request)
    async for events in feed:
        lines = [b"event: %s\ndata: %s\n\n" % (one.event.encode(), msgspec.json.encode(one)) for one in events]
        connection.answered()  # it has so long to read what is written now
        await answer.write(b"".join(lines) or b":\n\n")
        connection.received()
    return answer


def _send_descriptors(connection: Connection, descriptors: list[int]) -> None:
    """Send them with an interim answer, and close ours. Errors: Refused."""
    try:
        if connection.transport is None or connection.transport.get_write_buffer_size():
            raise Refused("descriptors can't be sent in the middle of another answer")
        socket.send_fds(connection.socket, [INTERIM], descriptors)
    except OSError as error:
        raise Refused(f"the descriptors could not be sent: {error.strerror or error}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _log_user(peer: Peer, what: str) -> None:
    """What others than root were allowed."""
    if peer.uid != 0:
        log.info("API: user %s, process %s: %s", peer.uid, peer.pid, what)


def _answer(status: int, result: object) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(result), content_type="application/json")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _once(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One request from one connection."""
    connection = _connection(request)
    try:
        answer = await handler(request)
    finally:
        connection.answered()
    answer.force_close()
    return answer


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
    except ConnectionError:
        raise
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        return _answer(500, Error(error=f"{type(error).__name__}: {error}"))


@web.middleware
async def _access(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method not in ("GET", "HEAD") and not _connection(request).peer.is_master:
        return _answer(403, Error(error=REASONS[403]))
    return await handler(request)


def _connection(request: web.Request) -> Connection:
    """Errors: ConnectionResetError if it has gone."""
    found = request.app[_CONNECTIONS].get(request.protocol)
    if found is None:
        raise ConnectionResetError
    return found
