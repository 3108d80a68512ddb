"""`ipvsw web` in a real browser, in front of a real daemon."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import LIMIT
from tests.support.programs.browser import CHROMIUM, Browser
from tests.support.running import ROOT, Daemon, port, switch, words
from tests.support.topology import Lab, port4, port6

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

OTHER_SITE = "http://localhost:1/"


@contextlib.contextmanager
def serving(daemon: Daemon) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`ipvsw web`: the address that it prints, with the token."""
    command = [*words("IPVSW", "ipvsw.cli"), "--socket", str(daemon.socket), "web", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1], process
        finally:
            process.terminate()
            assert process.wait(LIMIT) == 0


@contextlib.contextmanager
def opened(daemon: Daemon) -> Iterator[Browser]:
    with serving(daemon) as (address, _), Browser() as browser:
        browser.go(address)
        ports = sum(len(one["ports"]) for one in daemon.show())
        browser.wait(f"document.documentElement.dataset.drawn === '{ports}'", "the ports are drawn")
        yield browser


@contextlib.contextmanager
def pinging(netns: str, address: str) -> Iterator[None]:
    command = ["nsenter", f"--net=/run/netns/{netns}", "ping", "-q", "-i", "0.02", address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def test_the_switch_is_drawn_as_it_is(lan: Daemon, lab: Lab) -> None:
    with opened(lan) as browser:
        assert browser.text("#switches h2") == "Switch lan"
        assert "l2 bridge, 2 ports" in browser.text(".bar") and "m0, one MAC address" in browser.text(".master")
        boxes = browser.evaluate("[...document.querySelectorAll('.port')].map((one) => one.innerText)")
        for k, box in enumerate(boxes, 1):
            assert f"ipvl{k} in {lab.ports[k - 1]}" in box and port4(k) in box and port6(k) in box
        browser.wait("document.querySelectorAll('.port.good').length === 2", "both are up")
        rows = browser.evaluate("[...document.querySelectorAll('#address-rows tr')].map((one) => one.innerText)")
        (row,) = [row for row in rows if row.startswith(f"{port4(1)}\t")]
        assert row.split("\t")[1:4] == ["lan/ipvl1", "owned", "the configuration"]
        browser.type("#address-filter", "the namespace")
        browser.wait(
            "[...document.querySelectorAll('#address-rows th')].every((one) => one.innerText.startsWith('fe80'))"
        )
        assert browser.errors == []


def test_rates_drops_and_events_move(lan: Daemon, lab: Lab) -> None:
    with opened(lan) as browser:
        with pinging(lab.ports[0], port4(2)):
            browser.wait("document.querySelectorAll('li.moving').length === 2", "both ports have rates")
            lan.cli("link", "set", "lan", "type", "ipvlan", "private")
            browser.wait("document.querySelector('.bar').innerText.includes('l2 private')", "the flag is shown")
            browser.wait("document.querySelector('#drops-rows').innerText.includes('drop_private')", "drops are told")
            browser.wait("document.querySelectorAll('#drops-chart rect').length > 0", "and the chart has bars")
        lab.ip(lab.ports[1], "link", "set", "ipvl2", "down")
        browser.wait("document.querySelector('.port.wait').innerText.includes('down')", "the port is down")
        assert "port lan/ipvl2: down" in browser.text("#event-rows")
        assert "port lan/ipvl2: down" in browser.evaluate("document.querySelector('#announced').textContent")
        lab.ip(lab.ports[1], "link", "set", "ipvl2", "up")
        browser.wait("document.querySelectorAll('.port.good').length === 2", "it is up again")
        assert browser.errors == []


def test_a_port_is_opened_and_a_frame_traced(lan: Daemon) -> None:
    with opened(lan) as browser:
        browser.click(".port")
        browser.wait("document.activeElement.id === 'port'", "the port's part has the focus")
        assert f"{port4(1)} (owned, config)" in browser.text("#port-facts")
        browser.click("#port-trace")
        browser.type("#trace [name=destination]", port4(2))
        browser.click("#trace-form button")
        browser.wait("document.querySelector('#trace-result').innerText.includes('delivered: to_port')")
        assert "lan/ipvl2: the frame as it was sent" in browser.text("#trace-result")
        browser.type("#trace [name=at]", "lan/nobody")
        browser.click("#trace-form button")
        browser.wait("document.querySelector('#trace-result .bad')?.innerText.includes('nobody')", "it is refused")
        assert [one for one in browser.errors if "/trace" not in one] == []


def test_with_the_keyboard_alone(lan: Daemon) -> None:
    with opened(lan) as browser:
        focus = "document.activeElement"
        for _ in range(20):
            browser.press("Tab")
            if browser.evaluate(f"{focus}.classList.contains('port')"):
                break
        assert browser.evaluate(f"{focus}.innerText").startswith("ipvl1")
        browser.press("ArrowRight")
        assert browser.evaluate(f"{focus}.innerText").startswith("ipvl2")
        browser.press("Home")
        browser.press("Enter")
        browser.wait(f"{focus}.id === 'port'", "the port is opened")
        browser.press("Escape")
        browser.wait(f"{focus}.innerText.startsWith('ipvl1')", "the focus is back")
        assert browser.evaluate("document.querySelector('#port').hidden")


def test_what_a_screen_reader_has(lan: Daemon) -> None:
    """Every control has a name, as the browser's own accessibility tree tells it."""
    with opened(lan) as browser:
        browser.send("Accessibility.enable")
        nodes = [one for one in browser.send("Accessibility.getFullAXTree")["nodes"] if not one["ignored"]]
        named = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes]
        controls = {"button", "link", "textbox", "searchbox", "combobox", "region", "navigation", "image", "table"}
        assert [one for one in named if one[0] in controls - {"table"} and not one[1].strip()] == []
        assert {"main", "navigation", "heading", "table", "status", "combobox"} <= {role for role, _ in named}
        assert ("heading", "Drops in the last 5 minutes") in named
        assert any(role == "button" and name.startswith("ipvl1") and port4(1) in name for role, name in named)


