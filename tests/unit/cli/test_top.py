"""`ipvsw top`: rates from counters, what fits on a terminal, and keys."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ipvsw import cli
from ipvsw.capture.flows import Flow
from ipvsw.cli.diagnose.flows import Seen
from ipvsw.cli.diagnose.top import _room, screen
from ipvsw.rates import SORTS, difference, short
from tests.support.patience import LIMIT
from tests.support.programs.terminal import Terminal
from tests.unit.daemon.fake_manager import Daemon


def traffic(rx: int = 0, tx: int = 0, **outcomes: int) -> dict[str, Any]:
    return {
        "rx_frames": rx,
        "rx_bytes": 100 * rx,
        "tx_frames": tx,
        "tx_bytes": 1000 * tx,
        "outcomes": {"to_port": 0, "drop_full": 0, "guard_arp": 0, "limit_rate": 0} | outcomes,
    }


def stats(**ports: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "lan", "master": traffic(), "host": traffic(), "ports": ports}]


BEFORE = stats(a=traffic(10, 0), b=traffic(0, 10, drop_full=5))
AFTER = stats(a=traffic(30, 0, guard_arp=20), b=traffic(0, 50, drop_full=15, limit_rate=4, to_port=9), c=traffic(2))


def test_rates_are_what_was_counted_between_two_readings() -> None:
    found = difference(BEFORE, AFTER, 2.0)
    assert [tuple(row) for row in found.rows] == [
        ("lan/master", 0, 0, 0, 0, 0, ""),
        ("lan/a", 10, 8000, 0, 0, 10, "guard_arp"),
        ("lan/b", 0, 0, 20, 160_000, 7, "drop_full"),
        ("lan/c", 1, 800, 0, 0, 0, ""),
    ]
    assert found.drops == [("guard_arp", 10), ("drop_full", 5), ("limit_rate", 2)]


def worker(cpu: float, flood: int = 0, router: int = 0, snooper: int = 0) -> dict[str, Any]:
    return {"cpu": cpu, "flood": flood, "router": router, "snooper": snooper}


def loaded(name: str, *workers: dict[str, Any]) -> dict[str, Any]:
    return stats()[0] | {"name": name, "workers": list(workers)}


def test_workers_are_as_busy_as_they_were_between_two_readings() -> None:
    before = [loaded("lan", worker(1.0), worker(2.0, 9)), loaded("dmz", worker(7.0))]
    after = [
        loaded("lan", worker(2.0), worker(2.5, 4, 1)),
        loaded("dmz", worker(11.0, snooper=3)),
        loaded("new", worker(9)),
    ]
    loads = difference(before, after, 4.0).loads
    assert [tuple(load) for load in loads] == [
        ("dmz", (1.0,), 0, 0, 3),
        ("lan", (0.25, 0.125), 4, 1, 0),
        ("new", (0.0,), 0, 0, 0),
    ]
    assert difference(after, before, 1.0).loads[0].cpu == (0.0, 0.0)  # another daemon's
    assert difference(BEFORE, AFTER, 1.0).loads == []  # an older one's


def test_counters_that_begin_anew_are_no_negative_rate() -> None:
    (_, a, *_) = difference(AFTER, BEFORE, 1.0).rows
    assert (a.rx_frames, a.drops) == (10, 0)


def test_every_order_has_its_first() -> None:
    rows = difference(BEFORE, AFTER, 2.0).rows
    first = {key: sorted(rows, key=order)[0].name for key, (_, order) in SORTS.items()}
    assert first == {"n": "lan/a", "r": "lan/a", "t": "lan/b", "d": "lan/a"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.4, "0"),
        (12, "12"),
        (999, "999"),
        (999.9, "1.0k"),
        (3_400, "3.4k"),
        (120e6, "120M"),
        (25e9, "25G"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("flows", [0, 5])
@pytest.mark.parametrize("ports", [1, 1000])
def test_it_fits_on_80_by_24(ports: int, flows: int) -> None:
    many = {
        f"port-with-a-long-name-{k}": traffic(k, k, guard_arp=k % 2, drop_full=1, limit_rate=1) for k in range(ports)
    }
    event = {"time": 0.0, "event": "state", "text": "switch lan: " + "a long line " * 20}
    console = Console(width=80, height=24, file=io.StringIO(), record=True)
    found = difference([], [stats(**many)[0] | loaded(name, worker(1), worker(2)) for name in ("lan", "dmz", "x")], 1.0)
    found = found._replace(rows=difference([], stats(**many), 1.0).rows)
    flow = Flow(
        "lan/port-with-a-long-name", "TCP [fd00:1111:2222:3333::1]:443 > [fd00:1111:2222:3333::2]:50000", 9e9, 9e9
    )
    seen = Seen([flow] * flows, 0.5) if flows else None
    console.print(screen(found, "r", _room(24, found, seen), (event,) * 4, seen))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24 and all(len(line) <= 80 for line in lines)
    assert all(word in lines[1] for word in ("PORT", "RX/s", "RX bit/s", "TX/s", "TX bit/s", "DROPS/s", "REASON"))
    assert f"{ports + 1} interfaces by rx" in lines[0]


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path / "api.sock")
    yield made
    made.close()


def test_without_a_terminal_it_is_one_table(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([f"--socket={daemon.path}", "top", "--interval", "0.1", "--sort", "name"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+/\w+)", out, re.MULTILINE) == [
        "dmz/ipvl0",
        "dmz/master",
        "lan/ipvl0",
        "lan/ipvl1",
        "lan/master",
    ]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--sort", "size"], "--sort: size is none of name, rx, tx, drops"),
        (["--interval", "0"], "--interval: 0 is not between 0.1 and 3600 seconds"),
        (["--interval", "soon"], "--interval: soon is not between 0.1 and 3600 seconds"),
        (["lan"], "lan: one word too many"),
    ],
)
def test_usage(daemon: Daemon, words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([f"--socket={daemon.path}", "top", *words]) == 2
    assert capsys.readouterr().err == f"ipvsw: top: {error} (see ipvsw top --help)\n"


@pytest.fixture
def terminal(daemon: Daemon) -> Iterator[Terminal]:
    made = Terminal(daemon.path)
    yield made
    made.close()


def test_keys_order_and_quit(terminal: Terminal) -> None:
    terminal.wait("interfaces by rx")
    terminal.press("d")
    terminal.wait("interfaces by drops")
    terminal.press("x")
    terminal.press("n")
    terminal.wait("interfaces by name")
    terminal.press("q")
    assert terminal.process.wait(LIMIT) == 0


def test_it_ends_with_the_daemon(terminal: Terminal, daemon: Daemon) -> None:
    terminal.wait("lan/ipvl0")
    daemon.path.unlink()
    assert terminal.process.wait(LIMIT) == 1
    terminal.wait("no daemon answers there")


def test_readings_are_left_as_they_are() -> None:
    kept = copy.deepcopy(AFTER)
    difference(BEFORE, AFTER, 1.0)
    assert kept == AFTER
