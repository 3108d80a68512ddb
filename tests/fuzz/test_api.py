"""The API against requests that nobody would make: its answers stay within its own document, and it goes on.

Bodies come from the document's schemas, changed in places; heads and whole requests from their own grammar, changed in
places. Some seconds of both.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipvsw.client import Client
from ipvsw.daemon.api.listener import Limits
from ipvsw.daemon.api.openapi import openapi
from ipvsw.daemon.api.operations import ROUTES
from tests.support.patience import LIMIT
from tests.unit.daemon.fake_manager import Daemon

EXAMPLES = 150
DOCUMENT = openapi()
SCHEMAS = DOCUMENT["components"]["schemas"]
ALWAYS = {400, 403, 404, 405, 413}  # what every operation may answer, whatever the document says
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("fuzz") / "api.sock", limits=Limits(head=1, body=1, answer=1))
    yield daemon
    daemon.close()


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What the schema allows, as far as it is made of what ours are."""
    if "$ref" in schema:
        return values(SCHEMAS[schema["$ref"].rpartition("/")[2]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(*map(values, schema["anyOf"]))
    match schema.get("type"):
        case "object":
            return st.fixed_dictionaries(
                {}, optional={key: likely(key, inner) for key, inner in schema.get("properties", {}).items()}
            )
        case "array":
            return st.lists(values(schema.get("items", {})), max_size=3)
        case "integer":
            return st.integers()
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "string":
            return st.text(max_size=20)
    return JSON


LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "master": st.just("eth0"),
    "name": st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    "netns": st.just("ns0") | st.just("/run/netns/ns0") | st.just("pid:1"),
    "addresses": st.lists(st.ip_addresses().map(lambda one: f"{one}/{one.max_prefixlen}"), max_size=3),
    "gateway": st.lists(st.ip_addresses().map(str), max_size=2),
    "mtu": st.integers(68, 9000),
}


def likely(key: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What is right more often than not, so that something gets past the first key."""
    return st.one_of(LIKELY.get(key, values(schema)), values(schema)) | JSON


def exchange(daemon: Daemon, request: bytes, *, ended: bool = False) -> tuple[int, bytes]:
    """Status and body of the final answer; 0 if the daemon has closed without one. `ended`: say that no more comes."""
    data = b""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.settimeout(LIMIT)
        sock.connect(str(daemon.path))
        sock.sendall(request)
        if ended:
            sock.shutdown(socket.SHUT_WR)
        while more := sock.recv(65536):
            data += more
    while data.startswith(b"HTTP/1.1 100"):
        data = data.partition(b"\r\n\r\n")[2]
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if data else (0, b"")


@FUZZ
@given(data=st.data())
def test_every_answer_is_in_the_document(daemon: Daemon, caplog: pytest.LogCaptureFixture, data: st.DataObject) -> None:
    route = data.draw(st.sampled_from([each for each in ROUTES if not each.streams]))  # those have no end
    name = data.draw(st.sampled_from(["lan", "ipvl0", "ipvl1", "dmz/ipvl0"]) | st.text(max_size=10))
    target = route.path.replace("{name}", quote(name, safe=""))
    body: bytes | None = None
    if route.takes is not None:
        operation = DOCUMENT["paths"][route.path][route.method.lower()]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = json.dumps(data.draw(values(schema) | JSON)).encode()
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    head = f"{route.method} {target} HTTP/1.1\r\nHost: x\r\n{length}\r\n"
    status, content = exchange(daemon, head.encode() + (body or b""))
    assert status in {route.status, *route.errors, *ALWAYS}
    assert content == b"" if status == 204 else json.loads(content) is not None
    if status >= 400:
        error = json.loads(content)["error"]
        assert error and "\n" not in error
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


HEADERS = st.sampled_from(
    [
        b"Host: x",
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Content-Encoding: gzip",
        b"Content-Encoding: br",
        b"Expect: 100-continue",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Connection: keep-alive",
        b"Content-Type: multipart/form-data; boundary=x",
        b"X: " + b"y" * 5000,
        b" folded",
    ]
) | st.binary(max_size=20)
LINES = st.builds(
    lambda method, target, version: method + b" " + target + b" HTTP/" + version,
    st.sampled_from([b"GET", b"POST", b"PATCH", b"DELETE", b"HEAD", b"CONNECT", b"OPTIONS", b"PRI"]),
    st.sampled_from(
        [b"/v1/switches", b"/v1/ports", b"/v1/ports/x/fd", b"/v1/reload", b"*", b"http://y/v1/stats", b"//"]
    )
    | st.binary(max_size=20),
    st.sampled_from([b"1.1", b"1.0", b"0.9", b"2.0"]) | st.binary(max_size=3),
)
REQUESTS = st.builds(
    lambda line, headers, body: b"\r\n".join([line, *headers]) + b"\r\n\r\n" + body,
    LINES,
    st.lists(HEADERS, max_size=50),
    st.sampled_from([b"", b"{}", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"\x1f\x8b\x08"]) | st.binary(max_size=40),
)


@FUZZ
@given(request=REQUESTS | st.binary(max_size=200))
def test_the_daemon_outlives_every_request(daemon: Daemon, caplog: pytest.LogCaptureFixture, request: bytes) -> None:
    status, _ = exchange(daemon, request, ended=True)
    assert status < 500
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


def test_afterwards_it_answers(daemon: Daemon) -> None:
    assert len(Client(str(daemon.path)).switches()) == 2
