"""The API over a real unix socket, with a daemon that is made up; and the client that is its other half."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import msgspec
import openapi_spec_validator
import pytest
import uvloop

from ipvsw import client
from ipvsw.config.file import ConfigError
from ipvsw.daemon.api import bodies, operations
from ipvsw.daemon.api.listener import open_sockets
from ipvsw.daemon.api.server import serve
from ipvsw.linux.peercred import Peer
from ipvsw.model import Flag, Forbidden, PortConfig, Refused
from ipvsw.status import AddressStatus, LeaseStatus, SwitchStats, SwitchStatus
from tests.support.patience import LIMIT
from tests.unit.daemon.fake_manager import DMZ, LAN, LEASES, STATS, Daemon, FakeManager


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("api") / "api.sock")
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    shared.manager.calls.clear()
    shared.manager.error = None
    return shared


@pytest.fixture
def api_client(daemon: Daemon) -> client.Client:
    return client.Client(str(daemon.path), timeout=10)


def refused(api_client: client.Client, method: str, target: str, body: object = None) -> tuple[int, str]:
    with pytest.raises(client.ApiError) as caught:
        api_client.request(method, target, body)
    return caught.value.status, str(caught.value)


# ---------------------------------------------------------------------------- reading


def test_switches(api_client: client.Client) -> None:
    assert msgspec.convert(api_client.switches(), tuple[SwitchStatus, ...]) == (LAN, DMZ)
    assert msgspec.convert(api_client.switch("dmz"), SwitchStatus) == DMZ


def test_stats(api_client: client.Client) -> None:
    assert msgspec.convert(api_client.stats(), tuple[SwitchStats, ...]) == STATS


def test_leases(api_client: client.Client) -> None:
    assert msgspec.convert(api_client.leases(), tuple[LeaseStatus, ...]) == LEASES


def test_addresses(api_client: client.Client) -> None:
    expected = tuple(one for port in LAN.ports for one in port.addresses)
    assert len(expected) == 3
    assert msgspec.convert(api_client.addresses(), tuple[AddressStatus, ...]) == expected


# ---------------------------------------------------------------------------- changing


def test_add_port(daemon: Daemon, api_client: client.Client) -> None:
    answer = api_client.add_port(
        master="eth0",
        name="ipvl2",
        netns="ns2",
        addresses=["10.0.0.4/24"],
        gateway=["10.0.0.1"],
        mtu=1400,
        flag="private",
        mode=None,
    )
    assert answer["state"] == "up"
    port = PortConfig(
        name="ipvl2",
        ifname="ipvl2",
        netns="ns2",
        addresses=(ip_interface("10.0.0.4/24"),),
        gateway=(ip_address("10.0.0.1"),),
        mtu=1400,
    )
    assert daemon.manager.calls == [("add_port", "eth0", port, None, Flag.PRIVATE)]


def test_delete_port(daemon: Daemon, api_client: client.Client) -> None:
    api_client.delete_port("ipvl1")
    api_client.delete_port("dmz/ipvl0")
    assert daemon.manager.calls == [("delete_port", "lan", "ipvl1"), ("delete_port", "dmz", "ipvl0")]
    several = 'port "ipvl0" is on several switches: say which of lan/ipvl0, dmz/ipvl0'
    assert refused(api_client, "DELETE", "/v1/ports/ipvl0") == (409, several)
    assert refused(api_client, "DELETE", "/v1/ports/x") == (404, 'there is no port "x"')
    assert refused(api_client, "DELETE", "/v1/ports/dmz%2Fipvl1") == (404, 'there is no port "dmz/ipvl1"')


def test_set_mode(daemon: Daemon, api_client: client.Client) -> None:
    assert api_client.set_mode("lan", flag="vepa")["flag"] == "vepa"
    api_client.set_mode("ipvl1", mode="l2")
    api_client.set_mode("dmz/ipvl0", flag="bridge")
    assert [call[1] for call in daemon.manager.calls] == ["lan", "lan", "dmz"]
    assert refused(api_client, "PATCH", "/v1/switches/x", {"flag": "vepa"}) == (
        404,
        'there is no switch, port or master "x"',
    )


def test_reload(daemon: Daemon, api_client: client.Client) -> None:
    assert api_client.reload() == ["attach lan/ipvl2", "detach lan/ipvl1"]
    daemon.manager.error = ConfigError("switch[0].mtu: unknown key")
    assert refused(api_client, "POST", "/v1/reload") == (409, "switch[0].mtu: unknown key")


# ---------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "text"),
    [
        ("GET", "/v1/switches/x", None, 404, 'there is no switch "x"'),
        ("GET", "/v2/switches", None, 404, "/v2/switches: no such path"),
        ("PUT", "/v1/switches", None, 405, "PUT /v1/switches: no such operation"),
        ("POST", "/v1/ports", None, 400, "line 1, column 1: Expecting value"),
        ("POST", "/v1/ports", [], 400, "the document: must be a table, not an array"),
        ("POST", "/v1/ports", {"name": "a"}, 400, "master: is missing"),
        (
            "POST",
            "/v1/ports",
            {"master": "eth0", "name": "a", "nets": "x"},
            400,
            "nets: unknown key; did you mean netns?",
        ),
        (
            "POST",
            "/v1/ports",
            {"master": "eth0", "name": "a", "mode": 3},
            400,
            "mode: must be a string, not an integer",
        ),
        (
            "POST",
            "/v1/ports",
            {"master": "eth0", "name": "a", "addresses": ["10.0.0.2/24", "10.0.0.300/24"]},
            400,
            'addresses[1]: "10.0.0.300/24" is not an IPv4 or IPv6 interface address',
        ),
        ("PATCH", "/v1/switches/lan", {}, 400, "mode or flag is missing"),
        ("PATCH", "/v1/switches/lan", {"flag": "x"}, 400, 'flag: "x" is not valid; use bridge, private or vepa'),
    ],
)
def test_refused(
    daemon: Daemon, api_client: client.Client, method: str, target: str, body: object, status: int, text: str
) -> None:
    assert refused(api_client, method, target, body) == (status, text)
    assert daemon.manager.calls == []


def test_refused_by_the_daemon(daemon: Daemon, api_client: client.Client) -> None:
    daemon.manager.refuse("eth9: there is no such device")
    assert refused(api_client, "POST", "/v1/ports", {"master": "eth9", "name": "a"}) == (
        409,
        "eth9: there is no such device",
    )


def test_a_fault_of_ours_is_json_too(daemon: Daemon, api_client: client.Client) -> None:
    daemon.manager.error = OSError(28, "No space left on device")
    status, text = refused(api_client, "POST", "/v1/reload")
    assert (status, text) == (500, "OSError: [Errno 28] No space left on device")


def test_too_large_a_body_is_refused(api_client: client.Client) -> None:
    body = {"master": "eth0", "name": "a", "addresses": ["10.0.0.2/24"] * 100_000}
    assert refused(api_client, "POST", "/v1/ports", body)[0] == 413


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_others_may_read_only() -> None:
    """Another user, let in by the file's mode."""
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from ipvsw.client import *\n"
        "c = Client(sys.argv[1]); c.switches()\n"  # so that all is imported that nobody else may read
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); print(len(c.switches()))\n"
        "for change in (c.reload, lambda: c.delete_port('ipvl1'), lambda: c.set_mode('lan', flag='vepa')):\n"
        "    try: change()\n"
        "    except ApiError as error: print(error.status)\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        path = Path(directory, "api.sock")
        daemon = Daemon(path)
        try:
            path.chmod(0o666)
            source = Path(client.__file__).parents[1]
            done = subprocess.run(
                [sys.executable, "-c", script, path, source], capture_output=True, text=True, timeout=LIMIT, check=False
            )
            assert (done.stdout.split(), done.stderr) == (["2", "403", "403", "403"], "")
            assert daemon.manager.calls == []
        finally:
            daemon.close()


# ---------------------------------------------------------------------------- the document


def test_openapi_is_valid_and_whole(api_client: client.Client) -> None:
    document = api_client.request("GET", "/openapi.json")
    openapi_spec_validator.validate(document)
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert {"SwitchStatus", "PortStatus", "SwitchStats", "AddPort"} <= set(schemas)
    assert set(schemas["HostAccess"]["enum"]) == {"none", "to-host", "from-host", "both"}
    assert set(schemas["L3Output"]["enum"]) == {"fast", "host"}
    assert {"host", "routed"} <= set(schemas["SwitchStats"]["properties"])
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(route.method, route.path) for route in operations.ROUTES}


def test_the_documentation_lists_every_operation() -> None:
    text = (Path(client.__file__).parents[1] / "docs/reference/api.md").read_text()
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(f"{route.method} {route.path}" for route in operations.ROUTES)


def test_a_port_to_attach_has_every_key_of_a_configured_one() -> None:
    attach = {one.name for one in msgspec.structs.fields(bodies.AddPort)}
    assert attach == {one.name for one in msgspec.structs.fields(PortConfig)} | {"master", "mode", "flag"}


# ---------------------------------------------------------------------------- the socket


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


# ---------------------------------------------------------------------------- the client alone


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
