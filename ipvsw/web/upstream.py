"""The daemon as the page's server sees it: a client of the API's socket that doesn't block."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=30, sock_read=30)
FOR_EVER = aiohttp.ClientTimeout(sock_connect=5)
LINE_MAX = 1 << 18  # bytes of an event


class Away(Exception):
    """The daemon doesn't answer: one line."""


class Upstream:
    """Every method makes one request. Errors: Away."""

    def __init__(self, path: str) -> None:
        self._path = path
        connector = aiohttp.UnixConnector(path, force_close=True)
        self._session = aiohttp.ClientSession("http://localhost", connector=connector, read_bufsize=LINE_MAX)

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str) -> tuple[bytes, float]:
        """The JSON, and how many seconds that took."""
        began = time.monotonic()
        try:
            async with self._session.get(path, timeout=TIMEOUT) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from None
        if answer.status != 200:
            raise Away(f"{self._path}: {path}: HTTP {answer.status}")
        return content, time.monotonic() - began

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON, of a refusal too."""
        try:
            headers = {"Content-Type": "application/json"}
            async with self._session.post(path, data=body, headers=headers, timeout=TIMEOUT) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from None

    async def events(self) -> AsyncIterator[bytes]:
        """What happens from now on, each as JSON."""
        try:
            async with self._session.get("/v1/events", timeout=FOR_EVER) as answer:
                if answer.status != 200:
                    raise Away(f"{self._path}: /v1/events: HTTP {answer.status}")
                async for line in answer.content:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:  # ValueError: a line is too long
            raise self._away(error) from None

    def _away(self, error: Exception) -> Away:
        return Away(f"{self._path}: {error or type(error).__name__}")
