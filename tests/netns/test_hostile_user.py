"""What an unprivileged user of the same machine may do to a running daemon: nothing that others notice."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipvsw.daemon.api.listener import Limits
from tests.netns.daemons import MASTER, Daemon, Make, Spaces, port, switch
from tests.support.patience import LIMIT, patient, until
from tests.support.spaces import Namespace

USER = 65534
NOFILE = 600
CONNECTIONS = 1000
BODIES, BODY = 300, 1_000_000

# Arguments: the socket, how many connections, what each says. Prints a line, and holds so many until it is killed: what
# is closed it opens again.
HOLD = f"""
import os, resource, socket, sys, time
path, number, text = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
os.setgroups([]); os.setgid({USER}); os.setuid({USER})
def connected():
    one = socket.socket(socket.AF_UNIX)
    one.connect(path)
    try: one.send(text)
    except BrokenPipeError: pass
    return one
held = [connected() for _ in range(number)]
print("held", flush=True)
while True:
    held.append(connected())
    held.pop(0).close()
    time.sleep(0.01)
"""
# Arguments: the socket, how many requests, bytes of each one's body. Prints the status of each.
SEND = f"""
import os, socket, sys, threading
path, number, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([]); os.setgid({USER}); os.setuid({USER})
def ask():
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        head = b"GET /v1/ports/x/fd HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n" % size
        try:
            one.sendall(head + b"x" * size)
        except OSError: pass
        try: sys.stdout.write(one.recv(100).split()[1].decode() + "\\n")
        except OSError: sys.stdout.write("reset\\n")
