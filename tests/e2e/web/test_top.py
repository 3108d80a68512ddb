"""`ipvsw top` of a daemon that has something to do: its workers, and the busiest flows."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator

import pytest

from tests.support.patience import LIMIT, until
from tests.support.programs.terminal import Terminal
from tests.support.running import Daemon
from tests.support.sniff import raw
from tests.support.topology import WIRE_MAC, Lab, port4
from tests.support.wire.frames import udp4

WIRE = "10.1.0.254"


@pytest.fixture
def traffic(lab: Lab, lan: Daemon) -> Iterator[None]:
    """Two flows of ipvl1 to the wire: of two frames one is long."""
    stop = threading.Event()
    frames = [udp4(port4(1), WIRE, bytes(size), to=WIRE_MAC, ports=(size, 9)) for size in (100, 1000)]

    def send() -> None:
        with raw(lab.ports[0], "ipvl1") as device:
            while not stop.wait(0.001):
                for frame in frames:
                    device.send(frame)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("traffic")
def test_the_busiest_flows_are_shown_while_they_are_looked_at(lan: Daemon) -> None:
    def flows() -> list[str]:
        shown = lan.cli("top", "--once", "--flows", "--interval", "1")
        return re.findall(r"lan/ipvl1  (UDP \S+ > \S+)", shown)

    until(lambda: len(flows()) == 2, "both flows are shown")
    assert flows() == [f"UDP {port4(1)}:{size} > {WIRE}:9" for size in (1000, 100)]
    assert "FLOW" not in lan.cli("top", "--once", "--interval", "0.1")


@pytest.mark.usefixtures("traffic")
def test_a_key_shows_and_hides_the_flows(lan: Daemon) -> None:
    with contextlib.closing(Terminal(lan.socket)) as terminal:
        terminal.wait("interfaces by rx")
        assert b"FLOW" not in terminal.shown
        terminal.press("f")
        terminal.wait(f"UDP {port4(1)}:1000 > {WIRE}:9")
        terminal.press("f")
        until(lambda: b"FLOW" not in terminal.last(), "the flows are hidden")
        terminal.press("q")
        assert terminal.process.wait(LIMIT) == 0


@pytest.mark.usefixtures("traffic")
def test_what_the_workers_do_is_counted(lan: Daemon) -> None:
    (before,) = lan.stats()[0]["workers"]
    until(lambda: lan.stats()[0]["workers"][0]["cpu"] > before["cpu"], "the worker has had the CPU")
    assert before.keys() == {"cpu", "flood", "router", "snooper"}
    shown = lan.cli("top", "--once", "--interval", "0.1")
    assert re.search(
        r"^lan: CPU of workers \d+%   frames that wait: \d+ to copy, \d+ to route, \d+ to look at", shown, re.M
    )
