"""Namespaces, commands and patience for tests, under names that no other run uses. Fixtures: `conftest.py`."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ipvsw.linux.netlink import enter_namespace
from tests.support.patience import until

T = TypeVar("T")

SYS_CLONE3 = 435

_numbers = itertools.count(1)


def unique(prefix: str = "ivt") -> str:
    """A name that no other run uses, short enough for a network device (15 characters)."""
    return f"{prefix}{os.getpid():x}x{next(_numbers):x}"


def ip(*words: str) -> str:
    """`ip WORDS`, its standard output. Errors: CalledProcessError, with what ip said in its notes."""
    return _checked(["ip", *words])


def _checked(argv: list[str], **options: Any) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, **options)
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
        error.add_note(done.stderr.strip())
        raise error
    return done.stdout


class Namespace:
    """A network namespace under /run/netns, loopback up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._processes: list[subprocess.Popen[str]] = []
        self._exists = False

    def create(self) -> None:
        ip("netns", "add", self.name)
        self._exists = True
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> str:
        """`ip -n NAME WORDS`."""
        return ip("-n", self.name, *words)

    def run(self, *argv: str, **options: Any) -> str:
        """A command inside, to its end; its standard output."""
        return _checked(["ip", "netns", "exec", self.name, *argv], **options)

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """A command inside that goes on; killed at the end of the test."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
        process = subprocess.Popen(["ip", "netns", "exec", self.name, *argv], start_new_session=True, **options)
        self._processes.append(process)
        return process

    def inside(self, work: Callable[[], T]) -> T:
        """Call `work` in a thread that is inside."""
        results: list[T] = []
        failures: list[BaseException] = []

        def enter() -> None:
            try:
                with self.opened() as fd:
                    enter_namespace(fd)
                results.append(work())
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """An fd of the namespace."""
        fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def delete(self) -> None:
        """Kill what was started inside and delete the namespace. Idempotent."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()
        self._processes.clear()
        if self._exists:
            self._exists = False
            ip("netns", "del", self.name)


class Sleeper:
    """A process in a network namespace of its own; with `pid`, one that has this number, which must be free."""

    def __init__(self, pid: int | None = None) -> None:
        self.pid = _fork_as(pid) if pid else os.fork()
        if self.pid == 0:
            os.execvp("unshare", ["unshare", "--net", "sleep", "60"])
        home = os.stat("/proc/self/ns/net")
        until(
            lambda: not os.path.samestat(os.stat(f"/proc/{self.pid}/ns/net"), home),
            f"process {self.pid} has a namespace of its own",
        )

    def __enter__(self) -> Sleeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def links(self) -> list[str]:
        """Names of the devices in its namespace."""
        listing = Path(f"/proc/{self.pid}/net/dev").read_text().splitlines()[2:]
        return [line.split(":")[0].strip() for line in listing]

    def end(self) -> None:
        """Kill it and free its number. Idempotent."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _fork_as(pid: int) -> int:
    """As `os.fork`; the child has this number. Errors: OSError (EEXIST: it isn't free)."""
    number = ctypes.c_int32(pid)
    # struct clone_args of linux/sched.h: exit_signal is the fifth, set_tid and its size the ninth and tenth
    words = [0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(number), 1]
    arguments = (ctypes.c_uint64 * len(words))(*words)
    # PyDLL keeps the interpreter's lock, which the child could wait for without end.
    child = int(ctypes.PyDLL(None, use_errno=True).syscall(SYS_CLONE3, arguments, ctypes.sizeof(arguments)))
    if child < 0:
        raise OSError(ctypes.get_errno(), f"no process gets the number {pid}")
    return child
