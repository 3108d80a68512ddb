"""`ipvsw top`: rates from counters, what fits on a terminal, and keys."""

from __future__ import annotations

import copy
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ipvsw import cli
from ipvsw.cli.diagnose.top import screen
from ipvsw.rates import SORTS, difference, short
from tests.support.patience import LIMIT, until
from tests.unit.daemon.fake_manager import Daemon

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.parametrize("ports", [1, 1000])
def test_it_fits_on_80_by_24(ports: int) -> None:
    many = {
        f"port-with-a-long-name-{k}": traffic(k, k, guard_arp=k % 2, drop_full=1, limit_rate=1) for k in range(ports)
    }
    event = {"time": 0.0, "event": "state", "text": "switch lan: " + "a long line " * 20}
    console = Console(width=80, height=24, file=io.StringIO(), record=True)
    console.print(screen(difference([], stats(**many), 1.0), "r", 24 - 12, (event,) * 4))
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


class Terminal:
    """`ipvsw top` on a terminal of 80 by 24."""

    def __init__(self, daemon: Daemon) -> None:
        self.master, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        program = "import sys; from ipvsw.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "--socket", str(daemon.path), "top", "--interval", "0.1"]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True
        )
        os.close(inside)
        self.shown = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.master, 65536):
                self.shown += data
        except OSError:  # the other end is closed
            pass

    def wait(self, text: str) -> None:
        until(lambda: text.encode() in self.shown, f"{text} is shown: {self.shown[-2000:]!r}")

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(LIMIT)
        os.close(self.master)


@pytest.fixture
def terminal(daemon: Daemon) -> Iterator[Terminal]:
    made = Terminal(daemon)
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
