"""The page with a thousand ports: what is drawn, and what is drawn again."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ipvsw.status import Event, PortState, SwitchStatus
from tests.support.patience import LIMIT
from tests.support.programs.browser import CHROMIUM, Browser
from tests.support.running import ROOT, words
from tests.unit.daemon.fake_manager import LAN, Daemon, FakeManager

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

PORTS = 1000
log = logging.getLogger("ipvsw")
OBSERVE = """(() => {
  window.changed = 0;
  const seen = new MutationObserver((records) => { window.changed += records.length });
  seen.observe(document.querySelector('.ports'), { subtree: true, childList: true, characterData: true });
})()"""


class Crowd(FakeManager):
    down = ""  # the port that is

    def switches(self) -> tuple[SwitchStatus, ...]:
        one = LAN.ports[0]
        ports = (
            msgspec.structs.replace(one, name=name, state=PortState.DOWN if name == self.down else PortState.UP)
            for name in (f"p{k}" for k in range(PORTS))
        )
        return (msgspec.structs.replace(LAN, ports=tuple(ports)),)


@pytest.fixture
def crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setattr("tests.unit.daemon.fake_manager.FakeManager", Crowd)
    daemon = Daemon(tmp_path / "api.sock")
    yield daemon
    daemon.close()


def test_a_thousand_ports_are_drawn_and_one_is_drawn_again(crowd: Daemon) -> None:
    command = [*words("IPVSW", "ipvsw.cli"), "--socket", str(crowd.path), "web", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process, Browser() as browser:
        try:
            assert process.stdout is not None
            browser.go(process.stdout.readline().split()[-1])
            browser.wait(f"document.documentElement.dataset.drawn === '{PORTS}'", "all are drawn")
            assert browser.evaluate("document.querySelectorAll('.port.good').length") == PORTS
            assert browser.evaluate("document.querySelectorAll('#address-rows tr').length") == 200
            browser.evaluate(OBSERVE)
            manager = crowd.manager
            assert isinstance(manager, Crowd)
            manager.down = "p7"
            log.info("port lan/p7: down", extra={"event": Event.STATE, "switch": "lan", "port": "p7"})
            browser.wait("document.querySelector('.port.wait')?.innerText.startsWith('p7')", "one is down")
            assert browser.evaluate("window.changed") < 10
            browser.click("#address-more")
            browser.wait(f"document.querySelectorAll('#address-rows tr').length === {2 * PORTS}", "all addresses")
            assert browser.errors == []
        finally:
            process.terminate()
            process.wait(LIMIT)
