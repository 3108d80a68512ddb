"""`ipvswd` as its users run it: a process with a configuration file, and `ipvsw` beside it.

The executables are this interpreter's own package unless IPVSWD and IPVSW (words separated by
spaces) say otherwise.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import leftovers
from tests.support.patience import LIMIT, until
from tests.support.topology import exec_in

ROOT = Path(__file__).resolve().parents[2]
IO = os.environ.get("IPVSW_IO", "auto")  # how the daemon is to read and write its ports


def words(variable: str, module: str) -> list[str]:
    if given := os.environ.get(variable):
        return shlex.split(given)
    return [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())"]


def tool_at(socket_path: Path) -> list[str]:
    """The words of `ipvsw` before a command, for the daemon with that socket."""
    return [*words("IPVSW", "ipvsw.cli"), "--socket", str(socket_path)]


def port(name: str, netns: str, addresses: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """A [[switch.port]] table."""
    table: dict[str, Any] = {"name": name, "netns": netns, **more}
    if addresses:
        table["addresses"] = list(addresses)
    return table


def switch(master: str, netns: str, ports: Sequence[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
    """A [[switch]] table."""
    return {"name": "lan", "master": master, "netns": netns, **more, "port": list(ports)}


def toml(
    socket_path: Path,
    switches: Sequence[dict[str, Any]],
    workers: int = 1,
    io: str | None = None,
    coalesce: bool = True,
    state: Path | None = None,
) -> str:
    """The text of a configuration file."""
    lines = [
        "[daemon]",
        f'socket = "{socket_path}"',
        *([f'state = "{state}"'] if state else []),
        f"workers = {workers}",
        f'io = "{io or IO}"',
    ]
    lines.append(f"coalesce = {str(coalesce).lower()}")
    for table in switches:
        lines += ["", "[[switch]]", *_keys(table)]
        for one in table.get("port", ()):
            lines += ["", "[[switch.port]]", *_keys(one)]
    return "\n".join(lines) + "\n"


def _keys(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in table.items() if key != "port"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """A running `ipvswd`. As a context manager it is stopped, and its exit status asserted, at the end."""

    def __init__(
        self,
        *switches: dict[str, Any],
        home: str | None = None,
        workers: int = 1,
        io: str | None = None,
        coalesce: bool = True,
        started: bool = True,
        keeps: bool = False,
    ) -> None:
        """`keeps`: what is added at run time outlives an orderly stop."""
        self.directory = tempfile.TemporaryDirectory(prefix="ivt")
        self.socket = Path(self.directory.name, "api.sock")
        self.config = Path(self.directory.name, "ipvsw.toml")
        self.keeper = Path(f"{self.socket}.keeper")  # the socket of the process that holds the ports' descriptors
        self.state = Path(self.directory.name, "state", "state.json")
        self.config.write_text(toml(self.socket, switches, workers, io, coalesce, self.state if keeps else None))
        self.home = home
        self.log = Path(self.directory.name, "log")
        self.process: subprocess.Popen[bytes] | None = None
        if started:
            self.start()

    def start(self, *more: str) -> None:
        command = [*words("IPVSWD", "ipvsw.daemon.main"), "--config", str(self.config), *more]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                exec_in(self.home, *command) if self.home else command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is not None and self.log.exists():
            print(f"--- ipvswd said:\n{self.said()[-4000:]}", file=sys.stderr)
        try:
            if kind is None and self.process is not None:
                self.stop()
        finally:
            self.close()

    def close(self) -> None:
        """However it is: gone, with its files. A process that has to be asked twice is killed."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        end_keeper(self.keeper)
        self.directory.cleanup()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, *, limit: float = LIMIT) -> None:
        """SIGTERM, and the clean end that has to follow."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(limit)
        self.process = None
        assert status == 0, f"ipvswd ended with {status}: {self.said()[-2000:]}"
        assert not self.socket.exists(), "the API socket is left"
        until(lambda: not self.keeper.exists(), "the keeper goes")

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def call(self, method: str, path: str, body: Any = None, timeout: float = LIMIT) -> tuple[int, Any]:
        """One request to the API: status and decoded JSON."""
        connection = _UnixConnection(self.socket, timeout)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if content else None
        finally:
            connection.close()

    def cli(self, *arguments: str, check: bool = True) -> str:
        """What `ipvsw` says."""
        command = [*tool_at(self.socket), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        assert not check or done.returncode == 0, f"ipvsw {' '.join(arguments)}: {done.returncode}: {done.stderr}"
        return done.stdout

    def get(self, path: str) -> list[dict[str, Any]]:
        status, answer = self.call("GET", path)
        assert status == 200, f"{path}: {status}: {answer}"
        found: list[dict[str, Any]] = answer
        return found

    def show(self) -> list[dict[str, Any]]:
        """What `ipvsw show --json` prints, without starting a process for it."""
        return self.get("/v1/switches")

    def port(self, name: str) -> dict[str, Any]:
        return next(p for s in self.show() for p in s["ports"] if p["name"] == name)

    def stats(self) -> list[dict[str, Any]]:
        return self.get("/v1/stats")

    def wait(self, *, states: Sequence[str] = ("up",), limit: float = LIMIT) -> Daemon:
        """Until every switch and every port is in one of `states`. A port that has just been added, or waits for its
        master, is not "waiting" yet."""
        missing: list[str] = []
        ports = self.config.read_text().count("[[switch.port]]")

        def settled() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"ipvswd ended with {self.process.returncode}: {self.said()[-3000:]}"
            try:
                shown = self.show()
            except (FileNotFoundError, ConnectionError):
                return False
            others = (p for s in shown for p in s["ports"] if p["state"] not in states or is_new(p))
            missing[:] = [f"{p['name']} is {p['state']} {p['reason']}" for p in others]
            return bool(shown) and not missing and all(s["state"] == "up" for s in shown)

        try:
            # Being asked about a thousand ports all the time would keep the daemon from bringing them up.
            until(settled, "the ports are up", every=0.05 if ports < 100 else 0.5, limit=limit)
        except AssertionError as error:
            said = self.said()[-3000:]
            self.close()
            raise AssertionError(f"{error}: {missing[:5]}\n{said}") from None
        return self

    def bpf(self) -> tuple[set[int], set[int]]:
        """Ids of the BPF programs and maps that the process holds by an fd."""
        return leftovers.bpf_held_by(self.pid)

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss(self) -> int:
        """Resident memory in bytes."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found
        return int(found[1]) * 1024

    def switches(self) -> int:
        """How often its threads have been woken: voluntary context switches."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.MULTILINE)
            assert found
            total += int(found[1])
        return total

    def cpu_ns(self) -> int:
        """CPU time of all its threads in ns."""
        return cpu_ns(self.pid)


def is_new(port: dict[str, Any]) -> bool:
    """Whether it is not known yet if it has to wait for a namespace or a machine."""
    return port["state"] == "waiting" and (not port["reason"] or port["reason"].startswith("for the master"))


def take_over(daemon: Daemon) -> None:
    """A successor, and the orderly end of the one before, which undoes nothing."""
    before = daemon.process
    assert before is not None
    daemon.start("--takeover")
    assert before.wait(LIMIT) == 0, daemon.said()
    daemon.wait()


def again(daemon: Daemon) -> None:
    """kill -9, and another start."""
    daemon.kill()
    daemon.start()
    daemon.wait()


FOLLOWED: Mapping[str, Callable[[Daemon], None]] = {"restart": take_over, "kill": again}
"""The ways in which another daemon goes on."""


def end_keeper(path: Path) -> None:
    """Have the keeper end that a killed daemon has left, and what it holds go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        if connection.connect_ex(str(path)) == 0:
            connection.send(b"end")
            connection.settimeout(LIMIT)
            connection.recv(1)


def cpu_ns(pid: int) -> int:
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def refused(*switches: dict[str, Any], home: str | None = None) -> tuple[int, str]:
    """Run a daemon that has to end by itself: exit status and what it said."""
    one = Daemon(*switches, home=home)
    try:
        assert one.process is not None
        return one.process.wait(LIMIT), one.said()
    finally:
        one.close()
