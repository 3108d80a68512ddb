"""The page's server, in front of a daemon that is made up."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from ipvsw.status import Event
from ipvsw.web import feed as feeding
from ipvsw.web.feed import QUEUE, WATCHERS, Feed
from ipvsw.web.server import Page
from ipvsw.web.upstream import Upstream
from tests.support.effort import calls
from tests.support.patience import LIMIT
from tests.unit.daemon.fake_manager import LAN, Daemon

STATIC = files("ipvsw.web").joinpath("static")
log = logging.getLogger("ipvsw")


class Site:
    """The page's server, as a browser reaches it."""

    def __init__(self, server: TestServer, daemon: Daemon, told: list[str]) -> None:
        self.server, self.daemon, self.told = server, daemon, told
        self.browser = aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True), base_url=str(server.make_url("/"))
        )

    @property
    def token(self) -> str:
        return self.told[-1].partition("#")[2]

    async def sign_in(self) -> None:
        async with self.browser.post("/session", json={"token": self.token}) as answer:
            assert answer.status == 204

    async def messages(self, stream: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
        kind = ""
        async for line in stream.content:
            word, _, value = line.decode().strip().partition(": ")
            if word == "event":
                kind = value
            elif word == "data":
                yield kind, json.loads(value)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    daemon = Daemon(tmp_path / "api.sock")
    told: list[str] = []
    upstream = Upstream(str(tmp_path / "api.sock"))
    page = Page(upstream, told.append)
    server = TestServer(page.application())
    await server.start_server(shutdown_timeout=1)
    page.reached_at("127.0.0.1", server.port or 0)
    found = Site(server, daemon, told)
    yield found
    page.end()
    await found.browser.close()
    await server.close()
    await upstream.close()
    found.daemon.close()


async def test_the_page_is_there_for_everybody_and_says_nothing(site: Site) -> None:
    for path in ("/", *(f"/{one.name}" for one in STATIC.iterdir() if one.name != "index.html")):
        async with site.browser.get(path) as answer:
            assert answer.status == 200 and answer.headers["Cache-Control"] == "no-store"
            text = await answer.text()
            assert site.token not in text and LAN.mac not in text


async def test_what_the_daemon_says_takes_a_session(site: Site) -> None:
    for method, path in (("GET", "/stream"), ("POST", "/trace")):
        async with site.browser.request(method, path) as answer:
            assert answer.status == 401 and "terminal" in (await answer.json())["error"]
    assert site.daemon.manager.calls == []


async def test_a_token_is_exchanged_once_for_a_cookie(site: Site) -> None:
    token = site.token
    async with site.browser.post("/session", json={"token": token}) as answer:
        assert answer.status == 204
        (cookie,) = answer.headers.getall("Set-Cookie")
        assert re.fullmatch(rf"ipvsw_{site.server.port}=[\w-]{{32}}; HttpOnly; Path=/; SameSite=Strict", cookie)
    assert len(site.told) == 2 and site.token != token
    async with aiohttp.ClientSession(str(site.server.make_url("/"))) as other:
        async with other.post("/session", json={"token": token}) as answer:
            assert answer.status == 403 and "Set-Cookie" not in answer.headers
        for wrong in (b"", b"[]", b"{", b'{"token": 1}', b'{"token": "a", "more": 1}'):
            async with other.post("/session", data=wrong) as answer:
                assert answer.status == 400
        async with other.get("/stream") as answer:
            assert answer.status == 401


async def test_only_the_page_itself_on_this_machine_may_ask(site: Site) -> None:
    await site.sign_in()
    async with site.browser.get("/", headers={"Host": "evil.example"}) as answer:
        assert answer.status == 421, "DNS rebinding"
    for headers in (
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        async with site.browser.post("/trace", json={"at": "ipvl0"}, headers=headers) as answer:
            assert answer.status == 403
        async with site.browser.get("/stream", headers=headers) as answer:
            assert answer.status == 403
    async with site.browser.get("/", headers={"Sec-Fetch-Site": "cross-site"}) as answer:
        assert answer.status == 200, "a link to it"
    assert site.daemon.manager.calls == []


async def test_every_answer_has_the_policies(site: Site) -> None:
    for path in ("/", "/page.js", "/stream", "/nowhere"):
        async with site.browser.get(path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';") and "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy and "http" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_a_trace_is_the_daemons(site: Site) -> None:
    await site.sign_in()
    async with site.browser.post("/trace", json={"at": "ipvl0", "kind": "arp"}) as answer:
        assert answer.status == 200 and (await answer.json())["outcome"] == "to_port"
    async with site.browser.post("/trace", json={"at": 7}) as answer:
        assert answer.status == 400 and "at" in (await answer.json())["error"]
    async with site.browser.post("/trace", data=b"x" * 70000) as answer:
        assert answer.status == 413
    assert [call[0] for call in site.daemon.manager.calls] == ["trace"]


async def test_nothing_else_reaches_the_daemon(site: Site) -> None:
    await site.sign_in()
    for method, path in (("GET", "/v1/config"), ("POST", "/v1/reload"), ("DELETE", "/v1/ports/a"), ("PUT", "/trace")):
        async with site.browser.request(method, path) as answer:
            assert answer.status in (404, 405)
    assert site.daemon.manager.calls == []


async def test_the_stream_has_switches_rates_and_events(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "INTERVAL", 0.01)
    await site.sign_in()
    found: dict[str, Any] = {}
    async with asyncio.timeout(LIMIT), site.browser.get("/stream") as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        async for kind, value in site.messages(stream):
            found[kind] = value
            if {"status", "rates"} <= found.keys():  # by now the daemon is watched, or will be soon
                log.info("port lan/a: up", extra={"event": Event.STATE, "switch": "lan", "port": "a"})
            if "event" in found:
                break
    assert found["history"] == [] and [one["name"] for one in found["status"]] == ["lan", "dmz"]
    assert found["rates"]["rows"] == [] and found["rates"]["drops"] == {}
    assert found["event"]["event"] == "state" and found["event"]["text"] == "port lan/a: up"


async def test_a_daemon_that_goes_and_comes_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "INTERVAL", 0.01)
    monkeypatch.setattr(feeding, "RETRY", 0.01)
    await site.sign_in()
    path = site.daemon.path
    async with asyncio.timeout(LIMIT), site.browser.get("/stream") as stream:
        messages = site.messages(stream)
        await _next(messages, lambda kind, value: kind == "rates")
        await asyncio.to_thread(site.daemon.close)
        assert str(path) in await _next(messages, lambda kind, value: kind == "away")
        site.daemon = await asyncio.to_thread(Daemon, path)
        await _next(messages, lambda kind, value: kind == "away" and value == "")
        await _next(messages, lambda kind, value: kind == "rates")


async def _next(messages: AsyncIterator[tuple[str, Any]], wanted: Callable[[str, Any], bool]) -> Any:
    async for kind, value in messages:
        if wanted(kind, value):
            return value
    raise AssertionError("the stream has ended")


async def test_so_many_pages_and_no_more(site: Site) -> None:
    await site.sign_in()
    async with asyncio.timeout(LIMIT):
        streams = [await site.browser.get("/stream") for _ in range(WATCHERS)]
        async with site.browser.get("/stream") as answer:
            assert answer.status == 503 and "too many" in (await answer.json())["error"]
        streams[0].close()
        while True:  # the server has to see that it is gone
            async with site.browser.get("/stream") as answer:
                if answer.status == 200:
                    break
            log.info("any", extra={"event": Event.STATE})
            await asyncio.sleep(0.01)
        for one in streams:
            one.close()


# ---------------------------------------------------------------------------- one reader of the daemon


class Counting:
    """A daemon that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get(self, path: str) -> tuple[bytes, float]:
        self.asked.append(path)
        return b"[]", 0.0

    async def events(self) -> AsyncIterator[bytes]:
        self.asked.append("/v1/events")
        await asyncio.Event().wait()
        yield b""


async def test_the_daemon_is_read_once_for_all_and_not_at_all_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "INTERVAL", 0.001)
    daemon = Counting()
    feed = Feed(daemon)  # type: ignore[arg-type]
    watching = [feed.watch(LIMIT) for _ in range(3)]
    async with asyncio.timeout(LIMIT):
        for one in watching:
            await _until_kind(one, "rates")
        assert daemon.asked.count("/v1/events") == 1 and daemon.asked.count("/v1/switches") == 1
        for one in watching:
            await one.aclose()
        asked = len(daemon.asked)
        for _ in range(100):
            await asyncio.sleep(0)
    assert len(daemon.asked) == asked


async def _until_kind(messages: Any, wanted: str) -> None:
    async for message in messages:
        if message is not None and message[0] == wanted:
            return


async def test_who_is_too_slow_has_to_come_again() -> None:
    feed = Feed(Counting())  # type: ignore[arg-type]
    slow = feed.watch(LIMIT)
    await anext(slow)
    for _ in range(QUEUE + 1):
        feed._tell("event", b"{}")
    assert [one async for one in slow] == []


def test_rates_of_a_thousand_ports_cost_as_many_times_those_of_ten() -> None:
    work = {}
    for ports in (10, 1000):
        traffic = {"rx_frames": 1, "rx_bytes": 1, "tx_frames": 0, "tx_bytes": 0, "outcomes": {"to_port": 1}}
        stats = [{"name": "lan", "master": traffic, "host": traffic, "ports": {f"p{k}": traffic for k in range(ports)}}]
        work[ports] = calls(lambda stats=stats: feeding.difference(stats, stats, 1.0))
    assert work[1000] < 100 * work[10]


# ---------------------------------------------------------------------------- the files


def test_the_page_needs_no_other_host_and_no_markup_from_text() -> None:
    for one in STATIC.iterdir():
        text = re.sub(r"http://www\.w3\.org/\S+", "", one.read_text())
        assert "://" not in text and "innerHTML" not in text, one.name
        if one.name.endswith(".html"):
            assert not re.findall(r'\s(?:style|on\w+)="|<script>|<style', text), "the policy forbids it"
