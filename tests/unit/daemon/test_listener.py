"""What a connection to the API may take: of time, of memory, and how many there may be."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.client import ApiError, Client
from ipvsw.daemon.api.listener import Admission, Limits
from ipvsw.linux.peercred import Peer
from tests.support.patience import LIMIT, until
from tests.unit.daemon.fake_manager import Daemon

LIMITS = Limits(masters=4, head=0.3, body=0.3, answer=0.3)
USER = 65534


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is out of others' reach
        os.chmod(directory, 0o711)
        daemon = Daemon(Path(directory, "api.sock"), request.param, LIMITS)
        yield daemon
        daemon.close()


def connected(daemon: Daemon, suffix: str = "") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT)
    sock.connect(f"{daemon.path}{suffix}")
    return sock


def answer(sock: socket.socket) -> tuple[int, Any]:
    """Status and JSON of what comes until the daemon closes; 0 if nothing does."""
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
    except ConnectionResetError:  # what was sent was not read to its end
        pass
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body or "null")) if data else (0, None)


def is_answered(daemon: Daemon) -> bool:
    try:
        return len(Client(str(daemon.path)).switches()) == 2
    except ApiError as error:
        assert error.status == 429
        return False


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"GET /v1/switches HTTP/1.1\r\nHost: x\r\n",
        b"POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v1/ports HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
def test_what_is_not_finished_in_time_is_closed(daemon: Daemon, text: bytes) -> None:
    with connected(daemon) as sock:
        sock.sendall(text)
        assert answer(sock) == (0, None)
    assert daemon.manager.calls == []


def test_an_answer_that_is_not_read_is_dropped(daemon: Daemon) -> None:
    daemon.manager.switches = lambda: daemon_switches * 20_000  # type: ignore[method-assign]
    daemon_switches = type(daemon.manager)().switches()
    with connected(daemon) as sock:
        sock.sendall(b"GET /v1/switches HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(3 * LIMITS.answer)
        with pytest.raises(ValueError):  # what there is of it is no JSON
            answer(sock)


def test_a_connection_brings_one_request(daemon: Daemon) -> None:
    with connected(daemon) as sock:
        sock.sendall(b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        status, body = answer(sock)
    assert (status, len(body)) == (200, 2)


def test_no_more_than_so_many(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    held = [connected(daemon) for _ in range(LIMITS.masters)]
    with connected(daemon) as sock:
        assert answer(sock) == (429, {"error": "root has 4 connections already"})
    with pytest.raises(ApiError, match="root has 4 connections already"):
        Client(str(daemon.path)).delete_port("ipvl1")
    assert f"process {os.getpid()}: root has 4 connections already" in caplog.text
    for sock in held:
        sock.close()
    until(lambda: is_answered(daemon), "the daemon has noticed that they are closed")
    for _ in range(3 * LIMITS.masters):
        until(lambda: is_answered(daemon), "nothing is counted twice")


@pytest.mark.parametrize("method", ["GET /v1/switches", "DELETE /v1/ports/ipvl1", "POST /v1/reload"])
def test_no_body_where_none_belongs(daemon: Daemon, method: str) -> None:
    with connected(daemon) as sock:
        sock.sendall(f"{method} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
        status, body = answer(sock)
    assert (status, body["error"].endswith("takes no body")) == (400, True)
    assert daemon.manager.calls == []


def test_a_body_is_not_unpacked(daemon: Daemon) -> None:
    with connected(daemon) as sock:
        packed = bytes.fromhex("1f8b0800000000000003abae05004ca9a3bf02000000")  # gzip of {}
        head = f"POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        sock.sendall(head.encode() + packed)
        assert answer(sock)[0] == 400


def test_descriptors_are_left_for_the_daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipvsw.daemon.api.listener.resource.getrlimit", lambda _: (10, 10))
    for _ in range(3):
        with connected(daemon) as sock:
            assert answer(sock) == (503, {"error": "the daemon has too few descriptors left"})
    monkeypatch.undo()
    assert len(Client(str(daemon.path)).switches()) == 2


def test_who_was_allowed_what_is_logged(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ipvsw.daemon.api.listener.peer_of", lambda _: Peer(USER, pid=77))
    monkeypatch.setattr("os.geteuid", lambda: USER)
    caplog.set_level(logging.INFO, "ipvsw")
    _, fds = Client(f"{daemon.path}.fd").hand_over("vm1")
    os.close(fds[0])
    Client(str(daemon.path)).delete_port("ipvl1")
    logged = [record.getMessage() for record in caplog.records]
    start = f"API: user {USER}, process 77: "
    assert logged == [f"{start}has lan/vm1", f"{start}deletePort ipvl1"]


PEERS = st.sampled_from([Peer(0), Peer(1), Peer(2), Peer(None)])


@given(st.lists(st.tuples(st.booleans(), PEERS), max_size=60))
def test_admission_counts(steps: list[tuple[bool, Peer]]) -> None:
    limits = Limits(user=2, others=4, masters=3)
    admission, held = Admission(limits), []
    for come, peer in steps:
        others = [each for each in held if each.uid != 0]
        if not come:
            if peer in held:
                held.remove(peer)
                admission.release(peer)
        elif admission.admit(peer) is None:
            held.append(peer)
        elif peer.uid == 0:
            assert held.count(peer) == limits.masters
        else:
            assert held.count(peer) == limits.user or len(others) == limits.others
        assert held.count(Peer(0)) <= limits.masters
        assert sum(each.uid != 0 for each in held) <= limits.others
        assert all(held.count(each) <= limits.user for each in held if each.uid != 0)


def test_a_reserve_for_root() -> None:
    admission = Admission(Limits(reserve=64))
    assert admission.spares(Peer(1), 535, 600) and not admission.spares(Peer(1), 536, 600)
    assert admission.spares(Peer(0), 567, 600) and not admission.spares(Peer(0), 568, 600)
