"""What every measurement stands on: the lab of namespaces, the small C programs, and the words `End` and `Path`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from types import TracebackType

from tests.support.patience import LIMIT, until
from tests.support.running import Daemon
from tests.support.topology import Lab, exec_in, run

PROGRAMS = File(__file__).resolve().parents[1] / "programs"

CPUS = sorted(os.sched_getaffinity(0))
FIRST, SECOND = CPUS[:1], CPUS[1:2] or CPUS[:1]
"""The two CPUs that pinned measurements use; the same one on a machine with one."""


class Unavailable(Exception):
    """Something to measure can't be had here; says why."""


@dataclass(frozen=True)
class End:
    """Where frames begin or end: a device in a namespace. `mac` is what others send to."""

    netns: str
    device: str
    address: str
    mac: str


@dataclass(frozen=True)
class Path:
    """From one end to another. `pids` are the processes that carry the frames, none where the kernel does alone."""

    source: End
    sink: End
    pids: tuple[int, ...] = ()
    daemon: Daemon | None = None  # who can be asked, where it is ours
    beside: Path | None = None  # a second path through the same switch, for what is measured on two at once
    ask: Callable[[], Mapping[str, Mapping[str, float]]] | None = None  # a process of ours that is not the daemon
    lab: Lab | None = None  # where its master is, for who puts something on it too
    facts: Mapping[str, float] = field(default_factory=dict)  # what was measured while it was built


Builder = Callable[["Ground"], Mapping[str, Path]]
"""Builds one place: paths by name, alive as long as the ground. Errors: Unavailable."""


class Ground:
    """A lab (see tests/support/topology.py), the tools, and the places that were asked for, each built once.

    A context manager: what was built is gone with it."""

    def __init__(self, places: Mapping[str, Builder], seconds: float) -> None:
        self.places = places
        self.seconds = seconds  # of one measurement
        self.stack = contextlib.ExitStack()
        self._serving: set[str] = set()
        self._built: dict[str, Mapping[str, Path] | Unavailable] = {}

    def __enter__(self) -> Ground:
        try:
            self.directory = File(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="ivt")))
            self.lab = self.stack.enter_context(Lab(0))
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stack.close()

    def path(self, name: str) -> Path:
        """The path of that name; its first word is the place's. Errors: Unavailable."""
        place = name.split()[0]
        if place not in self._built:
            try:
                self._built[place] = self.places[place](self)
            except Exception as reason:  # whatever it was: other places are worth having
                self._built[place] = Unavailable(f"{place}: {str(reason) or type(reason).__name__}")
        built = self._built[place]
        if isinstance(built, Unavailable):
            raise built
        return built[name]

    def netns(self, name: str) -> str:
        """A new namespace."""
        full = f"{self.lab.prefix}-{name}"
        self.lab.add(full)
        return full

    def tool(self, name: str) -> str:
        """One of the C programs of tests/bench/programs, compiled. Errors: Unavailable."""
        target = self.directory / name
        if not target.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise Unavailable("there is no C compiler")
            run(compiler, "-O2", "-o", str(target), str(PROGRAMS / f"{name}.c"))
        return str(target)

    def up(self, end: End, prefix: int = 24) -> None:
        """The device in its namespace gets its address and is set up."""
        self.lab.ip(end.netns, "addr", "add", f"{end.address}/{prefix}", "dev", end.device)
        self.lab.ip(end.netns, "link", "set", end.device, "up")

    def end(self, netns: str, device: str, address: str) -> End:
        link = self.lab.link(netns, device)
        assert link is not None, f"no {device} in {netns}"
        return End(netns, device, address, link["address"])

    def iperf(self, netns: str) -> None:
        """iperf3 serves there, from the first time this is asked for. Errors: Unavailable."""
        if netns in self._serving:
            return
        if shutil.which("iperf3") is None:
            raise Unavailable("iperf3 is not installed")
        self.spawn(netns, "iperf3", "-s", "--logfile", "/dev/null")
        until(lambda: ":1451 " in self.lab.read(netns, "tcp") + self.lab.read(netns, "tcp6"), "iperf3 listens")
        self._serving.add(netns)

    def spawn(
        self, netns: str, *command: str, env: dict[str, str] | None = None, pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[str]:
        """A process that lives as long as the ground does, and is asked to end before it is killed."""
        child = subprocess.Popen(
            exec_in(netns, *command),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            pass_fds=pass_fds,
        )
        self.stack.callback(_end, child)
        return child


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def pinned(cpus: Sequence[int], *command: str) -> list[str]:
    """The words that run a command on these CPUs."""
    return ["taskset", "-c", ",".join(map(str, cpus)), *command]


@contextlib.contextmanager
def confined(pids: Sequence[int], cpus: Sequence[int]) -> Iterator[None]:
    """Every thread of these processes stays on these CPUs."""
    threads = [int(task) for pid in pids for task in os.listdir(f"/proc/{pid}/task")]
    before = {thread: os.sched_getaffinity(thread) for thread in threads}
    try:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cpus)
        yield
    finally:
        for thread, allowed in before.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, allowed)
