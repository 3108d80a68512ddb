"""`make run`: the lab shows what it promises, ends well, and leaves nothing."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import LIMIT

ROOT = Path(__file__).resolve().parents[2]
LAB = [str(Path(sys.executable).with_name("ipvsw-lab"))]
NAMES = ("router", "ns0", "ns1")


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        any(Path("/run/netns", name).exists() for name in NAMES), reason="a namespace of the lab's names exists"
    ),
]


def state() -> dict[str, object]:
    """What the lab touches on this machine, as far as it could leave something there."""
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    return {
        "namespaces": sorted(name for name in NAMES if Path("/run/netns", name).exists()),
        "links": sorted(link["ifname"] for link in links if link["ifname"].startswith("ipvsw-lab")),
        "files": sorted(path.name for path in Path("/run").glob("ipvsw-lab-*")),
        "processes": sorted(processes("ipvsw-lab").values()),
    }


NOTHING: dict[str, object] = {"namespaces": [], "links": [], "files": [], "processes": []}


def processes(word: str) -> dict[int, str]:
    """Command lines that have `word` in them, by process number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has gone meanwhile
            continue
        if word in line and "pytest" not in line:
            found[int(path.parent.name)] = line
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    assert state() == NOTHING
    yield
    left = state()
    for name in left["namespaces"]:  # type: ignore[attr-defined]
        subprocess.run(["ip", "netns", "del", name], check=False)
    assert left == NOTHING


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*LAB, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read its lines until one has `text`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} was never said:\n{seen}")


def test_every_ping_is_answered_and_the_time_ends() -> None:
    process = start("--seconds", "6")
    output, errors = finish(process)
    assert (process.returncode, errors) == (0, "")
    pings = [line for line in output.splitlines() if line.startswith("ping ")]
    assert len(pings) == 14
    assert all(" answered " in line for line in pings)
    assert any(line.startswith("ipvl1") and "fd00::3" in line for line in output.splitlines())
    assert "ip netns exec ns0 bash" in output
    assert "ipvsw --socket /run/ipvsw-lab-" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["$ ", "ping ", "PORT "])
def test_a_signal_ends_it_well_at_any_moment(number: signal.Signals, moment: str) -> None:
    process = start()
    wait_for(process, moment)
    process.send_signal(number)
    output, errors = finish(process)
    assert (process.returncode, errors) == (0, ""), output


def test_interrupting_make_on_a_terminal_is_no_error() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execvp("make", ["make", "run"])
    seen, interrupted = b"", False
    deadline = time.monotonic() + LIMIT
    try:
        while time.monotonic() < deadline:
            if terminal in select.select([terminal], [], [], 0.5)[0]:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:  # the other side has closed it
                    break
            if not interrupted and b"DROPS" in seen:
                os.write(terminal, b"\x03")
                interrupted = True
    finally:
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    assert interrupted, seen.decode()
    assert os.waitstatus_to_exitcode(status) == 0, seen.decode()


def test_a_daemon_that_dies_is_told() -> None:
    process = start()
    wait_for(process, "PORT ")
    (daemon,) = processes("ipvswd --config /run/ipvsw-lab-")
    os.kill(daemon, signal.SIGKILL)
    _, errors = finish(process)
    assert process.returncode == 1
    assert "lab: ipvswd ended with exit code -9" in errors


def test_somebody_elses_namespace_is_left_alone() -> None:
    subprocess.run(["ip", "netns", "add", "ns1"], check=True)
    try:
        identity = os.stat("/run/netns/ns1").st_ino
        process = start()
        _, errors = finish(process)
        assert process.returncode == 1
        assert errors == 'lab: the namespace "ns1" exists already: the lab needs that name and leaves yours alone\n'
        assert os.stat("/run/netns/ns1").st_ino == identity
    finally:
        subprocess.run(["ip", "netns", "del", "ns1"], check=True)