for _ in range(number // 10):
    threads = [threading.Thread(target=ask) for _ in range(10)]
    for one in threads: one.start()
    for one in threads: one.join()
"""


@pytest.fixture
def daemon(home: Namespace) -> Iterator[Callable[[str], Daemon]]:
    """As that of test_daemon, in a directory that everybody can reach."""
    with tempfile.TemporaryDirectory(prefix="ivt") as directory, contextlib.ExitStack() as cleanup:
        os.chmod(directory, 0o755)

        def make(text: str) -> Daemon:
            made = Daemon(home, Path(directory), text)
            cleanup.callback(made.close)
            return made

        yield make


@contextlib.contextmanager
def holding(path: str, number: int, text: str) -> Iterator[None]:
    command = [sys.executable, "-c", HOLD, path, str(number), text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"held\n"
            yield
        finally:
            process.send_signal(signal.SIGKILL)


def pid(running: Daemon) -> int:
    assert running.process
    return running.process.pid


def descriptors(running: Daemon) -> int:
    return len(os.listdir(f"/proc/{pid(running)}/fd"))


def rss(running: Daemon) -> int:
    """Resident memory in bytes."""
    lines = Path(f"/proc/{pid(running)}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def test_a_thousand_half_open_connections(home: Namespace, netns: Spaces, daemon: Make) -> None:
    """Root is answered, ports are followed, and neither descriptors nor ports are lost."""
    space, other = netns(), netns()
    running = daemon(switch(port("p0", space, "10.7.0.1/24"))).start().until("up", "p0")
    resource.prlimit(pid(running), resource.RLIMIT_NOFILE, (NOFILE, NOFILE))
    index, before = running.port("p0")["index"], descriptors(running)
    with holding(f"{running.socket}.fd", CONNECTIONS, "GET /v1/ports/x/fd HTTP/1.1\r\n"):
        # A netlink handle of the daemon's own, with three descriptors, comes and goes.
        until(lambda: descriptors(running) >= before + Limits().user - 3, "connections are held")
        for mtu in range(1400, 1404):
            space.ip("link", "set", "p0", "mtu", str(mtu))
            start = time.monotonic()
            until(lambda: running.port("p0")["mtu"] == mtu, "the port is followed")  # noqa: B023
            assert time.monotonic() - start < patient(10)  # seconds; on an idle machine it is far below 1

        def add() -> None:
            added = running.client.add_port(master=MASTER, name="p1", netns=other.name, addresses=["10.7.0.2/24"])
            assert added["state"] == "up"

        for what, command in (("show", running.client.switches), ("stats", running.client.stats), ("link add", add)):
            start = time.monotonic()
            command()
            print(f"{what}: {time.monotonic() - start:.3f} s")
        assert (running.port("p0")["state"], running.port("p0")["index"]) == ("up", index)
        running.client.delete_port("p1")
        assert descriptors(running) <= before + Limits().user + 8
    until(lambda: descriptors(running) <= before + 3, "connections are closed")
    states = [line for line in running.log.read_text().splitlines() if "port lan/p0: " in line]
    assert [line.rpartition(" ")[2] for line in states] == ["up"]


def test_half_open_connections_end(home: Namespace, daemon: Make) -> None:
    running = daemon(switch()).start()
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as slow:
        for one, path in ((silent, f"{running.socket}.fd"), (slow, str(running.socket))):
            one.settimeout(LIMIT)
            one.connect(path)
        slow.send(b"GET /v1/switches HTTP/1.1\r\nX: ")
        assert silent.recv(1) == slow.recv(1) == b""


def test_bodies_take_no_memory(home: Namespace, daemon: Make) -> None:
    running = daemon(switch()).start()
    path = f"{running.socket}.fd"

    def send(number: int) -> list[str]:
        command = [sys.executable, "-c", SEND, path, str(number), str(BODY)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split()

    send(20)  # what is imported and allocated once
    before = rss(running)
    statuses = send(BODIES)  # 429: there were too many at a time
    assert len(statuses) == BODIES and set(statuses) <= {"400", "429"} and "400" in statuses
    assert rss(running) - before < 20 << 20
    # A body that never ends, held back by what its reader takes.
    with holding(path, 10, "GET /v1/ports/x/fd HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"):
        running.client.switches()
        assert rss(running) - before < 20 << 20


def test_a_name_prevents_no_start(home: Namespace, daemon: Make) -> None:
    """Whatever others have bound, the master can be served; but by one daemon at a time."""
    index = json.loads(home.ip("-j", "link", "show", "dev", MASTER))[0]["ifindex"]

    def squat() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"\0ipvsw/master/{index}")
        return sock

    with home.inside(squat):
        running = daemon(switch()).start()
        assert running.switch()["state"] == "up"
        status, lines = running.once("--socket", str(running.socket) + "2")
        assert (status, lines[-1]) == (2, f"ipvswd: switch[0].master: {MASTER} is already served by another ipvswd")
        assert running.process
        running.process.kill()
        running.process.wait()
        assert running.start().switch()["state"] == "up"


def test_what_is_exhausted_is_not_what_is_gone(home: Namespace, netns: Spaces, daemon: Make) -> None:
    """A device that can't be read for want of descriptors stays as it is."""
    space = netns()
    running = daemon(switch(port("p0", space, "10.7.0.1/24"))).start().until("up", "p0")
    index = running.port("p0")["index"]
    enough = resource.prlimit(pid(running), resource.RLIMIT_NOFILE)
    try:
        resource.prlimit(pid(running), resource.RLIMIT_NOFILE, (3, enough[1]))
        space.ip("link", "set", "p0", "mtu", "1400")
        said = "port lan/p0: cannot be read for now: "
        until(lambda: said in running.log.read_text(), "a reading fails")
    finally:
        resource.prlimit(pid(running), resource.RLIMIT_NOFILE, enough)
    shown = running.port("p0")
    assert (shown["state"], shown["index"], shown["reason"]) == ("up", index, "")
    space.ip("link", "set", "p0", "mtu", "1401")
    until(lambda: running.port("p0")["mtu"] == 1401, "the port is followed")
    assert running.port("p0")["index"] == index
