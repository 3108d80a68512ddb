"""The page of `ipvsw web`: a server on a loopback address, which is a client of the daemon's API and changes nothing.

Who has the session's cookie sees what this process may see. The page and its scripts are files of the package, the
same for everybody; what the daemon says takes a session.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from importlib.resources import files

import msgspec
from aiohttp import web
from msgspec import Struct

from ipvsw.web.access import Access, is_own_host, is_own_page
from ipvsw.web.feed import Feed, TooMany
from ipvsw.web.upstream import Away, Upstream

KEEPALIVE = 15.0  # seconds
BODY_MAX = 1 << 16  # bytes: a frame to trace, in hexadecimal, has less
CLOSE_TIMEOUT = 1.0  # seconds
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}

_http_log = logging.getLogger("ipvsw.http")
_http_log.disabled = True  # a traceback for whatever is no HTTP, which is anybody's to send

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SignIn(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /session."""

    token: str


class Page:
    """Requests and answers. `tell` gets a new address, with its token, for the user."""

    def __init__(self, daemon: Upstream, tell: Callable[[str], None]) -> None:
        self._daemon = daemon
        self._tell = tell
        self._access = Access()
        self._feed = Feed(daemon)
        self._address = ""
        self._cookie = ""

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._own, self._open], client_max_size=BODY_MAX)
        application.on_response_prepare.append(_add_headers)
        application.router.add_get("/stream", self._stream)
        application.router.add_post("/session", self._sign_in)
        application.router.add_post("/trace", self._trace)
        for path, content, kind in _static():
            application.router.add_get(path, _file(content, kind))
        return application

    def reached_at(self, host: str, port: int) -> None:
        """From now on."""
        self._address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._cookie = f"ipvsw_{port}"  # cookies don't tell the ports of one host apart
        self._tell(f"{self._address}#{self._access.token}")

    def end(self) -> None:
        self._feed.end()

    # ------------------------------------------------------------------------ who may ask

    @web.middleware
    async def _own(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """That the browser means this server, and the page there."""
        host = request.headers.get("Host", "")
        if not is_own_host(host):
            return _refused(421, f"{host or 'no host'}: this page is only there by a loopback address or as localhost")
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
        if request.path != "/" and not is_own_page(host, origin, site):  # others may link to it
            return _refused(403, "another page asks")
        return await handler(request)

    @web.middleware
    async def _open(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """That there is a session, for what the daemon says; and that a failure is one line."""
        if request.path in ("/stream", "/trace") and not self._access.knows(request.cookies.get(self._cookie, "")):
            return _refused(401, "there is no session: the terminal of `ipvsw web` shows an address that opens one")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _refused(error.status, error.reason)
        except (msgspec.MsgspecError, ValueError) as error:
            return _refused(400, str(error))
        except Away as error:
            return _refused(502, str(error))
        except TooMany:
            return _refused(503, "too many pages are open")

    # ------------------------------------------------------------------------ requests

    async def _sign_in(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=SignIn)
        session = self._access.exchange(asked.token)
        if session is None:
            return _refused(403, "this token is not the one that the terminal shows, or was used already")
        self._tell(f"{self._address}#{self._access.token}")
        answer = web.Response(status=204)
        answer.set_cookie(self._cookie, session, httponly=True, samesite="Strict")
        return answer

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the feed's messages, until the browser has gone."""
        messages = self._feed.watch(KEEPALIVE)
        first = await anext(messages)  # before the head is sent: TooMany is an answer of its own
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        try:
            await answer.write(_event(first))
            async for message in messages:
                await answer.write(_event(message))
        finally:
            await messages.aclose()
        return answer

    async def _trace(self, request: web.Request) -> web.Response:
        """Nothing is sent by it and nothing changed."""
        status, content = await self._daemon.post("/v1/trace", await request.read())
        return web.Response(status=status, body=content, content_type="application/json")


def _event(message: tuple[str, bytes] | None) -> bytes:
    return b":\n\n" if message is None else b"event: %s\ndata: %s\n\n" % (message[0].encode(), message[1])


async def _add_headers(request: web.Request, answer: web.StreamResponse) -> None:
    answer.headers.update(HEADERS)


def _refused(status: int, why: str) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode({"error": why}), content_type="application/json")


def _static() -> list[tuple[str, bytes, str]]:
    """Path, content and type of each file of the page."""
    found = []
    for one in files("ipvsw.web").joinpath("static").iterdir():
        kind = TYPES.get(f".{one.name.rpartition('.')[2]}")
        if kind is not None:
            found.append(("/" if one.name == "index.html" else f"/{one.name}", one.read_bytes(), kind))
    return found


def _file(content: bytes, kind: str) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset="utf-8")

    return answer


async def serve(socket: str, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Until SIGINT or SIGTERM. Errors: OSError if the address can't be had."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    daemon = Upstream(socket)
    page = Page(daemon, tell)
    runner = web.AppRunner(
        page.application(),
        access_log=None,
        logger=_http_log,
        shutdown_timeout=CLOSE_TIMEOUT,
        handler_cancellation=True,  # who has gone watches no longer
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        page.reached_at(host, runner.addresses[0][1])  # the kernel's choice for port 0
        await ended.wait()
    finally:
        page.end()
        await runner.cleanup()
        await daemon.close()
