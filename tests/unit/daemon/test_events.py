"""What happens, for those who watch: from a line of the log to a client of the API."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvsw import cli
from ipvsw.client import ApiError, Client
from ipvsw.daemon import events
from ipvsw.daemon.events import QUEUE, WATCHERS, Events
from ipvsw.model import Refused
from ipvsw.status import Event
from tests.support.patience import LIMIT, until
from tests.unit.daemon.fake_manager import Daemon

log = logging.getLogger("ipvsw")


def happen(text: str = "port lan/a: up", event: Event = Event.STATE, **about: str) -> None:
    log.debug("%s", text, extra={"event": event, "switch": "lan", "port": "a", **about})


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon(tmp_path / "api.sock")
    yield found
    found.close()


async def test_a_watcher_gets_values() -> None:
    hub = Events()
    happen("before")
    with hub.watch() as watcher:
        happen(reason="up")
        log.info("no event")
        happen("switch lan: port a has 10.0.0.1", Event.BOUND, address="10.0.0.1")
        found = await anext(aiter(watcher))
    assert [(one.event, one.switch, one.port, one.address, one.reason) for one in found] == [
        ("state", "lan", "a", "", "up"),
        ("bound", "lan", "a", "10.0.0.1", ""),
    ]
    assert found[1].text == "switch lan: port a has 10.0.0.1"


async def test_nobody_watches_and_nothing_is_made(caplog: pytest.LogCaptureFixture) -> None:
    hub, level = Events(), log.level
    with hub.watch(), hub.watch():
        assert log.isEnabledFor(logging.DEBUG)
    assert (log.level, hub in log.handlers) == (level, False)


async def test_a_slow_watcher_is_told_what_it_missed() -> None:
    with Events().watch() as watcher:
        for number in range(QUEUE + 5):
            happen(str(number))
        found = await anext(aiter(watcher))
    assert (found[0].event, found[0].text) == ("lost", "5 events were lost: this reader was too slow")
    assert [one.text for one in found[1:]] == [str(number) for number in range(5, QUEUE + 5)]


async def test_an_empty_batch_keeps_a_quiet_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEPALIVE", 0.05)
    with Events().watch() as watcher:
        assert await anext(aiter(watcher)) == []


async def test_there_are_not_too_many() -> None:
    hub = Events()
    held = [hub.watch() for _ in range(WATCHERS)]
    for one in held:
        one.__enter__()
    with pytest.raises(Refused, match="32 watchers already"), hub.watch():
        pass
    for one in held:
        one.__exit__(None, None, None)


def test_server_sent_events(daemon: Daemon) -> None:
    """As the standard has them: a type, fields, and an empty line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMIT)
        connection.connect(str(daemon.path))
        connection.sendall(b"GET /v1/events HTTP/1.0\r\n\r\n")
        head = connection.recv(4096)
        assert b" 200 OK\r\n" in head and b"Content-Type: text/event-stream\r\n" in head
        happen(reason="up")
        name, data, *end = connection.recv(4096).decode().split("\n")
    assert (name, end) == ("event: state", ["", ""])
    found = json.loads(data.removeprefix("data: "))
    assert found.pop("time") > 0
    assert found == {"event": "state", "text": "port lan/a: up", "switch": "lan", "port": "a", "reason": "up"}


def test_a_client_watches_and_goes(daemon: Daemon) -> None:
    watching = Client(str(daemon.path)).events()
    hub = daemon.manager.events
    seen = []
    reader = threading.Thread(target=lambda: seen.append(next(watching)))
    reader.start()
    until(lambda: hub in log.handlers, "somebody watches")
    happen()
    reader.join(LIMIT)
    assert seen[0]["event"] == "state"
    watching.close()
    happen()  # what is written to nobody is noticed
    until(lambda: bool(happen() or hub not in log.handlers), "nobody watches")


def test_a_refusal_reaches_the_client(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WATCHERS", 0)
    with pytest.raises(ApiError, match="watchers already"):
        next(Client(str(daemon.path)).events())


@pytest.mark.parametrize(
    ("words", "lines"), [("", 3), ("lan", 2), ("a", 2), ("lan/a", 2), ("m0", 1), ("lan/b", 0), ("--json", 3)]
)
def test_the_command_prints_a_line_each(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], words: str, lines: int
) -> None:
    argv = ["--socket", str(daemon.path), "watch", *words.split()]
    codes = []
    command = threading.Thread(target=lambda: codes.append(cli.main(argv)))
    command.start()
    until(lambda: daemon.manager.events in log.handlers, "it watches")
    happen()
    happen("switch lan: port a has 10.0.0.1", Event.BOUND, address="10.0.0.1")
    log.info("master m0: up", extra={"event": Event.STATE, "master": "m0"})
    daemon.run(daemon._server.close())  # type: ignore[union-attr]
    daemon._server = None
    command.join(LIMIT)
    captured = capsys.readouterr()
    printed = captured.out.splitlines()
    assert (codes, len(printed), captured.err) == ([1], lines, "ipvsw: the daemon has ended\n")
    if words == "--json":
        assert [json.loads(line)["event"] for line in printed] == ["state", "bound", "state"]
    elif not words:
        assert printed[0].split()[1:] == ["state", "port", "lan/a:", "up"]