def contrast(browser: Browser, selector: str) -> float:
    """Of an element's text and what is behind it (WCAG 2.2, contrast ratio)."""
    colours = browser.evaluate(f"""(() => {{
        let one = document.querySelector({json.dumps(selector)});
        const text = getComputedStyle(one).color;
        while (one && getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)') one = one.parentElement;
        return [text, getComputedStyle(one ?? document.body).backgroundColor]
          .map((colour) => colour.match(/[\\d.]+/g).map(Number));
    }})()""")

    def luminance(colour: list[float]) -> float:
        parts = [c / 255 / 12.92 if c <= 10.31475 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_light_and_dark_can_be_read(lan: Daemon) -> None:
    with opened(lan) as browser:
        backs = set()
        for dark in (False, True):
            browser.dark(dark)
            backs.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
            for selector in (".port .name", ".port .quiet", ".port .rates", ".network", "nav a", "#drops-text", ".bar"):
                assert contrast(browser, selector) >= 4.5, (selector, dark)
        assert len(backs) == 2


def test_a_session_is_needed_and_kept(lan: Daemon) -> None:
    with serving(lan) as (address, process), Browser() as browser:
        bare, _, token = address.partition("#")
        browser.go(bare)
        browser.wait("!document.querySelector('#signin').hidden", "it asks for a token")
        browser.type("#token", "a" * 32)
        browser.click("#signin-form button")
        browser.wait(
            "document.querySelector('#signin-error').innerText.includes('not the one')", "a wrong one is refused"
        )
        browser.type("#token", token)
        browser.click("#signin-form button")
        browser.wait("document.documentElement.dataset.drawn === '2'", "the right one opens the page")
        assert process.stdout is not None and token not in process.stdout.readline()
        (cookie,) = browser.send("Network.getCookies", urls=[bare])["cookies"]
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["session"]) == (True, "Strict", True)
        assert browser.evaluate("document.cookie") == "" and browser.evaluate("localStorage.length") == 0
        browser.go(bare)
        browser.wait("document.documentElement.dataset.drawn === '2'", "the session is kept")
        browser.go(address.replace("127.0.0.1", "localhost"))  # another host: the cookie is not for it
        browser.wait("!document.querySelector('#signin').hidden", "the token was used already")


def test_the_policy_holds_in_the_browser(lan: Daemon) -> None:
    forbidden = (
        f"fetch({json.dumps(OTHER_SITE)})",
        "document.body.innerHTML = '<p>'",
        "document.createElement('script').text = 'window.got = 1'",
    )
    with opened(lan) as browser:
        for one in forbidden:
            tried = (
                f"(async () => {{ try {{ await ({one}); return 'done' }} catch (error) {{ return error.name }} }})()"
            )
            assert browser.evaluate(tried) == "TypeError", one
        assert any("Content Security Policy" in one for one in browser.errors)


def test_a_daemon_that_goes_is_told(lab: Lab) -> None:
    one = switch("m0", lab.host, [port("ipvl1", lab.ports[0], [f"{port4(1)}/16"])])
    with Daemon(one, home=lab.home) as daemon:
        daemon.wait()
        with opened(daemon) as browser:
            daemon.stop()
            browser.wait("document.querySelector('#connection').innerText.includes('does not answer')", "it is told")
            assert browser.evaluate("document.querySelector('#connection').className") == "bad"


def test_what_is_no_loopback_address_is_refused(lan: Daemon) -> None:
    for wrong in ("0.0.0.0:8417", "8417", "192.0.2.1:80", "127.0.0.1:99999", "127.0.0.1"):
        command = [*words("IPVSW", "ipvsw.cli"), "--socket", str(lan.socket), "web", "--listen", wrong]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 2 and f"{wrong} is no loopback address" in done.stderr


def test_without_a_daemon_there_is_no_page(tmp_path: Path) -> None:
    command = [*words("IPVSW", "ipvsw.cli"), "--socket", str(tmp_path / "api.sock"), "web", "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (1, "") and "no daemon answers" in done.stderr
