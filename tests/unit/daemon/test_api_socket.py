"""The API's sockets, from first to last, and the client without a daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ipvsw import client
from ipvsw.daemon.api.listener import open_sockets
from ipvsw.daemon.api.server import serve
from ipvsw.linux.peercred import Peer
from ipvsw.model import Forbidden, Refused
from tests.support.patience import LIMIT
from tests.unit.daemon.fake_manager import Daemon, FakeManager


def test_socket_appears_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run" / "api.sock"
    daemon = Daemon(path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    finally:
        daemon.close()
    assert not path.exists()


def test_what_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    daemon = Daemon(path)
    try:
        assert len(client.Client(str(path)).switches()) == 2
    finally:
        daemon.close()


def test_a_living_daemon_is_not_replaced(daemon: Daemon, api_client: client.Client) -> None:
    with pytest.raises(Refused) as caught:
        Daemon(daemon.path)
    assert str(caught.value) == f"{daemon.path}: another daemon serves there"
    assert len(api_client.switches()) == 2


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(Refused) as caught:
        Daemon(path)
    assert str(caught.value) == f"{path}: exists and is not a socket"
    assert path.read_text() == "precious"


def test_an_impossible_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused) as caught:
        Daemon(tmp_path / "file" / "api.sock")
    assert str(caught.value).startswith(f"{tmp_path}/file/api.sock: ")


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("suffix", ["", ".fd"])
def test_descriptors_come_with_the_answer(tmp_path: Path, new_loop: Any, suffix: str) -> None:
    daemon = Daemon(tmp_path / "api.sock", new_loop)
    before = _pipes()
    try:
        handed, fds = client.Client(f"{daemon.path}{suffix}").hand_over("lan/vm 1")
        words = {"port": "lan/lan/vm 1", "kind": "tap", "mac": "02:00:00:00:00:01", "mtu": 1500, "queues": 1}
        assert handed == words
        assert [os.read(fd, 100) for fd in fds] == [b"lan/vm 1"]
        assert not os.get_inheritable(fds[0])
        os.close(fds[0])
        (_, _, peer) = daemon.manager.calls[-1]
        assert peer.uid == os.geteuid() and os.getegid() in peer.groups
        daemon.manager.error = Forbidden("vm1: is not allowed to this user")
        with pytest.raises(client.ApiError, match="is not allowed to this user") as refused:
            client.Client(f"{daemon.path}{suffix}").hand_over("vm1")
        assert refused.value.status == 403
        # What others than the receiver would keep open: nothing.
        assert _pipes() <= before
    finally:
        daemon.close()


def _pipes() -> set[str]:
    """The pipes that this process has an end of."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {one for one in found if one.startswith("pipe:")}


def test_the_socket_for_everybody_has_nothing_else(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "api.sock")
    try:
        assert stat.S_IMODE(os.stat(f"{daemon.path}.fd").st_mode) == 0o666
        for method, target in (("GET", "/v1/switches"), ("POST", "/v1/reload"), ("DELETE", "/v1/ports/a")):
            with pytest.raises(client.ApiError) as refused:
                client.Client(f"{daemon.path}.fd").request(method, target)
            assert refused.value.status == 404
    finally:
        daemon.close()
    assert not os.path.exists(f"{daemon.path}.fd")


def test_whom_a_list_means() -> None:
    alice = Peer(1000, frozenset({1000, 108}))
    assert alice.is_among([1000]) and alice.is_among(["1000"]) and alice.is_among(["@108"])
    assert not alice.is_among([]) and not alice.is_among([108, "@1001", "root", "@root", "no-such-user", "@no-such"])
    assert Peer(0).is_among(["root"]) and Peer(5, frozenset({0})).is_among(["@root"])
    assert not Peer(None).is_among(["root", 0]) and not Peer(None).is_master


def test_close_leaves_a_successor_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    first = Daemon(path)
    path.unlink()
    second = Daemon(path)
    try:
        first.close()
        assert len(client.Client(str(path)).switches()) == 2
    finally:
        second.close()


def test_under_uvloop(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "api.sock", uvloop.new_event_loop)
    try:
        assert client.Client(str(daemon.path)).reload()
    finally:
        daemon.close()
    assert not daemon.path.exists()


def test_close_twice(tmp_path: Path) -> None:
    async def work() -> None:
        server = await serve(FakeManager(), open_sockets(tmp_path / "api.sock"))
        await server.close()
        await server.close()

    asyncio.run(work())


def test_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    for _ in range(2):  # no file, then one that nobody listens on
        with pytest.raises(client.Unreachable) as caught:
            client.Client(str(path)).switches()
        assert str(caught.value) == f"{path}: no daemon answers there; is ipvswd running?"
        if not path.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                dead.bind(str(path))


def answer_with(path: Path, content: bytes | None) -> threading.Thread:
    """A server for one request that answers `content`, or nothing at all."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            if content is not None:
                connection.sendall(content)
            else:
                connection.recv(1)  # until the client gives up

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"220 mail ESMTP\r\n", "what answers there is not ipvswd"),
        (b"HTTP/1.1 two\r\n\r\n", "what answers there is not ipvswd"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "what answers there is not ipvswd"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "what answers there is not ipvswd (HTTP 200)"),
        (b"", "the connection was closed without an answer"),
        (None, "no answer within 0.1 s"),
    ],
)
def test_somebody_else_answers(tmp_path: Path, content: bytes | None, error: str) -> None:
    path = tmp_path / "api.sock"
    thread = answer_with(path, content)
    try:
        with pytest.raises((client.Unreachable, client.ApiError)) as caught:
            client.Client(str(path), timeout=0.1 if content is None else 10).switches()
        assert str(caught.value) == f"{path}: {error}"
    finally:
        thread.join(timeout=LIMIT)


def test_the_body_is_json_without_nulls(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Spy(client.Client):
        def request(self, method: str, target: str, body: object = None) -> Any:
            seen.append((method, target, json.loads(json.dumps(body))))

    Spy("/nowhere").set_mode("lan/ip vl0", mode=None, flag="vepa")
    assert seen == [("PATCH", "/v1/switches/lan%2Fip%20vl0", {"flag": "vepa"})]
